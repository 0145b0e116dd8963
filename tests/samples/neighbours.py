# SPDX-License-Identifier: GPL-2.0-only
"""Tests that look whether another one has run in their machine, for tests/harness to watch."""

from __future__ import annotations

import os

import pytest

from helpers.memcgs import Memcg

pytestmark = pytest.mark.clause("K5")
ran: list[str] = []


def test_first() -> None:
    assert not ran
    ran.append("first")


def test_shares() -> None:
    assert ran == ["first"]
    ran.append("second")


def test_leaves_a_memcg(root: Memcg) -> None:
    assert len(ran) == 2
    os.mkdir(os.path.join(root.path, "left"))


def test_has_a_new_machine(root: Memcg) -> None:
    assert not ran
    ran.append("third")


def test_fails() -> None:
    assert ran == ["third"]
    raise AssertionError("as it should")


def test_has_another_new_machine() -> None:
    assert not ran
    ran.append("fourth")


@pytest.mark.pristine
def test_wants_a_new_machine() -> None:
    assert not ran
    ran.append("fifth")
