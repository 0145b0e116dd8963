# SPDX-License-Identifier: GPL-2.0-only
"""P: a system OOM signals the listeners on root."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers import kinds
from helpers.bursts import one_by_one
from helpers.evidence import INVOKED, Inconclusive, Kmsg, kills
from helpers.hogs import SPARED, VICTIM, Bait, Child, exhaust, lingering
from helpers.judge import fires, settled, signalled_for_each
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl
from helpers.triggers import system_oom
from helpers.versions import need
from helpers.whitebox import Whitebox

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
MANY = 20  # twice the ten in five seconds that the kernel tells of (mm/oom_kill.c)


@pytest.mark.clause("P1")
def test_system_oom_signals_root(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    system_oom(allocator=root)
    fires(listener)


@pytest.mark.clause("P2")
@pytest.mark.parametrize("depth", [1, 4])
def test_hog_below_root(root: Memcg, memcg: Make, listen: Listen, depth: int) -> None:
    home = root
    for _ in range(depth):
        home = memcg(home)
    listener = listen(root, "root")
    system_oom(allocator=home)
    fires(listener)


@pytest.mark.clause("P2")
@pytest.mark.parametrize("where", ["allocator below", "victim below", "both below, apart"])
def test_victim_is_somebody_else(root: Memcg, memcg: Make, listen: Listen, where: str) -> None:
    allocator = root if where == "victim below" else memcg()
    victim = root if where == "allocator below" else memcg(memcg())
    listener = listen(root, "root")
    system_oom(allocator=allocator, victim=victim)
    fires(listener)


@pytest.mark.clause("P2")
def test_victim_whose_score_was_lowered(root: Memcg, memcg: Make, listen: Listen) -> None:
    listener = listen(root, "root")
    system_oom(allocator=memcg(), score=-500)
    fires(listener)


@pytest.mark.clause("P2")
def test_allocator_that_may_not_be_killed(root: Memcg, memcg: Make, listen: Listen) -> None:
    listener = listen(root, "root")
    system_oom(allocator=memcg(), victim=memcg(), score=SPARED)
    fires(listener)


@pytest.mark.clause("P2")
def test_hog_in_a_memcg_with_a_limit_it_has_not_reached(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    home = memcg()
    home.limit(1 << 40)
    listener = listen(root, "root")
    system_oom(allocator=home)
    fires(listener)


@pytest.mark.clause("P2")
@pytest.mark.parametrize(
    "flag",
    [kinds.CLONE_NEWCGROUP, kinds.CLONE_NEWPID],
    ids=["cgroup namespace", "PID namespace"],
)
def test_allocator_in_a_container(root: Memcg, memcg: Make, listen: Listen, flag: int) -> None:
    """What is root there is none here."""
    home = memcg()
    listener = listen(root, "root")
    bait = Bait(home)
    body = kinds.in_a_namespace(flag, lambda: exhaust(bait.tether))
    system_oom(allocator=home, victim=bait, body=body)
    fires(listener)


@pytest.mark.clause("P2")
def test_victim_in_a_container(root: Memcg, memcg: Make, listen: Listen) -> None:
    listener, kmsg = listen(root, "root"), Kmsg()
    # The one who is in there, and larger, is a child of this one's, who has waited for him.
    hog = Child(kinds.in_a_namespace(kinds.CLONE_NEWPID, exhaust), memcg(), VICTIM)
    status = hog.ended()
    killed = [kill.pid for kill in kills(kmsg.read()) if not kill.memcg]
    kmsg.close()
    if status or not killed:
        raise Inconclusive(f"nobody was killed in the container, who has made it ended: {status}")
    fires(listener)


def all_alike(root: Memcg, listeners: list[Listener]) -> None:
    """A system OOM signals each of these, and one as often as the other."""
    system_oom(allocator=root)
    counts = settled(root, listeners, fires(*listeners))
    assert len(set(counts)) == 1, f"unequal counts: {counts}"


@pytest.mark.clause("P3")
@pytest.mark.parametrize("count", [2, 40])
def test_every_listener_is_signalled_alike(root: Memcg, listen: Listen, count: int) -> None:
    listeners = [listen(root, f"root #{n}") for n in range(count)]
    all_alike(root, listeners)


@pytest.mark.clause("P3")
def test_listener_registered_twice_is_signalled_twice(root: Memcg, listen: Listen) -> None:
    before, twice, thrice = (listen(root, name) for name in ("before", "twice", "thrice"))
    thrice.on(root).on(root)
    between = listen(root, "between")
    twice.on(root)
    after = listen(root, "after")
    listeners = [before, twice, thrice, between, after]
    system_oom(allocator=root)
    one, double, triple, other, last = settled(root, listeners, fires(*listeners))
    assert one == other == last, "the single ones differ"
    assert double == 2 * one, "the double one does not have twice their count"
    assert triple == 3 * one, "who registered three times in a row does not have thrice their count"


@pytest.mark.clause("P3")
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_the_others_are_signalled_after_one_has_left(
    root: Memcg, listen: Listen, gone: int
) -> None:
    listeners = [listen(root, f"root #{n}") for n in range(3)]
    listeners.pop(gone).close()
    listeners.append(listen(root, "newcomer"))
    all_alike(root, listeners)


@pytest.mark.clause("P3")
def test_the_others_are_signalled_after_one_registered_thrice_has_left(
    root: Memcg, listen: Listen
) -> None:
    before, thrice = listen(root, "before"), Listener("thrice").on(root).on(root).on(root)
    after = listen(root, "after")
    thrice.close()
    all_alike(root, [before, after])


@pytest.mark.clause("P4")
def test_every_system_oom_signals(root: Memcg, memcg: Make, listen: Listen) -> None:
    listener, home = listen(root, "root"), memcg()
    for n, allocator in enumerate([root, home, root, home], 1):
        system_oom(allocator=allocator)
        if n == 1:
            fires(listener)
        else:
            assert listener.wait(5), f"system OOM number {n} did not signal root"
        settled(root, [listener], [0])  # what is left of this one must not do for the next


@pytest.mark.clause("P4")
def test_undrained_signals_add_up(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    killed = sum(system_oom(allocator=root).system_kills for _ in range(3))
    signalled_for_each(root, listener, killed)


@pytest.mark.clause("P4")
def test_one_allocator_again_and_again(
    root: Memcg, memcg: Make, listen: Listen, record: Callable[[str, object], None]
) -> None:
    listener = listen(root, "root")
    proof = one_by_one([root, memcg()] * (MANY // 2))
    record("system OOM kills in a burst", proof.system_kills)
    # Of some, if they are quick enough, the kernel's rate-limited lines say nothing.
    record("of which the log tells all", sum(INVOKED in line for line in proof.lines))
    signalled_for_each(root, listener, proof.system_kills)


@pytest.mark.clause("P4")
def test_while_an_earlier_victim_has_not_gone(root: Memcg, listen: Listen) -> None:
    """It is waited for in vain; then the next one is killed (MMF_OOM_SKIP, mm/oom_kill.c)."""
    need("an OOM reaper", root)
    listener = listen(root, "root")
    with lingering(root) as first:
        proof = system_oom(allocator=root, score=VICTIM // 4)
    if proof.kills[0].pid != first or proof.system_kills < 2:
        raise Inconclusive(f"nobody was killed while process {first} was dying: {proof.kills}")
    signalled_for_each(root, listener, proof.system_kills)


@pytest.mark.clause("P4")
def test_for_whom_nobody_new_is_killed(root: Memcg, listen: Listen) -> None:
    """Who is to be killed is on his way out already: the kernel helps him, and says nothing of it
    but that his memory has been taken (oom_kill_process(), mm/oom_kill.c).
    """
    need("an OOM reaper", root)
    listener = listen(root, "root")
    with lingering(root, doomed=True) as first:
        proof = system_oom(allocator=root, score=VICTIM // 4)
    reaped = any(f"oom_reaper: reaped process {first} " in line for line in proof.lines)
    if not reaped or first in {kill.pid for kill in proof.kills}:
        raise Inconclusive(f"process {first} was not helped out: {proof.kills}")
    (count,) = settled(root, [listener], fires(listener))
    told = f"{count} signals for {proof.system_kills} system OOM kills and for one without"
    assert count > proof.system_kills, told


@pytest.mark.clause("P4")
@pytest.mark.parametrize(
    ("setting", "value"), [("vm/oom_dump_tasks", "0"), ("vm/overcommit_memory", "1")]
)
def test_settings_do_not_matter(root: Memcg, listen: Listen, setting: str, value: str) -> None:
    listener = listen(root, "root")
    with sysctl(setting, value):
        system_oom(allocator=root)
    fires(listener)


@pytest.mark.clause("P5")
@pytest.mark.parametrize(("children", "heard"), [(1, False), (1, True), (30, True)])
def test_other_memcgs_do_not_matter(
    root: Memcg, memcg: Make, listen: Listen, children: int, heard: bool
) -> None:
    below = [memcg() for _ in range(children)]
    if heard:
        for n, one in enumerate(below):
            listen(one, f"child #{n}")
    listener = listen(root, "root")
    system_oom(allocator=root)
    fires(listener)


@pytest.mark.clause("P5")
@pytest.mark.parametrize("hog", ["root", "beside"])
def test_a_memcg_stuck_under_oom_does_not_matter(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make, hog: str
) -> None:
    listen(stuck(), "stuck")
    allocator = root if hog == "root" else memcg()
    listener = listen(root, "root")
    system_oom(allocator=allocator)
    fires(listener)


@pytest.mark.clause("P5")
@pytest.mark.pristine
def test_allocator_in_a_memcg_that_is_stuck(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make, whitebox: Whitebox
) -> None:
    """What it allocates is not charged, or it would be stuck as well."""
    home = stuck()
    listen(home, "stuck")
    listener = listen(root, "root")
    bait = Bait(memcg(), MIB)  # that leaves room enough to get ready
    proof = system_oom(victim=bait, body=lambda: whitebox.alloc("kernel", within=home))
    if not whitebox.counts().own or not home.oom_control().under_oom:
        raise Inconclusive("nobody in a memcg under OOM was out of memory")
    signalled_for_each(root, listener, proof.system_kills)


@pytest.mark.clause("P5")
def test_victim_in_a_memcg_that_is_stuck(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make
) -> None:
    home = memcg()
    listen(home, "stuck")
    listener = listen(root, "root")
    bait = Bait(home, MIB)
    stuck(home, 8 * MIB)
    kmsg = Kmsg()
    system_oom(allocator=root, victim=bait)
    (count,) = settled(root, [listener], fires(listener))
    # What the bait had may not do for the allocator and who was stuck: another victim follows.
    killed = sum(not kill.memcg for kill in kills(kmsg.read()))
    kmsg.close()
    assert count >= killed, f"{count} signals for {killed} system OOM kills"


@pytest.mark.clause("P5")
def test_hog_in_a_memcg_with_its_killer_disabled(root: Memcg, memcg: Make, listen: Listen) -> None:
    home = memcg()
    home.disable_killer()
    listen(home, "child")
    listener = listen(root, "root")
    system_oom(allocator=home)
    fires(listener)


@pytest.mark.clause("P7")
@pytest.mark.parametrize("below", [False, True], ids=["in root", "below root"])
def test_allocating_task_is_killed(root: Memcg, memcg: Make, listen: Listen, below: bool) -> None:
    home = memcg() if below else root
    listener = listen(root, "root")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        system_oom(allocator=home)
    fires(listener)


@pytest.mark.clause("P7")
def test_allocating_task_may_not_be_killed(root: Memcg, memcg: Make, listen: Listen) -> None:
    listener = listen(root, "root")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        system_oom(allocator=root, victim=memcg(), score=SPARED)
    fires(listener)


@pytest.mark.clause("P7")
def test_allocating_task_cannot_be_killed(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox
) -> None:
    listener = listen(root, "root")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        system_oom(
            allocator=root,
            victim=memcg(),
            body=lambda: whitebox.alloc("kernel", context="thread"),
        )
    fires(listener)
