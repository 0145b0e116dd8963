# SPDX-License-Identifier: GPL-2.0-only
"""K6: what the kernel tells of a kill in its log, and where it counts it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from helpers.bursts import one_by_one
from helpers.evidence import RATELIMIT, Inconclusive, Kmsg, Overrun, kills, vmstat
from helpers.hogs import Child, exhaust, sleep_forever
from helpers.judge import PATIENCE
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.patience import slices
from helpers.preflight import sysctl
from helpers.triggers import Proof, hog_at_limit, memcg_oom, sysrq_f, sysrq_kill, system_oom
from helpers.versions import need, release

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

BURST = 20  # twice what is let through of a message that is limited
# dump_header() and dump_oom_summary() in mm/oom_kill.c; the second since 5.0.
INVOKED = re.compile(r".* invoked oom-killer: gfp_mask=.* order=(?P<order>-?\d+)")
SUMMARY = re.compile(r"oom-kill:constraint=(?P<constraint>\w+),.*,pid=(?P<pid>\d+),uid=\d+$")


def counted(cause: Callable[[], Proof]) -> list[str]:
    """The log of an OOM, whose kills vmstat has counted, each once."""
    before = vmstat("oom_kill")
    kmsg = Kmsg()
    try:
        cause()
        for _ in slices(PATIENCE):  # a further victim is counted before the log tells of it
            told, now = len(kills(kmsg.read())), vmstat("oom_kill")
            if before is None or now is None or now - before == told:
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"{told} were killed, vmstat counted {before}, and then {now}")
        return kmsg.lines
    finally:
        kmsg.close()


def before_the_kill(lines: list[str]) -> list[str]:
    """What the log has before it names the first victim."""
    return lines[: next(n for n, line in enumerate(lines) if kills([line]))]


def tells(cause: Callable[[], Proof], constraint: str, *, forced: bool = False) -> None:
    """The kernel's log of one OOM is whole and in order.

    :param forced: by sysrq-f, which has no allocation and an order of -1.
    """
    with sysctl("vm/oom_dump_tasks", "1"):
        lines = counted(cause)
        if not any(map(INVOKED.match, before_the_kill(lines))):
            time.sleep(RATELIMIT)  # earlier OOMs have used up what the kernel prints of them
            lines = counted(cause)
    victim, lines = kills(lines)[0], before_the_kill(lines)
    invoked = [match for line in lines if (match := INVOKED.match(line))]
    assert len(invoked) == 1, f'"invoked oom-killer" stands {len(invoked)} times before the kill'
    # Not 0 for the others: the first to find no memory need not be the hog.
    assert (int(invoked[0]["order"]) == -1) == forced, f"an OOM of order {invoked[0]['order']}"
    shown = ["Call [Tt]race:", *(["Mem-Info:"] if constraint != "CONSTRAINT_MEMCG" else [])]
    if release() >= (5, 0):
        shown += [r"Tasks state \(memory values in pages\):", rf"\[ *{victim.pid}\] "]
    for part in shown:
        there = any(re.match(rf"\s*{part}", line) for line in lines)
        assert there, f"before the kill, the log no longer says {part!r}"
    summary = [line for line in lines if line.startswith("oom-kill:constraint=")]
    if not summary and release() < (5, 0):
        return
    assert len(summary) == 1, f'"oom-kill:" stands {len(summary)} times before the kill'
    match = SUMMARY.match(summary[0])
    if match is None:
        raise Inconclusive(f"another message stands within {summary[0]!r}")
    told = (match["constraint"], int(match["pid"]))
    assert told == (constraint, victim.pid), f'"oom-kill:" tells {told}, killed was {victim.pid}'
    whose = ",oom_memcg=" if constraint == "CONSTRAINT_MEMCG" else ",global_oom,"
    assert whose in summary[0], f'"oom-kill:" no longer says {whose!r}: {summary[0]!r}'


@pytest.mark.clause("K6")
def test_system_oom_is_told_and_counted(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    tells(lambda: system_oom(allocator=root), "CONSTRAINT_NONE")


@pytest.mark.clause("K6")
def test_memcg_oom_is_told_and_counted(root: Memcg, memcg: Make, listen: Listen) -> None:
    listen(root, "root")
    child = memcg()
    tells(lambda: memcg_oom(child), "CONSTRAINT_MEMCG")


@pytest.mark.clause("K6")
def test_sysrq_is_told_and_counted(root: Memcg, listen: Listen) -> None:
    need("a sysrq-f that never panics", root)  # nor is its order told from an allocation's before
    listen(root, "root")
    tells(lambda: sysrq_kill(root), "CONSTRAINT_NONE", forced=True)


@pytest.mark.clause("K6")
def test_every_kill_is_told_of(root: Memcg, listen: Listen) -> None:
    """What else is said of an OOM is limited to ten in five seconds."""
    listen(root, "root")
    before, kmsg = vmstat("oom_kill"), Kmsg()
    if before is None:
        pytest.skip("this kernel does not count kills (since 4.13, mm/vmstat.c)")
    trouble = ""
    with sysctl("vm/oom_dump_tasks", "0"):
        try:
            one_by_one([root] * BURST)
        except Overrun:
            raise
        except Inconclusive as error:
            trouble = str(error)
    for _ in slices(PATIENCE):  # a further victim is counted before the log tells of it
        told, many = len(kills(kmsg.read())), (vmstat("oom_kill") or 0) - before
        if told >= many:
            break
        time.sleep(0.02)
    kmsg.close()
    if many < BURST:
        raise Inconclusive(trouble)
    assert told >= many, f"the log names {told} of {many} who were killed"


@pytest.mark.clause("K6")
@pytest.mark.parametrize("below", [False, True], ids=["in root", "below root"])
def test_kill_is_counted_where_the_victim_lived(
    root: Memcg, memcg: Make, listen: Listen, below: bool
) -> None:
    need("oom_kill in memory.oom_control", root)
    listen(root, "root")
    home, other = (memcg(), root) if below else (root, memcg())
    before = [one.oom_control().oom_kill or 0 for one in (home, other)]
    proof = system_oom(allocator=home)
    after = [one.oom_control().oom_kill or 0 for one in (home, other)]
    if proof.system_kills != 1:
        raise Inconclusive(f"{proof.system_kills} were killed instead of one")
    added = [now - then for now, then in zip(after, before, strict=True)]
    assert added == [1, 0], f"one was killed: {home} counts {added[0]}, {other} counts {added[1]}"


@pytest.mark.clause("K6")
def test_memcg_ooms_kill_is_counted_where_the_victim_lived(memcg: Make) -> None:
    limited = memcg()
    home, other = memcg(limited), memcg(limited)
    killed = len(memcg_oom(limited, within=home).kills)
    need("an oom_kill of each memcg alone", home)
    now = [one.oom_control().oom_kill for one in (home, limited, other)]
    assert now == [killed, 0, 0], (
        f"{killed} killed below a limit: counted {now[0]}, at the limit {now[1]}, beside {now[2]}"
    )


@pytest.mark.clause("K6")
@pytest.mark.parametrize("cause", ["system OOM", "sysrq-f", "memcg OOM"])
def test_the_log_says_whose_oom_it_was(
    root: Memcg, memcg: Make, listen: Listen, cause: str
) -> None:
    """What the other tests take for a proof, where it is itself what is asked."""
    listen(root, "root")
    kmsg, before = Kmsg(), vmstat("oom_kill")
    if cause == "sysrq-f":
        victim = Child(sleep_forever, root)
        sysrq_f()
    else:
        victim = Child(exhaust, root) if cause == "system OOM" else hog_at_limit(memcg())
    victim.ended()
    kmsg.wait(lambda lines: victim.pid in {kill.pid for kill in kills(lines)}, PATIENCE)
    told = {kill.memcg for kill in kills(kmsg.lines) if kill.pid == victim.pid}
    kmsg.close()
    if not told:
        killed = victim.status == -9 and (vmstat("oom_kill") or 0) > (before or 0)
        assert not killed, f"who was killed by {cause} is not named in the log"
        raise Inconclusive("the kernel's log does not name the victim")
    assert told == {cause == "memcg OOM"}, f"the log calls a kill by {cause} one of another kind"
