# SPDX-License-Identifier: GPL-2.0-only
"""Run single tests in machines restored from snapshots, the next machine restored ahead.

A machine is thrown away after its test. Those of one group may share one, as long as they pass and
leave it as they found it (vm/guest/remains.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

from vm import outcome, qemu, snapshot
from vm.errors import LostVM
from vm.outcome import Crash
from vm.snapshot import Snapshot, scale

# Seconds on hardware; times scale() when emulating, but for PING.
TEST = 30.0  # pytest-timeout's, inside the guest: it fails the test with a stack and goes on
GRACE = 5.0  # what the guest may take beyond that before the host gives it up
SILENCE = 5.0  # without a record or a console line, the guest is pinged
PING = 12.0  # until it must have answered, however fast it is: its host may not be


def seed() -> str:
    """For what a test does at random: ``OOMTEST_SEED``, or a new one.

    From here because a guest that is restored from a snapshot has the same randomness each time.
    """
    return os.environ.get("OOMTEST_SEED") or str(random.SystemRandom().getrandbits(32))


@dataclass(frozen=True)
class Task:
    """A test to run.

    :ivar nodeid: as the guest's session has collected it.
    :ivar snapshot: where its machine comes from.
    :ivar limit: seconds it may take in the guest before the host gives up on it.
    :ivar mutant: the mistake that a kernel of the flavour ``mutants`` is to make.
    :ivar group: those of the same may share a machine; without one a test shares it with none.
    """

    nodeid: str
    snapshot: Snapshot
    limit: float
    mutant: int = 0
    group: str = ""

    def shares(self, other: Task | None) -> bool:
        """Whether the other may run in the machine that this one has run in."""
        mine = (self.snapshot, self.mutant, self.group)
        return (
            other is not None
            and self.group != ""
            and mine == (other.snapshot, other.mutant, other.group)
        )


@dataclass
class Result:
    """What came back of one test.

    :ivar reports: serialized pytest reports, in order.
    :ivar crash: how the machine was lost, if it was.
    :ivar console: what the kernel printed meanwhile.
    :ivar seconds: wall time, from taking a machine to its last record.
    :ivar before: the tests that had run in that machine before.
    :ivar left: what the test did not leave as it was, if that was asked.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    crash: Crash | None = None
    console: str = ""
    seconds: float = 0.0
    before: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def clean(self) -> bool:
        """Whether the machine is as good as a new one."""
        well = all(report["outcome"] != "failed" for report in self.reports)
        return well and self.crash is None and not self.left


class Dispatcher:
    """Owns this process's machines; close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ahead: tuple[Snapshot, asyncio.Future[qemu.Machine]] | None = None
        self._kept: tuple[Task, qemu.Machine] | None = None

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, coroutine: Any) -> Any:
        """Run something asynchronous on the dispatcher's loop."""
        return self._loop.run_until_complete(coroutine)

    def close(self) -> None:
        """Throw every machine away."""
        if self._loop.is_closed():
            return
        self.wait(self._drop())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def prepare(self, *what: Any) -> Snapshot:
        """:func:`snapshot.prepare`; the machine of a new snapshot is the one restored ahead."""
        prepared: Snapshot = self.wait(self._prepare(*what))
        return prepared

    async def _prepare(self, *what: Any) -> Snapshot:
        made, machine = await snapshot.prepare(*what)
        if machine is not None and (self._ahead or self._kept):
            await machine.kill()
        elif machine is not None:
            coming = asyncio.get_running_loop().create_future()
            coming.set_result(machine)
            self._ahead = (made, coming)
        return made

    async def _drop(self) -> None:
        if self._kept:
            _, machine = self._kept
            self._kept = None
            await machine.kill()
        if self._ahead is None:
            return
        _, coming = self._ahead
        self._ahead = None
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError, LostVM):
            await (await coming).kill()

    async def _take(self, task: Task) -> qemu.Machine:
        if self._kept and self._kept[0].shares(task):
            _, machine = self._kept
            self._kept = None
            return machine
        if not self._kept and self._ahead and self._ahead[0] == task.snapshot:
            _, coming = self._ahead
            self._ahead = None
            machine = await coming
            await machine.resume()  # that of a new snapshot stands still
            return machine
        await self._drop()
        return await task.snapshot.restore()

    def run(self, task: Task, then: Task | None = None) -> Result:
        """Run one test.

        :param task: the test.
        :param then: the next one: its machine is restored meanwhile, or it gets this one.
        :returns: reports and, if the machine was lost, how.
        :raises LostVM: if no machine could be restored.
        """
        result: Result = self.wait(self._run(task, then))
        return result

    async def _run(self, task: Task, then: Task | None) -> Result:
        began = time.monotonic()
        machine = await self._take(task)
        result = Result(before=list(machine.ran))
        sharing, kept = task.shares(then), False
        try:
            machine.turn(task.nodeid)
            await machine.send(id=task.nodeid, mutant=task.mutant, seed=seed(), keep=sharing)
            ahead = then.snapshot if then and not sharing else None
            result.crash = await self._follow(machine, task, ahead, result)
            kept = sharing and result.clean()
        except LostVM:
            # The line closes a moment before the process is gone and its console complete.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(machine.process.wait), 5)
            result.crash = outcome.lost(machine.printed(), machine.complaint())
        finally:
            result.console = machine.printed()
            if kept:
                self._kept = (task, machine)
            else:
                await machine.kill()
        result.seconds = time.monotonic() - began
        return result

    async def _follow(
        self,
        machine: qemu.Machine,
        task: Task,
        ahead: Snapshot | None,
        result: Result,
    ) -> Crash | None:
        """Collect records until the test is finished; says how it was lost if it was."""
        factor, limit = scale(task.snapshot.spec.accel), task.limit
        began = time.monotonic()
        pinged, seen = False, 0
        while True:
            spent = time.monotonic() - began
            patience = PING if pinged else SILENCE * factor
            try:
                record = await machine.record(min(patience, max(0.01, limit - spent)))
            except TimeoutError:
                if pinged:
                    return outcome.stuck(None, spent, machine.printed())
                printed = len(machine.printed())
                quiet, seen = printed == seen, printed
                if quiet or spent >= limit:
                    pinged = True
                    limit = max(limit, spent + PING)
                    await machine.send(ping=1)
                continue
            event = record["event"]
            if event == "pong" and spent + PING >= limit:
                return outcome.stuck(str(record["text"]), spent, machine.printed())
            pinged = False
            if event == "started" and ahead and not self._ahead:
                self._ahead = (ahead, asyncio.ensure_future(ahead.restore()))
            elif event == "report":
                result.reports.append(record["data"])
            elif event == "finished":
                result.left = record["left"]
                return None
            elif event == "worker-died":
                return outcome.worker_died(record, machine.printed())
            elif event in {"fault", "unknown"}:
                what = record.get("text") or "the guest has not collected this test"
                return Crash("worker-died", f"the harness in the guest failed: {what}")
