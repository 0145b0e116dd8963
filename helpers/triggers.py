# SPDX-License-Identifier: GPL-2.0-only
"""Cause an OOM, prove that it happened, and wait until it is over."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from helpers import gate, hogs
from helpers.evidence import NOBODY, Inconclusive, Kill, Kmsg, kills
from helpers.hogs import Bait, Child
from helpers.memcgs import MIB, Memcg, put, write
from helpers.patience import slices

SMALL = 2 * MIB  # a limit that a forked child hits at once
MUCH = 16 * MIB  # more than that
_serial = itertools.count()


@dataclass(frozen=True)
class Proof:
    """That an OOM happened.

    :ivar kills: what the kernel's log says, this victim's among it.
    :ivar lines: the log meanwhile.
    """

    kills: list[Kill]
    lines: list[str]

    @property
    def system_kills(self) -> int:
        """How many victims the system OOM has had."""
        return sum(not kill.memcg for kill in self.kills)


def _prove(victim: Child, kmsg: Kmsg, *, memcg: bool, what: str) -> Proof:
    """Wait for the victim's death by SIGKILL and the kernel's word for it."""
    status = victim.wait()
    if status is None:
        victim.kill()
        raise Inconclusive(f"{what}: the victim was not killed")
    if status != -signal.SIGKILL:
        raise Inconclusive(f"{what}: the victim ended with status {status}, not by SIGKILL")
    wanted = Kill(victim.pid, memcg)
    if not kmsg.wait(lambda lines: wanted in kills(lines), 5):
        raise Inconclusive(f"{what}: the kernel's log does not name the victim {victim.pid}")
    return Proof(kills(kmsg.lines), list(kmsg.lines))


def system_oom(
    allocator: Memcg | None = None,
    victim: Memcg | Bait | None = None,
    body: Callable[[], None] | None = None,
    score: int | None = None,
) -> Proof:
    """Exhaust the system's memory until the kernel kills a child of ours.

    :param allocator: where the hog lives; the worker's own memcg if None.
    :param victim: where somebody else lives who is to be killed instead of the hog, or a bait
        that is there already; the hog itself is the victim if None.
    :param body: what the hog does, instead of populating anonymous memory.
    :param score: the hog's ``oom_score_adj``; must make it be chosen where it is the victim, and
        somebody else where it is not.
    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if none can be proven.
    """
    gate.require("a system OOM")
    kmsg = Kmsg()
    try:
        if victim is None:
            hog = Child(body or hogs.exhaust, allocator, hogs.VICTIM if score is None else score)
            return _prove(hog, kmsg, memcg=False, what="system OOM")
        bait = victim if isinstance(victim, Bait) else _bait(victim)
        hog = Child(body or (lambda: hogs.exhaust(bait.tether)), allocator, score or 0)
        try:
            return _prove(bait, kmsg, memcg=False, what="system OOM")
        finally:
            bait.kill()
            hog.kill()
            os.close(bait.tether)
    finally:
        kmsg.close()


def _bait(home: Memcg) -> Bait:
    """A bait that lives: an earlier OOM that is not quite over may take the first."""
    for _ in range(2):
        with suppress(Inconclusive):
            return Bait(home)
    return Bait(home)


def hog_at_limit(
    memcg: Memcg,
    within: Memcg | None = None,
    limit: int = SMALL,
    body: Callable[[], None] = lambda: hogs.touch(MUCH),
    score: int = hogs.VICTIM,
) -> Child:
    """Have a child run into ``memcg``'s limit.

    The limit is lifted until the child is ready, since starting it takes memory as well: what it
    hits the limit with is ``body``.

    :param memcg: gets the limit.
    :param within: where the child lives, ``memcg`` or below.
    :param limit: in bytes.
    :param body: what the child does then.
    :param score: its ``oom_score_adj``.
    :raises Inconclusive: if the limit cannot be set.
    """
    memcg.limit(-1)
    ready, go = os.pipe()

    def held() -> None:
        os.read(ready, 1)
        body()

    try:
        hog = Child(held, within or memcg, score)
        try:
            _settle_limit(memcg, limit)
        except BaseException:
            hog.kill()
            raise
        os.write(go, b".")
    finally:
        os.close(ready)
        os.close(go)
    return hog


def _settle_limit(memcg: Memcg, limit: int, seconds: float = 20.0) -> None:
    """Set a limit, once what earlier victims held has been given back: that is EBUSY till then."""
    for _ in slices(seconds):
        try:
            return memcg.limit(limit)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.01)
    raise Inconclusive(f"{memcg}: in use beyond a limit of {limit} bytes")


def memcg_oom(
    memcg: Memcg,
    within: Memcg | None = None,
    *,
    limit: int = SMALL,
    body: Callable[[], None] = lambda: hogs.touch(MUCH),
) -> Proof:
    """Have a child hit ``memcg``'s limit and be killed for it.

    :param memcg: gets the limit.
    :param within: where the hog lives, ``memcg`` or below.
    :param limit: in bytes.
    :param body: what the hog does; bounded, whatever becomes of the limit.
    :raises Inconclusive: if no memcg OOM can be proven.
    """
    kmsg = Kmsg()
    try:
        return _prove(hog_at_limit(memcg, within, limit, body), kmsg, memcg=True, what="memcg OOM")
    finally:
        kmsg.close()


def fence(root: Memcg) -> None:
    """Wait until an earlier OOM has left the kernel.

    A memcg OOM in a scratch memcg: it takes ``oom_lock`` (mm/oom_kill.c), which whoever called
    out_of_memory() before still held.

    :raises Inconclusive: if none can be caused.
    """
    scratch = root.child(f"oomtest-fence-{os.getpid()}-{next(_serial)}")
    try:
        memcg_oom(scratch)
    except BaseException:
        # Who is stuck in there keeps it busy; that he is says more than that it is.
        with suppress(OSError):
            remove(scratch, 1)
        raise
    remove(scratch)


def remove(memcg: Memcg, seconds: float = 10.0) -> None:
    """Rmdir a memcg, whose last task may still be on its way out.

    :raises OSError: if it is busy for longer than ``seconds``.
    """
    for _ in slices(seconds):
        try:
            return memcg.remove()
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.01)
    return memcg.remove()


def sysrq_f() -> None:
    """Ask for a kill as sysrq-f does; it happens later, in a workqueue.

    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if this kernel has no sysrq.
    """
    gate.require("sysrq-f")
    if not os.path.exists("/proc/sysrq-trigger"):
        raise Inconclusive("no /proc/sysrq-trigger: CONFIG_MAGIC_SYSRQ=y")
    put("/proc/sysrq-trigger", "f")


def sysrq_kill(victim: Memcg | Bait | None = None) -> Proof:
    """Have sysrq-f kill a child of ours.

    :param victim: where it lives, or a bait that is there already.
    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if the kill cannot be proven.
    """
    gate.require("sysrq-f")
    kmsg = Kmsg()
    bait = victim if isinstance(victim, Bait) else Bait(victim, MIB)
    try:
        sysrq_f()
        return _prove(bait, kmsg, memcg=False, what="sysrq-f")
    finally:
        bait.kill()
        os.close(bait.tether)
        kmsg.close()


def sysrq_nobody() -> None:
    """Use sysrq-f where nobody may be killed.

    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if the kernel does not say that it found nobody.
    """
    gate.require("sysrq-f")
    kmsg = Kmsg()
    spared = spare_all()
    try:
        sysrq_f()
        if not kmsg.wait(lambda lines: any(NOBODY in line for line in lines), 10):
            raise Inconclusive("sysrq-f: the kernel does not say that there was nobody to kill")
    finally:
        kmsg.close()
        for path, score in spared.items():
            write(path, score)


def spare_all() -> dict[str, str]:
    """Have nobody be eligible for a kill; returns what to write where to undo that.

    :raises Forbidden: unless system OOMs are allowed.
    """
    gate.require("sparing everybody")
    before = {}
    for entry in os.listdir("/proc"):
        path = f"/proc/{entry}/oom_score_adj"
        with suppress(OSError):
            with open(path, encoding="ascii") as file:
                before[path] = file.read()
            write(path, str(hogs.SPARED))
    return before


def blocked_hog(memcg: Memcg, limit: int = SMALL, within: Memcg | None = None) -> Child:
    """Have a child wait at the limit of a memcg whose killer is disabled.

    :param memcg: gets the limit; its killer is disabled.
    :param limit: in bytes.
    :param within: where the child lives, ``memcg`` or below.
    :returns: the child, not to be chosen by other OOMs. It has signalled all whom it signals.
    :raises Inconclusive: if the memcg does not get under OOM.
    """
    memcg.disable_killer()
    hog = hog_at_limit(memcg, within, limit, score=hogs.SPARED)
    for _ in slices(30):
        if memcg.oom_control().under_oom and hog.asleep():
            return hog
        if not hog.alive():
            break
        time.sleep(0.01)
    hog.kill()
    raise Inconclusive(f"{memcg} did not get under OOM with its killer disabled")
