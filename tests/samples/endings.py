# SPDX-License-Identifier: GPL-2.0-only
"""Tests that end in every way a test can end, for tests/harness to watch from the host.

The file's name keeps pytest from collecting it unless it is asked for. What may only happen in a
guest is marked and gated like any test of the contract; the clauses are borrowed.
"""

from __future__ import annotations

import os
import signal

import pytest

from helpers import gate
from helpers.evidence import Inconclusive
from helpers.memcgs import Memcg, put


@pytest.mark.clause("K5")
def test_passes_first(root: Memcg) -> None:
    print("a passing test's words")
    assert root.oom_control().under_oom == 0


@pytest.mark.clause("P1")
@pytest.mark.system_oom
def test_panics() -> None:
    gate.require("a panic")
    put("/proc/sysrq-trigger", "c")


@pytest.mark.clause("P4")
@pytest.mark.system_oom
def test_resets() -> None:
    gate.require("a reset")
    put("/proc/sysrq-trigger", "b")


@pytest.mark.clause("K1")
def test_passes_after_the_panic(root: Memcg) -> None:
    assert root.oom_control().under_oom == 0


@pytest.mark.clause("P2")
@pytest.mark.system_oom  # stops the session it runs in
@pytest.mark.timeout(2)
def test_loops_forever() -> None:
    while True:
        pass


@pytest.mark.clause("K2")
def test_passes_after_the_loop(root: Memcg) -> None:
    assert root.oom_control().under_oom == 0


@pytest.mark.clause("P3")
@pytest.mark.system_oom
def test_kills_the_worker() -> None:
    gate.require("killing the worker")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.clause("K3")
def test_passes_last() -> None:
    assert os.getpid() > 1


@pytest.mark.clause("K4")
def test_fails() -> None:
    print("a failing test's words")
    measured = 1
    assert measured == 2, "one is not two"


@pytest.mark.clause("I1")
def test_is_inconclusive() -> None:
    raise Inconclusive("nothing could be seen")
