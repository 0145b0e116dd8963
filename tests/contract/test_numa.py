# SPDX-License-Identifier: GPL-2.0-only
"""P6: an OOM of some nodes only, while others have memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers import gate, numa
from helpers.hogs import exhaust
from helpers.judge import fires
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.preflight import sysctl
from helpers.triggers import system_oom

pytestmark = [
    pytest.mark.system_oom,
    pytest.mark.clause("P6"),
    pytest.mark.profile("numa"),
    numa.two_nodes,
]

Listen = Callable[..., Listener]


@pytest.mark.parametrize(
    ("which", "panic"),
    [(0, "0"), (-1, "0"), (0, "1")],
    ids=["first node", "last node", "with panic_on_oom"],
)
def test_memory_policy(root: Memcg, listen: Listen, which: int, panic: str) -> None:
    node = numa.nodes()[which]
    listener = listen(root, "root")
    gate.require("a panic")
    # 1 is not for these (check_panic_on_oom(), mm/oom_kill.c).
    with sysctl("vm/panic_on_oom", panic):
        proof = system_oom(allocator=root, body=lambda: numa.exhaust_node(node))
    numa.confined(proof, "CONSTRAINT_MEMORY_POLICY")
    fires(listener)


@pytest.mark.parametrize("below", [False, True], ids=["in root", "below root"])
def test_cpuset(root: Memcg, memcg: Callable[..., Memcg], listen: Listen, below: bool) -> None:
    home = memcg() if below else root
    listener = listen(root, "root")
    with numa.cpuset(numa.nodes()[-1]) as procs:
        if procs is None:
            pytest.skip("no v1 cpuset controller is mounted")

        def body() -> None:
            put(procs, "0")
            exhaust()

        numa.confined(system_oom(allocator=home, body=body), "CONSTRAINT_CPUSET")
    fires(listener)
