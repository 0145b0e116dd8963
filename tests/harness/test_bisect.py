# SPDX-License-Identifier: GPL-2.0-only
"""vm.bisect: what git is told, on a repository of a few commits and with the kernels left out."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from vm import bisect, build, git, qemu
from vm.bisect import BAD, BROKEN, GOOD, UNTESTABLE, Log, Question, Step, read
from vm.errors import INCONCLUSIVE, UserError


def answer(code: int = 0, **states: str) -> dict[str, Any]:
    """What ``run --json`` writes, cut down to what is read of it."""
    rows = [{"id": name, "state": state, "detail": name.lower()} for name, state in states.items()]
    return {"clauses": rows, "exit_code": code, "why": "because"}


@pytest.mark.parametrize(
    ("result", "clause", "code", "word"),
    [
        (answer(0, P1="kept", N2="kept"), "", GOOD, "conforms"),
        (answer(0, P1="kept", N4="deviates"), "", GOOD, "conforms"),
        (answer(1, P1="kept", N2="broken"), "", BAD, "violates"),
        (answer(1, P1="silent", P2="silent"), "", BAD, "not patched"),
        (answer(1, P1="silent", N2="broken"), "", BAD, "violates"),
        (answer(125, P1="no answer"), "", UNTESTABLE, "inconclusive"),
        (answer(125, P1="not asked", N2="kept"), "N2", GOOD, "kept"),
        (answer(1, P1="broken", N2="kept"), "N2", GOOD, "kept"),
        (answer(125, P1="kept", N2="no answer"), "N2", UNTESTABLE, "inconclusive"),
        (answer(0, N4="deviates"), "N4", BAD, "violates"),
    ],
)
def test_a_verdict_becomes_a_code(
    result: dict[str, Any], clause: str, code: int, word: str
) -> None:
    assert read(result, clause)[:2] == (code, word)


def examined(
    monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any], error: UserError | None = None
) -> Step:
    """Examine a commit whose kernel gives these answers, one for each run."""
    given = iter(answers)

    def built(*_: object, **__: object) -> Any:
        if error:
            raise error
        return type("Kernel", (), {"image": Path("bzImage")})

    monkeypatch.setattr(build, "build_kernel", built)
    monkeypatch.setattr(qemu, "binary", lambda: "qemu")
    monkeypatch.setattr(bisect, "_ask", lambda *_: next(given))
    return bisect.examine("c0ffee", Question("/tree"))


def failing(state: str) -> dict[str, Any]:
    return {**answer(1, N2="broken"), "tests": [{"test": "t", "state": state}]}


def test_bad_is_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    step = examined(monkeypatch, failing("failed"), failing("failed"))
    assert (step.code, step.clauses) == (BAD, ("N2",))


def test_what_is_not_seen_again_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    step = examined(monkeypatch, failing("failed"), failing("passed"))
    assert step.code == UNTESTABLE
    assert "not again" in step.detail


def test_what_does_not_build_is_not_testable(monkeypatch: pytest.MonkeyPatch) -> None:
    step = examined(monkeypatch, error=UserError("no such type", INCONCLUSIVE))
    assert (step.code, step.word) == (UNTESTABLE, "does not build")


def test_a_host_at_fault_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        examined(monkeypatch, error=UserError("no make"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of six commits, each with its number in a file."""
    top = tmp_path / "tree"
    top.mkdir()

    def run(*arguments: str) -> None:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(top), *who, *arguments], check=True, capture_output=True)

    run("init", "-q")
    for number in range(6):
        (top / "number").write_text(str(number))
        run("add", ".")
        run("commit", "-q", "-m", f"commit {number}")
    return top


def test_what_is_known_is_not_asked_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, question = Log(tree), Question(str(tree))
    log.begin(question)
    calls = []

    def examine(commit: str, _: Question) -> Step:
        calls.append(commit)
        return Step(commit, GOOD, "conforms", "")

    monkeypatch.setattr(bisect, "examine", examine)
    assert log.about("a1", question) == log.about("a1", question)
    assert calls == ["a1"]
    assert Log(tree).question == question


def test_step_never_calls_a_fault_of_ours_bad(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Step:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bisect, "examine", fail)
    given = type("Given", (), {"tree": str(tree), "patch": [], "clause": ""})
    assert bisect.step_main(given) == BROKEN  # type: ignore[arg-type]


def test_bisection_finds_the_commit_and_goes_on_after_an_interruption(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Git bisect runs a stand-in for bisect-step, which breaks down on its first call."""
    monkeypatch.setattr(
        bisect,
        "examine",
        lambda commit, _: Step(
            commit, GOOD if number(commit) < 3 else BAD, "violates", "", ("N2",)
        ),
    )

    def number(commit: str) -> int:
        return int(git.content(tree, commit, "number") or b"0")

    flag = tmp_path / "flag"
    script = (
        f"test -e {flag} || {{ touch {flag}; exit 128; }}; "
        f"test $(git -C {tree} show BISECT_HEAD:number) -lt 3"
    )
    run = git.bisect_run
    monkeypatch.setattr(git, "bisect_run", lambda where, _: run(where, ["sh", "-c", script]))
    heads = (git.commit(tree, "HEAD~5"), git.commit(tree, "HEAD"))
    given = type("Given", (), {})()
    given.tree, given.good, given.bad, given.clause, given.patch = str(tree), *heads, "N2", []
    with pytest.raises(UserError, match="goes on"):
        bisect.main(given)
    given.good = given.bad = None
    Log(tree).about(git.commit(tree, "HEAD~2"), Question(str(tree), "N2"))
    assert bisect.main(given) == 0
    told = capsys.readouterr().out
    assert "commit 3" in told
    assert "First bad commit" in told
    assert not git.bisecting(tree)
    assert (tree / "number").read_text() == "5", "what is checked out was touched"


def test_ends_that_are_alike_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisect, "examine", lambda c, _: Step(c, GOOD, "conforms", ""))
    given = type("Given", (), {})()
    given.tree, given.good, given.bad = str(tree), "HEAD~5", "HEAD"
    given.clause, given.patch = "", []
    with pytest.raises(UserError, match="the bad end"):
        bisect.main(given)
