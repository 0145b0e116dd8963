# SPDX-License-Identifier: GPL-2.0-only
"""I2: what the kernel keeps of who has left, or was refused."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from helpers.evidence import Inconclusive, meminfo
from helpers.judge import PATIENCE, over
from helpers.listeners import Listener, register_often
from helpers.memcgs import Memcg
from helpers.patience import slices
from helpers.preflight import mounted
from helpers.refusals import CLOSED, REFUSALS, refused
from helpers.triggers import remove, system_oom
from helpers.versions import need

Make = Callable[..., Memcg]
MANY, FEW = 60, 8
# To signal all costs the square of OFTEN, to close them that of its product with MANY.
OFTEN, ROUNDS, TRIES = 40, 4, 6
ENTRY = 32  # bytes; a list's links and an eventfd, as the allocator rounds them up
REFUSED, EVENT = 8000, 160  # bytes at least of a struct mem_cgroup_event


def identity(eventfd: int) -> int:
    """The number that an eventfd has in the kernel, the lowest that was free (fs/eventfd.c)."""
    with open(f"/proc/self/fdinfo/{eventfd}", encoding="ascii") as file:
        found = [line.split()[1] for line in file if line.startswith("eventfd-id:")]
    if not found:
        pytest.skip("this kernel does not number its eventfds (since 5.2, fs/eventfd.c)")
    return int(found[0])


def come_and_go(root: Memcg, often: int = OFTEN) -> None:
    """Register what leaves again once it has been signalled."""
    for _ in range(ROUNDS):
        passing = [Listener("passing") for _ in range(MANY)]
        try:
            register_often(root, [one.fd for one in passing], often)
        except OSError as error:
            pytest.fail(f"root does not take {MANY * often} registrations: {error.strerror}")
        system_oom(allocator=root)
        for one in passing:
            one.close()
    over(root)


def taken() -> int:
    """What the kernel has taken for its own objects, in bytes, but for those of its threads.

    A port that sleeps to strike somebody off has hundreds of kworkers started. A thread has half
    as much of such objects as it has of stack.
    """
    return meminfo("SUnreclaim") - meminfo("KernelStack") // 2


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_memory_of_who_has_left_is_given_back(root: Memcg) -> None:
    need("registration of eventfds", root)
    need("an allocator that has back at once what is freed", root)
    come_and_go(root)  # from here on there are slabs enough for all who are there at a time
    registrations = MANY * OFTEN * ROUNDS
    least = ENTRY * registrations
    given_back = 0
    # The kernel takes memory for other things as well, but not each time. And it may free this
    # later: what is left to RCU waits for 5 s (kfree_rcu(), kernel/rcu/tree.c) or 10
    # (CONFIG_RCU_LAZY).
    for more in reversed(range(TRIES)):
        before = taken()
        come_and_go(root)
        for _ in slices(0 if more else 4 * PATIENCE):
            left = taken() - before
            if left < least // 2:
                given_back += 1
                break
            time.sleep(0.05)
        if given_back == 2:  # once may be something else that was given back meanwhile
            return
    before = taken()
    come_and_go(root, often=0)
    if taken() - before > least // 4:
        raise Inconclusive("system OOMs alone leave the kernel with more memory in use here")
    pytest.fail(
        f"{left} bytes of the kernel's are gone after {registrations} registrations that ended"
    )


@pytest.mark.clause("I2")
def test_memory_of_what_was_refused_is_given_back(root: Memcg) -> None:
    need("registration of eventfds", root)
    need("an allocator that has back at once what is freed", root)
    listener = Listener("refused")
    limit = os.open(root.file("memory.limit_in_bytes"), os.O_RDONLY)
    door = os.open(root.file("cgroup.event_control"), os.O_WRONLY)
    try:
        for no_file in (CLOSED, limit):
            line = f"{listener.fd} {no_file}".encode()
            # The kernel takes memory for other things as well, but not each time.
            for _ in range(TRIES):
                before = taken()
                for _ in range(REFUSED):
                    with suppress(OSError):
                        os.write(door, line)
                        pytest.fail(f"{line!r} is not refused")
                left = taken() - before
                if left < EVENT * REFUSED // 2:
                    break
            else:
                pytest.fail(f"{left} bytes of the kernel's are gone after {REFUSED} refusals")
    finally:
        os.close(limit)
        os.close(door)
        listener.close()


@contextmanager
def shared_descriptors() -> Iterator[None]:
    """Have a second thread meanwhile.

    Where there is none the kernel takes no reference to a file that it could fail to put
    (__fget_light(), fs/file.c).
    """
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def lowest_free(count: int) -> set[int]:
    """The numbers that the next eventfds get. Between them are those of other processes'."""
    probes = [Listener("probe") for _ in range(count)]
    numbers = {identity(probe.fd) for probe in probes}
    for probe in probes:
        probe.close()
    return numbers


def eventfds_kept(root: Memcg, many: int, few: int, passing: Callable[[], None]) -> int:
    """How many eventfds the kernel keeps of those that come and go meanwhile.

    :param many: so many come.
    :param few: less need not be waited for: it lets go of them in work items, and may take its
        time to.
    """
    over(root)
    before = lowest_free(many)
    with shared_descriptors():
        passing()
    for _ in slices(3 * PATIENCE):
        over(root)
        left = len(before - lowest_free(many))
        if left < few:
            break
    return left


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_what_was_registered_is_let_go(root: Memcg) -> None:
    def passing() -> None:
        listeners = [Listener("passing").on(root) for _ in range(MANY)]
        system_oom(allocator=root)
        for one in listeners:
            one.close()

    left = eventfds_kept(root, MANY, MANY // 2, passing)
    assert left < MANY // 2, f"of {MANY} eventfds registered on root and closed, {left} are kept"


@pytest.mark.clause("I2")
def test_what_was_registered_on_a_memcg_that_is_removed_is_let_go(root: Memcg, memcg: Make) -> None:
    def passing() -> None:
        for _ in range(2 * FEW):
            home, listener = memcg(), Listener("below")
            listener.on(home)
            remove(home)
            listener.wait(PATIENCE)
            listener.close()

    left = eventfds_kept(root, 2 * FEW, FEW, passing)
    assert left < FEW, f"of {2 * FEW} eventfds on memcgs that were removed, {left} are kept"


@pytest.mark.clause("I2")
def test_the_file_that_is_registered_on_is_let_go(root: Memcg) -> None:
    """A file that is open keeps what it is on mounted."""
    need("registration of eventfds", root)
    for case in ("registered", *REFUSALS):
        listener = Listener(case)
        try:
            with mounted() as mount, shared_descriptors():
                there = Memcg.root(mount)
                other = there.child(f"oomtest-other-{os.getpid()}")
                if case == "registered":
                    listener.on(there)
                else:
                    refused(there, other, listener.fd, case)
                listener.close()
                remove(other)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            pytest.fail(f"{case}: a file is kept that was opened to register on")


@pytest.mark.clause("I2")
def test_what_was_refused_is_let_go(root: Memcg, memcg: Make) -> None:
    other = memcg()

    def passing() -> None:
        for case in [*REFUSALS] * FEW:
            listener = Listener(case)
            refused(root, other, listener.fd, case)
            listener.close()

    left = eventfds_kept(root, FEW * len(REFUSALS), FEW, passing)
    assert left < FEW, f"of each refusal's {FEW} eventfds, {left} in all are kept"
