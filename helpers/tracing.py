# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel calls and when, from kprobe events (CONFIG_KPROBE_EVENTS, tracefs)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from _pytest.outcomes import Skipped

from helpers.evidence import Inconclusive
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.triggers import memcg_oom, remove

TRACEFS = "/sys/kernel/tracing"
GROUP = "oomtest"
# What signals an eventfd: since 6.8 the first is a macro, and before, a port may call the second.
SIGNAL = ("eventfd_signal", "eventfd_signal_mask")
FIRST_ARGUMENT = {"x86_64": "%di", "aarch64": "%x0"}
KILL = "signal_generate"  # the tracepoint (include/trace/events/signal.h)
EVENT = re.compile(
    r"-(?P<pid>\d+) +\[\d+\] \S+ +(?P<time>\d+\.\d+): (?P<name>\w+): (?P<text>.*)$", re.MULTILINE
)


@dataclass(frozen=True)
class Event:
    """One hit of a probe.

    :ivar time: in seconds.
    :ivar text: the probe's arguments, as the kernel prints them.
    """

    pid: int
    time: float
    name: str
    text: str

    @property
    def argument(self) -> int:
        """The value of the argument that :meth:`Tracer.probe` recorded."""
        return int(self.text.rpartition("=")[2], 0)


class Tracer:
    """Kprobe events and the ring buffer that they go to; close it, or use it in ``with``.

    :param whole: record in the buffer that the kernel dumps when it dies, not in one of our own.
    :raises Skipped: if the kernel offers no kprobe events.
    """

    def __init__(self, *, whole: bool = False) -> None:
        if not os.path.exists(f"{TRACEFS}/kprobe_events"):
            raise Skipped("no kprobe events: it takes tracefs and CONFIG_KPROBE_EVENTS=y")
        self.directory = TRACEFS if whole else f"{TRACEFS}/instances/{GROUP}"
        self.names: list[str] = []
        if not whole:
            os.mkdir(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, name: str, text: str) -> None:
        """Write one of the buffer's control files."""
        put(f"{self.directory}/{name}", text)

    def probe(
        self,
        name: str,
        *functions: str,
        argument: bool = False,
        leaving: bool = False,
        between: tuple[str, str] | None = None,
    ) -> None:
        """Record every call of a function.

        Before 5.5 an event has one probe (kernel/trace/trace_kprobe.c), on the first function.

        :param name: the events' name.
        :param functions: as many of these as the kernel has.
        :param argument: record the first argument, too.
        :param leaving: record the returns, not the calls.
        :param between: only from one event of the first of these names to one of the second.
        :raises Skipped: if it has none of them.
        """
        register = FIRST_ARGUMENT.get(os.uname().machine)
        if argument and register is None:
            raise Skipped("it is not known how this architecture passes arguments")
        fetch = f" argument={register}:x64" if argument else ""
        defined = False
        for function in functions:
            with contextlib.suppress(OSError):
                _define(f"{'r' if leaving else 'p'}:{GROUP}/{name} {function}{fetch}")
                defined = True
        if not defined:
            raise Skipped(f"no probe on any of {', '.join(functions)}")
        self.names.append(name)
        if between is None:
            self.file(f"events/{GROUP}/{name}/enable", "1")
            return
        for event, word in zip(between, ("enable_event", "disable_event"), strict=True):
            self.file(f"events/{GROUP}/{event}/trigger", f"{word}:{GROUP}:{name}")

    def kills(self) -> None:
        """Record every SIGKILL that is sent, as :data:`KILL`, and by whom."""
        self.file(f"events/signal/{KILL}/filter", f"sig == {signal.SIGKILL:d}")
        self.file(f"events/signal/{KILL}/enable", "1")

    def events(self) -> list[Event]:
        """What was recorded so far, in order."""
        with open(f"{self.directory}/trace", encoding="utf-8", errors="replace") as file:
            return list(_parsed(file.read()))

    def clear(self) -> None:
        """Forget what was recorded."""
        os.close(os.open(f"{self.directory}/trace", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))

    def close(self) -> None:
        """Remove the probes and the buffer."""
        for name in self.names:
            self.file(f"events/{GROUP}/{name}/enable", "0")
        if self.directory != TRACEFS:
            os.rmdir(self.directory)
        for name in self.names:
            _define(f"-:{GROUP}/{name}")
        self.names.clear()


def _define(line: str) -> None:
    # Appended: to open it otherwise removes everybody's probes (kernel/trace/trace_kprobe.c).
    fd = os.open(f"{TRACEFS}/kprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _parsed(trace: str) -> Iterator[Event]:
    for match in EVENT.finditer(trace):
        yield Event(int(match["pid"]), float(match["time"]), match["name"], match["text"])


def identity(tracer: Tracer, listener: Listener, scratch: Memcg) -> int:
    """The address by which the kernel signals a listener's eventfd.

    Found out from a memcg OOM that signals it; afterwards it is as it was before.

    :param tracer: has a probe ``signal`` on :data:`SIGNAL`, with its argument.
    :param scratch: a memcg without other listeners; removed.
    :raises Inconclusive: if the eventfd's address does not come out.
    """
    listener.on(scratch)
    memcg_oom(scratch)
    seen = {event.argument for event in tracer.events() if event.name == "signal"}
    if len(seen) != 1 or not listener.wait(5):
        raise Inconclusive(f"{listener.name}: signals of {len(seen)} eventfds instead of its own")
    remove(scratch)
    if not listener.wait(5):  # that signals, too
        raise Inconclusive(f"{listener.name}: not signalled by the removal of its memcg")
    return seen.pop()
