# SPDX-License-Identifier: GPL-2.0-only
"""What a port breaks that is right for each kind of OOM by itself: state or a helper that two kinds
share, a list that changes meanwhile, memcgs that are merely there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.evidence import Inconclusive
from helpers.hogs import SPARED, Child
from helpers.judge import PATIENCE, fires, settled
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.triggers import fence, memcg_oom, sysrq_kill, system_oom
from helpers.whitebox import Unavailable, Whitebox

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]


@pytest.mark.clause("P4")
@pytest.mark.system_oom
def test_system_oom_after_a_kill_by_sysrq(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    sysrq_kill(root)
    settled(root, [listener], [0])
    system_oom(allocator=root)
    fires(listener)


@pytest.mark.clause("K1")
def test_memcg_oom_signals_while_somebody_listens_on_root(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    listeners = [listen(child, "the memcg's"), listen(memcg(child), "its child's")]
    listen(root, "root")
    memcg_oom(child)
    missed = [one.name for one in listeners if not one.wait(PATIENCE)]
    assert not missed, f"with a listener on root, a memcg OOM did not signal {', '.join(missed)}"


@pytest.mark.clause("K1")
@pytest.mark.system_oom
def test_memcg_oom_signals_after_a_system_oom(root: Memcg, memcg: Make, listen: Listen) -> None:
    child = memcg()
    listeners = [listen(child, "the memcg's"), listen(memcg(child), "its child's")]
    system_oom(allocator=root)
    fence(root)
    for one in listeners:
        one.count()  # what the system OOM may have done to them is another clause's
    memcg_oom(child)
    missed = [one.name for one in listeners if not one.wait(PATIENCE)]
    assert not missed, f"after a system OOM, a memcg OOM did not signal {', '.join(missed)}"


@pytest.mark.clause("P12")
@pytest.mark.system_oom
def test_memcgs_do_not_add_to_the_signals(root: Memcg, memcg: Make, listen: Listen) -> None:
    try:
        whitebox = Whitebox()
    except Unavailable as error:
        pytest.skip(str(error))
    for _ in range(20):
        memcg()
    listener = listen(root, "root")
    system_oom(allocator=root)
    (count,) = settled(root, [listener], fires(listener))
    calls = whitebox.counts().calls
    whitebox.unload()
    assert count <= calls, f"{count} signals for {calls} calls of the OOM killer"


@pytest.mark.clause("S1")
@pytest.mark.system_oom
def test_listeners_come_and_go_during_system_ooms(root: Memcg, listen: Listen) -> None:
    def churn() -> None:
        while True:
            for one in [Listener("passing").on(root) for _ in range(4)]:
                one.close()

    listener = listen(root, "root")
    churner = Child(churn, root, score=SPARED)
    try:
        for _ in range(6):
            system_oom(allocator=root)
        fires(listener)
        if not churner.alive():
            raise Inconclusive(f"whoever came and went has ended: {churner.status}")
    finally:
        churner.kill()
