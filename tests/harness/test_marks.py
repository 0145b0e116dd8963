# SPDX-License-Identifier: GPL-2.0-only
"""Every contract test that can take a machine down says so with its marker."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from _pytest.mark.structures import get_unpacked_marks

from tests.harness import reach
from tests.harness.conftest import ROOT, Pytest

TESTS = sorted((ROOT / "tests" / "contract").glob("test_*.py")) + sorted(
    (ROOT / "tests" / "samples").glob("[a-z]*.py")
)


def marks(*things: Any) -> set[str]:
    """The names of the marks that modules, classes and functions carry."""
    return {mark.name for thing in things for mark in get_unpacked_marks(thing)}


def cases() -> Iterator[Any]:
    for path in TESTS:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name)
        owners = [module, *(c for _, c in inspect.getmembers(module, inspect.isclass))]
        for owner in owners:
            if getattr(owner, "__module__", name) != name:
                continue
            for test, function in inspect.getmembers(owner, inspect.isfunction):
                if test.startswith("test_"):
                    carried = marks(module, owner, function)
                    yield pytest.param(function, carried, id=f"{path.stem}::{test}")


CASES = list(cases())


@pytest.mark.parametrize(("function", "carried"), CASES)
def test_dangerous_tests_are_marked(function: Callable[..., None], carried: set[str]) -> None:
    assert "clause" in carried
    if reach.reaches(function):
        assert "system_oom" in carried


@pytest.mark.parametrize(("function", "carried"), CASES)
def test_clauses_are_written_out(function: Callable[..., None], carried: set[str]) -> None:
    """--clause collects only the files in which it can be read."""
    text = inspect.getsource(inspect.getmodule(function) or function)
    for mark in get_unpacked_marks(function):
        if mark.name == "clause":
            assert f'clause("{mark.args[0]}")' in text


def test_the_dangerous_tests_are_recognised() -> None:
    dangerous = {case.id for case in CASES if reach.reaches(case.values[0])}
    assert {
        "test_interface::test_system_oom_still_kills_after_an_attempt",
        "test_memcg_oom::test_root_reads_at_rest_around_a_system_oom",
        "test_registered::test_registering_on_root_does_not_signal",
        "test_silence::test_sysrq_that_finds_nobody_does_not_signal_root",
        "test_system_oom::test_system_oom_signals_root",
        "endings::test_panics",
        "endings::test_resets",
    } <= dangerous
    assert "test_memcg_oom::test_removing_a_memcg_signals_its_listeners" not in dangerous


def test_marks_of_the_module_count() -> None:
    assert "system_oom" in marks(importlib.import_module("tests.contract.test_silence"))


@pytest.mark.parametrize(("asked", "others"), [("-k=P1", False), ("-k=P1 or P2", True)])
def test_a_keyword_that_is_a_clause_is_no_part_of_another(
    run_pytest: Pytest, asked: str, others: bool
) -> None:
    listed = run_pytest("--collect-only", "-q", asked, "tests/contract").stdout
    assert "::test_system_oom_signals_root" in listed
    assert ("test_allocations.py" in listed) is others  # P10's


def test_an_unknown_clause_is_told_at_once(run_pytest: Pytest) -> None:
    done = run_pytest("--clause", "P77", "-n", "2", "tests/contract")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.strip() == "ERROR: --clause P77: no such clause"
