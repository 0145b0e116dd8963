# SPDX-License-Identifier: GPL-2.0-only
"""What the host makes of a guest's records, and of their absence; the guest is a script."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm import dispatch, qemu
from vm.dispatch import Dispatcher, Result, Task
from vm.outcome import Crash
from vm.snapshot import Snapshot

SPEC = qemu.Spec(Path("bzImage"), Path("initramfs"), "kvm")
STARTED, FINISHED = {"event": "started"}, {"event": "finished", "left": []}
PONG = {"event": "pong", "text": "tasks 57:R:-"}
REPORT = {"event": "report", "data": {"when": "call"}}
DIED = {"event": "worker-died", "pid": 49, "status": -9}
LIMIT = 30.0


class Guest:
    """A machine whose clock is its own.

    :param script: records; a number stands for that many seconds without one, a string for what
        is printed meanwhile. Then there is nothing any more.
    :param answers: whether it answers pings.
    """

    def __init__(self, script: list[Any], answers: bool = False) -> None:
        self.script = script
        self.answers = answers
        self.now = 0.0
        self.text = ""
        self.pings = 0

    def monotonic(self) -> float:
        return self.now

    def printed(self) -> str:
        return self.text

    async def send(self, **fields: Any) -> None:
        self.pings += "ping" in fields
        if self.answers:
            self.script.insert(0, PONG)

    async def record(self, timeout: float) -> dict[str, Any]:
        while self.script:
            step = self.script.pop(0)
            if isinstance(step, dict):
                return step
            if isinstance(step, str):
                self.text += step
            elif step > timeout:
                self.script.insert(0, step - timeout)
                break
            else:
                self.now += step
                timeout -= step
        self.now += timeout
        raise TimeoutError


def follow(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> tuple[Crash | None, Result]:
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=guest.monotonic))
    result = Result()
    dispatcher = Dispatcher()
    try:
        machine: Any = guest
        task = Task("test", Snapshot(Path("here"), SPEC), LIMIT)
        what = dispatcher._follow(machine, task, None, result)
        return dispatcher.wait(asyncio.wait_for(what, 10)), result
    finally:
        dispatcher.close()


@pytest.mark.parametrize(
    ("script", "answers", "kind"),
    [
        ([STARTED, REPORT, FINISHED], False, None),
        # A quiet guest that answers is given all its time, and no more.
        ([STARTED, 20, REPORT, FINISHED], True, None),
        ([STARTED, 1000], True, "stuck"),
        ([STARTED, 20, REPORT, FINISHED], False, "hang"),
        ([STARTED], False, "hang"),
        # One that goes on printing is not taken for a hung one before its time is over.
        ([STARTED, *["x", 4] * 7, REPORT, FINISHED], False, None),
        ([STARTED, *["x", 4] * 20, REPORT, FINISHED], False, "hang"),
        ([STARTED, DIED], False, "worker-died"),
        ([{"event": "unknown"}], False, "worker-died"),
        ([STARTED, "[    9.0] Kernel panic - not syncing: x\n", 1000], False, "panic"),
    ],
)
def test_follow(
    script: list[Any], answers: bool, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Guest(list(script), answers)
    crash, result = follow(guest, monkeypatch)
    assert (crash and crash.kind) == kind
    assert guest.now <= LIMIT + dispatch.PING + 1
    assert len(result.reports) == (kind is None)


def test_a_stuck_test_tells_where(monkeypatch: pytest.MonkeyPatch) -> None:
    crash, _ = follow(Guest([STARTED, 1000], answers=True), monkeypatch)
    assert crash is not None
    assert "the kernel answers" in crash.reason
    assert "57:R:-" in crash.reason
