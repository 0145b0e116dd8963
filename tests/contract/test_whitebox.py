# SPDX-License-Identifier: GPL-2.0-only
"""P and N again, for OOMs that only the kernel itself can cause, count or put in order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest

from helpers import hogs
from helpers.evidence import RATELIMIT, Inconclusive, Kill, Kmsg, kills
from helpers.hogs import CHUNK, VICTIM, Bait, Child, exhaust
from helpers.judge import (
    alive_on,
    alive_on_root,
    fires,
    over,
    settled,
    signalled_for_each,
    stays_silent,
)
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl
from helpers.tracing import KILL, SIGNAL, Tracer
from helpers.triggers import MUCH, hog_at_limit, memcg_oom, system_oom
from helpers.whitebox import Counts, Whitebox

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

PAGE = os.sysconf("SC_PAGE_SIZE")
COSTLY = 4  # an order that is tried less hard for (PAGE_ALLOC_COSTLY_ORDER, linux/mmzone.h)
TRIES = 12
RESERVE = 8 * MIB  # what a notifier frees: more than any hog takes before it looks again


def alone(root: Memcg, listener: Listener, attempt: Callable[[], None]) -> None:
    """Try until nobody else runs out of memory at the same time, which is right to be told of.

    :param attempt: raises Inconclusive if something came in between.
    :raises Inconclusive: if something always does.
    """
    for left in reversed(range(TRIES)):
        listener.count()
        try:
            attempt()
        except Inconclusive:
            if not left:
                raise
            over(root)
        else:
            return


def ran(
    body: Callable[[], None], home: Memcg | None = None, score: int = VICTIM
) -> tuple[int | None, list[str]]:
    """Have a child run ``body``; its end, and what the kernel has logged meanwhile."""
    kmsg = Kmsg()
    try:
        child = Child(body, home, score)
        child.ended()
        return child.status, kmsg.read()
    finally:
        kmsg.close()


def unkilled(whitebox: Whitebox, body: Callable[[], None], status: int = 0) -> Counts:
    """Have a child run ``body``, for which the kernel must kill nobody.

    :param status: the child's end.
    :returns: what the module has counted meanwhile.
    :raises Inconclusive: if it ends otherwise, or somebody is killed.
    """
    before = whitebox.counts()
    ended, lines = ran(body)
    if ended != status:
        raise Inconclusive(f"the allocating task ended with {ended}, not {status}")
    if kills(lines):
        raise Inconclusive("the OOM killer has killed, which was not asked for")
    return whitebox.counts().since(before)


def proven(counts: Counts, way: str) -> None:
    """The system OOM happened and the kernel had that one reason to kill nobody.

    :raises Inconclusive: if not.
    """
    if not getattr(counts, way) or getattr(counts, way) < counts.calls:
        raise Inconclusive(f"the system OOM did not end as {way}: {counts}")


@contextmanager
def bait(memcg: Memcg, size: int = 24 * MIB) -> Iterator[int]:
    """Somebody to be killed first; yields his pid."""
    one = Bait(memcg, size)
    try:
        yield one.pid
    finally:
        one.kill()
        os.close(one.tether)


def beside_a_bait(root: Memcg, body: Callable[[], None]) -> list[str]:
    """Have a child run ``body`` while there is somebody else to be killed; what the log says then.

    The child would not do: a task that is dying already is chosen without a word.
    """
    with bait(root, MIB):
        _, lines = ran(body, root, score=0)
        return lines


@pytest.mark.clause("N4")
@pytest.mark.parametrize("allocating", ["by faults", "in the kernel"])
def test_oom_notifier_that_freed_memory_keeps_root_silent(
    root: Memcg, listen: Listen, whitebox: Whitebox, allocating: str
) -> None:
    def body() -> None:
        whitebox.hold(RESERVE, report=True)
        if allocating == "in the kernel":
            return whitebox.alloc("kernel")
        before = whitebox.counts().calls
        while whitebox.counts().calls == before:
            hogs.populate(CHUNK)
        return None

    listener = listen(root, "root")
    alone(root, listener, lambda: proven(unkilled(whitebox, body), "freed"))
    stays_silent(root, listener, after="a system OOM that a notifier has mended")
    alive_on_root(listener)


@pytest.mark.clause("N5")
def test_dying_allocator_keeps_root_silent(root: Memcg, listen: Listen, whitebox: Whitebox) -> None:
    listener = listen(root, "root")
    body = partial(whitebox.alloc, "kernel", context="dying")
    alone(root, listener, lambda: proven(unkilled(whitebox, body, -signal.SIGKILL), "dying"))
    stays_silent(root, listener, after="a system OOM in a task that is dying already")
    alive_on_root(listener)


@pytest.mark.clause("N6")
@pytest.mark.parametrize(
    ("gfp", "context"), [("nofs", "task"), ("nofs", "thread"), ("noio", "task")]
)
def test_allocation_that_forbids_a_kill_keeps_root_silent(
    root: Memcg, listen: Listen, whitebox: Whitebox, gfp: str, context: str
) -> None:
    def body() -> None:
        # Without a kill it would be tried for ever (__alloc_pages_slowpath(), mm/page_alloc.c).
        whitebox.hold(RESERVE, report=False)
        whitebox.alloc(gfp, context=context)

    listener = listen(root, "root")
    alone(root, listener, lambda: proven(unkilled(whitebox, body), "nofs"))
    stays_silent(root, listener, after=f"a system OOM in a GFP_{gfp.upper()} allocation")
    alive_on_root(listener)


@pytest.mark.clause("K6")
@pytest.mark.parametrize(
    ("way", "gfp", "context"),
    [
        ("freed", "kernel", "task"),
        ("nofs", "nofs", "task"),
        ("nofs", "nofs_nofail", "task"),
        ("dying", "kernel", "dying"),
    ],
    ids=["notifier", "GFP_NOFS", "GFP_NOFS and NOFAIL", "dying"],
)
def test_system_oom_with_a_way_out_kills_nobody(
    root: Memcg, listen: Listen, whitebox: Whitebox, way: str, gfp: str, context: str
) -> None:
    def attempt() -> None:
        if way != "dying":
            whitebox.hold(RESERVE, report=way == "freed")
        before = whitebox.counts()
        lines = beside_a_bait(root, lambda: whitebox.alloc(gfp, context=context))
        proven(whitebox.counts().since(before), way)
        assert not kills(lines), f"somebody was killed, with a way out: {way}"

    alone(root, listen(root, "root"), attempt)


@pytest.mark.clause("K6")
def test_memcg_oom_in_an_allocation_that_forbids_io_kills(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox
) -> None:
    # GFP_NOFS spares only the system the killer (out_of_memory(), mm/oom_kill.c).
    listen(root, "root")
    child = memcg()
    kmsg = Kmsg()
    hog = hog_at_limit(child, body=lambda: whitebox.alloc("nofs_account", blocks=MUCH // PAGE))
    status = hog.ended()
    killed = Kill(hog.pid, memcg=True) in kills(kmsg.read())
    kmsg.close()
    if status == 0 and not whitebox.counts().refused:
        raise Inconclusive("an allocation in the kernel was not charged to its memcg")
    assert killed, f"nobody was killed at the limit, the hog's status is {status}"


@pytest.mark.clause("K6")
def test_charge_of_a_costly_order_kills_nobody(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox
) -> None:
    child = memcg()
    listener = listen(child, "child")
    kmsg = Kmsg()
    charge = partial(whitebox.alloc, "nofs_account", order=COSTLY, blocks=MUCH // PAGE >> COSTLY)
    hog = hog_at_limit(child, body=charge)
    hog.ended()
    killed = kills(kmsg.read())
    kmsg.close()
    assert Kill(hog.pid, memcg=True) not in killed, "a charge that may fail has somebody killed"
    if killed or not whitebox.counts().refused:
        raise Inconclusive("the charge did not just fail")
    stays_silent(root, listener, after="a charge that failed")
    alive_on(child, listener)


@pytest.mark.clause("N2")
def test_memcg_oom_in_an_allocation_that_forbids_io_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox
) -> None:
    listener = listen(root, "root")
    memcg_oom(memcg(), body=lambda: whitebox.alloc("nofs_account", blocks=MUCH // PAGE))
    stays_silent(root, listener, after="a memcg OOM in a GFP_NOFS allocation", memcg_ooms=True)
    alive_on_root(listener)


@pytest.mark.clause("N7")
@pytest.mark.parametrize(
    ("gfp", "order", "context"),
    [
        ("retry_mayfail", 0, "task"),
        ("retry_mayfail", 0, "thread"),
        ("noretry", 0, "task"),
        ("kernel", 9, "task"),
        ("dma32", 0, "task"),
        ("thisnode", 0, "task"),
        ("kernel", 0, "dumping"),
    ],
)
def test_allocation_that_may_fail_keeps_root_silent(
    root: Memcg, listen: Listen, whitebox: Whitebox, gfp: str, order: int, context: str
) -> None:
    def attempt() -> None:
        counts = unkilled(whitebox, lambda: whitebox.alloc(gfp, order=order, context=context))
        if counts.refused and counts.own and counts.calls == counts.own:
            signals = listener.count()
            assert not signals, "an allocation that failed, as it may, has signalled root"
        if counts.calls or not counts.refused:
            raise Inconclusive("the allocation did not just fail")

    listener = listen(root, "root")
    alone(root, listener, attempt)
    stays_silent(root, listener, after="an allocation that failed")
    alive_on_root(listener)


@pytest.mark.clause("K6")
@pytest.mark.parametrize(
    ("gfp", "order", "context", "told"),
    [
        ("retry_mayfail", 0, "task", "__GFP_RETRY_MAYFAIL"),
        ("kernel", 9, "task", "order=9"),
        ("thisnode", 0, "task", "__GFP_THISNODE"),
        ("dma32", 0, "task", "GFP_DMA32"),
        ("kernel", 0, "dumping", "(GFP_KERNEL|__GFP_NOWARN)"),
    ],
)
def test_allocation_that_may_fail_kills_nobody(
    root: Memcg, listen: Listen, whitebox: Whitebox, gfp: str, order: int, context: str, told: str
) -> None:
    def attempt() -> None:
        lines = beside_a_bait(root, lambda: whitebox.alloc(gfp, order=order, context=context))
        invoked = [line for line in lines if "invoked oom-killer" in line and told in line]
        assert not invoked, f"an allocation that may fail ran into the OOM killer: {invoked[0]}"
        killed = kills(lines)
        if killed:  # whose doing, the log says ten times in five seconds
            time.sleep(RATELIMIT)
        if killed or not whitebox.counts().refused:
            raise Inconclusive("the allocation did not just fail")

    alone(root, listen(root, "root"), attempt)


@pytest.mark.clause("K6")
@pytest.mark.parametrize("somebody", [bait, hogs.lingering], ids=["goes", "lingers"])
def test_allocation_that_somebody_dies_for_is_not_refused(
    root: Memcg,
    listen: Listen,
    whitebox: Whitebox,
    somebody: Callable[[Memcg], AbstractContextManager[int]],
) -> None:
    listen(root, "root")
    asked = 0
    for _ in range(TRIES // 2):
        over(root)
        with somebody(root) as first:
            status, lines = ran(partial(whitebox.alloc, "kernel"), root, score=0)
        # Who is a victim himself may be refused what he asks for.
        if status == 0 and first in {kill.pid for kill in kills(lines)}:
            refused = whitebox.counts().refused
            assert not refused, "an allocation failed that somebody is killed for"
            asked += 1
        if asked == 3:
            return
    if not asked:
        raise Inconclusive("nobody else was ever killed for the allocation")


@pytest.mark.clause("P8")
def test_signal_precedes_the_kill(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    with Tracer() as tracer:
        tracer.probe("signal", *SIGNAL)
        tracer.kills()
        system_oom(allocator=root)
        fires(listener)
        names = [event.name for event in tracer.events()]
    if not {"signal", KILL} <= set(names):
        raise Inconclusive(f"the trace lacks the signal or the kill: {names}")
    killed_first = names.index(KILL) < names.index("signal")
    assert not killed_first, "the victim was killed before root was signalled"


@pytest.mark.clause("P10")
@pytest.mark.parametrize(
    ("gfp", "context", "order"),
    [
        ("kernel", "task", 0),
        ("kernel", "shared", 0),
        ("kernel", "thread", 0),
        ("kernel", "thread", 3),
        ("kernel", "worker", 1),
        ("nofail", "task", 0),
    ],
)
def test_allocation_in_the_kernel(
    root: Memcg, memcg: Make, listen: Listen, whitebox: Whitebox, gfp: str, context: str, order: int
) -> None:
    listener, victim = listen(root, "root"), memcg()
    for _ in range(TRIES):
        listener.count()
        before = whitebox.counts()
        proof = system_oom(
            allocator=root,
            victim=victim,
            body=lambda: whitebox.alloc(gfp, order=order, context=context),
        )
        early = whitebox.counts().since(before)
        count = signalled_for_each(root, listener, proof.system_kills)
        counts = whitebox.counts().since(before)
        assert count <= counts.calls, f"{count} signals for {counts.calls} calls of the OOM killer"
        # Memory is short for others as well. One of the signals is its own if they are more than
        # the others' calls; none is if they are as many, and each call was one to be told of: who
        # tells of kills alone tells of one.
        others = counts.calls - counts.own
        if not counts.own:
            continue
        if count > others:
            return
        if early == counts and counts.calls == counts.due and proof.system_kills == 1:
            told = f"{count} signals, for the others' calls of out_of_memory() alone"
            assert not count == others > 1, told
    raise Inconclusive("there were never more signals than others' calls of out_of_memory()")


@pytest.mark.clause("P12")
@pytest.mark.parametrize(
    ("hogs_at_once", "listeners", "allocating"),
    [(1, 1, "0"), (1, 3, "0"), (4, 1, "0"), (1, 1, "1")],
    ids=["one hog", "three listeners", "four hogs", "the allocating task"],
)
def test_signals_lie_between_the_kills_and_the_calls(
    root: Memcg,
    listen: Listen,
    whitebox: Whitebox,
    hogs_at_once: int,
    listeners: int,
    allocating: str,
) -> None:
    heard = [listen(root, f"root #{n}") for n in range(listeners)]
    kmsg = Kmsg()
    with sysctl("vm/oom_kill_allocating_task", allocating):
        for _ in range(2):
            others = [Child(exhaust, root) for _ in range(hogs_at_once - 1)]
            system_oom(allocator=root)
            for other in others:
                other.wait()
    counts = settled(root, heard, fires(*heard))
    calls = whitebox.counts().calls
    killed = sum(not kill.memcg for kill in kills(kmsg.read()))
    kmsg.close()
    # A call that meets a dying victim may or may not signal, and where the signal stands among the
    # early returns is for N4, N5 and N6 to ask.
    for count in counts:
        assert killed <= count <= calls, (
            f"{count} signals for {killed} system OOM kills in {calls} calls of out_of_memory()"
        )
