# SPDX-License-Identifier: GPL-2.0-only
"""What a port breaks that is right for each kind of OOM by itself: state or a helper that two kinds
share, a list that changes meanwhile, memcgs that are merely there.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from functools import partial
from itertools import chain

import pytest

from helpers.evidence import Inconclusive
from helpers.hogs import Bait, Child, apart
from helpers.judge import (
    PATIENCE,
    alive_on,
    alive_on_root,
    deferred,
    fires,
    settled,
    signalled,
    stays_silent,
)
from helpers.listeners import Listener, register, register_often
from helpers.memcgs import MIB, Memcg, line, write
from helpers.patience import slices
from helpers.preflight import sysctl
from helpers.refusals import CLOSED
from helpers.triggers import (
    blocked_hog,
    fence,
    memcg_oom,
    remove,
    sysrq_f,
    sysrq_kill,
    sysrq_nobody,
    system_oom,
)
from helpers.versions import has
from helpers.waiters import Waiter, poll, stay_resident, wait_for_a_copy
from helpers.whitebox import Whitebox

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
PASSING = 60
GONE = 4
REFUSALS = 3
KEPT = 1  # of those, by what else may hold on to one for a while
OOMS = 4
# To close all costs the square of their product, to ask with an OOM each round some 0.2 s.
EVENTFDS, OFTEN, ROUNDS = 50, 60, 8


def by_the_allocating_task(root: Memcg) -> None:
    """A system OOM whose victim is not looked for."""
    with sysctl("vm/oom_kill_allocating_task", "1"):
        system_oom(allocator=root)


def refused_registrations(root: Memcg) -> None:
    """Registrations that the kernel does not take."""
    for text in ("garbage", f"{CLOSED} {CLOSED}", f"0 {CLOSED}"):
        if not write(root.file("cgroup.event_control"), text):
            raise Inconclusive(f"registering {text!r} on root is not refused")


def refused_on(
    here: Memcg, there: Memcg, file: str = "memory.oom_control", arguments: str = ""
) -> None:
    """Registrations on a memcg that the kernel does not take, such as by another one's file.

    More than one, as one reference too few does not show.
    """
    for _ in range(REFUSALS):
        listener = Listener("refused")
        with open(there.file(file), encoding="ascii") as control:
            trouble = register(here, listener.fd, control.fileno(), arguments)
        listener.close()
        if not trouble:
            raise Inconclusive(f"registering {there}'s {file} on {here} is not refused")


def sysrq_twice(root: Memcg) -> None:
    """Two keys pressed so fast that one kill answers both, as a rule."""
    baits = [Bait(root, MIB) for _ in range(2)]
    try:
        for _ in baits:
            sysrq_f()
        if not select.select([bait.tether for bait in baits], [], [], PATIENCE)[0]:
            raise Inconclusive("sysrq-f, twice, has killed nobody")
        deferred(root)
    finally:
        for bait in baits:
            bait.kill()
            os.close(bait.tether)


@pytest.mark.clause("N3")
@pytest.mark.system_oom
def test_sysrq_twice_at_once_does_not_signal_root(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    sysrq_twice(root)
    stays_silent(root, listener, after="sysrq-f, twice at once")
    alive_on_root(listener)


def anything_else(root: Memcg) -> dict[str, Callable[[], object]]:
    """What may leave behind state that an OOM of any kind meets, by name."""
    spares = has("a sysrq-f that never panics", root)
    return {
        "a kill by sysrq-f": lambda: sysrq_kill(root),
        "sysrq-f that found nobody": sysrq_nobody if spares else lambda: None,
        "a registration was refused": lambda: refused_registrations(root),
        "vm.oom_kill_allocating_task": lambda: by_the_allocating_task(root),
    }


@pytest.mark.clause("P4")
@pytest.mark.system_oom
def test_system_oom_after_anything_else(root: Memcg, memcg: Make, listen: Listen) -> None:
    limited, heard = memcg(), memcg()
    listener = listen(root, "root")
    listen(limited, "below")
    listen(heard, "on a memcg that is removed")
    others: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        **anything_else(root),
        "sysrq-f twice at once": lambda: sysrq_twice(root),
        "a memcg OOM": lambda: memcg_oom(limited),
        "a memcg with listeners was removed": lambda: remove(heard),
    }
    for name, other in others.items():
        other()
        settled(root, [listener], [0])
        system_oom(allocator=root)
        if name == "nothing":
            fires(listener)
        else:
            assert listener.wait(PATIENCE), f"after {name}, a system OOM did not signal root"


@pytest.mark.clause("K1")
@pytest.mark.system_oom
def test_memcg_oom_signals_after_anything_else(root: Memcg, memcg: Make, listen: Listen) -> None:
    limited = memcg()
    listen(root, "root")
    listener = listen(memcg(limited), "below the limit")
    others = anything_else(root) | {"a system OOM": lambda: system_oom(allocator=limited)}
    for name, other in others.items():
        limited.limit(-1)
        other()
        listener.count()
        memcg_oom(limited)
        signalled(listener, by=f"after {name}, a memcg OOM")


def memcgs_there() -> int:
    """How many memcgs the kernel holds in memory, the removed ones that are not let go included.

    :raises Inconclusive: if it does not tell (/proc/cgroups, kernel/cgroup/cgroup-v1.c).
    """
    with open("/proc/cgroups", encoding="ascii") as file:
        for line in file:
            if line.startswith("memory"):
                return int(line.split()[2])
    raise Inconclusive("/proc/cgroups does not count the memcgs")


def left_of(wanted: int, seconds: float) -> int:
    """How many memcgs are there once they are no more than wanted, or the time is over."""
    for _ in slices(seconds):
        if (there := memcgs_there()) <= wanted:
            break
        time.sleep(0.05)
    return there


def kept(
    memcg: Make, cause: Callable[[Memcg], object] = lambda home: None, *, heard: bool = True
) -> int:
    """How many memcgs are still there of some that were removed after a cause in each.

    :param heard: whether somebody has listened there.
    """
    before = memcgs_there()
    for _ in range(GONE):
        home, listener = memcg(), Listener("below")
        if heard:
            listener.on(home)
        cause(home)
        # What another CPU keeps of its pages, to put them in a list later, keeps the memcg as well.
        write(home.file("memory.force_empty"), "0")
        remove(home)
        listener.close()
    return left_of(before + KEPT, 3 * PATIENCE) - before


def end_a_bait(home: Memcg) -> None:
    """What a kill is without an OOM."""
    bait = Bait(home, MIB)
    bait.kill()
    os.close(bait.tether)


def listen_from(home: Memcg, root: Memcg) -> None:
    """Have somebody register on root who lives elsewhere, and go."""
    Child(lambda: Listener("from below").on(root).close(), home).ended()


def register_at_once(root: Memcg, listeners: dict[int, list[Listener]]) -> None:
    """Have each of these registered on root :data:`OFTEN` times.

    :param listeners: by the CPU of the process that does so.
    :raises Inconclusive: if a registration is refused.
    """
    go, begin = os.pipe()

    def often(cpu: int, own: list[Listener]) -> None:
        os.sched_setaffinity(0, {cpu})
        os.close(begin)
        os.read(go, 1)  # returns as soon as nobody holds the other end
        register_often(root, [one.fd for one in own], OFTEN)

    children = [Child(partial(often, *pair), root, score=0) for pair in listeners.items()]
    os.close(begin)
    os.close(go)
    for child in children:
        child.ended()
        if child.status:
            raise Inconclusive(f"registering {OFTEN} times ended with {child.status}")


def all_registered(root: Memcg, listeners: list[Listener], times: int) -> None:
    """A system OOM signals each of these for every one of its registrations."""
    for one in listeners:
        one.memcg = root
    system_oom(allocator=root)
    for one, count in zip(listeners, settled(root, listeners, fires(*listeners)), strict=True):
        assert count % times == 0, f"{one.name}: {-count % times} of {times} registrations are lost"


@pytest.mark.clause("S1")
@pytest.mark.profile("parallel")
@pytest.mark.system_oom
def test_registering_on_all_cpus_at_once(root: Memcg) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for _ in range(ROUNDS):
        listeners = {cpu: [Listener(f"#{n} of CPU {cpu}") for n in range(EVENTFDS)] for cpu in cpus}
        register_at_once(root, listeners)
        all_registered(root, [*chain(*listeners.values())], OFTEN)
        # While the kernel forgets some of them, registration by registration, others come again.
        for one in listeners.pop(cpus[0]):
            one.close()
        if listeners:
            register_at_once(root, listeners)
            all_registered(root, [*chain(*listeners.values())], 2 * OFTEN)
        for one in chain(*listeners.values()):
            one.close()


@pytest.mark.clause("K3")
@pytest.mark.pristine
@pytest.mark.system_oom
def test_removed_memcgs_are_let_go(root: Memcg, memcg: Make, listen: Listen) -> None:
    listen(root, "root")
    # Those that others have removed go meanwhile, and would make up for what is kept.
    left_of(1 + sum(len(below) for _, below, _ in os.walk(root.path)), PATIENCE)
    left = kept(memcg)
    if left > KEPT:
        bare = min(kept(memcg, heard=False) for _ in range(2))
        assert bare <= KEPT, f"{bare} of {GONE} memcgs are kept in which there was nobody ever"
    assert left <= KEPT, f"{left} of {GONE} memcgs are kept that had a listener before removal"
    causes: dict[str, tuple[Callable[[Memcg], object], bool]] = {
        # What is known of such a memcg by then is the descriptor of its file.
        "whose files root has refused": (lambda home: refused_on(root, home), False),
        "that have refused root's file": (lambda home: refused_on(home, root), False),
        "that have refused a threshold": (
            lambda home: refused_on(home, home, "memory.usage_in_bytes", "x"),
            False,
        ),
        "that saw an OOM of their own": (memcg_oom, True),
        "of whom somebody has listened on root": (lambda home: listen_from(home, root), False),
        "where a hog has waited": (lambda home: blocked_hog(home).kill(), True),
    }
    for which, (cause, heard) in causes.items():
        left = kept(memcg, cause, heard=heard)
        assert left <= KEPT, f"{left} of {GONE} memcgs are kept {which}"
    # Two seconds: as long as the OOM reaper holds on to a victim (mm/oom_kill.c, 5.18).
    left = kept(memcg, lambda home: system_oom(allocator=home))
    if left > KEPT and kept(memcg, end_a_bait) > KEPT:
        raise Inconclusive(f"of {GONE} memcgs removed after a SIGKILL in each, some are kept")
    assert left <= KEPT, f"{left} of {GONE} memcgs are kept that saw a system OOM before removal"


@pytest.mark.clause("P3")
@pytest.mark.system_oom
def test_eventfd_on_root_and_on_a_memcg_that_is_removed(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    both = [
        Listener("on root afterwards").on(child).on(root),
        Listener("on root before").on(root).on(child),
    ]
    listeners = [listen(root, "witness"), *both]
    remove(child)
    if not all(one.wait(PATIENCE) for one in both):
        raise Inconclusive("removing a memcg did not signal its listeners")
    system_oom(allocator=root)
    counts = settled(root, listeners, fires(*listeners))
    for one in both:
        one.close()
    assert len(set(counts)) == 1, f"unequal counts: {counts}"


@pytest.mark.clause("K1")
def test_memcg_oom_signals_an_eventfd_that_is_elsewhere_as_well(root: Memcg, memcg: Make) -> None:
    child, other = memcg(), memcg()
    listeners = [
        Listener(f"{where}, {when}").on(first).on(then)
        for where, elsewhere in (("on root", root), ("on another", other))
        for when, first, then in (("before", elsewhere, child), ("afterwards", child, elsewhere))
    ]
    memcg_oom(child)
    signalled(*listeners, by="a memcg OOM")
    for one in listeners:
        one.close()


@pytest.mark.clause("K2")
@pytest.mark.system_oom
def test_system_oom_leaves_the_victims_memcg_at_rest(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listen(root, "root")
    child = memcg()
    system_oom(allocator=child)
    fence(root)
    assert child.oom_control().under_oom == 0, "it is under OOM still"
    late = listen(child, "latecomer")
    stays_silent(root, late, after="registering on a memcg where a system OOM has killed")
    alive_on(child, late)


@pytest.mark.clause("K1")
def test_memcg_oom_signals_while_somebody_listens_on_root(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    listeners = [listen(child, "the memcg's"), listen(memcg(child), "its child's")]
    listen(root, "root")
    memcg_oom(child)
    missed = [one.name for one in listeners if not one.wait(PATIENCE)]
    assert not missed, f"with a listener on root, a memcg OOM did not signal {', '.join(missed)}"


@pytest.mark.clause("K1")
@pytest.mark.system_oom
@pytest.mark.parametrize("below", [False, True], ids=["in root", "in that memcg"])
def test_memcg_oom_signals_after_a_system_oom(
    root: Memcg, memcg: Make, listen: Listen, below: bool
) -> None:
    child = memcg()
    listeners = [listen(child, "the memcg's"), listen(memcg(child), "its child's")]
    system_oom(allocator=child if below else root)
    fence(root)
    for one in listeners:
        one.count()  # what the system OOM may have done to them is another clause's
    memcg_oom(child)
    signalled(*listeners, by="after a system OOM, a memcg OOM")


@pytest.mark.clause("P12")
@pytest.mark.system_oom
def test_memcgs_do_not_add_to_the_signals(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox
) -> None:
    for _ in range(20):
        memcg()
    listener = listen(root, "root")
    system_oom(allocator=line(memcg, 4)[-1])
    (count,) = settled(root, [listener], fires(listener))
    calls = whitebox.counts().calls
    assert count <= calls, f"{count} signals for {calls} calls of the OOM killer"


@pytest.mark.clause("S1")
@pytest.mark.profile("poisoned")
@pytest.mark.pristine  # as for test_root_takes_a_listener_during_a_system_oom
@pytest.mark.system_oom
def test_listeners_leave_while_others_are_told(root: Memcg, listen: Listen, slowly: bool) -> None:
    """To leave takes no memory. Who leaves is woken by the first signal of the walk, or the last,
    and comes from the other end of the list, or from behind.
    """
    listener = listen(root, "root")
    for _ in range(OOMS):
        herald, passing = Listener("herald"), list[Listener]()

        def register(herald: Listener = herald, passing: list[Listener] = passing) -> None:
            herald.on(root)
            passing.extend(Listener("passing").on(root) for _ in range(PASSING))
            herald.on(root)
            # Once beforehand, so that nothing is left to be faulted in, and all of it kept.
            rehearsal = Listener("rehearsal")
            os.eventfd_write(rehearsal.fd, 1)
            leave(rehearsal.fd, [rehearsal])
            stay_resident()

        def leave(fd: int, passing: list[Listener] = passing) -> None:
            poll(fd)
            for one in passing:
                one.close()

        with apart() as hog:
            wait_for_a_copy()
            leaver = Waiter(herald, leave, prepare=register)
            try:
                system_oom(allocator=root, body=hog)
                fires(listener)
                if not leaver.woken(PATIENCE):
                    raise Inconclusive("nobody has left")
            finally:
                leaver.close()
                herald.close()
