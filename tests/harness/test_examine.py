# SPDX-License-Identifier: GPL-2.0-only
"""vm.examine: what is made of a build and of verdicts, with kernels and guests left out."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm import build, examine, outcome, qemu, run, stubs, verdict
from vm.errors import INCONCLUSIVE, HostError, UserError
from vm.examine import BAD, BROKEN, GOOD, UNTESTABLE, Question, Step, read, unpatched

TEST = "tests/contract/test_x.py::test"
NO_BOOT = f"x {outcome.NO_BOOT}: it panicked: y"


def answer(code: int = 0, tests: tuple[str, ...] = (), **states: str) -> dict[str, Any]:
    """What ``run --json`` writes, cut down to what is read of it.

    :param tests: states of tests of the first clause.
    """
    contract = verdict.clauses()
    rows = [
        {"id": name, "level": contract[name].level, "state": state, "detail": name.lower()}
        for name, state in states.items()
    ]
    ended = [
        {"test": f"{TEST}[{n}]", "clause": rows[0]["id"], "state": state}
        for n, state in enumerate(tests)
    ]
    for name in {*examine.TELLING} - states.keys():
        unasked = {"state": "not asked", "detail": verdict.UNASKED}
        rows.append({"id": name, "level": contract[name].level, **unasked})
    return {"clauses": rows, "tests": ended, "exit_code": code, "why": "because"}


@pytest.mark.parametrize(
    ("result", "clause", "code", "word"),
    [
        (answer(0, N2="kept"), "", GOOD, "conforms"),
        (answer(0, N4="deviates"), "", GOOD, "conforms"),
        (answer(0, P6="silent"), "", GOOD, "conforms"),
        (answer(0, P6="silent"), "P6", BAD, "violates"),
        (answer(1, N2="broken"), "", BAD, "violates"),
        (answer(1, P1="silent", P2="silent"), "", BAD, "violates"),
        (answer(125, P1="no answer"), "", UNTESTABLE, "inconclusive"),
        (answer(125, P1="not asked", N2="kept"), "N2", GOOD, "kept"),
        (answer(1, P1="broken", N2="kept"), "N2", GOOD, "kept"),
        (answer(125, P1="kept", N2="no answer"), "N2", UNTESTABLE, "inconclusive"),
        (answer(0, N4="deviates"), "N4", BAD, "violates"),
        (answer(125, N2="not asked") | {"why": NO_BOOT}, "N2", UNTESTABLE, "does not boot"),
    ],
)
def test_a_verdict_becomes_a_code(
    result: dict[str, Any], clause: str, code: int, word: str
) -> None:
    assert read(result, clause)[:2] == (code, word)


def test_why_there_is_no_answer_to_the_clause_that_matters() -> None:
    assert read(answer(125, N2="no answer"), "N2").detail == "n2"
    unasked = {"id": "N2", "state": "not asked", "detail": verdict.UNASKED}
    assert read({**answer(125), "clauses": [unasked]}, "N2").detail == "because"


@pytest.mark.parametrize(
    ("states", "is_"),
    [
        ({"P1": "silent", "P2": "silent", "N2": "no answer", "K1": "kept"}, True),
        ({"P1": "silent", "P2": "silent", "P3": "silent"}, True),
        ({"P1": "silent", "P2": "kept"}, False),
        ({"P1": "kept", "P2": "silent"}, False),
        ({"P1": "silent", "P2": "silent", "P10": "kept"}, False),
        ({"P1": "silent", "P2": "silent", "K1": "broken"}, False),
        ({"P1": "silent", "P2": "not asked"}, False),
    ],
)
def test_not_patched_is_another_thing_than_wrong(states: dict[str, Any], is_: bool) -> None:
    assert unpatched(answer(1, **states)) == is_


Examine = Callable[..., Step]


class Asked:
    """Stands in for the runs of the contract: their arguments, and what they answer."""

    def __init__(self) -> None:
        self.arguments: list[list[str]] = []
        self.answers: list[dict[str, Any]] = []

    def __call__(self, image: Path, arguments: list[str], out: object) -> dict[str, Any]:
        self.arguments.append(list(arguments))
        return self.answers.pop(0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    one = Asked()
    monkeypatch.setattr(examine, "_ask", one)
    monkeypatch.setattr(qemu, "binary", lambda: "qemu")
    return one


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: Asked) -> Examine:
    """Examine a commit whose kernel gives these answers, one for each run."""

    def go(
        *answers: dict[str, Any],
        clause: str = "",
        error: UserError | None = None,
        variants: dict[str, str | None] | None = None,
    ) -> Step:
        wanted = clause in ("", stubs.CLAUSE)

        def built(*_: object, **how: object) -> Any:
            if error:
                raise error
            assert how["variants"] == wanted, "a step builds what nobody asks for"
            (tmp_path / stubs.FILE).write_text(json.dumps(variants or {}))
            return SimpleNamespace(image=tmp_path / "bzImage")

        monkeypatch.setattr(build, "build_kernel", built)
        asked.answers = list(answers)
        question = Question("/tree", clause)
        return examine.examine("c0ffee", question, io.StringIO(), lambda line: None)

    return go


def test_bad_is_seen_twice(examined: Examine, asked: Asked) -> None:
    bad = answer(1, ("passed", "failed"), N2="broken")
    step = examined(bad, bad, clause="N2")
    assert (step.code, step.word, step.clauses) == (BAD, "violates", ("N2",))
    assert asked.arguments == [["-p", "vm.first", "--clause=N2"], [f"{TEST}[1]"]]


@pytest.mark.parametrize("then", ["passed", "inconclusive", "timeout", "lost"])
def test_what_is_not_seen_again_is_not_believed(examined: Examine, then: str) -> None:
    step = examined(answer(1, ("failed",), N2="broken"), answer(0, (then,), N2="kept"))
    assert step.code == UNTESTABLE
    assert "not again" in step.detail


def test_only_what_is_seen_again_is_told(examined: Examine) -> None:
    once = answer(1, ("failed",), N2="broken", K1="broken")
    once["tests"].append({"test": "other", "clause": "K1", "state": "failed"})
    again = answer(1, ("passed",), N2="kept", K1="broken")
    again["tests"].append({"test": "other", "clause": "K1", "state": "failed"})
    step = examined(once, again)
    assert (step.code, step.detail, step.clauses) == (BAD, "k1", ("K1",))


def test_a_test_of_silence_that_hears_no_oom_speaks_for_another_clause(
    examined: Examine, asked: Asked
) -> None:
    deaf = answer(1, ("deaf",), N2="no answer", P4="broken")
    assert examined(deaf, deaf).clauses == ("P4",)
    assert asked.arguments[1] == [f"{TEST}[0]"]


@pytest.mark.parametrize(("other", "word"), [("silent", "not patched"), ("kept", "violates")])
def test_silence_alone_does_not_tell(
    examined: Examine, asked: Asked, other: str, word: str
) -> None:
    """The first test that hears nothing may be of a kernel that is deaf on that ear only."""
    first = answer(1, ("silent",), P2="silent")
    again = answer(1, ("silent",), P2="silent", P1=other)
    step = examined(first, again)
    assert (step.code, step.word, step.clauses) == (BAD, word, ("P2",))
    assert set(asked.arguments[1]) == {"--clause=P1", "--clause=P2"}


def test_other_clauses_do_not_matter(examined: Examine, asked: Asked) -> None:
    both = answer(1, ("passed",), N3="kept", K1="broken")
    assert examined(both, clause="N3").code == GOOD
    assert len(asked.arguments) == 1


def test_as_written_is_no_reason_to_ask_again(examined: Examine, asked: Asked) -> None:
    """Without a clause, what deviates is neither bad nor confirmed."""
    bad = answer(1, ("failed",), N2="broken", N4="deviates")
    bad["tests"].append({"test": "other", "clause": "N4", "state": "failed"})
    examined(bad, bad)
    assert asked.arguments[1] == [f"{TEST}[0]"]


@pytest.mark.parametrize("clause", ["", stubs.CLAUSE])
def test_what_does_not_build_without_memcg_needs_no_machine(
    examined: Examine, asked: Asked, clause: str
) -> None:
    step = examined(clause=clause, variants={"without memcg": "no such function"})
    assert (step.code, step.clauses) == (BAD, (stubs.CLAUSE,))
    assert "no such function" in step.detail
    assert not asked.arguments


def test_variants_that_build_are_good(examined: Examine, asked: Asked) -> None:
    assert examined(clause=stubs.CLAUSE, variants={"without memcg": ""}).code == GOOD
    assert examined(clause=stubs.CLAUSE, variants={"without memcg": None}).code == UNTESTABLE
    assert not asked.arguments


def test_what_does_not_build_is_not_testable(examined: Examine) -> None:
    step = examined(error=UserError("no such type", INCONCLUSIVE))
    assert (step.code, step.word) == (UNTESTABLE, "does not build")


def test_what_the_compiler_said_is_kept(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    def built(*_: object, **__: object) -> None:
        try:
            raise run.Failed(["make"], 2, ["first line", "x.c:1: error: last"])
        except run.Failed as error:
            raise UserError("x.c:1", INCONCLUSIVE) from error

    monkeypatch.setattr(build, "build_kernel", built)
    out = io.StringIO()
    examine.examine("c0ffee", Question("/tree"), out, lambda line: None)
    assert out.getvalue() == "first line\nx.c:1: error: last\nx.c:1\n"


@pytest.mark.parametrize("error", [UserError("no make"), HostError("the disk is full")])
def test_a_host_at_fault_is_no_answer(examined: Examine, error: UserError) -> None:
    with pytest.raises(UserError) as caught:
        examined(error=error)
    assert caught.value.exit_code == BROKEN


@pytest.mark.parametrize(
    ("code", "written", "told"),
    [
        (130, {"why": ""}, "ended with 130"),
        (2, {"why": ""}, "ended with 2"),
        (125, None, "ended with 125"),
        (125, {"fault": "host", "why": "the disk is full"}, "the disk is full"),
    ],
)
def test_a_run_without_an_answer_is_nobodys_verdict(
    monkeypatch: pytest.MonkeyPatch, code: int, written: dict[str, str] | None, told: str
) -> None:
    def ran(command: list[str], **_: object) -> Any:
        (target,) = (word.partition("=")[2] for word in command if word.startswith("--json="))
        if written is not None:
            Path(target).write_text(json.dumps({"kernels": [written]}))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(subprocess, "run", ran)
    with pytest.raises(UserError, match=told) as caught:
        examine._ask(Path("bzImage"), [], io.StringIO())
    assert caught.value.exit_code == BROKEN
