# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest bisect``: which commit broke the contract. ``bisect-step`` is what git runs.

The repository is left alone: git bisects without checking anything out, and each commit is built
from the objects. What is known of a commit is written down as soon as it is, next to git's own
state of the bisection, so that whatever ends this, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vm import build, git, qemu
from vm.errors import INCONCLUSIVE, UserError
from vm.run import say
from vm.verdict import AGAINST, NOT_PATCHED, VIOLATES

ROOT = Path(__file__).resolve().parent.parent
GOOD, BAD, UNTESTABLE, BROKEN = 0, 1, INCONCLUSIVE, 128
WORDS = {GOOD: "good", BAD: "bad", UNTESTABLE: "not testable", BROKEN: "harness broken"}


@dataclass(frozen=True)
class Question:
    """What is asked of every commit.

    :ivar tree: the repository.
    :ivar clause: the one clause that matters, all if empty.
    :ivar patches: put on every commit; empty for a tree that has the port.
    """

    tree: str
    clause: str = ""
    patches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """What was found out of one commit.

    :ivar code: as git bisect run understands it.
    :ivar word: the verdict in one or two words.
    :ivar detail: the first thing seen, or why there is no answer.
    :ivar clauses: the ids that are broken.
    """

    commit: str
    code: int
    word: str
    detail: str
    clauses: tuple[str, ...] = ()
    seconds: float = 0.0


def read(result: dict[str, Any], clause: str) -> tuple[int, str, str, tuple[str, ...]]:
    """Judge what ``run --json`` wrote of one kernel.

    :param clause: the clause that matters, all if empty.
    :returns: the code, the word, the detail, the ids of the broken clauses.
    """
    rows = [row for row in result["clauses"] if clause in ("", row["id"])]
    wrong = [row for row in rows if row["state"] in {"broken", "silent"}]
    if clause:
        wrong += [row for row in rows if row["state"] == "deviates"]
    if wrong:
        silent = all(row["state"] == "silent" for row in wrong)
        ids = tuple(row["id"] for row in wrong)
        return BAD, NOT_PATCHED if silent else VIOLATES, str(wrong[0]["detail"]), ids
    kept = clause and all(row["state"] == "kept" for row in rows)
    if kept or result["exit_code"] == 0:
        return GOOD, "kept" if clause else "conforms", "", ()
    return UNTESTABLE, "inconclusive", str(result["why"]), ()


def _ask(image: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the contract, or a part of it, on one kernel.

    :raises UserError: if that ended without an answer in writing.
    """
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "verdict.json")
        command = [sys.executable, "-m", "vm", "run", f"--kernel={image}", f"--json={target}"]
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
        )
        if done.returncode not in (0, 1, INCONCLUSIVE) or not target.exists():
            raise UserError(f"the run of the contract ended with {done.returncode}", BROKEN)
        answer: dict[str, Any] = json.loads(target.read_text())["kernels"][0]
        return answer


def examine(commit: str, question: Question) -> Step:
    """Build one commit and ask it; what speaks against it is seen twice before it is believed.

    :raises UserError: with an exit code other than 125, if this host or the harness is at fault.
    """
    began = time.monotonic()

    def step(code: int, word: str, detail: str, clauses: tuple[str, ...] = ()) -> Step:
        return Step(commit, code, word, detail, clauses, round(time.monotonic() - began, 1))

    qemu.binary()
    try:
        kernel = build.build_kernel(
            f"{question.tree}@{commit}",
            flavour="stock",
            patches=[Path(name) for name in question.patches],
            say=say,
        )
    except UserError as error:
        if error.exit_code != INCONCLUSIVE:
            raise
        return step(UNTESTABLE, "does not build", str(error))
    chosen = ["--clause", question.clause] if question.clause else []
    answer = _ask(kernel.image, ["-x", *chosen])
    code, word, detail, ids = read(answer, question.clause)
    if code != BAD:
        return step(code, word, detail)
    failed = [test["test"] for test in answer["tests"] if test["state"] in AGAINST]
    again = _ask(kernel.image, failed)
    if not any(test["state"] in AGAINST for test in again["tests"]):
        return step(UNTESTABLE, "inconclusive", f"seen once and not again: {detail}")
    return step(code, word, detail, ids)


class Log:
    """What is known of commits, in a file next to git's own state.

    :param tree: the repository.
    """

    def __init__(self, tree: Path) -> None:
        self.directory = git.directory(tree) / "oomtest-bisect"

    @property
    def question(self) -> Question | None:
        """What the bisection that goes on asks, None if none does."""
        path = self.directory / "question.json"
        if not path.exists():
            return None
        said = json.loads(path.read_text())
        return Question(said["tree"], said["clause"], tuple(said["patches"]))

    def begin(self, question: Question) -> None:
        """Forget what an earlier bisection has found and ask this."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "steps.jsonl").unlink(missing_ok=True)
        (self.directory / "question.json").write_text(json.dumps(asdict(question)))

    def steps(self) -> list[Step]:
        """What is known, in the order in which it was found out."""
        path = self.directory / "steps.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [Step(**{**row, "clauses": tuple(row["clauses"])}) for row in rows]

    def about(self, commit: str, question: Question) -> Step:
        """What is known of a commit, found out if nothing is."""
        for step in self.steps():
            if step.commit == commit:
                return step
        step = examine(commit, question)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "steps.jsonl").open("a") as file:
            file.write(json.dumps(asdict(step)) + "\n")
        say(f"{commit[:12]}: {WORDS[step.code]}: {step.word} {step.detail}".rstrip())
        return step


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


def step_main(given: argparse.Namespace) -> int:
    """Judge the commit that git bisect stands at, or HEAD.

    :returns: 0, 1, 125 or 128, which git takes for good, bad, skip, and stop.
    """
    try:
        tree = Path(given.tree).resolve()
        patches = tuple(str(Path(name).resolve()) for name in given.patch)
        commit = git.current(tree)
        return Log(tree).about(commit, Question(str(tree), given.clause, patches)).code
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
    step_arguments(parser)
    parser.epilog = "Without --good and --bad: go on with a bisection that was interrupted."


def main(given: argparse.Namespace) -> int:
    """Find the first bad commit and report.

    :returns: 0 once it is found, 125 if only commits that cannot be tested are left.
    :raises UserError: if the ends are not what they are said to be, or a step failed.
    """
    tree = Path(given.tree).resolve()
    log = Log(tree)
    if bool(given.good) != bool(given.bad):
        raise UserError("bisect: give both --good and --bad, or neither to go on")
    if given.good:
        patches = tuple(str(Path(name).resolve()) for name in given.patch)
        question = Question(str(tree), given.clause, patches)
        good, bad = git.commit(tree, given.good), git.commit(tree, given.bad)
        _begin(log, question, good, bad)
        git.bisect(tree, "start", "--no-checkout", bad, good)
    else:
        if log.question is None or not git.bisecting(tree):
            raise UserError(f"no bisection goes on in {tree}: give --good and --bad")
        question = log.question
    command = [sys.executable, "-m", "vm", "bisect-step", "--tree", question.tree]
    command += ["--clause", question.clause, *(f"--patch={name}" for name in question.patches)]
    code = git.bisect_run(tree, command)
    found, exhausted = git.first_bad(tree)
    if found is None and not exhausted:
        raise UserError(
            f"the bisection stopped (git bisect run: {code}); mend what is said above, "
            f"then ./oomtest bisect --tree {tree} goes on",
            BROKEN,
        )
    _report(tree, log, found)
    git.bisect(tree, "reset")
    return 0 if found else INCONCLUSIVE


def _begin(log: Log, question: Question, good: str, bad: str) -> None:
    """Look at both ends first: between two that are alike there is nothing to find."""
    if log.question != question:
        log.begin(question)
    for commit, wanted, word in ((good, GOOD, "good"), (bad, BAD, "bad")):
        step = log.about(commit, question)
        if step.code != wanted:
            raise UserError(f"the {word} end {commit[:12]} is not: {step.word} {step.detail}")


def _report(tree: Path, log: Log, found: str | None) -> None:
    steps = log.steps()
    console = Console()
    table = Table("commit", "is", "verdict", "s", "subject", box=None)
    for step in steps:
        verdict = f"{step.word} {', '.join(step.clauses)}".rstrip()
        subject = git.subject(tree, step.commit)
        table.add_row(step.commit[:12], WORDS[step.code], verdict, f"{step.seconds:.0f}", subject)
    console.print(table)
    if found is None:
        console.print("Only commits that cannot be tested are left: it is one of them.")
        return
    known = {step.commit: step for step in steps}
    before, after = known.get(git.commit(tree, f"{found}^")), known[found]
    console.print(f"First bad commit: {found} {git.subject(tree, found)}", style="bold")
    console.print(f"before: {before.word if before else 'not asked'}")
    console.print(f"after:  {after.word} {', '.join(after.clauses)}: {after.detail}")
