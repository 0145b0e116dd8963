# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest bisect``: which commit broke the contract. ``bisect-step`` is what git runs.

The repository is left alone: git bisects without checking anything out, and each commit is built
from the objects. What is known of a commit is written down as soon as it is, next to git's own
state of the bisection, so that whatever ends this, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vm import build, cache, git, kconfig, verdict
from vm.errors import INCONCLUSIVE, USAGE, UserError
from vm.examine import BAD, BROKEN, GOOD, ROOT, UNTESTABLE, Question, Step, examine
from vm.run import columns, say
from vm.source import check_readable
from vm.verdict import NOT_PATCHED

WORDS = {GOOD: "good", BAD: "bad", UNTESTABLE: "not testable"}
NEVER = "it does not descend from the good end and has no port (--first-parent passes such by)"


@dataclass(frozen=True)
class Bisection:
    """What is asked, and between which commits.

    :ivar first_parent: whether what merges have brought is passed by.
    """

    question: Question
    good: str
    bad: str
    first_parent: bool = False

    def descends(self, commit: str) -> bool:
        """Whether a commit has had what the good end has; of the ends themselves that is said."""
        ends = (self.good, self.bad)
        return commit in ends or git.older(Path(self.question.tree), self.good, commit)


class Log:
    """What is known, in files next to git's own state.

    :param tree: the repository.
    """

    def __init__(self, tree: Path) -> None:
        self.directory = git.directory(tree) / "oomtest-bisect"
        self.report = self.directory / "report.txt"
        self._state = self.directory / "bisection.json"
        self._steps = self.directory / "steps.jsonl"

    def bisection(self) -> Bisection | None:
        """The one that goes on, None if none does."""
        if self.report.exists():
            return None
        try:
            said = json.loads(self._state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        asked = said.pop("question")
        return Bisection(Question(**asked | {"patches": tuple(asked["patches"])}), **said)

    def begin(self, wanted: Bisection) -> None:
        """Write down what is asked; put aside what was known if that was asked something else."""
        before = self.bisection()
        if self.directory.exists() and (before is None or before.question != wanted.question):
            aside = self.directory.with_name(f"{self.directory.name}.before")
            shutil.rmtree(aside, ignore_errors=True)
            self.directory.rename(aside)
            say(f"what an earlier bisection has found is in {aside}")
        with cache.atomic(self._state) as scratch:
            scratch.write_text(json.dumps(asdict(wanted)))

    def steps(self) -> dict[str, Step]:
        """What is known of each commit, in the order in which it was found out."""
        return {step.commit: step for step in self._read()}

    def _read(self) -> Iterator[Step]:
        lines = self._steps.read_text().splitlines() if self._steps.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # what was being written when the machine went down
            yield Step(**{**row, "clauses": tuple(row["clauses"])})

    def about(self, commit: str, wanted: Bisection) -> Step:
        """What is known of a commit, found out if nothing is.

        Why one could not be tested may have passed, so that it is asked again. One that a merge
        has brought from where there never was a port does not tell who broke it.
        """
        known = self.steps().get(commit)
        if known and known.code in (GOOD, BAD):
            return known
        with (self.directory / f"{commit[:12]}.log").open("w") as out:

            def both(line: str) -> None:
                say(line)
                print(line, file=out, flush=True)

            step = examine(commit, wanted.question, out, both)
            if step.word == NOT_PATCHED and not wanted.descends(commit):
                step = replace(step, code=UNTESTABLE, detail=NEVER)
            both(tell(step))
        before = self._steps.read_text() if self._steps.exists() else ""
        with self._steps.open("a") as file:
            # What was being written when the machine went down may have no end of line.
            file.write("\n" if before and not before.endswith("\n") else "")
            file.write(json.dumps(asdict(step)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return step


def tell(step: Step) -> str:
    """One line."""
    said = f"{step.word} {', '.join(step.clauses)}".rstrip()
    detail = f": {step.detail}" if step.detail else ""
    return f"{step.commit[:12]}: {WORDS[step.code]}: {said}{detail}"


def step_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``bisect-step`` takes."""
    parser.epilog = "Exit codes: 0 good, 1 bad, 125 not testable, 128 the harness is broken."
    parser.add_argument("--tree", default=".", metavar="DIR", help="the repository")
    parser.add_argument("--clause", default="", metavar="ID", help="the one clause that matters")
    parser.add_argument(
        "--patch",
        action="append",
        default=[],
        metavar="FILE",
        help="put on every commit, for a tree without the port",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a .config of yours to start from, not nothing"
    )


def _question(given: argparse.Namespace) -> Question:
    """What is asked.

    :raises UserError: if there is no such clause, patch or configuration.
    """
    if given.clause and given.clause not in verdict.clauses():
        raise UserError(f"--clause {given.clause}: no such clause")
    names = given.patch if given.patch != ["none"] else []
    patches = tuple(str(Path(name).resolve()) for name in names)
    config = str(Path(given.config).resolve()) if given.config else ""
    tree = git.top(Path(given.tree).resolve())
    return Question(str(tree), given.clause, patches, config, _content(patches, config))


def _content(patches: Sequence[str], config: str) -> str:
    """What these files hold, in a few letters.

    :param config: a configuration; empty for none.
    :raises UserError: if one cannot be read or is not what it should be.
    """
    files = [Path(name) for name in patches]
    check_readable(files)
    if config:
        files.append(Path(config))
        kconfig.text(files[-1])
    return build.digest(files)


def step_main(given: argparse.Namespace) -> int:
    """Judge the commit that git bisect stands at, or HEAD.

    :returns: 0, 1, 125 or 128, which git takes for good, bad, skip, and stop.
    """
    try:
        question = _question(given)
        tree = Path(question.tree)
        commit, log = git.current(tree), Log(tree)
        ours = log.bisection()
        if ours and ours.question == question and git.bisects(tree, ours.good, ours.bad):
            return log.about(commit, ours).code
        if git.changed(tree):
            say(f"what is not committed in {tree} is not asked")
        step = examine(commit, question, sys.stdout, say)
        say(tell(step))
        return step.code
    except UserError as error:
        say(str(error))
        return BROKEN
    except Exception as error:  # git must stop, not take a fault of ours for a bad commit
        say(f"the harness failed: {type(error).__name__}: {error}")
        return BROKEN


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``bisect`` takes."""
    parser.add_argument("--good", metavar="REV", help="a commit that keeps the contract")
    parser.add_argument("--bad", metavar="REV", help="a later one that does not")
    parser.add_argument(
        "--first-parent",
        action="store_true",
        help="pass by what merges have brought: for a tree that merges one without the port",
    )
    step_arguments(parser)
    parser.epilog = (
        "Without --good and --bad: go on with a bisection that was interrupted. "
        "Exit codes: 0 the commit is found, 125 it cannot be told, 128 the harness is broken."
    )


def main(given: argparse.Namespace) -> int:
    """Find the first bad commit and report.

    :returns: 0 once it is found, 125 if only commits that cannot be tested are left.
    :raises UserError: if the ends are not what they are said to be, or a step failed.
    """
    tree = git.top(Path(given.tree).resolve())
    log = Log(tree)
    wanted = _wanted(tree, log, given)
    base = git.base(tree, wanted.good, wanted.bad)
    elsewhere = "; give --good a commit that --bad descends from, or the port with --patch"
    for what, commit, code, mend in (
        ("the good end", wanted.good, GOOD, ""),
        ("the bad end", wanted.bad, BAD, ""),
        ("what both ends come from", base, GOOD, elsewhere),
    ):
        # Between two ends that are alike there is nothing to find.
        step = log.about(commit, wanted)
        if step.code != code:
            wrong = INCONCLUSIVE if step.code == UNTESTABLE else USAGE
            raise UserError(f"{what} is not {WORDS[code]}: {tell(step)}{mend}", wrong)
    if not git.bisects(tree, wanted.good, wanted.bad):
        how = ["--first-parent"] if wanted.first_parent else []
        git.bisect(tree, "start", "--no-checkout", *how, wanted.bad, wanted.good)
        if not how and git.merges(tree, wanted.good, wanted.bad):
            say("there are merges in between: --first-parent would pass by what they brought")
    if git.suspects(tree) == (None, []):
        _run(tree, wanted.question)
    found, left = git.suspects(tree)
    known = log.steps().get(found or "")
    if found and (known is None or known.code != BAD):
        git.bisect(tree, "reset")
        raise UserError(
            f"git takes {found} for bad, and no step has said so: something else than a step has "
            f"ended with 1; mend it, then ./oomtest bisect --tree {tree} goes on",
            BROKEN,
        )
    text = _report(tree, log, found, left)
    print(text, end="")
    git.bisect(tree, "reset")
    with cache.atomic(log.report) as scratch:
        scratch.write_text(text)
    return 0 if found else INCONCLUSIVE


def _wanted(tree: Path, log: Log, given: argparse.Namespace) -> Bisection:
    """What to do: what is asked for now, or what was before an interruption.

    :raises UserError: if that cannot be, or a bisection that is not ours would be lost.
    """
    if bool(given.good) != bool(given.bad):
        raise UserError("bisect: give both --good and --bad, or neither to go on")
    before = log.bisection()
    ours = before and git.bisects(tree, before.good, before.bad)
    if git.bisection(tree) is not None and not ours:
        raise UserError(
            f"another bisection goes on in {tree}: end it with git bisect reset, or copy the "
            "repository"
        )
    if not given.good:
        if before is None:
            raise UserError(f"no bisection goes on in {tree}: give --good and --bad")
        asked = before.question
        more = given.patch or given.config or given.first_parent
        if given.clause not in ("", asked.clause) or more:
            raise UserError("bisect: what was asked goes on; give --good and --bad to ask anew")
        if _content(asked.patches, asked.config) != asked.content:
            raise UserError("bisect: a patch has changed; give --good and --bad to ask anew")
        return before
    good, bad = git.commit(tree, given.good), git.commit(tree, given.bad)
    if git.older(tree, bad, good):
        raise UserError(f"--bad {given.bad} is older than --good {given.good}")
    wanted = Bisection(_question(given), good, bad, given.first_parent)
    if ours and wanted != before:
        git.bisect(tree, "reset")
    log.begin(wanted)
    return wanted


def _run(tree: Path, question: Question) -> None:
    """Have git find it.

    :raises UserError: if a step stopped it.
    """
    command = [sys.executable, "-m", "vm", "bisect-step", "--tree", question.tree]
    command += ["--clause", question.clause, *(f"--patch={name}" for name in question.patches)]
    command += [f"--config={question.config}"] if question.config else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    code = git.bisect_run(tree, command, {"PYTHONPATH": path}, say)
    if git.suspects(tree) == (None, []):
        raise UserError(
            f"the bisection stopped (git bisect run: {code}); mend what is said above, "
            f"then ./oomtest bisect --tree {tree} goes on",
            BROKEN,
        )


def _report(tree: Path, log: Log, found: str | None, left: list[str]) -> str:
    steps = log.steps()
    console = Console(file=io.StringIO(), width=columns(), highlight=False, markup=False)
    table = Table("commit", "is", "verdict", "s", "subject", "why", box=None, pad_edge=False)
    for step in steps.values():
        said = f"{step.word} {', '.join(step.clauses)}".rstrip()
        row = (step.commit[:12], WORDS[step.code], said, f"{step.seconds:.0f}")
        table.add_row(*row, git.subject(tree, step.commit), step.detail)
    console.print(table)
    console.print(f"\nWhat every step printed: {log.directory}/COMMIT.log", soft_wrap=True)
    if found is None:
        console.print("It is one of these, all but the last of which cannot be tested:")
        for commit in reversed(left):
            console.print(f"  {commit} {git.subject(tree, commit)}", soft_wrap=True)
    else:
        bad = steps[found]
        before = steps.get(git.parent(tree, found))
        contract = verdict.clauses()
        console.print(f"First bad commit: {found} {git.subject(tree, found)}", soft_wrap=True)
        for name in bad.clauses:
            console.print(f"clause: {name} {contract[name].text}", soft_wrap=True)
        console.print(f"before: {tell(before) if before else 'not asked itself'}", soft_wrap=True)
        console.print(f"after:  {tell(bad)}", soft_wrap=True)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()
