# SPDX-License-Identifier: GPL-2.0-only
"""One QEMU process: started confined, spoken to over QMP and a serial line, surely ended.

Everything here is asynchronous and belongs to the main thread: the kernel ends QEMU when the
*thread* that started it is gone (``PR_SET_PDEATHSIG``), so no helper thread may start one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from qemu.qmp import QMPClient, QMPError
from qemu.qmp.protocol import ConnectError

from vm.errors import LostVM, UserError

BINARY = "qemu-system-x86_64"
LINE_LIMIT = 64 << 20
MEMORY_MIB = 256

CMDLINE = (
    # oops=panic: a worker that dies in an oops would look like a fault of the harness.
    "console=ttyS0 panic=-1 oops=panic rdinit=/init loglevel=7 printk.devkmsg=on printk.time=1 "
    # Boot time under emulation: nothing to mitigate, no timer to calibrate against another.
    "mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on audit=0 "
    # Nor does a guest panic because its host was busy, whatever it was configured for.
    "softlockup_panic=0 hung_task_panic=0 nmi_watchdog=0"
)


def binary() -> str:
    """The emulator's path.

    :raises UserError: if it is not installed.
    """
    found = shutil.which(BINARY)
    if found is None:
        raise UserError(f"{BINARY} not found: install it (Debian: apt install qemu-system-x86)")
    return found


@cache
def version() -> str:
    """The emulator's version, as in ``7.2.22``; it is part of a snapshot's key."""
    out = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=False)
    words = out.stdout.split()
    return words[3].rstrip(",") if len(words) > 3 else "unknown"


@dataclass(frozen=True)
class Spec:
    """What a machine is made of.

    :param kernel: the bzImage; empty when memory and state come from a snapshot.
    :param initramfs: the cpio archive.
    :param accel: ``kvm`` or ``tcg``.
    :param devices: further QEMU arguments, a machine profile's.
    :param cmdline: further kernel parameters, a machine profile's.
    :param parallel: whether each CPU is emulated by a thread of its own.
    """

    kernel: Path
    initramfs: Path
    accel: str
    devices: tuple[str, ...] = ()
    cmdline: str = ""
    parallel: bool = False

    def hardware(self) -> list[str]:
        """The arguments that a snapshot depends on."""
        # By default one thread for both CPUs: the host's cores have other guests to run, and what
        # needs no atomic instructions is faster.
        thread = "multi" if self.parallel else "single"
        fast = "kvm" if self.accel == "kvm" else f"tcg,thread={thread},tb-size=128"
        # qemu64 lacks what slows emulation down; rdrand spares the guest the wait for entropy.
        cpu = "host" if self.accel == "kvm" else "qemu64,+rdrand"
        return [
            *("-machine", "pc,memory-backend=ram,hpet=on,vmport=off", "-accel", fast),
            *("-cpu", cpu, "-smp", "2", "-m", str(MEMORY_MIB)),
            *("-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-nic", "none"),
            *self.devices,
        ]

    def boot(self) -> list[str]:
        """The arguments that only a machine which boots needs."""
        return [
            *("-kernel", str(self.kernel), "-initrd", str(self.initramfs)),
            *("-append", f"{CMDLINE} {self.cmdline}".strip()),
        ]


class Machine:
    """A running guest. Use :meth:`start`, and :meth:`kill` whatever happens.

    :ivar console: what the guest printed on its first serial port.
    :ivar ran: the tests that have run in it.
    """

    def __init__(self, process: subprocess.Popen[bytes], console: IO[bytes]) -> None:
        self.process = process
        self.console = console
        self.ran: list[str] = []
        self._page = 0
        self.qmp = QMPClient("oomtest")
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    @classmethod
    async def start(
        cls, spec: Spec, memory: Path, *, share: bool, state: int | None = None
    ) -> Machine:
        """Start QEMU.

        :param spec: the machine.
        :param memory: the file behind the guest's memory.
        :param share: whether what the guest writes reaches that file: so for a machine that will
            become a snapshot; a restored one gets private pages.
        :param state: a descriptor to read the device state from; without it the machine boots.
        :returns: a machine that boots, or that :meth:`restore` can resume.
        :raises UserError: if QEMU is not installed or refuses its arguments.
        :raises LostVM: if QEMU ended at once.
        """
        qmp, qmp_far = socket.socketpair()
        line, line_far = socket.socketpair()
        console = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the machine
        fds = [qmp_far.fileno(), line_far.fileno(), console.fileno()]
        # Debian's util-linux is essential, so setpriv is there; it needs no code of ours to run
        # between fork and exec.
        command = [
            *("setpriv", "--pdeathsig", "KILL", binary(), *spec.hardware()),
            *(
                "-object",
                f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={memory},"
                f"share={'on' if share else 'off'}",
            ),
            *("-chardev", f"socket,id=qmp,fd={fds[0]}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"file,id=console,path=/dev/fd/{fds[2]}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=line,fd={fds[1]}", "-serial", "chardev:line"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
            *(spec.boot() if state is None else ("-incoming", "defer")),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=fds if state is None else [*fds, state],
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        qmp_far.close()
        line_far.close()
        machine = cls(process, console)
        try:
            machine.reader, machine.writer = await asyncio.open_connection(
                sock=line, limit=LINE_LIMIT
            )
            await machine.qmp.connect(qmp)
        except (ConnectError, QMPError, OSError) as error:
            await machine.kill()
            raise LostVM(f"QEMU ended at once: {machine.complaint() or error}") from error
        except BaseException:
            await machine.kill()
            raise
        return machine

    async def restore(self, state: int) -> None:
        """Load the device state and resume.

        :param state: the descriptor given to :meth:`start`.
        :raises LostVM: if the state does not fit the machine.
        """
        try:
            with self.qmp.listener("MIGRATION") as progress:
                await self._migration("events", "x-ignore-shared")
                await self.qmp.execute("migrate-incoming", {"uri": f"fd:{state}"})
                status = ""
                while status != "completed":
                    event: Any = await asyncio.wait_for(progress.get(), 30)
                    status = event["data"]["status"]
                    if status == "failed":
                        raise LostVM(f"the snapshot did not load: {self.complaint()}")
            await self.qmp.execute("cont")  # it was saved standing still
        except (QMPError, TimeoutError, EOFError) as error:
            raise LostVM(f"the snapshot did not load: {self.complaint() or error}") from error

    async def save(self, state: int) -> None:
        """Stop the guest and write its device state; the memory is in its file already.

        :param state: a descriptor open for writing, inherited by QEMU.
        :raises LostVM: if QEMU could not write it.
        """
        try:
            await self.pause()
            await self._migration("x-ignore-shared")
            self.qmp.send_fd_scm(state)
            await self.qmp.execute("getfd", {"fdname": "state"})
            await self.qmp.execute("migrate", {"uri": "fd:state"})
            while True:
                answer: Any = await self.qmp.execute("query-migrate")
                if answer.get("status") == "completed":
                    return
                if answer.get("status") in ("failed", "cancelled"):
                    raise LostVM(f"QEMU could not save its state: {answer.get('error-desc')}")
                await asyncio.sleep(0.01)
        except (QMPError, EOFError) as error:
            raise LostVM(f"QEMU could not save its state: {error}") from error

    async def inflate(self, mib: int, seconds: float) -> None:
        """Take memory from the guest by its balloon; a guest without a driver keeps it.

        :param mib: how much.
        :param seconds: how long the guest may take.
        """
        target = (MEMORY_MIB - mib) << 20
        deadline = time.monotonic() + seconds
        try:
            await self.qmp.execute("balloon", {"value": target})
            while time.monotonic() < deadline:
                now: Any = await self.qmp.execute("query-balloon")
                if now["actual"] <= target:
                    return
                await asyncio.sleep(0.05)
        except QMPError as error:
            raise LostVM(f"the balloon does not work: {error}") from error

    async def pause(self) -> None:
        """Have the guest stand still."""
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        """Let a stopped guest go on."""
        await self.qmp.execute("cont")

    async def _migration(self, *capabilities: str) -> None:
        wanted = [{"capability": name, "state": True} for name in capabilities]
        await self.qmp.execute("migrate-set-capabilities", {"capabilities": wanted})

    async def send(self, **fields: Any) -> None:
        """Send one line to PID 1.

        :raises LostVM: if the machine is gone.
        """
        try:
            self.writer.write(json.dumps(fields).encode() + b"\n")
            await self.writer.drain()
        except OSError as error:
            raise LostVM(str(error)) from error

    async def record(self, timeout: float) -> dict[str, Any]:
        """The guest's next record.

        :param timeout: in seconds.
        :raises TimeoutError: if none came in time.
        :raises LostVM: if the machine is gone.
        """
        while True:
            try:
                line = await asyncio.wait_for(self.reader.readline(), timeout)
            except (OSError, ValueError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise LostVM(str(error)) from error
            if not line.endswith(b"\n"):
                raise LostVM("the line to the guest closed")
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    return record

    def printed(self) -> str:
        """What the guest printed on its console, since the last :meth:`turn` if there was one."""
        size = os.fstat(self.console.fileno()).st_size - self._page
        text = os.pread(self.console.fileno(), size, self._page)
        return text.decode(errors="replace").replace("\r", "")

    def turn(self, test: str) -> None:
        """A test is about to run; after another one, with a new page of the console.

        What has killed the machine meanwhile stays on it.
        """
        if self.ran and self.process.poll() is None:
            self._page = os.fstat(self.console.fileno()).st_size
        self.ran.append(test)

    def complaint(self) -> str:
        """QEMU's last words, once it has ended."""
        if self.process.poll() is None or self.process.stderr is None:
            return ""
        lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self.process.returncode}"

    async def kill(self) -> None:
        """End QEMU now and collect it; harmless when it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        with contextlib.suppress(Exception):
            await self.qmp.disconnect()
        if hasattr(self, "writer"):
            self.writer.close()
        self.process.wait()
