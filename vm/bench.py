# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest bench``: the project's figures, as medians over several runs, measured here."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vm import accel, build, dispatch, snapshot, suite
from vm.errors import UserError
from vm.kernel import Kernel
from vm.profiles import PROFILES
from vm.run import say

ROOT = Path(__file__).resolve().parent.parent
TRIVIAL = "tests/contract/test_memcg_oom.py::test_killer_can_be_disabled_and_enabled"
ONE_OOM = "tests/contract/test_system_oom.py::test_system_oom_signals_root"
RUNS = 10
COLD_RUNS = 3
WHOLE_RUNS = 2


def arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--kernel", default=default, metavar="KERNEL", help="default: %(default)s")


def _times(runs: int, body: Callable[[], None]) -> list[float]:
    """Wall seconds of each run."""
    taken = []
    for _ in range(runs):
        began = time.monotonic()
        body()
        taken.append(time.monotonic() - began)
    return taken


@contextmanager
def _empty_cache() -> Iterator[None]:
    """A cache with nothing in it, not even the archive that guests boot from."""
    before = os.environ.get("OOMTEST_CACHE")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["OOMTEST_CACHE"] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ["OOMTEST_CACHE"]
            else:
                os.environ["OOMTEST_CACHE"] = before


class _Bench:
    def __init__(self, kernel: Kernel, chosen: str) -> None:
        self.kernel = kernel
        self.accel = chosen
        limit = dispatch.TEST * snapshot.scale(chosen)
        self.suite = suite.pack(ROOT, [ROOT / "tests" / "contract"], limit)
        self.dispatcher = dispatch.Dispatcher()

    def prepare(self, tests: suite.Suite | None = None) -> snapshot.Snapshot:
        return self.dispatcher.prepare(
            self.kernel, PROFILES["default"], self.accel, tests or self.suite, lambda line: None
        )

    def changed(self) -> None:
        """Have a session with one test file that it has not seen before."""
        name = TRIVIAL.partition("::")[0]
        changed = dict(self.suite.files)[name] + f"# {uuid.uuid4()}\n".encode()
        self.prepare(self.suite.with_file(name, changed))

    def cold(self) -> None:
        with _empty_cache():
            self.prepare()

    def restore(self, warm: snapshot.Snapshot) -> tuple[float, int]:
        """Seconds until a restored guest answers, and the KiB that QEMU then holds for itself."""

        async def body() -> tuple[float, int]:
            began = time.monotonic()
            machine = await warm.restore()
            try:
                await machine.send(ping=1)
                await machine.record(30)
                taken = time.monotonic() - began
                rollup = Path(f"/proc/{machine.process.pid}/smaps_rollup").read_text()
                return taken, int(rollup.split("Pss:")[1].split()[0])
            finally:
                await machine.kill()

        result: tuple[float, int] = self.dispatcher.wait(body())
        return result

    def test(self, nodeid: str, warm: snapshot.Snapshot) -> None:
        """One test in a fresh machine, nothing restored ahead.

        :raises UserError: if it does not pass: its time would mean nothing.
        """
        limit = 60 * snapshot.scale(self.accel)
        result = self.dispatcher.run(dispatch.Task(nodeid, warm, limit))
        if result.crash or any(report["outcome"] != "passed" for report in result.reports):
            raise UserError(f"bench: {nodeid} does not pass on {self.kernel.name}")

    def whole(self) -> None:
        command = [sys.executable, "-m", "vm", "run", "--kernel", str(self.kernel.image), "-n", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if done.returncode:
            raise UserError(f"bench: {self.kernel.name} does not conform")


def main(given: argparse.Namespace) -> int:
    """Measure and print.

    :param given: ``kernel``, one that conforms.
    """
    console = Console()
    kernel = build.resolve(given.kernel, say)
    chosen = accel.choose("auto", kernel.image)
    bench = _Bench(kernel, chosen.name)
    try:
        cold = _times(COLD_RUNS, bench.cold)
        warm = bench.prepare()
        restored = [bench.restore(warm) for _ in range(RUNS)]
        rows = [
            ("image to first waiting session, cold", cold, "s"),
            ("a changed test file to a waiting session", _times(RUNS, bench.changed), "s"),
            ("restore until the guest answers", [seconds for seconds, _ in restored], "s"),
            (
                "a trivial test in a fresh VM, all in",
                _times(RUNS, lambda: bench.test(TRIVIAL, warm)),
                "s",
            ),
            (
                "a test with one system OOM, all in",
                _times(RUNS, lambda: bench.test(ONE_OOM, warm)),
                "s",
            ),
            ("the whole contract, warm, -n 2", _times(WHOLE_RUNS, bench.whole), "s"),
            ("host memory of one VM (PSS)", [kib / 1024 for _, kib in restored], "MiB"),
        ]
    finally:
        bench.dispatcher.close()
    table = Table("figure", "median", "min", "max", "runs", box=None)
    for name, values, unit in rows:
        numbers = [f"{f(values):.2f} {unit}" for f in (statistics.median, min, max)]
        table.add_row(name, *numbers, str(len(values)))
    console.print(f"{kernel.name} ({kernel.release}), {chosen.name}, {os.cpu_count()} cores")
    console.print(table)
    return 0
