# SPDX-License-Identifier: GPL-2.0-only
"""N1 to N3: whom a system OOM, a memcg OOM and sysrq-f must not signal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from helpers import gate
from helpers.evidence import NOBODY, Inconclusive, Kmsg, Overrun, Unproven, kills
from helpers.hogs import SPARED, populate, touch
from helpers.judge import PATIENCE, alive_on, alive_on_root, over, stays_silent
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.patience import slices
from helpers.preflight import sysctl
from helpers.triggers import MUCH, hog_at_limit, memcg_oom, sysrq_kill, sysrq_nobody, system_oom
from helpers.versions import need

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

SYSTEM_OOM = "a system OOM"
MEMCG_OOM = "a memcg OOM"
SYSRQ = "a kill by sysrq-f"
TRIES = 6


@pytest.mark.clause("N1")
@pytest.mark.parametrize(
    ("victim", "first"),
    [
        ("root", "root first"),
        ("root", "no root"),
        ("grandchild", "root last"),
        ("grandchild", "no root"),
        ("killer disabled", "root first"),
    ],
)
def test_system_oom_signals_nobody_below_root(
    root: Memcg, memcg: Make, listen: Listen, victim: str, first: str
) -> None:
    parent = memcg()
    grandchild, nephew = memcg(parent), memcg(parent)
    sibling, disabled = memcg(), memcg()
    disabled.disable_killer()
    if first == "root first":
        listen(root, "root")
    apart = [listen(one, one.path) for one in (sibling, disabled)]
    family = [listen(one, one.path) for one in (parent, grandchild, nephew)]
    if first == "root last":
        listen(root, "root")
    home = {"root": root, "grandchild": grandchild, "killer disabled": disabled}[victim]
    before = home.oom_control().oom_kill
    system_oom(allocator=home)
    after = home.oom_control().oom_kill
    if before is not None and after == before:
        raise Inconclusive("the victim's memcg does not count the kill")
    stays_silent(root, *family, *apart, after=SYSTEM_OOM)
    disabled.enable_killer()
    alive_on(parent, *family)
    for one, listener in zip((sibling, disabled), apart, strict=True):
        alive_on(one, listener)


@pytest.mark.clause("N1")
def test_system_oom_does_not_signal_a_memcg_that_only_held_the_allocator(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    allocator, victim = memcg(), memcg()
    listen(root, "root")
    listeners = [listen(allocator, "allocator's"), listen(victim, "victim's")]
    system_oom(allocator=allocator, victim=victim)
    stays_silent(root, *listeners, after=SYSTEM_OOM)
    alive_on(allocator, listeners[0])
    alive_on(victim, listeners[1])


@pytest.mark.clause("N1")
def test_kill_of_the_allocating_task_signals_nobody_below_root(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    home = memcg()
    listen(root, "root")
    listener = listen(home, "the victim's")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        system_oom(allocator=home)
    stays_silent(root, listener, after=SYSTEM_OOM)
    alive_on(home, listener)


@pytest.fixture
def hierarchy(root: Memcg, request: pytest.FixtureRequest) -> Iterator[None]:
    """Root's ``memory.use_hierarchy`` for the duration, which systemd sets where there is one.

    The kernel takes it as long as root has no children, be they about to go.
    """

    def set_to(on: bool) -> bool:
        for _ in slices(PATIENCE):
            if root.use_hierarchy(on):
                return True
            time.sleep(0.02)
        return False

    if not request.param:
        yield
        return
    need("a memory.use_hierarchy that can be cleared", root)
    if not set_to(True):
        raise Inconclusive("root has children, so that its memory.use_hierarchy cannot be set")
    yield
    set_to(False)  # not judged: a memcg that takes its time to go is in the way of that


@pytest.mark.clause("N1")
@pytest.mark.usefixtures("hierarchy")
@pytest.mark.parametrize(
    "hierarchy",
    [False, pytest.param(True, marks=pytest.mark.pristine)],
    indirect=True,
    ids=["", "as systemd has it"],
)
def test_system_oom_does_not_signal_a_memcg_that_is_stuck(
    root: Memcg, listen: Listen, stuck: Make
) -> None:
    child = stuck()
    listener = listen(child, "stuck")
    if not listener.wait(PATIENCE):
        raise Unproven("registering on a memcg that is under OOM did not signal")
    listen(root, "root")
    for _ in range(TRIES):
        listener.count()
        before = child.failures
        system_oom(allocator=root)
        try:
            stays_silent(root, listener, after=SYSTEM_OOM)
            break
        except (AssertionError, Unproven):
            # Pages of that memcg that somebody still held may be freed by now: who waits there
            # tries again and is out of memory again (memcg_oom_recover() in mm/memcontrol.c).
            if child.failures == before:
                raise
    else:
        # There cannot be so many such pages: the OOMs themselves wake who waits.
        raise AssertionError(f"each of {TRIES} system OOMs had who is stuck try again, and signal")
    child.enable_killer()
    alive_on(child, listener)


@pytest.mark.clause("N2")
@pytest.mark.parametrize("listening", ["root only", "child first", "child last"])
def test_memcg_oom_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen, listening: str
) -> None:
    child = memcg()
    if listening == "child first":
        listen(child, "child")
    listener = listen(root, "root")
    if listening == "child last":
        listen(child, "child")
    memcg_oom(child, body=lambda: populate(MUCH))
    stays_silent(root, listener, after=MEMCG_OOM, memcg_ooms=True)
    alive_on_root(listener)


@pytest.mark.clause("N2")
@pytest.mark.parametrize("depth", [1, 3])
def test_memcg_oom_further_up_or_down_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen, depth: int
) -> None:
    limited = memcg()
    home = limited
    for _ in range(depth):
        home = memcg(home)
    listener = listen(root, "root")
    memcg_oom(limited, within=home)
    memcg_oom(home)
    stays_silent(root, listener, after=MEMCG_OOM, memcg_ooms=True)
    alive_on_root(listener)


@pytest.mark.clause("N2")
def test_memcg_oom_by_user_faults_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listener = listen(root, "root")
    memcg_oom(memcg(), body=lambda: touch(MUCH))
    stays_silent(root, listener, after=MEMCG_OOM, memcg_ooms=True)
    alive_on_root(listener)


@contextmanager
def set_for_system_ooms(name: str) -> Iterator[None]:
    """Set what is of no concern to any other OOM: a panic, or that no victim is looked for.

    "Panic, whatever the constraint" is of concern to memcg OOMs, fences included.
    """
    gate.require("a panic")
    setting, value = {
        "the allocating task": ("vm/oom_kill_allocating_task", "1"),
        "panic": ("vm/panic_on_oom", "1"),
        "panic, whatever the constraint": ("vm/panic_on_oom", "2"),
    }[name]
    with sysctl(setting, value):
        yield


@pytest.mark.clause("N2")
@pytest.mark.parametrize("setting", ["the allocating task", "panic"])
def test_memcg_oom_does_not_signal_root_whatever_is_set(
    root: Memcg, memcg: Make, listen: Listen, setting: str
) -> None:
    listener = listen(root, "root")
    with set_for_system_ooms(setting):
        memcg_oom(memcg())
    stays_silent(root, listener, after=MEMCG_OOM, memcg_ooms=True)
    alive_on_root(listener)


@pytest.mark.clause("N2")
def test_memcg_oom_with_the_killer_disabled_does_not_signal_root(
    root: Memcg, listen: Listen, stuck: Make
) -> None:
    listener = listen(root, "root")
    stuck()
    stays_silent(root, listener, after="a memcg OOM with its killer disabled")
    alive_on_root(listener)


@pytest.mark.clause("N2")
@pytest.mark.parametrize("faults", [populate, touch], ids=["in the kernel", "in user space"])
def test_memcg_oom_that_finds_nobody_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen, faults: Callable[[int], None]
) -> None:
    listener = listen(root, "root")
    kmsg = Kmsg()
    # Nobody else lives there. What it populates from within the kernel is just refused; for what
    # it then touches itself it faults again and again, on some kernels.
    hog = hog_at_limit(memcg(), body=lambda: faults(MUCH), score=SPARED)
    found = False
    while not found:
        with suppress(Overrun):  # by more of the same
            found = kmsg.wait(lambda lines: any(NOBODY in line for line in lines), 10)
            break
    hog.kill()
    kmsg.close()
    if not found:
        raise Inconclusive("the kernel does not say that there was nobody to kill")
    if any(not kill.memcg for kill in kills(kmsg.lines)):
        # What a charge that failed leaves to the page fault (pagefault_out_of_memory(),
        # mm/oom_kill.c, until 5.16) is one.
        raise Inconclusive("there was a system OOM as well")
    stays_silent(root, listener, after="a memcg OOM that found nobody to kill")
    alive_on_root(listener)


@pytest.mark.clause("N2")
def test_memcg_oom_by_kernel_memory_does_not_signal_root(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    def fill_pipes() -> None:
        pages = bytes(1 << 16)
        pipes = [os.pipe() for _ in range(MUCH >> 16)]
        for _, end in pipes:
            os.write(end, pages)

    listener = listen(root, "root")
    memcg_oom(memcg(), body=fill_pipes)
    stays_silent(root, listener, after="a memcg OOM over kernel memory")
    alive_on_root(listener)


@pytest.mark.clause("N3")
@pytest.mark.parametrize("below", [False, True], ids=["in root", "below root"])
def test_sysrq_does_not_signal_root(root: Memcg, memcg: Make, listen: Listen, below: bool) -> None:
    home = memcg() if below else root
    listener = listen(root, "root")
    sysrq_kill(home)
    stays_silent(root, listener, after=SYSRQ)
    alive_on_root(listener)


@pytest.mark.clause("N3")
def test_sysrq_does_not_signal_a_listener_that_works(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root")
    alive_on_root(listener)
    over(root)
    listener.count()
    sysrq_kill(root)
    stays_silent(root, listener, after=SYSRQ)
    alive_on_root(listener)


@pytest.mark.clause("N3")
def test_sysrq_that_finds_nobody_does_not_signal_root(root: Memcg, listen: Listen) -> None:
    need("a sysrq-f that never panics", root)
    listener = listen(root, "root")
    sysrq_nobody()
    stays_silent(root, listener, after="sysrq-f that found nobody to kill")
    alive_on_root(listener)


@pytest.mark.clause("N3")
@pytest.mark.parametrize(
    "setting", ["the allocating task", "panic", "panic, whatever the constraint"]
)
def test_sysrq_does_not_signal_root_whatever_is_set(
    root: Memcg, listen: Listen, setting: str
) -> None:
    need("a sysrq-f that never panics", root)
    listener = listen(root, "root")
    with set_for_system_ooms(setting):
        sysrq_kill(root)
    stays_silent(root, listener, after=SYSRQ)
    alive_on_root(listener)


@pytest.mark.clause("N3")
def test_sysrq_signals_nobody_below_root(root: Memcg, memcg: Make, listen: Listen) -> None:
    parent, sibling = memcg(), memcg()
    home = memcg(parent)
    listen(root, "root")
    family, apart = [listen(one, one.path) for one in (parent, home)], listen(sibling, "sibling")
    sysrq_kill(home)
    stays_silent(root, *family, apart, after=SYSRQ)
    alive_on(parent, *family)
    alive_on(sibling, apart)
