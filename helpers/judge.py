# SPDX-License-Identifier: GPL-2.0-only
"""Judgements on listeners: who must have fired, who must not, and whether that says anything."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from helpers import gate
from helpers.evidence import Deaf, Inconclusive, Kill, Kmsg, Silent, Unproven, kills, meminfo
from helpers.hogs import CHUNK, Child, populate
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.patience import slices
from helpers.preflight import on_cpus
from helpers.triggers import MUCH, fence, memcg_oom, remove, system_oom

# Seconds. A signal comes before or right after the kill; a port that defers it to a workqueue is
# no less right, so the wait for one that is still missing is long.
PATIENCE = 5.0
# On a kernel without the patch every P test waits in vain. What it waits for is the guest's chance
# to run something deferred, so it counts turns, which a starved guest takes longer for.
TURNS, TURN = 60, 0.025


def fires(*listeners: Listener) -> list[int]:
    """Every one of these was signalled by the system OOM that was just proven.

    :returns: how often, one count for each; not yet final, see :func:`settled`.
    :raises Silent: if none of them was.
    :raises AssertionError: if only some were.
    """
    counts = _counts(listeners)
    if not any(counts):
        raise Silent(f"a proven system OOM did not signal {_names(listeners)}")
    missed = [one for one, count in zip(listeners, counts, strict=True) if not count]
    assert not missed, f"a proven system OOM did not signal {_names(missed)}, but others"
    return counts


def _counts(listeners: Sequence[Listener]) -> list[int]:
    """How often each of these listeners on root has been signalled, once all have or none can be
    any more.
    """
    counts = [0] * len(listeners)
    for _ in range(TURNS):
        counts = [n + one.count() for n, one in zip(counts, listeners, strict=True)]
        if all(counts):
            return counts
        time.sleep(TURN)
    assert listeners[0].memcg is not None
    deferred(listeners[0].memcg)
    return [n + one.count() for n, one in zip(counts, listeners, strict=True)]


def deferred(root: Memcg) -> None:
    """Let the kernel get through the work that it has put off, on every CPU.

    The removal of a memcg signals its listeners from the workqueue that all use
    (mem_cgroup_css_offline(), mm/memcontrol.c), and after a grace period of RCU.
    """
    works = []
    for cpu in os.sched_getaffinity(0):
        with on_cpus({cpu}):
            scratch = root.child(f"oomtest-deferred-{os.getpid()}-{cpu}")
            works.append(Listener("work").on(scratch))
            remove(scratch)
    # If one is not told, nor will the next one be, where removal signals nobody.
    all(work.wait(PATIENCE) for work in works)
    for work in works:
        work.close()


def signalled(*listeners: Listener, by: str) -> None:
    """Each of these, on whatever memcg, was signalled.

    :param by: what that must do, for the message.
    :raises AssertionError: if one was not.
    """
    missed = [one for one in listeners if not one.wait(PATIENCE)]
    assert not missed, f"{by} did not signal {_names(missed)}"


def witnessed(witness: Listener) -> None:
    """A listener on root that nothing has been done to was signalled by the system OOM just proven.

    :raises Deaf: if not, so that the silence of others says nothing.
    """
    if not witness.fired(PATIENCE):
        raise Deaf("no listener on root was signalled")


def under_oom(memcg: Memcg, wanted: int) -> bool:
    """Wait for ``under_oom`` to become what is wanted."""
    for _ in slices(PATIENCE):
        if memcg.oom_control().under_oom == wanted:
            return True
        time.sleep(0.01)
    return False


def goes_on(hog: Child, memcg: Memcg) -> bool:
    """Raise the limit that a hog waits at, and say whether it then gets all it wants.

    More than once: who has been woken and is about to wait again may not hear of it
    (memcg_oom_recover(), mm/memcontrol.c).
    """
    for size in (4 * MUCH, 8 * MUCH, -1):
        memcg.limit(size)
        if hog.wait(PATIENCE) is not None:
            break
    return hog.status == 0


def over(root: Memcg) -> None:
    """Wait until the OOMs so far have left the kernel, and done what they have put off.

    :raises Inconclusive: if there can be no fence.
    """
    fence(root)
    deferred(root)


def settled(root: Memcg, listeners: Sequence[Listener], counts: Sequence[int]) -> list[int]:
    """``counts`` plus what has come since, once nothing more can come."""
    over(root)
    return [count + one.count() for one, count in zip(listeners, counts, strict=True)]


def signalled_for_each(root: Memcg, listener: Listener, killed: int) -> int:
    """A listener on root was signalled for each victim of the system OOMs just proven, or more.

    :param killed: how many there were.
    :returns: how often it was.
    :raises Silent: if it was not at all.
    :raises AssertionError: if it was not as often.
    """
    (count,) = settled(root, [listener], fires(listener))
    assert count >= killed, f"{count} signals for {killed} system OOM kills"
    return count


def stays_silent(root: Memcg, *listeners: Listener, after: str, memcg_ooms: bool = False) -> None:
    """None of these is signalled by what was just proven to have happened.

    :param after: what that was, for the message.
    :param memcg_ooms: whether it was that, so that the fence's own must not signal them either.
    :raises AssertionError: if one was.
    :raises Unproven: if one cannot be told from a listener that the fence's own memcg OOM signals.
    """
    fired = [one for one in listeners if one.count()]
    assert not fired, f"{after} signalled {_names(fired)}"
    over(root)
    late = {one: count for one in listeners if (count := one.count())}
    if not late:
        return
    over(root)
    if not memcg_ooms and all(one.count() >= count for one, count in late.items()):
        raise Unproven(f"{_names(list(late))}: signalled by an unrelated memcg OOM")
    raise AssertionError(f"{after} signalled {_names(list(late))}, with a delay")


def alive_on_root(*listeners: Listener) -> None:
    """Listeners on root that were silent can be signalled, by a real system OOM.

    :raises Forbidden: unless system OOMs are allowed.
    :raises AssertionError: if none of them can, though one could that has just been registered.
    :raises Deaf: if none of them can, nor one that has just been registered.
    :raises Unproven: if some of them cannot.
    """
    gate.require("a system OOM")
    assert listeners[0].memcg is not None
    witness = Listener("a newcomer").on(listeners[0].memcg)
    lost = _deaf(listeners)
    heard = witness.wait(0)
    witness.close()
    if lost and heard:  # it may have been in the others' way
        deferred(listeners[0].memcg)
        lost = _deaf(listeners)
        assert len(lost) < len(listeners), (
            f"{_names(lost)} is no longer signalled on root, a newcomer is"
        )
    but = f"silent as it should be, but so is {_names(lost)} in a system OOM"
    if len(lost) == len(listeners):
        raise Deaf(f"{but}, and a newcomer as well")
    if lost:
        raise Unproven(but)


def _deaf(listeners: Sequence[Listener]) -> list[Listener]:
    """Those of these listeners on root that a system OOM does not signal."""
    for one in listeners:
        one.count()
    system_oom()
    return [one for one, n in zip(listeners, _counts(listeners), strict=True) if not n]


def alive_on(memcg: Memcg, *listeners: Listener) -> None:
    """Listeners on a memcg, or below it, that were silent can be signalled by its own OOM.

    :raises Unproven: if not.
    """
    for one in listeners:
        one.count()
    memcg_oom(memcg)
    deadline = time.monotonic() + PATIENCE
    for one in listeners:
        if not one.wait(max(0.0, deadline - time.monotonic())):
            raise Unproven(f"silent as it should be, but so is {one.name} in an OOM of {memcg}")


def somebody_dies(memcg: Memcg | None = None) -> list[str]:
    """A hog that wants more memory than there is gets somebody killed.

    Where :func:`helpers.triggers.system_oom` only finds no proof, this is a judgement.

    :param memcg: where the hog lives; the worker's own if None.
    :returns: what the log says meanwhile.
    :raises Forbidden: unless system OOMs are allowed.
    :raises AssertionError: if nobody is, and the hog stands still or has got it all.
    :raises Inconclusive: if somebody else, such as an OOM killer in user space, ends the hog.
    """
    gate.require("a system OOM")
    more = (meminfo("MemTotal") + meminfo("SwapTotal")) // CHUNK + 1

    def body() -> None:
        for _ in range(more):
            populate(CHUNK)

    def filled() -> bytes:
        try:
            return os.pread(statm, 64, 0).split()[1]
        except OSError:  # it has just gone
            return b""

    def gets_further() -> bool:
        held = filled()
        for _ in slices(4 * PATIENCE):
            time.sleep(0.05)
            kmsg.read()
            if filled() != held or not hog.alive():
                return True
        return False

    kmsg = Kmsg()
    hog = Child(body, memcg)
    statm = os.open(f"/proc/{hog.pid}/statm", os.O_RDONLY)
    try:
        # Whatever takes memory here that it has not taken before, while there is some, may be what
        # gets the hog killed.
        while hog.alive() and gets_further():
            pass
        if hog.status is not None:
            kmsg.wait(lambda lines: Kill(hog.pid, memcg=False) in kills(lines), 1)
        somebody = any(not kill.memcg for kill in kills(kmsg.lines))
        if not somebody and hog.status is not None and hog.status < 0:
            raise Inconclusive(f"the hog ended by signal {-hog.status}, which no OOM tells of")
        how = "stands still" if hog.alive() else f"ended with status {hog.status}"
        assert somebody, f"all memory was asked for and more, the hog {how}, nobody was killed"
        return kmsg.lines
    finally:
        hog.kill()
        os.close(statm)
        kmsg.close()


def _names(listeners: Sequence[Listener]) -> str:
    names = [one.name for one in listeners]
    more = f" and {len(names) - 5} more" if len(names) > 6 else ""
    return ", ".join(names[:5] if more else names) + more
