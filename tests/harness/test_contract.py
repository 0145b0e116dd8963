# SPDX-License-Identifier: GPL-2.0-only
"""What the verb ``run`` makes of the arguments that it hands on to pytest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.contract import _is_test, _Session
from vm.errors import INCONCLUSIVE, INTERRUPTED, USAGE
from vm.verdict import Judgement


@pytest.mark.parametrize(
    ("before", "argument", "names_a_test"),
    [
        ("", "tests/contract", True),
        ("-x", "tests/contract/test_cost.py", True),
        ("-v", "tests/contract/test_cost.py::test_cost_does_not_grow", True),
        ("--kernel-build", "tests/contract", False),
        ("-k", "tests", False),
        ("-k", "a" * 5000, False),
        ("--json", "tests", False),
        ("--json", "README.md", False),  # a file that an earlier run has written
        ("", "-x", False),
        ("", "nowhere", False),
    ],
)
def test_names_a_test(
    monkeypatch: pytest.MonkeyPatch, before: str, argument: str, names_a_test: bool
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert _is_test(before, argument) == names_a_test


@pytest.mark.parametrize(
    ("kernels", "clauses", "keyword", "arguments", "workers"),
    [
        (1, None, "P1", ["tests/contract"], 0),
        (1, ["P1"], "", ["tests/contract"], 0),
        (2, None, "P1", ["tests/contract"], None),
        (1, None, "K6", ["tests/contract"], None),
        (1, ["P1", "P8"], "", ["tests/contract"], None),
        (1, None, "", ["tests/contract"], None),
        (1, None, "", ["tests/contract/test_cost.py::test_cost_does_not_grow"], 0),
        (1, None, "", ["a.py::test_a", "a.py::test_b"], None),
        (1, None, "P1", ["a.py::test_a", "a.py::test_b"], None),
    ],
)
def test_a_single_test_needs_no_workers(
    kernels: int,
    clauses: list[str] | None,
    keyword: str,
    arguments: list[str],
    workers: int | None,
) -> None:
    given = {"--kernel": ["any"] * kernels, "--clause": clauses}
    config: Any = SimpleNamespace(
        getoption=given.get, option=SimpleNamespace(keyword=keyword), args=arguments
    )
    assert _Session([]).pytest_xdist_auto_num_workers(config) == workers


ExitCode = pytest.ExitCode
GOOD, BAD, NONE = "conforms", "violates", "inconclusive"


@pytest.mark.parametrize(
    ("ended", "verdicts", "unfit", "expected", "code"),
    [
        (ExitCode.OK, {"a": GOOD}, "", [], 0),
        (ExitCode.TESTS_FAILED, {"a": GOOD, "b": BAD}, "", [], 1),
        (ExitCode.TESTS_FAILED, {"a": NONE, "b": GOOD}, "a", [], INCONCLUSIVE),
        (ExitCode.TESTS_FAILED, {"a": NONE, "b": BAD}, "a", [], 1),
        # What was expected of which is told by its name, not by its place.
        (ExitCode.OK, {"b": NONE, "a": GOOD}, "b", [("a", GOOD), ("b", NONE)], 0),
        (ExitCode.OK, {"b": NONE, "a": GOOD}, "b", [("a", NONE), ("b", GOOD)], 1),
        (ExitCode.OK, {"a": GOOD}, "", [("a", GOOD), ("a", GOOD)], 0),
        # A kernel that does not boot is an answer; a typing error is none, whatever else was said.
        (ExitCode.USAGE_ERROR, {"a": NONE, "b": NONE}, "ab", [], INCONCLUSIVE),
        (ExitCode.USAGE_ERROR, {"a": NONE, "b": NONE}, "ab", [("a", NONE), ("b", NONE)], 0),
        (ExitCode.USAGE_ERROR, {"a": NONE}, "a", [], USAGE),
        (ExitCode.USAGE_ERROR, {}, "", [], USAGE),
        (ExitCode.NO_TESTS_COLLECTED, {}, "", [("a", NONE)], USAGE),
        (ExitCode.INTERNAL_ERROR, {}, "", [], INCONCLUSIVE),
        (ExitCode.OK, {}, "", [], 0),  # --collect-only
        (ExitCode.INTERRUPTED, {"a": GOOD}, "", [], INTERRUPTED),
    ],
)
def test_exit_code(
    ended: ExitCode,
    verdicts: dict[str, str],
    unfit: str,
    expected: list[tuple[str, str]],
    code: int,
) -> None:
    judgements = {kernel: Judgement(told, "", (), ()) for kernel, told in verdicts.items()}
    results = SimpleNamespace(judgements=judgements, unfit=set(unfit))
    session = _Session(expected)
    session.config = SimpleNamespace(  # type: ignore[assignment]
        pluginmanager=SimpleNamespace(getplugin=lambda name: results),
        getoption=lambda name: ["a", "b"],
    )
    assert session.code(ended) == code
