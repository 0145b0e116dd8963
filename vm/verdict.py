# SPDX-License-Identifier: GPL-2.0-only
"""From the outcomes of tests to a verdict on a kernel: data and pure functions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

CONTRACT = Path(__file__).resolve().parent.parent / "tests" / "contract"
CLAUSES = CONTRACT / "clauses.toml"

CONFORMS = "conforms"
NOT_PATCHED = "not patched"
VIOLATES = "violates"
INCONCLUSIVE = "inconclusive"
EVERY_TIME = "P4"
UNASKED = "none of its tests was run"
EXIT_CODES = {CONFORMS: 0, NOT_PATCHED: 1, VIOLATES: 1, INCONCLUSIVE: 125}

# What a test's end says of the kernel. A worker or a QEMU that died by itself says nothing of it,
# nor does an exception that is no judgement, nor a test that ran out of time and could say so: the
# host may be too busy. A kernel that panicked, reset the machine, hangs or does not let go of a
# test has answered.
AGAINST = frozenset({"failed", "silent", "panic", "reset", "hang", "stuck"})
NO_ANSWER = frozenset(
    {"inconclusive", "unproven", "deaf", "error", "lost", "worker-died", "timeout"}
)


@dataclass(frozen=True)
class Clause:
    """A clause of the contract.

    :ivar level: ``must``, ``preserved`` or ``as-written``.
    :ivar rests: what in the kernel's source it rests on.
    :ivar core: whether there is no verdict without an answer to it.
    """

    id: str
    level: str
    text: str
    rests: str
    core: bool = False


@dataclass(frozen=True)
class Answer:
    """How one test ended.

    :ivar state: ``passed``, ``skipped``, or one of :data:`AGAINST` and :data:`NO_ANSWER`.
    :ivar detail: why, in one line.
    :ivar seconds: wall time.
    :ivar measured: what the test recorded, by name.
    """

    test: str
    clause: str
    state: str
    detail: str = ""
    seconds: float = 0.0
    measured: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What is known of one clause.

    :ivar state: ``kept``, ``broken``, ``deviates`` (as-written clauses), ``silent`` (broken in no
        other way than by listeners on root that slept through a system OOM), ``no answer``
        (asked in vain) or ``not asked``.
    :ivar detail: why, in one line; empty if kept.
    :ivar passed: how many of its tests.
    :ivar total: of how many.
    """

    clause: Clause
    state: str
    detail: str
    passed: int
    total: int

    def data(self) -> dict[str, object]:
        """The clause and what is known of it, as the reports have it: all on one level."""
        whole = asdict(self)
        return {**whole.pop("clause"), **whole}


@dataclass(frozen=True)
class Judgement:
    """The verdict on a kernel.

    :ivar verdict: a key of :data:`EXIT_CODES`.
    :ivar why: what follows it in the one line.
    :ivar named: the clauses that are broken, that with the largest share of broken tests first, or
        that want an answer.
    """

    verdict: str
    why: str
    named: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        """As ``./oomtest run`` ends."""
        return EXIT_CODES[self.verdict]

    @property
    def line(self) -> str:
        """The one line."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


def clauses(path: Path = CLAUSES) -> dict[str, Clause]:
    """The contract's clauses, in its order."""
    return {name: Clause(name, **row) for name, row in tomllib.loads(path.read_text()).items()}


def marks(path: Path, wanted: Iterable[str]) -> int:
    """How many tests in a file are of these clauses, by its text: to collect it takes longer."""
    text = path.read_text()
    return sum(text.count(f'clause("{clause}")') for clause in wanted)


def row(clause: Clause, answers: Sequence[Answer]) -> Row:
    """Sum up what a clause's tests have said.

    One test that speaks against the kernel outweighs any that pass, and one that passes outweighs
    any that had no answer, save one that ran out of time or ended in an exception that nobody
    expects: a wrong kernel may have kept it waiting, or refused it what every kernel grants.
    """
    passed = sum(answer.state == "passed" for answer in answers)
    against = [answer for answer in answers if answer.state in AGAINST]
    unanswered = [answer for answer in answers if answer.state in NO_ANSWER]
    if against:
        told = [answer for answer in against if answer.state != "silent"] or against
        broken = "deviates" if clause.level == "as-written" else "broken"
        silent = all(answer.state == "silent" for answer in against) and not passed
        return Row(clause, "silent" if silent else broken, told[0].detail, passed, len(answers))
    odd = [answer for answer in unanswered if answer.state in {"timeout", "error"}]
    if odd:
        return Row(clause, "no answer", odd[0].detail, passed, len(answers))
    if passed:
        detail = ""
        if unanswered:
            name = unanswered[0].test.rpartition("::")[2]
            detail = f"{len(unanswered)} without an answer: {name}: {unanswered[0].detail}"
        return Row(clause, "kept", detail, passed, len(answers))
    if unanswered:
        return Row(clause, "no answer", unanswered[0].detail, 0, len(answers))
    detail = answers[0].detail if answers else UNASKED
    return Row(clause, "not asked", detail, 0, len(answers))


def judge(answers: Iterable[Answer], contract: Mapping[str, Clause]) -> Judgement:
    """The verdict.

    :param answers: how the tests on one kernel ended.
    :param contract: as :func:`clauses` gives it; a clause without an answer counts as not asked.
    """
    of: dict[str, list[Answer]] = {name: [] for name in contract}
    answers = list(answers)
    heard = any(answer.clause.startswith("P") and answer.state == "passed" for answer in answers)
    for answer in answers:
        of[answer.clause].append(answer)
        # Whatever the test was about: there was a system OOM, and nobody on root was signalled.
        if heard and answer.state == "deaf" and EVERY_TIME in of:
            of[EVERY_TIME].append(replace(answer, clause=EVERY_TIME, state="failed"))
    rows = tuple(row(contract[name], of[name]) for name in contract)
    verdict, why, named = _decide(rows, heard)
    return Judgement(verdict, why, named, rows)


def _ids(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(row.clause.id for row in rows)


def _harm(row: Row) -> tuple[float, bool]:
    """Sorts the worst first: one mistake also breaks tests of clauses that it is not about."""
    return row.passed / row.total, not row.clause.core


def _decide(rows: Sequence[Row], heard: bool) -> tuple[str, str, tuple[str, ...]]:
    binding = [row for row in rows if row.clause.level != "as-written"]
    broken = [row for row in binding if row.state == "broken"]
    silent = [row for row in binding if row.state == "silent"]
    missing = [row for row in rows if row.clause.core and row.state in {"no answer", "not asked"}]
    if broken or (silent and heard):
        wrong = sorted((row for row in binding if row.state in {"broken", "silent"}), key=_harm)
        first = f"{', '.join(_ids(wrong))} ({wrong[0].clause.id}: {wrong[0].detail})"
        return VIOLATES, first, _ids(wrong)
    if silent:
        # Without the patch no listener on root can be shown to work, so that what asks for its
        # silence has no answer; the clauses that need no such listener must have one.
        asked = {row.clause.id for row in silent}
        needed = [row for row in missing if row.clause.id not in {"N2", "N3"}]
        if {"P1", "P2"} <= asked and not needed:
            return NOT_PATCHED, "system OOMs are proven and no listener on root is signalled", ()
        missing = needed or [row for row in rows if row.clause.id in {"P1", "P2"} - asked]
    unanswered = [row for row in binding if row.state == "no answer" and row not in missing]
    if missing or (unanswered and not silent):
        wanting = [*missing, *unanswered]
        detail = "; ".join(f"{row.clause.id}: {row.detail}" for row in wanting[:3])
        more = f"; and {len(wanting) - 3} more" if len(wanting) > 3 else ""
        return INCONCLUSIVE, detail + more, _ids(wanting)
    deviating = _ids(row for row in rows if row.state in {"deviates", "silent"})
    partly = _ids(row for row in rows if row.state == "kept" and row.detail)
    told = {"deviates in": deviating, "some tests without an answer:": partly}
    why = "; ".join(f"{what} {', '.join(ids)}" for what, ids in told.items() if ids)
    return CONFORMS, why, deviating
