# SPDX-License-Identifier: GPL-2.0-only
"""What the verb ``run`` makes of the arguments that it hands on to pytest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.contract import _is_test, _Session


@pytest.mark.parametrize(
    ("before", "argument", "names_a_test"),
    [
        ("", "tests/contract", True),
        ("-x", "tests/contract/test_cost.py", True),
        ("-v", "tests/contract/test_cost.py::test_cost_does_not_grow", True),
        ("--kernel-build", "tests/contract", False),
        ("-k", "tests", False),
        ("-k", "a" * 5000, False),
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
