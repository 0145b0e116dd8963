# SPDX-License-Identifier: GPL-2.0-only
"""K again: memcgs whose killer is disabled, those who wait there, and what is left afterwards.

Who waits marks the tree below as under OOM, keeps its oom_lock, and undoes both when it goes on
(mem_cgroup_oom_synchronize() in mm/memcontrol.c; mm/memcontrol-v1.c since 6.11).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from helpers.evidence import Inconclusive
from helpers.hogs import SPARED, Bait, Child, populate_for_a_moment, touch
from helpers.judge import PATIENCE, alive_on, goes_on, signalled, stays_silent, under_oom
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.triggers import MUCH, blocked_hog, fence, hog_at_limit, memcg_oom, system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
ROOM = 8 * MIB  # a limit that children can be started within
MANY = 4  # who wait at one limit
TRIES = 4


@pytest.mark.clause("K1")
@pytest.mark.parametrize("below", [False, True], ids=["at its limit", "below"])
def test_hog_that_waits_signals_that_memcg_and_its_descendants(
    root: Memcg, memcg: Make, listen: Listen, below: bool
) -> None:
    parent, sibling = memcg(), memcg()
    child, beside = memcg(parent), memcg(parent)
    hit = [listen(parent, "parent"), listen(child, "child"), listen(beside, "beside")]
    spared = listen(sibling, "sibling")
    hog = blocked_hog(parent, within=child if below else parent)
    try:
        signalled(*hit, by="a memcg OOM with the killer disabled")
        stays_silent(root, spared, after="an OOM of its sibling, with the killer disabled")
    finally:
        hog.kill()
    alive_on(sibling, spared)


@pytest.mark.clause("K1")
def test_memcg_oom_signals_descendants_whose_own_killer_is_disabled(
    memcg: Make, listen: Listen
) -> None:
    parent = memcg()
    disabled, beside = memcg(parent), memcg(parent)
    disabled.disable_killer()
    hit = [listen(disabled, "a child's"), listen(memcg(disabled), "a child's child's")]
    memcg_oom(parent, within=beside)
    signalled(*hit, by="an OOM further up, where the killer is enabled,")


@pytest.mark.clause("K1")
def test_memcg_oom_signals_while_another_memcg_is_stuck(
    memcg: Make, listen: Listen, stuck: Make
) -> None:
    stuck()
    other = memcg()
    listener = listen(other, "other")
    memcg_oom(other)
    signalled(listener, by="an OOM beside a memcg that is stuck")


@pytest.mark.clause("K1")
def test_memcg_oom_signals_after_one_with_its_killer_disabled(memcg: Make, listen: Listen) -> None:
    child = memcg()
    listener = listen(child, "child")
    blocked_hog(child).kill()
    child.enable_killer()
    assert under_oom(child, 0), "nobody waits any more, and under_oom is still 1"
    listener.count()
    memcg_oom(child)
    signalled(listener, by="an OOM after one with its killer disabled")


@pytest.mark.clause("K1")
def test_memcg_oom_signals_after_one_above_a_memcg_that_was_stuck(
    memcg: Make, listen: Listen
) -> None:
    parent = memcg()
    child, beside = memcg(parent), memcg(parent)
    hog = blocked_hog(child)
    try:
        # What is locked below cannot be locked from above, and must be left as it was found.
        memcg_oom(parent, within=beside, limit=ROOM)
    finally:
        hog.kill()
    assert under_oom(child, 0), "nobody waits any more, and under_oom is still 1"
    listeners = [listen(parent, "parent"), listen(beside, "child")]
    memcg_oom(parent, within=beside)
    signalled(*listeners, by="an OOM after one above a memcg that was stuck")


@pytest.mark.clause("K4")
@pytest.mark.system_oom
def test_system_oom_leaves_who_waits_as_he_is(root: Memcg, memcg: Make, listen: Listen) -> None:
    listen(root, "root")
    child = memcg()
    hog = blocked_hog(child)
    try:
        system_oom(allocator=root)
        # Who is given memory meanwhile tries again, and waits again.
        assert under_oom(child, 1), "a hog waits, and a system OOM has set under_oom to 0"
        assert goes_on(hog, child), "after a system OOM, a raised limit resumes nobody"
    finally:
        hog.kill()


@pytest.mark.clause("K2")
@pytest.mark.parametrize("killer", ["enabled", "disabled"])
def test_memcg_oom_leaves_descendants_at_rest(
    root: Memcg, memcg: Make, listen: Listen, killer: str
) -> None:
    parent = memcg()
    child = memcg(parent)
    if killer == "enabled":
        memcg_oom(parent, within=child)
        fence(root)
    else:
        blocked_hog(parent).kill()
        parent.enable_killer()
    assert under_oom(child, 0), "its parent's OOM is over, and a child is under OOM still"
    late = listen(child, "latecomer")
    stays_silent(root, late, after="registering below a memcg that is no longer under OOM")
    alive_on(parent, late)


@pytest.mark.clause("K4")
def test_hog_below_a_limit_is_killed_whatever_its_own_memcg_says(memcg: Make) -> None:
    parent = memcg()
    child = memcg(parent)
    child.disable_killer()
    hog = hog_at_limit(parent, within=child)
    status = hog.ended()
    assert status == -signal.SIGKILL, f"nobody is killed at a limit further up: status {status}"


@pytest.mark.clause("K4")
def test_hog_waits_at_a_limit_further_up(memcg: Make) -> None:
    parent = memcg()
    child = memcg(parent)  # before that, or its own killer would be disabled as well
    parent.disable_killer()
    hog = hog_at_limit(parent, within=child, score=SPARED)
    try:
        waits = hog.sleeps()
        assert waits, f"a hog does not wait at a disabled limit further up: status {hog.status}"
        assert under_oom(parent, 1), "a hog from below waits at its limit, and under_oom is 0"
        assert goes_on(hog, parent), "the hog did not go on with the limit further up raised"
    finally:
        hog.kill()
    assert under_oom(parent, 0), "under_oom is still 1 afterwards"


@contextmanager
def crowd(memcg: Memcg, number: int) -> Iterator[list[Child]]:
    """Hogs that wait at the limit of one memcg, all of them, with its killer disabled."""
    ready, go = os.pipe()

    def body() -> None:
        os.read(ready, 1)
        touch(MUCH)

    memcg.disable_killer()
    hogs: list[Child] = []
    try:
        for _ in range(number):
            hogs.append(Child(body, memcg, SPARED))
        memcg.limit(ROOM)
        os.write(go, b"." * number)
        assert all(hog.sleeps() for hog in hogs), "not all wait who are at the limit of a memcg"
        yield hogs
    finally:
        for hog in hogs:
            hog.kill()
        os.close(ready)
        os.close(go)


@pytest.mark.clause("K1")
def test_the_first_who_waits_signals_for_all(memcg: Make, listen: Listen) -> None:
    child = memcg()
    listener = listen(child, "child")
    counts = []
    for _ in range(TRIES):
        # Who is woken meanwhile, by somebody's exit, tells again.
        with crowd(child, MANY):
            counts.append(listener.count())
        if 0 < counts[-1] < MANY:
            return
    assert any(counts), "a memcg OOM did not signal its memcg, with the killer disabled"
    raise AssertionError(
        f"{MANY} wait at the limit of a memcg, each time {min(counts)} or more tell"
    )


@pytest.mark.clause("K4")
def test_one_of_two_that_wait_leaves_the_other_waiting(memcg: Make) -> None:
    child = memcg()
    with crowd(child, 2) as (one, other):
        assert child.oom_control().under_oom == 1, "two wait, and under_oom is not 1"
        one.kill()
        assert other.sleeps(), f"one of two left, the other does not wait: status {other.status}"
        assert under_oom(child, 1), "one of two left, and under_oom is 0"
        went_on = goes_on(other, child)
        assert went_on, "one of two left, the other did not go on with the limit raised"
        assert under_oom(child, 0), "under_oom is still 1 afterwards"


@pytest.mark.clause("K4")
def test_a_charge_of_the_kernels_own_fails_where_the_killer_is_disabled(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    child.disable_killer()
    listener = listen(child, "child")
    hog = hog_at_limit(child, body=lambda: populate_for_a_moment(MUCH))
    status = hog.ended()
    assert status == 0, f"a fault from within the kernel at a disabled limit: the hog has {status}"
    # Nobody waits, so that there is nothing to be told of (mem_cgroup_oom(), mm/memcontrol.c).
    stays_silent(root, listener, after="a charge that fails where the killer is disabled")
    child.enable_killer()
    alive_on(child, listener)


@pytest.mark.clause("K2")
def test_a_memcg_above_one_that_is_stuck_is_at_rest(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    parent = memcg()
    hog = blocked_hog(memcg(parent))
    try:
        assert parent.oom_control().under_oom == 0, "a memcg is under OOM because of one below it"
        late = listen(parent, "latecomer")
        stays_silent(root, late, after="registering above a memcg that is under OOM")
    finally:
        hog.kill()
    alive_on(parent, late)


@pytest.mark.clause("K4")
@pytest.mark.parametrize("below", [False, True], ids=["beside it", "below"])
def test_memory_given_back_resumes_the_hog(memcg: Make, below: bool) -> None:
    child = memcg()
    home = memcg(child) if below else child
    bait, little = Bait(home, ROOM // 2), Bait(home, MIB // 4)
    try:
        child.disable_killer()
        # Alone it would have room enough.
        hog = hog_at_limit(child, limit=ROOM, body=lambda: touch(ROOM * 5 // 8), score=SPARED)
        try:
            if not hog.sleeps():
                raise Inconclusive(f"the hog does not wait at the limit: status {hog.status}")
            bait.kill()
            if hog.wait(PATIENCE) is None:
                # Who was woken by the first of it, and is on his way back to his wait as the last
                # comes, is not told (mem_cgroup_oom_synchronize(), mm/memcontrol.c).
                little.kill()
            status = hog.wait()
            assert status == 0, (
                "the hog did not go on when somebody else had given back memory: "
                f"its status is {status}"
            )
        finally:
            hog.kill()
    finally:
        for one in (bait, little):
            one.kill()
            os.close(one.tether)
