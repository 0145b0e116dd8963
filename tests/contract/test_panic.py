# SPDX-License-Identifier: GPL-2.0-only
"""P9: the signal and the panic that vm.panic_on_oom asks for.

The machine dies of it, so that the host judges from what the kernel printed: on its way down it
dumps its trace buffer, which shows whether the listener's eventfd had been signalled by then.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers import gate
from helpers.evidence import Inconclusive
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.tracing import SIGNAL, Tracer, identity
from helpers.triggers import system_oom

ARMED = "oomtest: a system OOM follows"


@pytest.mark.clause("P9")
@pytest.mark.system_oom
@pytest.mark.dies(
    panic=r"Out of memory: .*panic_on_oom is enabled",
    armed=rf"tracing_mark_write: {ARMED}",
    shows=r": signal: \(",
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
