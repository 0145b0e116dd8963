# SPDX-License-Identifier: GPL-2.0-only
"""P9 and K6: the signal and the panic that vm.panic_on_oom asks for.

The machine dies of it, so that the host judges from what the kernel printed: on its way down it
dumps its trace buffer, which shows whether the listener's eventfd had been signalled by then.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers import gate, numa
from helpers.evidence import Inconclusive, available
from helpers.hogs import CHUNK, SPARED, Child, exhaust
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.preflight import sysctl
from helpers.tracing import SIGNAL, Tracer, identity
from helpers.triggers import memcg_oom, spare_all, system_oom

ARMED = "oomtest: a system OOM follows"
COMPULSORY = "Out of memory: compulsory panic_on_oom is enabled"


def dies(panic: str) -> pytest.MarkDecorator:
    """The machine must panic, and say that after the OOM's report."""
    return pytest.mark.dies(
        panic=panic,
        armed=ARMED,
        shows="invoked oom-killer",
        lacking="failed",
        otherwise="the panic comes without the OOM's report",
    )


def arm() -> None:
    """Have the console show what the kernel tells of the OOM that follows."""
    put("/proc/sys/kernel/printk", "7\n")
    put("/dev/kmsg", f"<2>{ARMED}\n")


@pytest.mark.clause("P9")
@pytest.mark.system_oom
@pytest.mark.dies(
    panic=r"Out of memory: .*panic_on_oom is enabled",
    armed=rf"tracing_mark_write: {ARMED}",
    shows=r": signal: \(",
    lacking="silent",
    otherwise="a system OOM with panic_on_oom did not signal root before the panic",
)
def test_signal_precedes_the_panic(
    root: Memcg, memcg: Callable[..., Memcg], listen: Callable[..., Listener]
) -> None:
    listener = listen(root, "root")
    tracer = Tracer(whole=True)
    tracer.probe("signal", *SIGNAL, argument=True)
    address = identity(tracer, listener, memcg())
    tracer.file("events/oomtest/signal/filter", f"argument == {address:#x}")
    tracer.file("trace_marker", ARMED)
    put("/proc/sys/kernel/ftrace_dump_on_oops", "1")
    gate.require("a panic")
    put("/proc/sys/vm/panic_on_oom", "1")
    system_oom(allocator=root)
    raise Inconclusive("the kernel did not panic, although vm.panic_on_oom is set")


@pytest.mark.clause("K6")
@pytest.mark.system_oom
@dies("Out of memory: system-wide panic_on_oom is enabled")
def test_panic_on_oom_panics(root: Memcg, listen: Callable[..., Listener]) -> None:
    listen(root, "root")
    gate.require("a panic")
    put("/proc/sys/vm/panic_on_oom", "1")
    arm()
    hog = Child(exhaust, root)
    status, short = hog.wait(), available() < CHUNK
    hog.kill()
    if status is None and not short:
        raise Inconclusive("the hog has not got all memory")
    raise AssertionError(f"vm.panic_on_oom is 1, and a system OOM leaves the hog with {status}")


@pytest.mark.clause("K6")
@pytest.mark.system_oom
@pytest.mark.profile("numa")
@numa.two_nodes
@dies(COMPULSORY)
def test_panic_on_oom_2_panics_in_any_oom(root: Memcg, listen: Callable[..., Listener]) -> None:
    listen(root, "root")
    gate.require("a panic")
    put("/proc/sys/vm/panic_on_oom", "2")
    arm()
    system_oom(allocator=root, body=lambda: numa.exhaust_node(numa.nodes()[0]))
    raise AssertionError("vm.panic_on_oom is 2, and an OOM of one node ended in a kill")


@pytest.mark.clause("K6")
@pytest.mark.system_oom
@dies(COMPULSORY)
def test_panic_on_oom_2_panics_in_a_memcg_oom(
    root: Memcg, memcg: Callable[..., Memcg], listen: Callable[..., Listener]
) -> None:
    listen(root, "root")
    limited = memcg()
    gate.require("a panic")
    put("/proc/sys/vm/panic_on_oom", "2")
    arm()
    memcg_oom(limited)
    raise AssertionError("vm.panic_on_oom is 2, and a memcg OOM ended in a kill")


@pytest.mark.clause("K6")
@pytest.mark.system_oom
@dies("deadlocked on memory|no killable")
def test_nobody_to_kill_panics(root: Memcg, listen: Callable[..., Listener]) -> None:
    listen(root, "root")
    gate.require("a panic")
    spare_all()
    arm()
    hog = Child(exhaust, root, score=SPARED)
    status = hog.ended()
    raise AssertionError(f"nobody may be killed, and a system OOM leaves the hog with {status}")


@pytest.mark.clause("K6")
@pytest.mark.system_oom
@pytest.mark.profile("numa")
@numa.two_nodes
def test_panic_on_oom_is_not_for_one_node(root: Memcg, listen: Callable[..., Listener]) -> None:
    listen(root, "root")
    gate.require("a panic")
    hog = Child(lambda: numa.exhaust_node(numa.nodes()[0]), root)
    with sysctl("vm/panic_on_oom", "1"):
        status = hog.ended()
    assert status is not None, "a node has no memory left, and nobody was killed"
    if status != -9:
        raise Inconclusive(f"the hog on one node ended with status {status}")
