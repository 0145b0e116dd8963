# SPDX-License-Identifier: GPL-2.0-only
"""A test that has changed reaches a guest that has collected the suite before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.conftest import LIMIT, REFERENCE
from vm.dispatch import Dispatcher, Task
from vm.suite import Suite
from vm.target import Target

HELD = "tests/contract/test_limits.py"
OTHER = "tests/contract/test_interface.py::test_roots_killer_cannot_be_disabled"
TEST = b"""
import pytest

@pytest.mark.clause("N7")
def test_amended(root):
    assert root is None, "it has changed"
"""


SUITE = Suite((("conftest.py", b"1"), (HELD, b"1"), ("tests/contract/test_a.py", b"1")), ("x",))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (HELD, [HELD]),
        ("conftest.py", None),
        ("helpers/new.py", None),
        ("tests/contract/test_new.py", None),
    ],
)
def test_what_has_changed(name: str, changed: list[str] | None) -> None:
    assert SUITE.with_file(name, b"2").changed(SUITE.digests) == changed
    assert SUITE.changed(SUITE.digests) == []
    assert SUITE.changed({}) is None


@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.usefixtures("reference")
def test_a_changed_test_needs_no_new_collection() -> None:
    dispatcher, told = Dispatcher(), list[str]()
    try:
        target = Target(
            REFERENCE, "auto", [Path("tests/contract").resolve()], dispatcher, told.append
        )
        told.clear()
        changed = target.suite.with_file(HELD, TEST)
        target.suite = changed
        target._snapshots.clear()
        whole = target.facts
        machine = target.machine("default")
        assert told == []
        assert {**machine.facts(), "suite": None} == {**whole, "suite": None}
        result = dispatcher.run(Task(f"{HELD}::test_amended", machine, 60.0))
        (failed,) = [report for report in result.reports if report["outcome"] == "failed"]
        message = failed["longrepr"]["reprcrash"]["message"]
        assert message.startswith("AssertionError: it has changed\nassert <memcg ")
        assert ["clause", "N7"] in failed["user_properties"]
        gone = dispatcher.run(Task(f"{HELD}::test_refusals_signal_nobody", machine, 60.0))
        assert gone.crash is not None
        other = dispatcher.run(Task(OTHER, machine, 60.0))
        assert {report["outcome"] for report in other.reports} == {"passed"}
    finally:
        dispatcher.close()
