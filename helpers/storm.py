# SPDX-License-Identifier: GPL-2.0-only
"""All that memcg v1 lets its users do, in an order drawn by lot, while OOMs go on.

The books are kept as it goes: what must have signalled each listener, and what must not have.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from contextlib import suppress
from dataclasses import dataclass

from helpers import gate
from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import SPARED, Child, exhaust
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.triggers import hog_at_limit, remove

MOST_MEMCGS = 12
MOST_HOGS = 3  # of the system's memory, at once


@dataclass
class Entry:
    """A listener of the storm.

    :ivar where: the memcg it is on.
    :ivar after: how many lines of the log had been read when it was registered.
    """

    listener: Listener
    where: Memcg
    after: int


class Storm:
    """Call :meth:`step` as often as wanted, then :meth:`calm`, and :meth:`close` in the end.

    :param root: the root memcg.
    :param seed: of the lot.
    :ivar listeners: what is registered and open.
    :ivar hit: memcgs that have had an OOM of their own; nobody else lives there.
    :raises Forbidden: unless system OOMs are allowed.
    """

    def __init__(self, root: Memcg, seed: int) -> None:
        gate.require("a storm of system OOMs")
        self.root = root
        self.lot = random.Random(seed)  # noqa: S311  to be repeated, not to be secret
        self.serial = itertools.count()
        self.kmsg = Kmsg()
        self.memcgs: list[Memcg] = []
        self.listeners: list[Entry] = []
        self.hit: list[Memcg] = []
        self.hogs: list[Child] = []
        self.idlers: list[Child] = []
        self.churner = Child(self.churn, score=SPARED)
        self.actions = {
            self.make: 6,
            self.drop: 4,
            self.listen_on_root: 5,
            self.listen_below: 5,
            self.leave: 4,
            self.fork: 3,
            self.hog_the_system: 5,
            self.hog_a_memcg: 3,
        }

    def churn(self) -> None:
        """Register on root and close again, without a pause and beside all else."""
        while True:
            listeners = [Listener("churn").on(self.root) for _ in range(4)]
            for one in listeners:
                one.close()

    def step(self) -> None:
        """Do one thing."""
        actions, weights = zip(*self.actions.items(), strict=True)
        self.lot.choices(actions, weights)[0]()
        self.kmsg.read()  # often, lest it be overrun

    def _made(self) -> Memcg:
        """A new memcg, anywhere."""
        parent = self.lot.choice([self.root, *self.memcgs])
        child = parent.child(f"oomtest-storm-{os.getpid()}-{next(self.serial)}")
        child.use_hierarchy(True)
        return child

    def make(self) -> None:
        """Create a memcg."""
        if len(self.memcgs) < MOST_MEMCGS:
            self.memcgs.append(self._made())

    def drop(self) -> None:
        """Remove a memcg, if it can be, with listeners or without."""
        if not (self.memcgs or self.hit):
            return
        one = self.lot.choice(self.memcgs + self.hit)
        try:
            one.remove()
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise
            return
        (self.memcgs if one in self.memcgs else self.hit).remove(one)
        for entry in [entry for entry in self.listeners if entry.where is one]:
            self._close(entry)

    def listen(self, where: Memcg) -> None:
        """Register a new eventfd."""
        listener = Listener(f"#{next(self.serial)} on {where.path}").on(where)
        self.listeners.append(Entry(listener, where, len(self.kmsg.read())))

    def listen_on_root(self) -> None:
        """Register a new eventfd on root."""
        self.listen(self.root)

    def listen_below(self) -> None:
        """Register a new eventfd on some memcg."""
        if self.memcgs or self.hit:
            self.listen(self.lot.choice(self.memcgs + self.hit))

    def leave(self) -> None:
        """Close an eventfd while it is registered."""
        if self.listeners:
            self._close(self.lot.choice(self.listeners))

    def fork(self) -> None:
        """Have a child that inherits every eventfd and exits."""
        home = self.lot.choice([self.root, *self.memcgs])
        self.idlers.append(Child(lambda: None, home, score=SPARED))

    def hog_the_system(self) -> None:
        """Have a hog run the system out of memory."""
        home = self.lot.choice([self.root, *self.memcgs])
        if sum(hog.alive() for hog in self.hogs) < MOST_HOGS:
            with suppress(Inconclusive):  # killed for another one before it could begin
                self.hogs.append(Child(exhaust, home))

    def hog_a_memcg(self) -> None:
        """Have a hog hit the limit of a new memcg."""
        if len(self.hit) < MOST_MEMCGS:
            self.hit.append(self._made())
            with suppress(Inconclusive):
                self.hogs.append(hog_at_limit(self.hit[-1]))

    def calm(self) -> int | None:
        """Wait until all the hogs have ended.

        :returns: the status of one that was not killed, None if they all were.
        :raises AssertionError: if one neither gets on nor is killed.
        :raises Inconclusive: if there was no system OOM, or the log does not name a hog.
        """
        self.churner.kill()
        for child in self.idlers:
            child.wait()
        for hog in self.hogs:
            status = hog.wait()
            assert status is not None, "a hog of the storm neither gets on nor is killed"
            if status == 1:  # it could not go on
                raise Inconclusive("a hog of the storm could not be started")
            if status != -9:
                return status
        wanted = {hog.pid for hog in self.hogs}
        if not self.kmsg.wait(lambda lines: wanted <= {kill.pid for kill in kills(lines)}, 5):
            raise Inconclusive("the kernel's log does not name every hog of the storm")
        if not self.system_kills():
            raise Inconclusive("there was no system OOM in the storm")
        return None

    def system_kills(self, after: int = 0) -> int:
        """How many system OOM kills the log tells of, from that line on."""
        return sum(not kill.memcg for kill in kills(self.kmsg.lines[after:]))

    def close(self) -> None:
        """Clean up."""
        for child in [*self.hogs, *self.idlers, self.churner]:
            child.kill()
        while self.listeners:
            self._close(self.listeners[0])
        for one in sorted(self.memcgs + self.hit, key=lambda one: one.path, reverse=True):
            remove(one)
        self.kmsg.close()

    def _close(self, entry: Entry) -> None:
        entry.listener.close()
        self.listeners.remove(entry)
