# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest mutants``: wrong kernels, and whether the contract rejects them.

Most of them are one kernel, which makes the mistake that it is told to; a mistake that cannot be
chosen in a running kernel is a patch. docs/MUTANTS.md tells how to add one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vm import matrix, nomemcg, report, series, verdict
from vm.errors import INCONCLUSIVE, USAGE, UserError
from vm.known import Known
from vm.results import NAME, Results
from vm.run import say
from vm.verdict import Answer, Judgement

HERE = Path(__file__).parent
ROOT = HERE.parent
SERIES = "6.1"
BAD = frozenset({"survived", "wrongly rejected", "inconclusive"})


@dataclass(frozen=True)
class Mutant:
    """A row of mutants.toml.

    :ivar number: what the kernel's parameter is set to.
    :ivar mistake: what its developer did wrong.
    :ivar kind: ``wrong``, ``deviation`` (only as-written clauses may reject it) or ``right``.
    :ivar clauses: one of them must reject it, at least.
    :ivar patch: a file in vm/patches on top of the reference port, which then does not build
        without memcg or without its v1; None if the number is all it takes.
    :ivar not_on: series on which it can be no mistake, and why.
    """

    number: int
    name: str
    mistake: str
    kind: str
    clauses: tuple[str, ...] = ()
    patch: str | None = None
    not_on: Mapping[str, str] = field(default_factory=dict)

    def kernel(self, name: str) -> str:
        """What it is run under, in the series of that name."""
        return f"{name}/mutants" + (f"#{self.number}" if self.number else "")

    def rejecting(self, judgement: Judgement) -> list[str]:
        """The clauses that reject it, the named ones first.

        What an as-written clause says against a kernel rejects a deviation only.
        """
        against = {row.clause.id for row in judgement.rows if row.state in {"broken", "silent"}}
        written = {row.clause.id for row in judgement.rows if row.clause.level == "as-written"}
        if self.kind == "deviation":
            against |= {row.clause.id for row in judgement.rows if row.state == "deviates"}
        else:
            against -= written
        named = [clause for clause in self.clauses if clause in against]
        return named + [
            row.clause.id for row in judgement.rows if row.clause.id in against - {*named}
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    :ivar state: ``killed`` (by a named clause), ``killed by another``, ``deviates``,
        ``left alone``, ``not applicable`` (then it was not run), or one of :data:`BAD`.
    :ivar by: the clauses that reject it.
    :ivar reason: why it is not applicable.
    """

    mutant: Mutant
    state: str
    by: tuple[str, ...]
    judgement: Judgement
    reason: str = ""


def catalogue(path: Path = HERE / "mutants.toml") -> dict[int, Mutant]:
    """All mutants, by number.

    :raises ValueError: if a row does not say what it must.
    """
    rows = tomllib.loads(path.read_text())["mutant"]
    known = set(verdict.clauses())
    found: dict[int, Mutant] = {}
    for row in rows:
        mutant = Mutant(**{**row, "clauses": tuple(row.get("clauses", ()))})
        right = mutant.kind == "right"
        if mutant.kind not in {"wrong", "deviation", "right"} or right == bool(mutant.clauses):
            raise ValueError(f"mutant {mutant.number}: kind and clauses do not fit")
        if not known.issuperset(mutant.clauses) or mutant.number in found:
            raise ValueError(f"mutant {mutant.number}: no such clause, or there twice")
        if not series.SERIES.keys() >= mutant.not_on.keys() or not all(mutant.not_on.values()):
            raise ValueError(f"mutant {mutant.number}: not_on wants series and reasons")
        found[mutant.number] = mutant
    return found


def weigh(mutant: Mutant, judgement: Judgement) -> Outcome:
    """Compare what the contract says of a mutant with what it must say."""
    by = tuple(mutant.rejecting(judgement))
    levels = {row.clause.id: row.clause.level for row in judgement.rows}
    binding = [clause for clause in by if levels[clause] != "as-written"]
    if mutant.kind == "right":
        states = {verdict.CONFORMS: "left alone", verdict.INCONCLUSIVE: "inconclusive"}
        state = states.get(judgement.verdict, "wrongly rejected")
    elif not by:
        state = "survived"
    elif mutant.kind == "deviation":
        state = "wrongly rejected" if binding else "deviates"
    else:
        state = "killed" if by[0] in mutant.clauses else "killed by another"
    return Outcome(mutant, state, by, judgement)


def inapplicable(mutant: Mutant, name: str) -> Outcome:
    """What becomes of a mutant in a series that it does not fit: nothing was asked."""
    nothing = verdict.judge([], verdict.clauses())
    return Outcome(mutant, "not applicable", (), nothing, mutant.not_on[name])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="default: all")
    parser.add_argument(
        "--series",
        choices=series.SERIES,
        default=SERIES,
        help="on which kernels (default: %(default)s)",
    )
    parser.add_argument(
        "--all-clauses", action="store_true", help="run all tests, not only until a rejection"
    )
    parser.add_argument(
        "-n", metavar="N", default="auto", help="tests at once (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as data")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the matrix")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write all of it to be read")


class _Keep:
    """Takes the judgements out of pytest's session."""

    def __init__(self) -> None:
        self.judgements: Mapping[str, Judgement] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        result = yield
        results: Results | None = session.config.pluginmanager.getplugin(NAME)
        if results is not None:
            self.judgements = results.judgements
        return result


def _run(chosen: Sequence[Mutant], given: argparse.Namespace) -> Mapping[str, Judgement]:
    """Run the contract on mutants that a number chooses; its own output is for nobody."""
    if not chosen:
        return {}
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    # worksteal leaves neighbours together, and thus one mutant's tests to one worker.
    options += ["-p", "no:cacheprovider", "-p", "vm.hunt", "-n", given.n, "--dist", "worksteal"]
    options += ["--all-clauses"] if given.all_clauses else []
    options += [f"--kernel={mutant.kernel(given.series)}" for mutant in chosen]
    keep, printed = _Keep(), io.StringIO()
    with contextlib.redirect_stdout(printed), tempfile.TemporaryDirectory() as rejected:
        options += ["--rejected", rejected, str(ROOT / "tests" / "contract")]
        known = Known(Path(rejected))
        known.lay_out()
        code = pytest.main(options, plugins=[keep])
        known.keep()
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.stderr.write(printed.getvalue())
        wrong = code == pytest.ExitCode.USAGE_ERROR
        raise UserError("mutants: no run, see above", USAGE if wrong else INCONCLUSIVE)
    return keep.judgements


def _build(mutant: Mutant, name: str) -> Judgement:
    """Whether a mutant builds without memcg."""
    patch = HERE / "patches" / str(mutant.patch)
    detail = nomemcg.complaint(f"{name}/reference", patch, say)
    answer = Answer(str(mutant.patch), "I5", "failed" if detail else "passed", detail)
    return verdict.judge([answer], verdict.clauses())


def main(given: argparse.Namespace) -> int:
    """Run them, print the matrix.

    :param given: ``numbers``, ``series``, ``all_clauses``, ``n``, ``json``, ``svg`` and ``html``.
    :returns: 1 if a mutant survives or a right one is rejected.
    :raises UserError: if there is no such mutant, or none can be run.
    """
    for target in filter(None, (given.json, given.svg, given.html)):
        report.check_target(target)
    known = catalogue()
    unknown = [str(number) for number in given.numbers if number not in known]
    if unknown:
        raise UserError(f"mutants: no mutant {', '.join(unknown)} in {HERE / 'mutants.toml'}")
    chosen = [known[number] for number in given.numbers or known]
    name = given.series
    applicable = [mutant for mutant in chosen if name not in mutant.not_on]
    judgements = _run([mutant for mutant in applicable if not mutant.patch], given)
    outcomes = []
    for mutant in chosen:
        if mutant not in applicable:
            outcomes.append(inapplicable(mutant, name))
        elif mutant.patch:
            outcomes.append(weigh(mutant, _build(mutant, name)))
        else:
            outcomes.append(weigh(mutant, judgements[mutant.kernel(name)]))
    matrix.show(outcomes)
    matrix.write(outcomes, given.json, given.svg, given.html)
    return int(any(outcome.state in BAD for outcome in outcomes))


if __name__ == "__main__":
    given = argparse.ArgumentParser()
    arguments(given)
    sys.exit(main(given.parse_args()))
