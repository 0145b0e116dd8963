# SPDX-License-Identifier: GPL-2.0-only
"""P12 and S1: many OOMs at once, and everything else meanwhile."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from helpers.bursts import burst, one_by_one
from helpers.evidence import Inconclusive, Silent, available
from helpers.hogs import SPARED, apart, exhaust, populate, touch
from helpers.judge import (
    PATIENCE,
    alive_on_root,
    fires,
    over,
    settled,
    signalled_for_each,
    witnessed,
)
from helpers.listeners import Listener, register_often
from helpers.memcgs import Memcg
from helpers.storm import Storm
from helpers.triggers import MUCH, SMALL, hog_at_limit, system_oom
from helpers.versions import need
from helpers.waiters import Waiter, poll, refusal, stay_resident, wait_for_a_copy
from helpers.whitebox import Whitebox

pytestmark = pytest.mark.system_oom

STEPS = 60
CROWD, MANY = 100, 10
SLOWLY = 10_000  # microseconds
TRIES = 4
FOLLOWERS = 20


@pytest.mark.clause("P12")
def test_a_signal_for_each_kill_of_a_burst(
    root: Memcg, memcg: Callable[..., Memcg], listen: Callable[..., Listener]
) -> None:
    home = memcg()
    listener = listen(root, "root")
    proof = burst([root, home] * 3)
    signalled_for_each(root, listener, proof.system_kills)


@pytest.mark.clause("P4")
def test_ooms_that_happen_while_listeners_are_told_of_one(
    root: Memcg, listen: Callable[..., Listener], whitebox: Whitebox
) -> None:
    """Whoever puts the telling off must owe it for each."""
    listener, crowd = listen(root, "root"), Listener("crowd")
    register_often(root, [crowd.fd], CROWD)
    whitebox.slow(SLOWLY // 5, everybody=True)
    try:
        proof = one_by_one([root] * MANY)
    finally:
        whitebox.slow(0)
        crowd.close()
    signalled_for_each(root, listener, proof.system_kills)


@pytest.fixture
def storm(root: Memcg, record: Callable[[str, object], None]) -> Iterator[Storm]:
    seed = int(os.environ.get("OOMTEST_SEED") or time.time_ns() & 0xFFFFFFFF)
    record("seed", seed)
    print(f"to repeat it: OOMTEST_SEED={seed}")
    one = Storm(root, seed)
    yield one
    one.close()


def register_when_told(root: Memcg, late: Listener, times: int, fd: int) -> None:
    """Wait for some signals, and register another eventfd at once, which takes no memory of ours.

    Ends with an errno if that is refused.
    """
    control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
    door = os.open(root.file("cgroup.event_control"), os.O_WRONLY)
    line = f"{late.fd} {control}".encode()
    stay_resident()
    told = 0
    while told < times:
        poll(fd)
        told += os.eventfd_read(fd)
    try:
        os.write(door, line)
    except OSError as error:
        os._exit(error.errno or 255)


@pytest.mark.clause("I2")
@pytest.mark.pristine  # memcgs that others have left on their way out take the room for a copy
def test_root_takes_a_listener_during_a_system_oom(
    root: Memcg, listen: Callable[..., Listener], slowly: bool
) -> None:
    """Who registers is told first, and registers while others are told."""
    need("registration of eventfds", root)
    witness, late = Listener("witness"), Listener("latecomer")
    herald = listen(root, "herald")
    for _ in range(FOLLOWERS):
        witness.on(root)
    herald.on(root)
    with apart() as hog:
        wait_for_a_copy()
        registering = Waiter(herald, partial(register_when_told, root, late, 1))
        try:
            system_oom(allocator=root, body=hog)
            witnessed(witness)
            got = refusal(registering.child)
        finally:
            registering.close()
            witness.close()
            late.close()
    assert not got, f"during a system OOM root refuses a listener: {errno.errorcode.get(got, got)}"


@pytest.mark.clause("N9")
@pytest.mark.pristine
def test_registering_on_root_during_a_system_oom_does_not_signal(
    root: Memcg, listen: Callable[..., Listener], slowly: bool
) -> None:
    """Who registers once all have been told comes too late to be told of that OOM."""
    herald, witness = listen(root, "herald"), listen(root, "witness")
    herald.on(root)  # at either end of the list: after its second signal nobody is left to tell
    for left in reversed(range(TRIES)):
        late = Listener("latecomer")
        with apart() as hog:
            wait_for_a_copy()
            registering = Waiter(herald, partial(register_when_told, root, late, 2))
            try:
                system_oom(allocator=root, body=hog)
                witnessed(witness)
                if not registering.woken(PATIENCE):
                    raise Inconclusive("nobody has registered")
            finally:
                registering.close()
        told, too_late = settled(root, [witness, late], [0, 0])
        assert too_late < told, "registering on root during a system OOM signalled"
        herald.count()
        late.memcg = root
        if not left:
            alive_on_root(late)
        late.close()


@pytest.mark.clause("S1")
def test_storm(root: Memcg, listen: Callable[..., Listener], storm: Storm) -> None:
    first = listen(root, "registered before the storm")
    for _ in range(STEPS):
        storm.step()
    storm.hog_the_system()
    status = storm.calm()
    assert status is None, f"a hog of the storm was not killed: status {status}"
    over(root)
    last = listen(root, "registered after the storm")
    over(root)
    reconcile(root, storm, first.count())
    assert not last.count(), "registering on root after the storm signalled"
    system_oom(allocator=root)
    for one in (first, last):
        assert one.wait(PATIENCE), f"{one.name}: no longer signalled by a system OOM"


@pytest.mark.clause("S1")
def test_system_oom_while_a_memcg_oom_is_told(
    root: Memcg,
    memcg: Callable[..., Memcg],
    listen: Callable[..., Listener],
    whitebox: Whitebox,
) -> None:
    """A memcg OOM walks the lists of its tree with a lock held that is there for all of them
    (memcg_oom_lock, mm/memcontrol.c).
    """
    child, listener = memcg(), listen(root, "root")
    child.disable_killer()
    herald, crowd = listen(child, "told first"), listen(child, "told for long")
    for _ in range(CROWD):
        crowd.on(child)
    herald.on(child)  # at whichever end the walk begins
    for _ in range(TRIES):
        before = whitebox.counts()
        whitebox.slow(SLOWLY, everybody=True)
        try:
            _memcg_oom_and_system_oom(child, root, herald)
        finally:
            whitebox.slow(0)
        fires(listener)
        if whitebox.counts().since(before).met:
            return
    raise Inconclusive("there was never a system OOM while a memcg OOM was told")


def _memcg_oom_and_system_oom(child: Memcg, root: Memcg, herald: Listener) -> None:
    """Have a memcg whose killer is disabled run out of memory, and the system right after that."""
    begin, go = os.pipe()

    def wait_and_fault() -> None:
        os.read(begin, 1)
        touch(MUCH)

    def exhaust_meanwhile() -> None:
        populate(max(0, available() - MUCH))
        os.write(go, b".")
        poll(herald.fd)
        exhaust()

    herald.count()
    # With room to wait in: a fork alone runs into the usual limit.
    hog = hog_at_limit(child, limit=4 * SMALL, body=wait_and_fault, score=SPARED)
    try:
        system_oom(allocator=root, body=exhaust_meanwhile)
    finally:
        hog.kill()
        os.close(begin)
        os.close(go)


def reconcile(root: Memcg, storm: Storm, total: int) -> None:
    """The listeners of a storm have got what its kills were due to give them."""
    killed = storm.system_kills()
    if not total:
        raise Silent(f"{killed} proven system OOM kills did not signal root")
    assert total >= killed, f"{total} signals for {killed} system OOM kills"
    for entry in storm.listeners:
        count, name = entry.listener.count(), entry.listener.name
        if entry.where is root:
            # The line that names a victim comes after its signal, which may have come too early.
            due = storm.system_kills(entry.after) - 1
            assert due <= count <= total, f"{name}: {count} signals, {due} to {total} were due"
        elif entry.where not in storm.hit:
            assert not count, f"{name}: {count} signals, and its memcg had no OOM"
