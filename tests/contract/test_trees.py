# SPDX-License-Identifier: GPL-2.0-only
"""The core clauses again, with deep trees, many listeners, and several OOMs in a row."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial

import pytest

from helpers import gate, numa
from helpers.bursts import burst
from helpers.evidence import Inconclusive, Unproven
from helpers.judge import PATIENCE, alive_on, alive_on_root, fires, settled, stays_silent, witnessed
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg, line
from helpers.tracing import SIGNAL, Tracer, identity
from helpers.triggers import MUCH, memcg_oom, system_oom

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

DEPTH = 6
HUNDREDS = 300


@pytest.mark.clause("P3")
def test_hundreds_of_listeners(root: Memcg, listen: Listen) -> None:
    listeners = [listen(root, f"root #{n}") for n in range(HUNDREDS)]
    system_oom(allocator=root)
    counts = settled(root, listeners, fires(*listeners))
    assert len(set(counts)) == 1, f"unequal counts: {sorted(set(counts))}"


@pytest.mark.clause("P5")
def test_killer_disabled_all_down_a_tree(root: Memcg, memcg: Make, listen: Listen) -> None:
    tree = line(memcg, DEPTH)
    for n, one in enumerate(tree):
        one.disable_killer()
        if n % 2:
            listen(one, f"depth {n}")
    listener = listen(root, "root")
    system_oom(allocator=tree[-1])
    fires(listener)
    for allocator in (tree[0], root):
        system_oom(allocator=allocator)
        assert listener.wait(PATIENCE), f"a further system OOM, in {allocator}, did not signal root"


@pytest.mark.clause("P5")
def test_memcgs_that_were_removed_do_not_matter(root: Memcg, memcg: Make, listen: Listen) -> None:
    tree = line(memcg, 3)
    for n, one in enumerate(tree):
        listen(one, f"depth {n}")
    for one in reversed(tree):
        one.remove()
    listener = listen(root, "root")
    system_oom(allocator=root)
    fires(listener)


@pytest.mark.clause("N1")
def test_bursts_signal_nobody_in_a_deep_tree(root: Memcg, memcg: Make, listen: Listen) -> None:
    tree = line(memcg, DEPTH)
    tree[2].disable_killer()
    listeners = [listen(one, f"depth {n}") for n, one in enumerate(tree) for _ in range(2)]
    listen(root, "root")
    burst([tree[0], tree[2], tree[-1], root])
    stays_silent(root, *listeners, after="a burst of system OOMs")
    tree[2].enable_killer()
    alive_on(tree[0], *listeners)


@pytest.mark.clause("N1")
def test_one_eventfd_on_many_memcgs(root: Memcg, memcg: Make, listen: Listen) -> None:
    homes = [memcg() for _ in range(60)]
    listener = Listener("on many memcgs")
    for one in homes:
        listener.on(one)
    listen(root, "root")
    system_oom(allocator=homes[0])
    stays_silent(root, listener, after="a system OOM")
    alive_on(homes[-1], listener)
    listener.close()


def fill_sockets() -> None:
    """Kernel memory that is charged: unix sockets that nobody reads from."""
    pairs = [socket.socketpair() for _ in range(MUCH >> 17)]
    for near, _ in pairs:
        near.setblocking(False)
        near.send(bytes(1 << 17))


@pytest.mark.clause("N2")
def test_memcg_ooms_of_a_deep_tree_do_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make
) -> None:
    tree, beside = line(memcg, DEPTH), memcg()
    listeners = [listen(root, f"root #{n}") for n in range(20)]
    below = [listen(one, f"depth {n}") for n, one in enumerate(tree)]
    listeners.append(listen(root, "root, registered last"))
    stuck(beside)
    for at, within in ((-1, -1), (2, -1), (0, 3)):
        memcg_oom(tree[at], within=tree[within])
        tree[at].limit(-1)
    stays_silent(root, *listeners, after="memcg OOMs in a deep tree", memcg_ooms=True)
    if not all(one.count() for one in below):
        raise Unproven("the memcg OOMs did not signal their own listeners")
    alive_on_root(*listeners)


@pytest.mark.clause("N2")
def test_memcg_ooms_in_a_row_do_not_signal_root(root: Memcg, memcg: Make, listen: Listen) -> None:
    child, listener = memcg(), listen(root, "root")
    for body in (fill_sockets, None, fill_sockets):
        if body is None:
            memcg_oom(child, limit=4 * MIB)
        else:
            memcg_oom(child, body=body)
    stays_silent(root, listener, after="memcg OOMs in a row", memcg_ooms=True)
    alive_on_root(listener)


@pytest.mark.clause("K1")
def test_memcg_oom_signals_all_who_listen_in_a_deep_tree(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    tree = line(memcg, DEPTH)
    above, hit = tree[:2], tree[2:]
    # From the bottom and from the top, so that neither order is the tree's.
    inside = [listen(one, f"upwards {n}") for n, one in reversed(list(enumerate(hit)))]
    outside = [listen(one, f"above {n}") for n, one in enumerate(above)]
    inside += [listen(one, f"downwards {n}") for n, one in enumerate(hit)]
    memcg_oom(tree[2], within=tree[-1])
    missed = [one.name for one in inside if not one.wait(PATIENCE)]
    assert not missed, f"an OOM further up did not signal {', '.join(missed)}"
    stays_silent(root, *outside, after="an OOM of a descendant")
    alive_on(tree[0], *outside)


@pytest.mark.clause("N8")
def test_eventfd_closed_between_two_ooms(root: Memcg, listen: Listen) -> None:
    first, second, witness = (listen(root, name) for name in ("first", "second", "witness"))
    system_oom(allocator=root)
    if not all(one.wait(PATIENCE) for one in (first, second, witness)):
        raise Unproven("not every listener on root was signalled")
    settled(root, [first, second, witness], [0, 0, 0])
    kept = os.dup(second.fd)  # closing one descriptor of several unregisters nobody
    first.close()
    second.close()
    unregistered = Listener("in its place")
    system_oom(allocator=root)
    witnessed(witness)
    stays_silent(root, unregistered, after="a system OOM")
    try:
        still = os.eventfd_read(kept)
    except BlockingIOError:
        still = 0
    assert still, "an eventfd that somebody still holds was not signalled"
    unregistered.on(root)
    alive_on_root(unregistered)
    unregistered.close()
    os.close(kept)


@pytest.mark.clause("N8")
def test_pressure_level_on_root_is_not_signalled_by_the_oom(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    # Reclaim signals it, from a work item, right before a system OOM; the OOM killer must not.
    # What that calls runs as the hog, and signals whoever listens for OOMs.
    pressure = listen(root, "pressure", "memory.pressure_level", "critical")
    listener = listen(root, "root")
    with Tracer() as tracer:
        tracer.probe("signal", *SIGNAL, argument=True)
        address = identity(tracer, pressure, memcg())
        tracer.clear()
        proof = system_oom(allocator=root)
        events = [event for event in tracer.events() if event.name == "signal"]
    witnessed(listener)
    victims = {kill.pid for kill in proof.kills}
    signalled = {event.argument for event in events if event.pid in victims}
    if not signalled:
        raise Inconclusive("the OOM killer was not seen to signal anybody")
    assert address not in signalled, "the OOM killer signalled who listens for memory pressure"


@pytest.mark.clause("N1")
@pytest.mark.profile("numa")
@numa.two_nodes
def test_an_oom_of_one_node_does_not_signal_a_memcg(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    gate.require("a system OOM")
    listen(root, "root")
    below = [listen(memcg(), name) for name in ("the hog's", "another")]
    body = partial(numa.exhaust_node, numa.nodes()[-1])
    numa.confined(system_oom(allocator=below[0].memcg, body=body), "CONSTRAINT_MEMORY_POLICY")
    stays_silent(root, *below, after="a system OOM of one node")
    for one in below:
        assert one.memcg is not None
        alive_on(one.memcg, one)
