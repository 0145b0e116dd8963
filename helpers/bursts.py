# SPDX-License-Identifier: GPL-2.0-only
"""Many OOMs in a short time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from helpers import gate
from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import Bait, Child, exhaust
from helpers.memcgs import Memcg
from helpers.triggers import Proof

LITTLE = 1 << 16  # bytes; what a victim costs is mostly its page tables


@contextmanager
def _bursting() -> Iterator[tuple[Kmsg, list[Child]]]:
    """The log from here on, and a list of children that are ended afterwards, the last one first.

    :raises Forbidden: unless system OOMs are allowed.
    """
    gate.require("a burst of system OOMs")
    kmsg = Kmsg()
    children: list[Child] = []
    try:
        yield kmsg, children
    finally:
        for child in reversed(children):
            child.kill()
        kmsg.close()


def burst(homes: Sequence[Memcg]) -> Proof:
    """Exhaust the system's memory by several hogs at once, until each of them was killed.

    :param homes: where the hogs live, one for each.
    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if a hog lives on, or the log does not name one that was killed.
    """
    ready, go = os.pipe()

    def body() -> None:
        os.read(ready, 1)
        exhaust()

    try:
        with _bursting() as (kmsg, hogs):
            hogs += (Child(body, home) for home in homes)
            os.write(go, bytes(len(homes)))
            return _all_killed(hogs, kmsg)
    finally:
        os.close(ready)
        os.close(go)


def one_by_one(homes: Sequence[Memcg]) -> Proof:
    """Exhaust the system's memory by a single hog, until each of its victims was killed.

    What they hold is so little that it is out of memory again at once.

    :param homes: where the victims live, one for each.
    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if a victim lives on, or the log does not name one that was killed.
    """
    baits: list[Bait] = []

    def body() -> None:
        for bait in baits:
            exhaust(bait.tether)

    try:
        with _bursting() as (kmsg, children):
            for home in homes:
                baits.append(Bait(home, LITTLE))
                children.append(baits[-1])
            # It may be killed as well, after all of them: with nobody left the system panics.
            children.append(Child(body, score=0))
            return _all_killed(baits, kmsg)
    finally:
        for bait in baits:
            os.close(bait.tether)


def _all_killed(victims: Sequence[Child], kmsg: Kmsg) -> Proof:
    """Wait for the death of each of these by SIGKILL and the kernel's word for it."""
    for victim in victims:
        if victim.wait() != -signal.SIGKILL:
            raise Inconclusive(f"one of a burst was not killed: status {victim.status}")
    wanted = {victim.pid for victim in victims}
    if not kmsg.wait(lambda lines: wanted <= {kill.pid for kill in kills(lines)}, 5):
        raise Inconclusive("the kernel's log does not name all who were killed in a burst")
    return Proof(kills(kmsg.lines), list(kmsg.lines))
