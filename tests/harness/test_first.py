# SPDX-License-Identifier: GPL-2.0-only
"""vm.first: which end of a test ends the asking."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.first import First


def report(clause: str | None, ended: str, outcome: str = "") -> Any:
    said = [("clause", clause), ("outcome", outcome)]
    properties = [(name, value) for name, value in said if value]
    return SimpleNamespace(user_properties=properties, outcome=ended)


@pytest.mark.parametrize(
    ("asked", "one", "ends"),
    [
        (None, report("N2", "failed"), True),
        (None, report("N2", "failed", "silent"), True),
        (None, report("N2", "failed", "panic"), True),
        (["N2"], report("N2", "failed"), True),
        (None, report("N2", "passed"), False),
        (None, report("N2", "skipped", "inconclusive"), False),
        (None, report("N2", "failed", "timeout"), False),
        (None, report("N2", "failed", "error"), False),
        (None, report("N2", "failed", "lost"), False),
        (None, report(None, "failed"), False),
        # What follows from the code as it was posted rejects a kernel only if it is asked for.
        (None, report("N4", "failed"), False),
        (["N4"], report("N4", "failed"), True),
    ],
)
def test_first(tmp_path: Path, asked: list[str] | None, one: Any, ends: bool) -> None:
    options = {"--decided": tmp_path / "decided", "--clause": asked}
    config: Any = SimpleNamespace(getoption=options.__getitem__)
    workers = [First(config), First(config)]
    assert workers[1].pytest_runtest_protocol() is None
    workers[0].pytest_runtest_logreport(one)
    assert workers[1].pytest_runtest_protocol() is (True if ends else None)
