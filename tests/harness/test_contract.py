# SPDX-License-Identifier: GPL-2.0-only
"""What the verb ``run`` makes of the arguments that it hands on to pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.contract import _is_test


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
