# SPDX-License-Identifier: GPL-2.0-only
"""P11: however a listener waits for its eventfd, and whatever is in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import pytest

from helpers.evidence import Inconclusive, Kmsg, Silent
from helpers.hogs import Child
from helpers.judge import PATIENCE, fires, settled
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.patience import slices
from helpers.triggers import system_oom
from helpers.waiters import WAYS, Thread, Waiter, block, poll, second_edge

pytestmark = [pytest.mark.system_oom, pytest.mark.clause("P11")]

Listen = Callable[..., Listener]
FULL = (1 << 64) - 2  # the most that write(2) puts into an eventfd; the kernel itself adds one


def wakes(waiters: Sequence[Waiter | Thread]) -> None:
    """Each of these was woken by the system OOM that was just proven."""
    asleep = list(waiters)
    for moment in slices(PATIENCE):
        asleep[0].woken(moment)
        asleep = [one for one in asleep if not one.woken(0)]
        if not asleep:
            break
    names = ", ".join(one.name for one in asleep)
    if len(asleep) == len(waiters):
        raise Silent(f"a proven system OOM woke nobody who waited: {names}")
    assert not asleep, f"a proven system OOM did not wake {names}, but others"


def test_processes_that_inherited_the_eventfd(
    root: Memcg, memcg: Callable[..., Memcg], listen: Listen
) -> None:
    late = Listener("poll that began before registration")
    with contextlib.ExitStack() as stack:
        stack.callback(late.close)
        shared = listen(root, "poll by two")
        ways = [(listen(root, name), way) for name, way in WAYS.items()]
        ways += [(shared, poll), (shared, poll), (late, poll)]
        full = listen(root, "edge-triggered epoll at a counter that gets full")
        os.eventfd_write(full.fd, FULL)
        waiters = []
        for listener, way in [*ways, (full, second_edge)]:
            waiters.append(Waiter(listener, way))
            stack.callback(waiters[-1].close)
        late.on(root)
        home, own = memcg(), Listener("poll by somebody who lives and registers below root")
        stack.callback(own.close)

        def move() -> None:
            home.attach()
            own.on(root)

        waiters.append(Waiter(own, poll, prepare=move))
        stack.callback(waiters[-1].close)
        left = Listener("poll of what somebody registered who is gone")
        stack.callback(left.close)

        def register() -> None:
            left.on(root)

        if Child(register).wait() != 0:
            raise Inconclusive("a child could not register what it has inherited")
        waiters.append(Waiter(left, poll))
        stack.callback(waiters[-1].close)
        system_oom(allocator=root)
        wakes(waiters)


def test_time_to_wake_up(
    root: Memcg, listen: Listen, record: Callable[[str, object], None]
) -> None:
    """Measures, besides: by the kernel's own clock, since who wakes up says so in its log."""
    kmsg = Kmsg()
    with contextlib.ExitStack() as stack:
        waiters = []
        for name, way in WAYS.items():

            def woken(fd: int, name: str = name, way: Callable[[int], None] = way) -> None:
                way(fd)
                put("/dev/kmsg", f"<6>oomtest: woken from {name}\n")

            waiters.append(Waiter(listen(root, name), woken))
            stack.callback(waiters[-1].close)
        system_oom(allocator=root)
        wakes(waiters)
    kmsg.read()
    told = kmsg.when(" invoked oom-killer")
    for name in WAYS:
        then = kmsg.when(f"oomtest: woken from {name}")
        if told is not None and then is not None:
            record(f"microseconds from the log's OOM to the end of {name}", then - told)
    kmsg.close()


def test_threads(root: Memcg, listen: Listen) -> None:
    with contextlib.ExitStack() as stack:
        waiters = []
        for name, way in (("a thread in read", block), ("a thread in poll", poll)):
            waiters.append(Thread(listen(root, name), way))
            stack.callback(waiters[-1].close)
        system_oom(allocator=root)
        wakes(waiters)


def test_semaphore(root: Memcg, listen: Listen) -> None:
    semaphore, plain = Listener("semaphore", os.EFD_SEMAPHORE), listen(root, "plain")
    try:
        semaphore.on(root)
        system_oom(allocator=root)
        first, downs = fires(plain, semaphore)
        (seen,) = settled(root, [plain], [first])
        while semaphore.count():
            downs += 1
        assert downs == seen, f"the semaphore went up {downs} times, another eventfd {seen}"
    finally:
        semaphore.close()


def test_counter_is_not_empty(root: Memcg, listen: Listen) -> None:
    first = listen(root, "witness")
    before = {start: listen(root, f"{start:#x}") for start in (1, FULL - 1, FULL)}
    witness = listen(root, "witness, registered after the full ones")
    for start, listener in before.items():
        os.eventfd_write(listener.fd, start)
    # The kernel adds to a full one as to any other, once; the second OOM finds it at its end.
    killed = sum(system_oom(allocator=root).system_kills for _ in range(2))
    counts = settled(root, [first, witness], fires(first, witness))
    seen = counts[0]
    assert min(counts) >= killed, f"{counts} signals for {killed} system OOM kills"
    for start, listener in before.items():
        wanted = min(start + seen, (1 << 64) - 1)
        got = listener.count()
        assert got == wanted, f"{seen} signals made {start:#x} {got:#x} instead of {wanted:#x}"
    system_oom(allocator=root)
    fires(first, witness, *before.values())  # to have been full is not to have gone
