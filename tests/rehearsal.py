# SPDX-License-Identifier: GPL-2.0-only
"""What a guest runs before its snapshot is taken, so that no test has to be the first.

Modules are imported, caches filled and the interpreter's code specialised once for all tests.
Nothing here causes an OOM: what each test finds is a kernel on which there has been none.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import Bait, Child, populate
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl

ROUNDS = 8  # the interpreter specialises a function from its eighth call on (3.11)


@pytest.mark.parametrize("n", range(ROUNDS))
def test_rehearsal(
    root: Memcg, memcg: Callable[..., Memcg], listen: Callable[..., Listener], n: int
) -> None:
    child = memcg(memcg())
    listeners = [listen(root, "root"), listen(child, "child")]
    kmsg = Kmsg()
    with sysctl("vm/oom_kill_allocating_task", "0"):
        bait = Bait(child, MIB)
        other = Child(lambda: populate(MIB), child)
    assert other.wait() == 0
    bait.kill()
    assert not kills(kmsg.read())
    kmsg.close()
    assert not any(one.wait(0.001) for one in listeners)
    assert root.oom_control() == root.oom_control()
    if n % 2:
        raise Inconclusive("a rehearsal")
    raise AssertionError("a rehearsal")
