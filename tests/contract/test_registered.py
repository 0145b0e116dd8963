# SPDX-License-Identifier: GPL-2.0-only
"""N8 and N9: who is not registered, on root or any more, and registering itself."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from helpers.evidence import Unproven
from helpers.hogs import Child, populate
from helpers.judge import (
    PATIENCE,
    alive_on,
    alive_on_root,
    deferred,
    over,
    stays_silent,
    witnessed,
)
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl
from helpers.triggers import MUCH, fence, memcg_oom, remove, system_oom

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

SYSTEM_OOM = "a system OOM"
MEMCG_OOM = "a memcg OOM"


@pytest.mark.clause("N8")
@pytest.mark.parametrize("below", [False, True], ids=["on root", "below root"])
def test_closed_eventfd_gets_nothing(root: Memcg, memcg: Make, listen: Listen, below: bool) -> None:
    home = memcg() if below else root
    gone = [listen(home, f"closed #{n}") for n in range(8)]
    witness = listen(home, "witness")
    for one in gone:
        one.close()
    over(root)  # the kernel lets go of them in a work item
    # The same numbers, and some in the same memory, as what was just let go.
    unregistered = [Listener(f"unregistered #{n}") for n in range(64)]
    if below:
        memcg_oom(home)
        if not witness.wait(PATIENCE):
            raise Unproven(f"no listener on {home} was signalled")
    else:
        system_oom(allocator=root)
        witnessed(witness)
    stays_silent(root, *unregistered, after=MEMCG_OOM if below else SYSTEM_OOM)
    for one in unregistered:
        one.on(home)
    if below:
        alive_on(home, *unregistered)
    else:
        alive_on_root(*unregistered)
    for one in unregistered:
        one.close()


@pytest.mark.clause("N8")
def test_eventfd_of_a_memcg_that_was_removed_gets_nothing(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    home = memcg()
    gone, witness = listen(home, "on a memcg that was removed"), listen(root, "witness")
    remove(home)
    if not gone.wait(PATIENCE):
        raise Unproven("removing a memcg did not signal its listener")
    over(root)
    gone.count()
    system_oom(allocator=root)
    witnessed(witness)
    stays_silent(root, gone, after=SYSTEM_OOM)
    gone.on(root)
    alive_on_root(gone)


@pytest.mark.clause("N8")
def test_closed_threshold_gets_nothing(root: Memcg, memcg: Make, listen: Listen) -> None:
    home = memcg()

    def threshold(name: str) -> Listener:
        return listen(home, name, "memory.usage_in_bytes", str(4 * MIB))

    gone, witness = [threshold(f"closed #{n}") for n in range(8)], threshold("witness")
    for one in gone:
        one.close()
    over(root)  # the kernel lets go of them in a work item
    unregistered = [Listener(f"unregistered #{n}") for n in range(64)]
    Child(lambda: populate(MUCH), home).ended()
    if not witness.wait(PATIENCE):
        raise Unproven("use beyond its threshold did not signal a listener")
    stays_silent(root, *unregistered, after="use beyond a threshold")
    for one in unregistered:
        one.on(home)
    alive_on(home, *unregistered)
    for one in unregistered:
        one.close()


@pytest.mark.clause("N8")
@pytest.mark.parametrize("file", ["memory.usage_in_bytes", "memory.memsw.usage_in_bytes"])
def test_usage_threshold_on_root_is_not_signalled(root: Memcg, listen: Listen, file: str) -> None:
    if not os.path.exists(root.file(file)):
        pytest.skip(f"this kernel has no {file}")
    threshold = listen(root, "threshold", file, str(1 << 60))
    listen(root, "root")
    system_oom(allocator=root)
    stays_silent(root, threshold, after=SYSTEM_OOM)
    threshold.on(root)
    alive_on_root(threshold)


@pytest.mark.clause("N9")
def test_registering_on_root_does_not_signal(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    stays_silent(root, listener, after="registering on root")
    alive_on_root(listener)


@pytest.mark.clause("N9")
def test_registering_on_root_while_a_child_is_under_oom_does_not_signal(
    root: Memcg, listen: Listen, stuck: Make
) -> None:
    stuck()
    listener = listen(root, "root")
    stays_silent(root, listener, after="registering on root while a child is under OOM")
    alive_on_root(listener)


@pytest.mark.clause("N9")
@pytest.mark.parametrize("allocating", ["0", "1"], ids=["any victim", "the allocating task"])
def test_registering_on_root_after_a_system_oom_does_not_signal(
    root: Memcg, listen: Listen, allocating: str
) -> None:
    with sysctl("vm/oom_kill_allocating_task", allocating):
        system_oom(allocator=root)
    if allocating == "0":  # else who was out of memory has gone, and a fence would be an OOM more
        fence(root)
    deferred(root)
    listener = listen(root, "root")
    stays_silent(root, listener, after="registering on root after a system OOM")
    alive_on_root(listener)
