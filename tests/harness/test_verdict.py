# SPDX-License-Identifier: GPL-2.0-only
"""From answers to a verdict."""

from __future__ import annotations

import dataclasses

import pytest

from vm.verdict import AGAINST, NO_ANSWER, Answer, Clause, Judgement, clauses, judge, row

ANY = clauses()["P1"]


def clause(name: str, level: str = "must", core: bool = False) -> Clause:
    return dataclasses.replace(ANY, id=name, level=level, core=core)


# Stands for the contract: core clauses of each kind, and one of each level beside them.
CONTRACT = {
    one.id: one
    for one in (
        clause("P1", core=True),
        clause("P2", core=True),
        clause("P3"),
        clause("P6", "as-written"),
        clause("N1", core=True),
        clause("N2", core=True),
        clause("N3", core=True),
        clause("K1", "preserved", core=True),
        clause("K3", "preserved"),
        clause("I1", core=True),
    )
}
GOOD = dict.fromkeys(CONTRACT, "passed")
# Without the patch nothing on root can be shown to work: N2 and N3 are unproven.
STOCK = GOOD | {"P1": "silent", "P2": "silent", "P3": "silent", "P6": "silent"}
STOCK |= {"N2": "unproven", "N3": "unproven"}


def verdict(states: dict[str, str], contract: dict[str, Clause] = CONTRACT) -> Judgement:
    """Judge one test for each clause; several states are divided by a blank."""
    answers = [
        Answer(f"{name}.{n}", name, state, f"{name} {state}")
        for name, words in states.items()
        for n, state in enumerate(words.split())
    ]
    return judge(answers, contract)


@pytest.mark.parametrize(
    ("states", "line"),
    [
        (GOOD, "conforms"),
        (GOOD | {"P3": ""}, "conforms"),  # not asked, and no core clause
        (GOOD | {"P3": "skipped"}, "conforms"),
        (GOOD | {"P3": "passed inconclusive"}, "conforms: some tests without an answer: P3"),
        (GOOD | {"P6": "failed"}, "conforms: deviates in P6"),
        (GOOD | {"P6": "silent"}, "conforms: deviates in P6"),
        (GOOD | {"P6": "inconclusive"}, "conforms"),
        (STOCK, "not patched"),
        (STOCK | {"P6": ""}, "not patched"),
        (STOCK | {"P3": "silent silent"}, "not patched"),
        (STOCK | {"N2": "", "N3": ""}, "not patched"),
        (STOCK | {"K3": "unproven"}, "not patched"),
        # Everything else must hold where nothing was signalled, too.
        (STOCK | {"K1": "failed"}, "violates: P1, P2, K1, P3 "),
        (STOCK | {"K1": "inconclusive"}, "inconclusive: K1: "),
        (STOCK | {"I1": ""}, "inconclusive: I1: "),
        (STOCK | {"P2": "inconclusive"}, "inconclusive: P2: "),
        (STOCK | {"P1": ""}, "inconclusive: P1: "),
        # One listener on root that woke up makes of all the silence a wrong port.
        (GOOD | {"P2": "silent"}, "violates: P2 (P2: P2 silent)"),
        (GOOD | {"P1": "silent passed"}, "violates: P1 "),
        (STOCK | {"P3": "silent passed"}, "violates: P1, P2, P3 "),
        (STOCK | {"P6": "passed"}, "violates: P1, P2, P3 "),
        # The clause that is broken most comes first, a core one before others.
        (GOOD | {"P3": "failed passed", "K3": "failed"}, "violates: K3, P3 (K3: K3 failed)"),
        (GOOD | {"P3": "failed", "N2": "failed passed failed"}, "violates: P3, N2 (P3: "),
        (GOOD | {"P3": "failed", "N2": "failed"}, "violates: N2, P3 (N2: "),
        (GOOD | {"P1": "silent failed"}, "violates: P1 (P1: P1 failed)"),
        (GOOD | {"N2": "failed"}, "violates: N2 (N2: N2 failed)"),
        (GOOD | {"N2": "passed passed failed"}, "violates: N2 "),
        (GOOD | {"K3": "failed", "N1": "failed"}, "violates: N1, K3 (N1: "),
        (GOOD | {"P1": "panic"}, "violates: P1 "),
        (GOOD | {"P1": "hang"}, "violates: P1 "),
        (GOOD | {"P1": "passed reset"}, "violates: P1 "),
        (GOOD | {"K3": "stuck"}, "violates: K3 "),
        (GOOD | {"K3": "timeout"}, "inconclusive: K3: "),
        (GOOD | {"N3": "failed", "I1": "inconclusive"}, "violates: N3 "),
        # What says nothing of the kernel is not held against it, and does not count for it.
        (GOOD | {"P1": "worker-died"}, "inconclusive: P1: P1 worker-died"),
        (GOOD | {"P1": "lost"}, "inconclusive: P1: "),
        (GOOD | {"P1": "error"}, "inconclusive: P1: "),
        (GOOD | {"P3": "worker-died"}, "inconclusive: P3: "),
        (GOOD | {"P1": "passed worker-died"}, "conforms: some tests without an answer: P1"),
        (
            GOOD | {"P6": "failed", "P3": "passed inconclusive"},
            "conforms: deviates in P6; some tests without an answer: P3",
        ),
        (GOOD | {"N2": "unproven"}, "inconclusive: N2: "),
        (GOOD | {"N2": ""}, "inconclusive: N2: none of its tests was run"),
        (GOOD | {"K1": "skipped"}, "inconclusive: K1: K1 skipped"),
        ({}, "inconclusive: P1: none of its tests was run; P2: "),
    ],
)
def test_verdict(states: dict[str, str], line: str) -> None:
    judgement = verdict(states)
    if line == "conforms":
        assert judgement.line == line
    assert judgement.line.startswith(line)


@pytest.mark.parametrize(
    ("states", "code"),
    [(GOOD, 0), (GOOD | {"P6": "failed"}, 0), (STOCK, 1), (GOOD | {"N2": "failed"}, 1), ({}, 125)],
)
def test_exit_code(states: dict[str, str], code: int) -> None:
    assert verdict(states).exit_code == code


@pytest.mark.parametrize(
    ("states", "named"),
    [
        (GOOD, ()),
        (GOOD | {"P6": "failed"}, ("P6",)),
        (STOCK, ()),
        (GOOD | {"K3": "failed", "N1": "failed", "P6": "failed"}, ("N1", "K3")),
        (GOOD | {"N2": "unproven", "P3": "inconclusive"}, ("N2", "P3")),
    ],
)
def test_named(states: dict[str, str], named: tuple[str, ...]) -> None:
    assert verdict(states).named == named


def test_many_missing_clauses_do_not_fill_the_line() -> None:
    line = verdict(dict.fromkeys(CONTRACT, "error")).line
    assert line.count(";") == 3
    assert line.endswith("; and 6 more")


@pytest.mark.parametrize(
    ("level", "states", "state", "detail", "passed"),
    [
        ("must", "", "not asked", "none of its tests was run", 0),
        ("must", "skipped", "not asked", "0 skipped", 0),
        ("must", "passed skipped", "kept", "", 1),
        ("must", "passed lost", "kept", "1 without an answer: t: 1 lost", 1),
        ("must", "passed timeout passed", "no answer", "1 timeout", 2),
        ("must", "passed error", "no answer", "1 error", 1),
        ("must", "unproven skipped", "no answer", "0 unproven", 0),
        ("must", "passed silent", "broken", "1 silent", 1),
        ("must", "silent silent", "silent", "0 silent", 0),
        ("must", "silent failed", "broken", "1 failed", 0),
        ("as-written", "passed failed", "deviates", "1 failed", 1),
        ("as-written", "silent", "silent", "0 silent", 0),
    ],
)
def test_row(level: str, states: str, state: str, detail: str, passed: int) -> None:
    answers = [Answer("a.py::t", "X1", s, f"{n} {s}") for n, s in enumerate(states.split())]
    got = row(clause("X1", level), answers)
    assert (got.state, got.detail, got.passed) == (state, detail, passed)
    assert got.total == len(answers)


@pytest.mark.parametrize(
    ("states", "line"),
    [
        (GOOD | {"P4": "passed"}, "conforms"),
        # Whichever clause it was found by, and even if that is only as written.
        (GOOD | {"P4": "passed", "N2": "deaf passed"}, "violates: P4 (P4: N2 deaf)"),
        (GOOD | {"P4": "passed", "P6": "deaf"}, "violates: P4 (P4: P6 deaf)"),
        # Without the patch nobody is ever signalled.
        (STOCK | {"P4": "silent", "N2": "deaf", "K3": "deaf passed"}, "not patched"),
    ],
)
def test_a_root_that_nobody_can_be_signalled_on(states: dict[str, str], line: str) -> None:
    assert verdict(states, CONTRACT | {"P4": clause("P4")}).line.startswith(line)


def test_a_dead_harness_is_no_answer() -> None:
    assert {"worker-died", "lost", "error"} <= NO_ANSWER
    assert not AGAINST & NO_ANSWER


def test_the_contract() -> None:
    contract = clauses()
    assert {one.level for one in contract.values()} == {"must", "preserved", "as-written"}
    core = {name for name, one in contract.items() if one.core}
    assert core == {"P1", "P2", "N1", "N2", "N3", "K1", "I1"}
    assert all(one.text for one in contract.values())
    assert all(contract[name].level != "as-written" for name in core)
