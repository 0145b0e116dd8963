# SPDX-License-Identifier: GPL-2.0-only
"""S2: what a system OOM costs, against the number of memcgs and of listeners on them.

Not the whole of it: reclaim walks every memcg, on any kernel. What is timed is what stands between
out_of_memory() being called and its first look at a process, which is where listeners are told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from helpers.evidence import Inconclusive
from helpers.listeners import Listener, register_often
from helpers.memcgs import Memcg
from helpers.tracing import Event, Tracer
from helpers.triggers import system_oom

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]

# What walks memcgs goes through these, mem_cgroup_iter() too (kernel/cgroup/cgroup.c).
STEPS = ("css_next_descendant_pre", "css_next_descendant_post", "css_next_child")
MORE = 20  # steps; somewhere between none and as many as there are memcgs
# What looks at a process first: since 4.8, before that.
LOOK = ("oom_evaluate_task", "oom_scan_process_thread")
# More memcgs take long: reclaim walks them all some two hundred times before there is an OOM.
SIZES = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 100), id="a hundred"),
        pytest.param(
            (1, 100, 1000, 5000),
            id="thousands",
            marks=(pytest.mark.long, pytest.mark.profile("roomy"), pytest.mark.timeout(3600)),
        ),
    ],
)
OOMS, MORE_OOMS = 2, 4
CROWD = 20_000  # registrations; even emulated, a step from one to the next takes some 15 ns
# What a machine that is busy with something else adds is not in the fastest of several.
RATIO = 3.0
NOTHING = 150e-6  # seconds; below that, even emulated, nothing was walked


def cost(tracer: Tracer, root: Memcg, ooms: int) -> tuple[float, int]:
    """What a system OOM costs.

    :returns: the least time, in seconds, that any of ``ooms`` took to look at a process, and the
        least number of memcgs that any of them walked, until it had killed.
    """
    tracer.clear()
    for _ in range(ooms):
        system_oom(allocator=root)
    took, steps = [], []
    calls: dict[int, list[Event]] = {}  # by process, what it has done since it entered
    for event in tracer.events():
        if event.name == "called":
            calls[event.pid] = [event]
        elif event.pid in calls:
            calls[event.pid].append(event)
            if event.name == "left":
                call = calls.pop(event.pid)
                looks = [one.time for one in call if one.name == "looks"]
                took += [looks[0] - call[0].time] if looks else []
                steps += [sum(one.name in STEPS for one in call)] if looks else []
    if not took:
        raise Inconclusive("out_of_memory() was not seen to look for a victim")
    return min(took), min(steps)


def crowd(home: Memcg, listener: Listener) -> None:
    """Register it :data:`CROWD` times.

    :raises Inconclusive: if the kernel refuses.
    """
    try:
        register_often(home, [listener.fd], CROWD)
    except OSError as error:
        raise Inconclusive(f"{CROWD} registrations are refused: {error.strerror}") from error


@SIZES
@pytest.mark.clause("S2")
def test_cost_does_not_grow(
    sizes: tuple[int, ...],
    root: Memcg,
    memcg: Make,
    listen: Callable[..., Listener],
    record: Callable[[str, object], None],
) -> None:
    listen(root, "root")
    below = Listener("below")
    seen: list[tuple[float, int]] = []

    def judge(what: str) -> None:
        took, steps = cost(tracer, root, OOMS)
        few, least = map(min, zip(*seen, strict=True)) if seen else (0.0, 0)
        limit = max(few * RATIO, NOTHING) if seen else NOTHING / RATIO
        if took >= limit:  # the first ones take longer, and a busy host slows some down
            took = min(took, cost(tracer, root, MORE_OOMS)[0])
        if seen:
            assert steps < least + MORE, f"a system OOM walks {steps} memcgs, {what}"
            assert took < limit, (
                f"a system OOM tells its listeners in {took * 1e6:.0f} us, {what}, and in "
                f"{few * 1e6:.0f} us with less"
            )
        seen.append((took, steps))
        record(f"microseconds, {what}", round(took * 1e6))

    with Tracer() as tracer:
        tracer.probe("called", "out_of_memory")
        tracer.probe("looks", *LOOK)
        tracer.probe("left", "out_of_memory", leaving=True)
        for step in STEPS:
            tracer.probe(step, step, between=("called", "left"))
        for made, size in itertools.pairwise((0, *sizes)):
            for _ in range(made, size):
                below.on(memcg())
            judge(f"memcgs: {size}")
        crowd(memcg(), below)
        judge(f"listeners below root: {CROWD}")
    below.close()
