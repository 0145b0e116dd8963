# SPDX-License-Identifier: GPL-2.0-only
"""Eventfds registered on a memcg's control files."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from helpers.evidence import Inconclusive
from helpers.memcgs import Memcg, write
from helpers.patience import slices


def register(memcg: Memcg, eventfd: int, control: int, arguments: str = "") -> int:
    """Write one registration to ``cgroup.event_control``.

    :param eventfd: the descriptor to be signalled.
    :param control: a descriptor of the control file whose event is wanted.
    :param arguments: what follows, for files that take any.
    :returns: 0 or an errno (memcg_write_event_control() in mm/memcontrol.c,
        mm/memcontrol-v1.c since 6.11, kernel/cgroup.c before 3.14).
    """
    line = f"{eventfd} {control} {arguments}".rstrip()
    return write(memcg.file("cgroup.event_control"), line)


def register_often(memcg: Memcg, eventfds: Sequence[int], times: int) -> None:
    """Register each of these on ``memory.oom_control``, by turns, as fast as can be.

    :param eventfds: the descriptors to be signalled.
    :param times: how often each.
    :raises OSError: if the kernel refuses.
    """
    control = os.open(memcg.file("memory.oom_control"), os.O_RDONLY)
    door = os.open(memcg.file("cgroup.event_control"), os.O_WRONLY)
    try:
        lines = [f"{eventfd} {control}".encode() for eventfd in eventfds]
        for _ in range(times):
            for line in lines:
                os.write(door, line)
    finally:
        os.close(door)
        os.close(control)


class Listener:
    """An eventfd of this process and what it is registered on.

    :param name: for messages.
    :param flags: further eventfd flags, such as ``os.EFD_SEMAPHORE``.
    :ivar memcg: where it was registered last.
    """

    def __init__(self, name: str, flags: int = 0) -> None:
        self.name = name
        self.memcg: Memcg | None = None
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | flags)

    def __repr__(self) -> str:
        return f"<listener {self.name}>"

    def on(self, memcg: Memcg, file: str = "memory.oom_control", arguments: str = "") -> Listener:
        """Register; any number of times.

        :raises Inconclusive: if the kernel refuses, which is a clause of its own.
        """
        trouble = self.refused(memcg, file, arguments)
        if trouble:
            raise Inconclusive(f"{self.name}: {memcg.path}/{file}: {os.strerror(trouble)}")
        return self

    def refused(self, memcg: Memcg, file: str = "memory.oom_control", arguments: str = "") -> int:
        """Register, where that is what is asked; 0 or an errno."""
        try:
            control = os.open(memcg.file(file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return error.errno or -1
        try:
            trouble = register(memcg, self.fd, control, arguments)
        finally:
            os.close(control)
        if not trouble:
            self.memcg = memcg
        return trouble

    def count(self) -> int:
        """Signals since the last call; does not wait."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def fired(self, seconds: float = 0) -> bool:
        """Whether it was signalled since the last call of :meth:`count`, which will say how often.

        :param seconds: how long to wait for that at most.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return any(poll.poll(moment * 1000) for moment in slices(seconds))

    def wait(self, seconds: float) -> int:
        """Signals since the last call, waiting for the first one.

        :param seconds: how long at most.
        """
        self.fired(seconds)
        return self.count()

    def close(self) -> None:
        """Close the eventfd, which unregisters it wherever it is registered."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
