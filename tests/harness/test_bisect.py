# SPDX-License-Identifier: GPL-2.0-only
"""vm.bisect: what git is told, on a repository of a few commits and with the kernels left out."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.conftest import ROOT, clean_environment
from vm import bisect, git
from vm.bisect import Bisection, Log
from vm.errors import INCONCLUSIVE, UserError
from vm.examine import BAD, BROKEN, GOOD, UNTESTABLE, Question, Step

COUNT = 8
BROKE = 5  # the first that is bad


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of commits, each with its number in a file."""
    top = tmp_path / "tree"
    top.mkdir()

    def run(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(top), *who, *arguments], check=True, capture_output=True)

    run("init", "-q")
    for number in range(COUNT):
        (top / "number").write_text(str(number))
        run("add", ".")
        run("commit", "-q", "-m", f"commit {number}")
    return top


class Kernels:
    """Stands in for building and asking.

    :ivar asked: the numbers of the commits that were examined.
    :ivar untestable: those that cannot be tested.
    :ivar faults: those at which the harness breaks down, once.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.asked: list[int] = []
        self.untestable: set[int] = set()
        self.faults: set[int] = set()

    def examine(self, commit: str, question: Question, out: Any, say: Any) -> Step:
        number = int(git.content(self.tree, commit, "number") or b"-1")
        self.asked.append(number)
        if number in self.faults:
            self.faults.remove(number)
            raise UserError("the disk is full", BROKEN)
        print("what it printed", file=out)
        if number in self.untestable:
            return Step(commit, UNTESTABLE, "does not boot", "it panicked")
        if number < BROKE:
            return Step(commit, GOOD, "kept")
        return Step(commit, BAD, "violates", "why it is bad", ("N2",))


@pytest.fixture
def kernels(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Git calls bisect-step in a process of its own, which would build; here it is called."""
    one = Kernels(tree)
    monkeypatch.setattr(bisect, "examine", one.examine)
    monkeypatch.setattr(git, "bisect_run", lambda where, command, *_: steps(where, command))
    return one


def steps(where: Path, command: Sequence[str]) -> int:
    """What ``git bisect run`` does."""
    given = step_given(command[command.index("bisect-step") + 1 :])
    words = {GOOD: "good", BAD: "bad", UNTESTABLE: "skip"}
    while git.suspects(where) == (None, []):
        code = bisect.step_main(given)
        if code not in words:
            return code
        command = ["git", "-C", str(where), "bisect", words[code]]
        subprocess.run(command, check=False, capture_output=True)
    return 0


def step_given(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bisect.step_arguments(parser)
    return parser.parse_args(words)


def call(tree: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    bisect.arguments(parser)
    return bisect.main(parser.parse_args([f"--tree={tree}", *words]))


def number(tree: Path, of: int) -> str:
    return git.commit(tree, f"HEAD~{COUNT - 1 - of}")


ENDS = (f"--good=HEAD~{COUNT - 1}", "--bad=HEAD")


def test_the_commit_is_found_and_reported(
    tree: Path, kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.untestable = {3}
    assert call(tree, *ENDS, "--clause=N2") == 0
    report = capsys.readouterr().out
    assert f"First bad commit: {number(tree, BROKE)} commit {BROKE}\n" in report
    assert "clause: N2 An OOM inside a memcg does not signal" in report
    assert f"before: {number(tree, BROKE - 1)[:12]}: good: kept\n" in report
    assert f"after:  {number(tree, BROKE)[:12]}: bad: violates N2: why it is bad\n" in report
    assert 3 in kernels.asked
    directory = tree / ".git" / "oomtest-bisect"
    for one in kernels.asked:
        assert f"{number(tree, one)[:12]} " in report
        assert "what it printed" in (directory / f"{number(tree, one)[:12]}.log").read_text()
    assert "it panicked" in report
    assert str(directory) in report
    assert (directory / "report.txt").read_text() == report
    assert git.bisection(tree) is None
    assert (tree / "number").read_text() == str(COUNT - 1), "what is checked out was touched"


def test_both_ends_are_looked_at_first(tree: Path, kernels: Kernels) -> None:
    call(tree, *ENDS)
    assert kernels.asked[:2] == [0, COUNT - 1]


def test_only_what_cannot_be_tested_is_left(
    tree: Path, kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.untestable = {BROKE - 1}
    assert call(tree, *ENDS) == INCONCLUSIVE
    report = capsys.readouterr().out
    assert "It is one of these" in report
    last = report.partition("It is one of these")[2]
    assert number(tree, BROKE - 1) in last
    assert number(tree, BROKE) in last
    assert number(tree, BROKE - 2) not in last


@pytest.mark.parametrize("at", [0, COUNT - 1, 3])
@pytest.mark.parametrize("again", [(), ENDS], ids=["goes on", "asked anew"])
def test_it_goes_on_where_it_was(
    tree: Path, kernels: Kernels, at: int, again: tuple[str, ...]
) -> None:
    """At an end as well, where git knows of no bisection yet."""
    kernels.faults = {at}
    with pytest.raises(UserError) as caught:
        call(tree, *ENDS, "--clause=N2")
    assert caught.value.exit_code == BROKEN
    before = list(kernels.asked)
    assert before[-1] == at
    assert call(tree, *again, *(["--clause=N2"] if again else [])) == 0
    assert not set(before[:-1]) & set(kernels.asked[len(before) :])


def test_killed_before_the_report(
    tree: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(bisect, "_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(tree, *ENDS)
    asked = list(kernels.asked)
    assert call(tree) == 0
    assert kernels.asked == asked


@pytest.mark.parametrize("end", ["\n\0\0\n", ""])
def test_half_a_line_is_what_a_power_failure_leaves(tree: Path, kernels: Kernels, end: str) -> None:
    kernels.faults = {3}
    with pytest.raises(UserError):
        call(tree, *ENDS)
    with (tree / ".git" / "oomtest-bisect" / "steps.jsonl").open("a") as file:
        file.write(f'{{"commit": "c0f{end}')
    assert call(tree) == 0
    assert set(Log(tree).steps()) == {number(tree, one) for one in kernels.asked}


def test_what_is_over_is_over(tree: Path, kernels: Kernels) -> None:
    call(tree, *ENDS)
    with pytest.raises(UserError, match="no bisection goes on"):
        call(tree)
    asked = len(kernels.asked)
    call(tree, *ENDS)
    assert kernels.asked[asked:] == kernels.asked[:asked], "what may have changed is not asked"


def test_another_question_is_asked_of_all(tree: Path, kernels: Kernels) -> None:
    kernels.faults = {3}
    with pytest.raises(UserError):
        call(tree, *ENDS, "--clause=N2")
    kernels.asked.clear()
    assert call(tree, *ENDS, "--clause=N3") == 0
    assert kernels.asked[:2] == [0, COUNT - 1]


def test_other_ends_keep_what_is_known(tree: Path, kernels: Kernels) -> None:
    kernels.faults = {3}
    with pytest.raises(UserError):
        call(tree, *ENDS)
    kernels.asked.clear()
    assert call(tree, f"--good={number(tree, 2)}", "--bad=HEAD") == 0
    assert COUNT - 1 not in kernels.asked
    assert 2 in kernels.asked


def test_why_it_could_not_be_tested_may_have_passed(tree: Path, kernels: Kernels) -> None:
    kernels.untestable = {0}
    with pytest.raises(UserError, match=r"good end is not good: .* does not boot") as caught:
        call(tree, *ENDS)
    assert caught.value.exit_code == INCONCLUSIVE
    kernels.untestable = set()
    assert call(tree, *ENDS) == 0


def test_a_patch_that_has_changed_is_another_one(
    tree: Path, kernels: Kernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text("--- a/x\n+++ b/x\n")
    kernels.faults = {3}
    with pytest.raises(UserError, match=r"x\.patch"):
        call(tree, *ENDS, f"--patch={tmp_path / 'no' / 'x.patch'}")
    with pytest.raises(UserError):
        call(tree, *ENDS, f"--patch={patch}")
    patch.write_text("--- a/y\n+++ b/y\n")
    with pytest.raises(UserError, match="a patch has changed"):
        call(tree)
    asked = len(kernels.asked)
    assert call(tree, *ENDS, f"--patch={patch}") == 0
    assert kernels.asked[asked : asked + 2] == [0, COUNT - 1]
    assert (tree / ".git" / "oomtest-bisect.before" / "steps.jsonl").exists()
    assert "oomtest-bisect.before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--good=HEAD~1", "--bad=HEAD"], "the good end is not good"),
        ([f"--good={'HEAD~7'}", "--bad=HEAD~6"], "the bad end is not bad"),
        (["--good=HEAD", "--bad=HEAD~1"], "is older than --good"),
        (["--good=HEAD~7"], "give both"),
        (["--bad=HEAD"], "give both"),
        ([], "no bisection goes on"),
        ([*ENDS, "--clause=N99"], "no such clause"),
        (["--good=nonsense", "--bad=HEAD"], "has no commit nonsense"),
    ],
)
def test_refused(tree: Path, kernels: Kernels, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call(tree, *words)
    assert git.bisection(tree) is None


def test_a_bisection_of_the_users_own_is_left_alone(tree: Path, kernels: Kernels) -> None:
    git.bisect(tree, "start", "--no-checkout", "HEAD", "HEAD~4")
    before = git.bisection(tree)
    for words in ([*ENDS], []):
        with pytest.raises(UserError, match="another bisection goes on"):
            call(tree, *words)
    assert git.bisection(tree) == before
    assert not kernels.asked


def test_bad_that_no_step_has_said_is_not_believed(
    tree: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that cannot start ends with 1 as well."""
    with monkeypatch.context() as patched:
        patched.setattr(bisect, "step_main", lambda _: BAD)
        with pytest.raises(UserError, match="no step has said so"):
            call(tree, *ENDS)
    assert call(tree) == 0
    assert number(tree, BROKE) in (tree / ".git" / "oomtest-bisect" / "report.txt").read_text()


def test_a_step_by_hand_asks_and_leaves_the_log_alone(
    tree: Path, kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    given = step_given([f"--tree={tree}", "--clause=N2"])
    assert bisect.step_main(given) == BAD
    assert bisect.step_main(given) == BAD
    assert kernels.asked == [COUNT - 1] * 2
    told = capsys.readouterr()
    assert "what it printed" in told.out
    assert "not committed" not in told.err
    (tree / "number").write_text("mine")
    bisect.step_main(given)
    assert "not committed" in capsys.readouterr().err
    assert not (tree / ".git" / "oomtest-bisect").exists()


def test_a_step_by_hand_with_another_question_while_a_bisection_goes_on(
    tree: Path, kernels: Kernels
) -> None:
    kernels.faults = {3}
    with pytest.raises(UserError):
        call(tree, *ENDS, "--clause=N2")
    known = set(Log(tree).steps())
    given = step_given([f"--tree={tree}", "--clause=P1"])
    assert bisect.step_main(given) == GOOD
    assert kernels.asked[-1] == 3
    assert set(Log(tree).steps()) == known


def test_step_never_calls_a_fault_of_ours_bad(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Step:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bisect, "examine", fail)
    assert bisect.step_main(step_given([f"--tree={tree}"])) == BROKEN
    assert bisect.step_main(step_given(["--tree=/nonexistent"])) == BROKEN


def step_process(top: Path, *arguments: str) -> int:
    """Run it as git does.

    :param top: searched for modules before the checkout.
    """
    path = os.pathsep.join([str(top), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "vm", "bisect-step", *arguments],
        cwd=top,
        env={**clean_environment(), "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    return done.returncode


def test_what_git_would_take_for_a_judgement(tmp_path: Path) -> None:
    assert step_process(tmp_path, "--help") == 0
    assert step_process(tmp_path, "--nonsense") == BROKEN
    assert step_process(tmp_path, "--clause") == BROKEN
    (tmp_path / "rich.py").write_text("raise ImportError\n")
    assert step_process(tmp_path, f"--tree={ROOT}") == BROKEN


def test_a_launcher_that_cannot_launch(tmp_path: Path) -> None:
    """Without Python or a package manager ./oomtest ends before any Python runs."""
    (tmp_path / "bin").mkdir()
    for name in ("sh", "readlink", "dirname", "tr", "id"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\nexit 1\n")
    environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    for verb, code in (("bisect-step", BROKEN), ("run", 2)):
        command = ["/bin/sh", str(ROOT / "oomtest"), verb]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr


def test_git_runs_what_it_is_given(tree: Path, tmp_path: Path) -> None:
    """The real ``git bisect run``: the environment, what is left, and its end."""
    git.bisect(tree, "start", "--no-checkout", "HEAD", f"HEAD~{COUNT - 1}")
    script = f"echo $X >>{tmp_path}/x; test $(git -C {tree} show BISECT_HEAD:number) -lt {BROKE}"
    told: list[str] = []
    assert git.bisect_run(tree, ["sh", "-c", script], {"X": "seen"}, told.append) == 0
    assert git.suspects(tree) == (number(tree, BROKE), [])
    assert set((tmp_path / "x").read_text().split()) == {"seen"}
    assert told[0].startswith("Bisecting: ")


def test_the_real_step_can_be_started_from_anywhere(
    tree: Path, cache_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no kernel's tree, so that the step stops git, as it should."""
    log, good, bad = Log(tree), number(tree, 0), number(tree, COUNT - 1)
    question = Question(str(tree))
    log.begin(Bisection(question, good, bad))
    git.bisect(tree, "start", "--no-checkout", bad, good)
    with pytest.raises(UserError, match=r"git bisect run: 1\d\d"):
        bisect._run(tree, question)
    assert "tells no kernel version" in capfd.readouterr().err
