# SPDX-License-Identifier: GPL-2.0-only
"""What a test may conclude, and the proof in the kernel's log that an OOM happened."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from _pytest.outcomes import Skipped

from helpers.patience import slices


class Silent(AssertionError):
    """A proven system OOM and a listener on root that was not signalled.

    Where every P clause ends so, the kernel is not patched; that is another thing than a port
    that is wrong.
    """


class Inconclusive(Skipped):
    """The evidence is missing: neither a pass nor a fail."""


class Overrun(Inconclusive):
    """The kernel's log has lost what was not read in time."""


class Unproven(Inconclusive):
    """Nothing fired, as it should be, but the eventfd could not be shown to fire at all."""


class Deaf(Unproven):
    """A proven system OOM that signalled nobody on root, not even who has just been registered.

    Without the patch that is no wonder; on a kernel that has signalled root before, it tells
    against P4, whatever the test was about.
    """


# mm/oom_kill.c: __oom_kill_process() says "Killed process" since 4.21, after oom_kill_process()
# said "Kill process" until then; the prefix tells a memcg OOM from a system one. Neither line is
# rate-limited.
KILL = re.compile(
    r"(?P<memcg>Memory cgroup out of memory|Out of memory(?: \([^)]*\))?): "
    r"Kill(?:ed)? process (?P<pid>\d+)"
)
NOBODY = "Out of memory and no killable processes"
INVOKED = " invoked oom-killer"
RATELIMIT = 5.5  # seconds after which the kernel tells more than the kill again
SYSRQ = re.compile(r"Manual OOM execution")
CONSTRAINT = re.compile(r"oom-kill:constraint=(\w+)")


@dataclass(frozen=True)
class Kill:
    """A line of the kernel's log that names a victim.

    :ivar memcg: whether a memcg's limit was hit, rather than the system's memory exhausted.
    """

    pid: int
    memcg: bool


def kills(lines: list[str]) -> list[Kill]:
    """The kills that log lines tell of, each once.

    :param lines: messages of ``/dev/kmsg``, without their prefix.
    """
    found = []
    for line in lines:
        match = KILL.match(line)
        if match:
            found.append(Kill(int(match["pid"]), match["memcg"].startswith("Memory")))
    return found


class Kmsg:
    """A reader of the kernel's log from a marker of its own on.

    :raises Overrun: from any method, if the log overran the reader: what it missed may be the
        proof. Reading goes on with what is left.
    """

    def __init__(self) -> None:
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.lines: list[str] = []
        self.stamps: list[int] = []  # in microseconds, one for each line
        os.lseek(self.fd, 0, os.SEEK_END)
        marker = f"oomtest {uuid.uuid4()}"
        out = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        try:
            # Without the newline it stays open for a continuation and unread (5.10, printk.c).
            os.write(out, f"<6>{marker}\n".encode())
        finally:
            os.close(out)
        if not self.wait(lambda lines: any(marker in line for line in lines), 5):
            raise Inconclusive("a marker written to /dev/kmsg did not come back (printk.devkmsg?)")
        self.lines.clear()
        self.stamps.clear()

    def read(self) -> list[str]:
        """All messages since the marker."""
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return self.lines
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise Overrun("/dev/kmsg overran the reader: proof may be lost") from None
                raise
            prefix, _, text = record.partition(";")
            self.stamps.append(int(prefix.split(",")[2]))
            self.lines.append(text.partition("\n")[0])

    def when(self, text: str) -> int | None:
        """When the first message with that text was logged, in microseconds; None if none was."""
        for stamp, line in zip(self.stamps, self.lines, strict=True):
            if text in line:
                return stamp
        return None

    def wait(self, done: Callable[[list[str]], bool], seconds: float) -> bool:
        """Read until ``done(lines)``; False if that did not come true within ``seconds``."""
        for _ in slices(seconds):
            if done(self.read()):
                return True
            time.sleep(0.01)
        return done(self.read())

    def close(self) -> None:
        """Let go of the log."""
        os.close(self.fd)


# What a kernel says when it has found itself to be wrong, at the start of its message. Not what its
# watchdogs and clocks say: a CPU or a task that got no time, which a busy host has for each; nor
# that tables of lockdep's are full; nor KCSAN's races, of which every kernel has harmless ones.
SPLAT = re.compile(
    r"(?:BUG: (?!workqueue lockup|MAX_|KCSAN)|"
    r"WARNING: (?!timekeeping|(?:Under|Over)flow in clocksource)|"
    r"Oops\b|general protection fault|kernel BUG at |list_(?:add|del) corruption|UBSAN: |"
    r"INFO: (?:trying to register non-static key|lockdep)|DEBUG_LOCKS_WARN_ON|"
    r"double fault|refcount_t: )"
)
# Of /proc/sys/kernel/tainted (kernel/panic.c): bad page, died, warned.
TAINTS = {5: "bad page", 7: "died", 9: "warned"}


def splats(records: Iterable[str]) -> list[str]:
    """What the kernel complains of in records of ``/dev/kmsg``.

    :param records: whole ones, with their prefix: what user space has written does not count.
    """
    found = []
    for record in records:
        prefix, _, message = record.partition(";")
        own = prefix.partition(",")[0]
        if own.isdigit() and int(own) >> 3 == 0 and SPLAT.match(message):
            found.append(message.partition("\n")[0])
    return found


def _taints() -> int:
    with open("/proc/sys/kernel/tainted", encoding="ascii") as file:
        return int(file.read())


class Complaints:
    """What the kernel has complained of since this was made."""

    def __init__(self) -> None:
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self.fd, 0, os.SEEK_END)
        self.taints = _taints()

    def _records(self) -> Iterator[str]:
        while True:
            try:
                yield os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EPIPE:  # overrun: what is gone has left its taint
                    raise

    def found(self) -> list[str]:
        """The complaints, once: the log is closed afterwards."""
        lines = splats(self._records())
        os.close(self.fd)
        new = _taints() & ~self.taints
        return lines or [f"tainted: {name}" for bit, name in TAINTS.items() if new >> bit & 1]


def meminfo(name: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    return _meminfo()[name]


def available() -> int:
    """What can be had without swapping, in bytes; before 3.14 (mm/page_alloc.c) what is free."""
    sizes = _meminfo()
    return sizes.get("MemAvailable", sizes["MemFree"])


def _meminfo() -> dict[str, int]:
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return {name.rstrip(":"): int(size) << 10 for name, size, *_ in lines}


def vmstat(name: str) -> int | None:
    """A counter of /proc/vmstat; None if the kernel has none of that name.

    Its ``oom_kill`` (4.13, mm/vmstat.c) counts memcg and sysrq kills as well.
    """
    with open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            known, _, value = line.partition(" ")
            if known == name:
                return int(value)
    return None
