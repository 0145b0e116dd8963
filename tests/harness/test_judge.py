# SPDX-License-Identifier: GPL-2.0-only
"""Judgements on listeners, with eventfds that nothing but the test signals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers import gate, judge
from helpers.evidence import Deaf, Silent, Unproven
from helpers.listeners import Listener

ROOT: Any = object()  # no memcg is touched


class Fences:
    """Stands for the fence; what is signalled during each of its calls is given."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.deferred: Callable[[], object] = lambda: None

    def __call__(self, root: object) -> None:
        if self.calls:
            self.calls.pop(0)()


@pytest.fixture
def fences(monkeypatch: pytest.MonkeyPatch) -> Fences:
    fences = Fences()
    monkeypatch.setattr(judge, "fence", fences)
    monkeypatch.setattr(judge, "PATIENCE", 0.02)
    monkeypatch.setattr(judge, "deferred", lambda root: fences.deferred())
    return fences


@pytest.fixture
def pair() -> Iterator[tuple[Listener, Listener]]:
    pair = Listener("one"), Listener("other")
    for listener in pair:
        listener.memcg = ROOT
    yield pair
    for listener in pair:
        listener.close()


Pair = tuple[Listener, Listener]


def signal(listener: Listener, count: int = 1) -> None:
    os.eventfd_write(listener.fd, count)


@pytest.mark.usefixtures("fences")
def test_fires(pair: Pair) -> None:
    with pytest.raises(Silent, match="did not signal one, other"):
        judge.fires(*pair)
    signal(pair[0], 3)
    with pytest.raises(AssertionError, match="did not signal other, but others") as caught:
        judge.fires(*pair)
    assert not isinstance(caught.value, Silent)
    signal(pair[0], 3)
    signal(pair[1])
    assert judge.fires(*pair) == [3, 1]


def test_fires_waits_for_what_was_put_off(pair: Pair, fences: Fences) -> None:
    signal(pair[0])
    fences.deferred = lambda: signal(pair[1])
    assert judge.fires(*pair) == [1, 1]


def test_settled_adds_what_came_later(pair: Pair, fences: Fences) -> None:
    fences.calls = [lambda: signal(pair[1], 2)]
    assert judge.settled(ROOT, pair, [1, 1]) == [1, 3]


@pytest.mark.usefixtures("fences")
def test_silence(pair: Pair) -> None:
    judge.stays_silent(ROOT, *pair, after="nothing")


@pytest.mark.usefixtures("fences")
def test_a_signal_breaks_silence(pair: Pair) -> None:
    signal(pair[1])
    with pytest.raises(AssertionError, match=r"^something signalled other$"):
        judge.stays_silent(ROOT, *pair, after="something")


def test_a_late_signal_breaks_silence(pair: Pair, fences: Fences) -> None:
    fences.calls = [lambda: signal(pair[0])]
    with pytest.raises(AssertionError, match="signalled one, with a delay"):
        judge.stays_silent(ROOT, *pair, after="something")


def test_the_fences_own_signal_is_not_held_against_the_kernel(pair: Pair, fences: Fences) -> None:
    fences.calls = [lambda: signal(pair[0]), lambda: signal(pair[0])]
    with pytest.raises(Unproven, match="by an unrelated memcg OOM"):
        judge.stays_silent(ROOT, *pair, after="something")


class Memcg:
    """Signals whoever is registered on it; the newest alone, if it is that wrong."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.newest_only = False

    def oom(self) -> None:
        open_ones = [one for one in self.listeners if one.fd >= 0]
        for one in open_ones[-1:] if self.newest_only else open_ones:
            signal(one)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> Memcg:
    root: Any = Memcg()
    monkeypatch.setattr(Listener, "on", lambda self, memcg: memcg.listeners.append(self) or self)
    monkeypatch.setattr(judge, "system_oom", root.oom)
    monkeypatch.setattr(gate, "require", lambda what: None)
    for one in pair:
        one.memcg = root
    return root  # type: ignore[no-any-return]


@pytest.mark.usefixtures("fences")
def test_alive(pair: Pair, root: Memcg) -> None:
    root.listeners = [*pair]
    judge.alive_on_root(*pair)


@pytest.mark.usefixtures("fences")
def test_neither_it_nor_a_newcomer_is_alive(
    pair: Pair, root: Memcg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "system_oom", lambda: None)
    signal(pair[1])  # from before: says nothing
    with pytest.raises(Deaf, match="so is one, other in a system OOM, and a newcomer"):
        judge.alive_on_root(*pair)


@pytest.mark.usefixtures("fences")
def test_only_a_newcomer_is_alive(pair: Pair, root: Memcg) -> None:
    with pytest.raises(AssertionError, match=r"^one, other is no longer signalled"):
        judge.alive_on_root(*pair)


@pytest.mark.usefixtures("fences")
def test_one_of_two_is_alive(pair: Pair, root: Memcg) -> None:
    root.listeners = [pair[0]]
    with pytest.raises(Unproven, match=r"so is other in a system OOM$"):
        judge.alive_on_root(*pair)


@pytest.mark.usefixtures("fences")
def test_a_newcomer_was_in_the_way(pair: Pair, root: Memcg) -> None:
    """Where only the newest listener is signalled, that is not what silence is to blame for."""
    root.newest_only = True
    root.listeners = [pair[0]]
    judge.alive_on_root(pair[0])
    root.listeners = [*pair]
    with pytest.raises(Unproven, match="so is one in a system OOM"):
        judge.alive_on_root(*pair)
