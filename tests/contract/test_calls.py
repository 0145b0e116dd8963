# SPDX-License-Identifier: GPL-2.0-only
"""P12 and K6: what a call of out_of_memory() does, once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import pytest

from helpers import gate, numa
from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import VICTIM, Child, exhaust, lingering
from helpers.judge import deferred, fires, over, settled
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.preflight import sysctl
from helpers.tracing import KILL, Event, Tracer
from helpers.triggers import system_oom
from helpers.versions import need

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
TRIES = 5
BELOW = 10


@pytest.mark.clause("P12")
@pytest.mark.parametrize(
    "nodes",
    [1, pytest.param(2, marks=[pytest.mark.profile("numa"), numa.two_nodes])],
    ids=["all memory", "one node's"],
)
def test_one_signal_for_each_call(root: Memcg, memcg: Make, listen: Listen, nodes: int) -> None:
    gate.require("a system OOM")
    body = exhaust if nodes == 1 else partial(numa.exhaust_node, numa.nodes()[-1])
    for _ in range(BELOW):
        memcg()
    listener = listen(root, "root")
    with Tracer() as tracer:
        tracer.probe("called", "out_of_memory")
        system_oom(allocator=root, body=body)
        (count,) = fires(listener)
        deferred(root)
        count += listener.count()
        calls = len(tracer.events())
    if not calls:
        raise Inconclusive("out_of_memory() was not seen to be called")
    # A call that returns early signals nobody, so that there may be fewer signals.
    assert count <= calls, f"{count} signals for {calls} calls of out_of_memory()"


@pytest.mark.clause("P12")
def test_signals_do_not_come_in_packs(root: Memcg, memcg: Make, listen: Listen) -> None:
    """Asked without a look into the kernel, which not every kernel allows.

    Who is killed for an allocation of his own calls out_of_memory() once, as a rule, and others
    meanwhile as it happens.
    """
    for _ in range(BELOW):
        memcg()
    listener, counts = listen(root, "root"), list[int]()
    with sysctl("vm/oom_kill_allocating_task", "1"):
        for _ in range(TRIES):
            listener.count()
            system_oom(allocator=root)
            counts += settled(root, [listener], fires(listener))
            if math.gcd(*counts) == 1:
                return
    raise AssertionError(f"{TRIES} system OOMs signalled root {counts} times")


def first_call_kills(events: list[Event]) -> bool:
    """Whether who was the first to call out_of_memory() has killed before it returned."""
    caller = next((event.pid for event in events if event.name == "called"), None)
    names = [event.name for event in events if event.pid == caller]
    within = names[names.index("called") : names.index("left")] if "left" in names else []
    return KILL in within


@pytest.mark.clause("K6")
def test_a_call_kills(root: Memcg, listen: Listen) -> None:
    """An earlier victim that is still dying, or a task that is, may spoil a try."""
    listen(root, "root")
    seen: list[Event] = []
    with Tracer() as tracer:
        tracer.probe("called", "out_of_memory")
        tracer.probe("left", "out_of_memory", leaving=True)
        tracer.kills()
        for _ in range(TRIES):
            over(root)
            tracer.clear()
            system_oom(allocator=root)
            seen = tracer.events()
            if first_call_kills(seen):
                return
    if not {"called", "left", KILL} <= {event.name for event in seen}:
        raise Inconclusive("the trace lacks the calls or the kill")
    raise AssertionError("in each system OOM out_of_memory() was called first and killed nobody")


@pytest.mark.clause("K6")
def test_a_victim_that_does_not_go_is_not_the_last(root: Memcg, listen: Listen) -> None:
    """Its memory is taken from it, and then the next one is killed (MMF_OOM_SKIP, 4.6)."""
    gate.require("a system OOM")
    need("an OOM reaper", root)
    listen(root, "root")
    kmsg = Kmsg()
    with lingering(root) as first:
        hog = Child(exhaust, root, VICTIM // 4)
        status = hog.ended()
    lines = kmsg.read()
    kmsg.close()
    killed = [kill.pid for kill in kills(lines)]
    if killed[:1] != [first]:
        raise Inconclusive(f"process {first} was not the first victim: {killed}")
    assert len(killed) > 1, f"a victim did not go and nobody else was killed, the hog has {status}"
    _, second, *_ = (n for n, line in enumerate(lines) if kills([line]))
    said = re.compile(rf"oom_reaper: (?:reaped process |unable to reap pid:){first} ")
    taken = any(map(said.search, lines[:second]))
    assert taken, "somebody else was killed before the first victim's memory was taken from it"
