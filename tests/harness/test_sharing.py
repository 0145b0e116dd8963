# SPDX-License-Identifier: GPL-2.0-only
"""Which tests share a machine: those of one group, while they pass and leave nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.conftest import LIMIT, REFERENCE, Pytest
from vm import qemu, snapshot
from vm.dispatch import Dispatcher, Result, Task
from vm.outcome import Crash
from vm.snapshot import Snapshot

SAMPLES = "tests/samples/neighbours.py"
SPEC = qemu.Spec(Path("bzImage"), Path("initramfs"), "kvm")
HERE = Snapshot(Path("here"), SPEC)
TASK = Task("a", HERE, 1.0, 3, "P1")


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        (replace(TASK, nodeid="b", limit=2.0), True),
        (replace(TASK, group="P2"), False),
        (replace(TASK, mutant=4), False),
        (replace(TASK, snapshot=Snapshot(Path("there"), SPEC)), False),
        (None, False),
    ],
)
def test_shares(other: Task | None, shares: bool) -> None:
    assert TASK.shares(other) == shares


def test_without_a_group_nothing_is_shared() -> None:
    alone = replace(TASK, group="")
    assert not alone.shares(alone)


@pytest.mark.parametrize(
    ("result", "clean"),
    [
        (Result([{"outcome": "passed"}, {"outcome": "skipped"}]), True),
        (Result([{"outcome": "passed"}, {"outcome": "failed"}]), False),
        (Result([{"outcome": "passed"}], crash=Crash("hang", "")), False),
        (Result([{"outcome": "passed"}], left=["processes"]), False),
    ],
)
def test_clean(result: Result, clean: bool) -> None:
    assert result.clean() == clean


class Machines:
    """Stands in for QEMU: machines by number, which pass what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.made = 0
        monkeypatch.setattr(Snapshot, "restore", self.restore)

    async def restore(self, *_: object) -> Any:
        self.made += 1
        return Machine(self.made, self.log)


class Machine:
    def __init__(self, number: int, log: list[str]) -> None:
        self.number = number
        self.log = log
        self.ran: list[str] = []
        self.records: list[dict[str, Any]] = []

    def turn(self, test: str) -> None:
        self.ran.append(test)

    def printed(self) -> str:
        return ""

    async def resume(self) -> None:
        self.log.append(f"{self.number} goes on")

    async def send(self, **command: Any) -> None:
        self.log.append(f"{command['id']} in {self.number}")
        left = ["memcgs"] if command["id"] == "leaves" else []
        self.records = [{"event": "started"}, {"event": "finished", "left": left}]

    async def record(self, timeout: float) -> dict[str, Any]:
        return self.records.pop(0)

    async def kill(self) -> None:
        self.log.append(f"{self.number} gone")


def test_a_machine_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(monkeypatch)
    names = ["a", "b", "leaves", "c"]
    tasks = [replace(TASK, nodeid=name) for name in names]
    tasks.append(replace(TASK, nodeid="d", group="P2"))
    dispatcher = Dispatcher()
    try:
        befores = [
            dispatcher.run(task, then).before
            for task, then in zip(tasks, [*tasks[1:], None], strict=True)
        ]
    finally:
        dispatcher.close()
    ran = [line for line in machines.log if " in " in line]
    assert ran == ["a in 1", "b in 1", "leaves in 1", "c in 2", "d in 3"]
    assert befores == [[], ["a"], ["a", "b"], [], []]
    gone = [line for line in machines.log if "gone" in line]
    assert sorted(gone) == ["1 gone", "2 gone", "3 gone"]


def test_a_machine_that_nobody_wants_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to come next may be left out, and something else comes."""
    machines = Machines(monkeypatch)
    dispatcher = Dispatcher()
    try:
        dispatcher.run(TASK, replace(TASK, nodeid="b"))
        dispatcher.run(replace(TASK, nodeid="c", mutant=5))
    finally:
        dispatcher.close()
    assert machines.log == ["a in 1", "1 gone", "c in 2", "2 gone"]


@pytest.mark.parametrize("kept", [False, True])
def test_the_machine_of_a_new_snapshot_runs_a_test(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Unless another one waits for its test already."""
    machines = Machines(monkeypatch)

    async def prepare(*_: object) -> Any:
        return HERE, await machines.restore()

    monkeypatch.setattr(snapshot, "prepare", prepare)
    dispatcher = Dispatcher()
    try:
        if kept:
            dispatcher.run(replace(TASK, nodeid="z"), TASK)
        assert dispatcher.prepare() == HERE
        dispatcher.run(TASK)
    finally:
        dispatcher.close()
    if kept:
        assert machines.log == ["z in 1", "2 gone", "a in 1", "1 gone"]
    else:
        assert machines.log == ["1 goes on", "a in 1", "1 gone"]


@pytest.mark.usefixtures("reference")
@pytest.mark.timeout(LIMIT + 60)
class TestInGuests:
    def test_neighbours(self, run_pytest: Pytest, tmp_path: Path) -> None:
        found = tmp_path / "found.json"
        done = run_pytest("--kernel", REFERENCE, SAMPLES, "--json", str(found))
        assert "1 failed, 6 passed" in done.stdout, done.stdout
        (kernel,) = json.loads(found.read_text())["kernels"]
        (failed,) = [test for test in kernel["tests"] if test["state"] == "failed"]
        assert "as it should" in failed["detail"]
        again = done.stdout.partition("To see it again")[2]
        tests = f"{SAMPLES}::test_has_a_new_machine {SAMPLES}::test_fails"
        assert f"./oomtest run --kernel {REFERENCE} -n 0 -- {tests}" in again

    def test_pristine(self, run_pytest: Pytest) -> None:
        done = run_pytest("--kernel", REFERENCE, SAMPLES, "--pristine")
        assert "assert [] == ['first']" in done.stdout
        assert "3 failed, 4 passed" in done.stdout
