# SPDX-License-Identifier: GPL-2.0-only
"""Run single tests in machines restored from snapshots, the next machine restored ahead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

from vm import outcome, qemu
from vm.errors import LostVM
from vm.outcome import Crash
from vm.snapshot import Snapshot, scale

# Seconds on hardware; times scale() when emulating.
TEST = 30.0  # pytest-timeout's, inside the guest: it fails the test with a stack and goes on
GRACE = 5.0  # what the guest may take beyond that before the host gives it up
SILENCE = 5.0  # without a record or a console line, the guest is pinged
PING = 3.0


def seed() -> str:
    """For what a test does at random: ``OOMTEST_SEED``, or a new one.

    From here because a guest that is restored from a snapshot has the same randomness each time.
    """
    return os.environ.get("OOMTEST_SEED") or str(random.SystemRandom().getrandbits(32))


@dataclass
class Result:
    """What came back of one test.

    :ivar reports: serialized pytest reports, in order.
    :ivar crash: how the machine was lost, if it was.
    :ivar console: what the kernel printed meanwhile.
    :ivar seconds: wall time, from taking a machine to its last record.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    crash: Crash | None = None
    console: str = ""
    seconds: float = 0.0


class Dispatcher:
    """Owns this process's machines; close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ahead: tuple[Snapshot, asyncio.Task[qemu.Machine]] | None = None

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

    async def _drop(self) -> None:
        if self._ahead is None:
            return
        _, task = self._ahead
        self._ahead = None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, LostVM):
            await (await task).kill()

    async def _take(self, snapshot: Snapshot) -> qemu.Machine:
        if self._ahead and self._ahead[0] == snapshot:
            _, task = self._ahead
            self._ahead = None
            return await task
        await self._drop()
        return await snapshot.restore()

    def run(
        self,
        nodeid: str,
        snapshot: Snapshot,
        limit: float,
        then: Snapshot | None,
        mutant: int = 0,
    ) -> Result:
        """Run one test in a pristine machine.

        :param nodeid: as the guest's session has collected it.
        :param snapshot: where the machine comes from.
        :param limit: seconds the test may take in the guest before the host gives up on it.
        :param then: the snapshot that the next test will want, restored meanwhile.
        :param mutant: the mistake that a kernel of the flavour ``mutants`` is to make.
        :returns: reports and, if the machine was lost, how.
        :raises LostVM: if no machine could be restored.
        """
        result: Result = self.wait(self._run(nodeid, snapshot, limit, then, mutant))
        return result

    async def _run(
        self, nodeid: str, snapshot: Snapshot, limit: float, then: Snapshot | None, mutant: int
    ) -> Result:
        result = Result()
        began = time.monotonic()
        machine = await self._take(snapshot)
        try:
            await machine.send(id=nodeid, mutant=mutant, seed=seed())
            result.crash = await self._follow(machine, snapshot.spec.accel, limit, then, result)
        except LostVM:
            # The line closes a moment before the process is gone and its console complete.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(machine.process.wait), 5)
            result.crash = outcome.lost(machine.printed(), machine.complaint())
        finally:
            result.console = machine.printed()
            await machine.kill()
        result.seconds = time.monotonic() - began
        return result

    async def _follow(
        self,
        machine: qemu.Machine,
        accel: str,
        limit: float,
        then: Snapshot | None,
        result: Result,
    ) -> Crash | None:
        """Collect records until the test is finished; says how it was lost if it was."""
        factor = scale(accel)
        began = time.monotonic()
        pinged, seen = False, 0
        while True:
            spent = time.monotonic() - began
            patience = PING if pinged else SILENCE
            try:
                record = await machine.record(min(patience * factor, max(0.01, limit - spent)))
            except TimeoutError:
                if pinged:
                    return outcome.stuck(None, spent, machine.printed())
                printed = len(machine.printed())
                quiet, seen = printed == seen, printed
                if quiet or spent >= limit:
                    pinged = True
                    limit = max(limit, spent + PING * factor)
                    await machine.send(ping=1)
                continue
            event = record["event"]
            if event == "pong" and spent + PING * factor >= limit:
                return outcome.stuck(str(record["text"]), spent, machine.printed())
            pinged = False
            if event == "started" and then and not self._ahead:
                self._ahead = (then, asyncio.ensure_future(then.restore()))
            elif event == "report":
                result.reports.append(record["data"])
            elif event == "finished":
                return None
            elif event == "worker-died":
                return outcome.worker_died(record, machine.printed())
            elif event in {"fault", "unknown"}:
                what = record.get("text") or "the guest has not collected this test"
                return Crash("worker-died", f"the harness in the guest failed: {what}")
