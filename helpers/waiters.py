# SPDX-License-Identifier: GPL-2.0-only
"""Processes and threads that wait for an eventfd, each in its way."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import threading
import time
from collections.abc import Callable

from helpers.evidence import Inconclusive
from helpers.hogs import ROOM, SPARED, Child, state, wait_for_room
from helpers.listeners import Listener
from helpers.patience import slices

READY = 10.0  # seconds until a waiter must be asleep
UNABLE = 254  # what a child ends with that could not get as far as to register
MCL_CURRENT = 1


def wait_for_a_copy() -> None:
    """Wait for memory that a copy of this process has room in; see :func:`stay_resident`.

    Some more is left to whoever is started beside it.
    """
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    wait_for_room((resident - shared) * mmap.PAGESIZE + ROOM)


def stay_resident() -> None:
    """Keep in memory what this process has by now: what it does next must not want any.

    That makes copies of all that it shares with who has forked it, who should have waited for
    the room: if this process did, it would seem to wait for what it is to be told of.
    """
    ctypes.CDLL(None).mlockall(MCL_CURRENT)


def block(fd: int) -> None:
    """Wait in a blocking read(2)."""
    os.set_blocking(fd, True)  # of the open file: of all who share it
    os.eventfd_read(fd)


def poll(fd: int) -> None:
    """Wait for it to become readable."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll()


def choose(fd: int) -> None:
    """Wait in select(2)."""
    select.select([fd], [], [])


def epoll(fd: int, flags: int = 0) -> None:
    """Wait in epoll_wait(2)."""
    with select.epoll() as waiting:
        waiting.register(fd, select.EPOLLIN | flags)
        waiting.poll()


def epoll_edge(fd: int) -> None:
    """Wait in epoll_wait(2) for the edge."""
    epoll(fd, select.EPOLLET)


def second_edge(fd: int) -> None:
    """Wait for an edge after the one with which epoll tells of what was there before."""
    with select.epoll() as waiting:
        waiting.register(fd, select.EPOLLIN | select.EPOLLET)
        waiting.poll()
        waiting.poll()


def nested_epoll(fd: int) -> None:
    """Wait for an epoll instance that watches the eventfd."""
    with select.epoll() as inner:
        inner.register(fd, select.EPOLLIN)
        poll(inner.fileno())


WAYS: dict[str, Callable[[int], None]] = {
    "a blocking read": block,
    "poll": poll,
    "select": choose,
    "epoll": epoll,
    "edge-triggered epoll": epoll_edge,
    "nested epoll": nested_epoll,
}


def _settle(task: int | str, name: str) -> None:
    """Wait until a task waits, interruptibly."""
    for _ in slices(READY):
        try:
            doing = state(task)
        except OSError:  # a thread leaves nothing behind
            doing = "X"
        if doing == "S":
            return
        if doing in "XZ":
            raise Inconclusive(f"{name}: who was to wait for it has ended")
        time.sleep(0.005)
    raise Inconclusive(f"{name}: does not get to wait")


class Waiter:
    """A child that has inherited a listener's eventfd and waits for it.

    :param way: how; returns when the eventfd was signalled.
    :param prepare: what the child does before, such as to give up its privileges.
    :raises Inconclusive: if it does not get to wait.
    """

    def __init__(
        self,
        listener: Listener,
        way: Callable[[int], None],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = listener.name

        def body() -> None:
            prepare()
            way(listener.fd)

        self.child = Child(body, score=SPARED)
        try:
            _settle(self.child.pid, self.name)
        except BaseException:
            self.child.kill()
            raise

    def woken(self, seconds: float) -> bool:
        """Whether it has ended its wait, within ``seconds``."""
        return self.child.wait(seconds) == 0

    def close(self) -> None:
        """Let it go."""
        self.child.kill()


def refusal(child: Child) -> int:
    """The errno that a child ends with whose registration is refused; 0 if it is not.

    :raises Inconclusive: if it does not come to it.
    """
    got = child.ended()
    if got is None or got < 0 or got == UNABLE:
        raise Inconclusive(f"who was to register ended with {got}")
    return got


class Thread:
    """A thread of this process that waits for a listener's eventfd."""

    def __init__(self, listener: Listener, way: Callable[[int], None]) -> None:
        self.name = listener.name
        self.listener = listener
        self.thread = threading.Thread(target=way, args=(listener.fd,), daemon=True)
        self.thread.start()
        _settle(f"{os.getpid()}/task/{self.thread.native_id}", self.name)

    def woken(self, seconds: float) -> bool:
        """Whether it has ended its wait, within ``seconds``."""
        for moment in slices(seconds):
            self.thread.join(moment)
            if not self.thread.is_alive():
                break
        return not self.thread.is_alive()

    def close(self) -> None:
        """Wake it up."""
        if self.thread.is_alive():
            os.eventfd_write(self.listener.fd, 1)
            self.thread.join()
