# SPDX-License-Identifier: GPL-2.0-only
"""K6 and S3: who is killed, what the kernel tells of it, and a victim that listened itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from helpers import gate, numa
from helpers.evidence import (
    NOBODY,
    RATELIMIT,
    SYSRQ,
    Inconclusive,
    Kill,
    Kmsg,
    Overrun,
    kills,
    vmstat,
)
from helpers.hogs import (
    SPARED,
    VICTIM,
    Bait,
    Child,
    exhaust,
    populate,
    populate_for_a_moment,
    sleep_forever,
    touch,
)
from helpers.judge import PATIENCE, fires, somebody_dies
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl
from helpers.triggers import (
    MUCH,
    Proof,
    hog_at_limit,
    memcg_oom,
    sysrq_f,
    sysrq_kill,
    system_oom,
)
from helpers.versions import need, release
from helpers.waiters import poll
from helpers.whitebox import Whitebox

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]

# dump_header() and dump_oom_summary() in mm/oom_kill.c; the second since 5.0.
INVOKED = re.compile(r".* invoked oom-killer: gfp_mask=.* order=(?P<order>-?\d+)")
SUMMARY = re.compile(r"oom-kill:constraint=(?P<constraint>\w+),.*,pid=(?P<pid>\d+),uid=\d+$")


@contextmanager
def bystanders(*scores: int) -> Iterator[list[Child]]:
    """Somebody for each of these oom_score_adj, who is not the one to be killed."""

    def body() -> None:
        populate(MIB)
        sleep_forever()

    made = []
    try:
        for score in scores:
            made.append(Child(body, score=score))
        yield made
    finally:
        for one in made:
            one.kill()


def counted(cause: Callable[[], Proof]) -> list[str]:
    """The log of an OOM, whose kills vmstat has counted, each once."""
    before = vmstat("oom_kill")
    kmsg = Kmsg()
    try:
        cause()
        told, now = -1, before
        while told != len(kills(kmsg.read())):  # nothing more in between
            told, now = len(kills(kmsg.lines)), vmstat("oom_kill")
        if before is not None and now is not None:
            assert now - before == told, f"{told} were killed, and vmstat counts {now - before}"
        return kmsg.lines
    finally:
        kmsg.close()


def tells(cause: Callable[[], Proof], constraint: str, *, forced: bool = False) -> None:
    """The kernel's log of one OOM is whole and in order.

    :param forced: by sysrq-f, which has no allocation and an order of -1.
    """
    with sysctl("vm/oom_dump_tasks", "1"):
        lines = counted(cause)
        if not any(map(INVOKED.match, lines)):
            time.sleep(RATELIMIT)  # earlier OOMs have used up what the kernel prints of them
            lines = counted(cause)
    first = next(n for n, line in enumerate(lines) if kills([line]))
    victim = kills(lines)[0]
    invoked = [match for line in lines[:first] if (match := INVOKED.match(line))]
    assert len(invoked) == 1, f'"invoked oom-killer" stands {len(invoked)} times before the kill'
    # Not 0 for the others: the first to find no memory need not be the hog.
    assert (int(invoked[0]["order"]) == -1) == forced, f"an OOM of order {invoked[0]['order']}"
    shown = ["Call [Tt]race:", *(["Mem-Info:"] if constraint != "CONSTRAINT_MEMCG" else [])]
    if release() >= (5, 0):
        shown += [r"Tasks state \(memory values in pages\):", rf"\[ *{victim.pid}\] "]
    for part in shown:
        there = any(re.match(rf"\s*{part}", line) for line in lines[:first])
        assert there, f"before the kill, the log no longer says {part!r}"
    summary = [line for line in lines[:first] if line.startswith("oom-kill:constraint=")]
    if not summary and release() < (5, 0):
        return
    assert len(summary) == 1, f'"oom-kill:" stands {len(summary)} times before the kill'
    match = SUMMARY.match(summary[0])
    if match is None:
        raise Inconclusive(f"another message stands within {summary[0]!r}")
    told = (match["constraint"], int(match["pid"]))
    assert told == (constraint, victim.pid), f'"oom-kill:" tells {told}, killed was {victim.pid}'


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
    listen(root, "root")
    tells(lambda: sysrq_kill(root), "CONSTRAINT_NONE", forced=True)


@pytest.mark.clause("K6")
def test_sysrq_kills(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    sysrq_must_kill(root)


@pytest.mark.clause("K6")
def test_sysrq_kills_in_spite_of_a_notifier(
    root: Memcg, listen: Listen, whitebox: Whitebox
) -> None:
    need("a sysrq-f that no OOM notifier keeps from killing", root)
    listen(root, "root")
    whitebox.hold(MIB, report=True)
    sysrq_must_kill(root)


def sysrq_must_kill(root: Memcg) -> None:
    """Sysrq-f kills a child of ours.

    Where :func:`helpers.triggers.sysrq_kill` only finds no proof, this is a judgement.

    :raises Forbidden: unless system OOMs are allowed.
    :raises AssertionError: if it lives.
    :raises Inconclusive: if the kernel does not say that it was asked.
    """
    gate.require("sysrq-f")
    kmsg, bait = Kmsg(), Bait(root, MIB)
    try:
        sysrq_f()
        status = bait.wait()
        if not any(map(SYSRQ.search, kmsg.read())):
            raise Inconclusive("the kernel does not say that it was asked by sysrq-f")
        assert status == -9, f"sysrq-f has killed nobody, the bait's status is {status}"
    finally:
        bait.kill()
        os.close(bait.tether)
        kmsg.close()


@pytest.mark.clause("K6")
@pytest.mark.parametrize(
    ("faults", "below"),
    [(populate, False), (touch, False), (populate, True)],
    ids=["in the kernel", "in user space", "below the limit"],
)
def test_memcg_oom_kills(
    root: Memcg, memcg: Make, listen: Listen, faults: Callable[[int], None], below: bool
) -> None:
    listen(root, "root")
    limited = memcg()
    hog = hog_at_limit(limited, memcg(limited) if below else None, body=lambda: faults(MUCH))
    status = hog.ended()
    assert status == -9, f"beyond its memcg's limit nobody was killed, the hog's status is {status}"


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
@pytest.mark.pristine
@pytest.mark.parametrize("cause", ["system OOM", "below root", "in a memcg under OOM", "sysrq-f"])
def test_the_highest_score_dies_and_nobody_else(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make, cause: str
) -> None:
    listen(root, "root")
    home = memcg()
    kmsg = Kmsg()
    with bystanders(0, 300, 600) as others:
        try:
            if cause == "sysrq-f":
                proof = sysrq_kill(root)
            elif cause == "in a memcg under OOM":
                bait = Bait(home, MIB)
                stuck(home, 8 * MIB)
                proof = system_oom(allocator=root, victim=bait)
            else:
                proof = system_oom(root if cause == "system OOM" else memcg(), victim=home)
        except Inconclusive:
            wrong = [one.pid for one in others if not one.alive()]
            assert not wrong, f"{cause}: somebody was killed, and not who has the highest score"
            raise
        first = proof.kills[0].pid
        wrong = [one.pid for one in others if one.pid == first]
        assert not wrong, f"{cause}: somebody was killed before the one with the highest score"
        dead = {one.pid for one in others if not one.alive()}

    def told(lines: list[str]) -> bool:
        return dead <= {kill.pid for kill in kills(lines)}

    assert kmsg.wait(told, 5), f"{cause}: somebody died of whom the log says nothing"
    kmsg.close()


@pytest.mark.clause("K6")
@pytest.mark.parametrize("cause", ["system OOM", "sysrq-f", "memcg OOM"])
def test_the_log_says_whose_oom_it_was(
    root: Memcg, memcg: Make, listen: Listen, cause: str
) -> None:
    """What the other tests take for a proof, where it is itself what is asked."""
    listen(root, "root")
    kmsg = Kmsg()
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
        raise Inconclusive("the kernel's log does not name the victim")
    assert told == {cause == "memcg OOM"}, f"the log calls a kill by {cause} one of another kind"


@pytest.mark.clause("K6")
def test_memcg_oom_kills_nobody_outside(root: Memcg, memcg: Make, listen: Listen) -> None:
    listen(root, "root")
    outsider = Bait(root, 4 * MIB)
    try:
        hog = hog_at_limit(memcg(), body=lambda: populate(MUCH))
        status = hog.ended()
        assert outsider.alive(), "a memcg OOM killed somebody who lives elsewhere"
        if status != -9:
            raise Inconclusive(f"nobody was killed at the limit, the hog has status {status}")
    finally:
        outsider.kill()
        os.close(outsider.tether)


@pytest.mark.clause("K6")
def test_memcg_oom_that_finds_nobody_lets_the_charge_fail(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listen(root, "root")
    kmsg = Kmsg()
    hog = hog_at_limit(memcg(), body=lambda: populate_for_a_moment(MUCH), score=SPARED)
    status = hog.ended()
    with suppress(Overrun):  # by more of the same
        if not any(NOBODY in line for line in kmsg.read()):
            raise Inconclusive("the kernel does not say that there was nobody to kill")
    kmsg.close()
    assert status == 0, f"there is nobody to kill, and the hog tries for ever: status {status}"


@pytest.mark.clause("K6")
@pytest.mark.profile("numa")
@pytest.mark.skipif(len(numa.nodes()) < 2, reason="needs two memory nodes")
def test_an_oom_of_one_node_kills_nobody_of_another(root: Memcg, listen: Listen) -> None:
    listen(root, "root")

    def elsewhere() -> None:
        numa.bind(numa.nodes()[-1])
        populate(MIB)
        sleep_forever()

    other = Child(elsewhere, root)
    try:
        system_oom(
            allocator=root,
            body=lambda: numa.exhaust_node(numa.nodes()[0]),
            score=VICTIM // 2,
        )
        assert other.alive(), "an OOM of one node killed somebody who is bound to another"
    finally:
        other.kill()


@pytest.mark.clause("K6")
def test_a_hog_beyond_capacity_does_not_go_on(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    somebody_dies(root)


@pytest.mark.clause("S3")
def test_victim_that_listened_harms_nobody(root: Memcg, listen: Listen) -> None:
    before, after = listen(root, "registered before the victim's"), Listener("after the victim's")

    def body() -> None:
        Listener("victim's").on(root)
        after.on(root)  # the eventfd is the test's own, inherited
        exhaust()

    try:
        system_oom(allocator=root, body=body)
        fires(before, after)
        latest = listen(root, "registered after its death")
        system_oom(allocator=root)
        fires(before, after, latest)
    finally:
        after.close()


@pytest.mark.clause("S3")
def test_victim_that_waited_harms_nobody(root: Memcg, memcg: Make, listen: Listen) -> None:
    listeners = [listen(root, "first"), listen(root, "second")]

    def wait() -> None:
        poll(listeners[0].fd)  # the eventfd is the test's own, inherited
        sleep_forever()

    system_oom(allocator=root, victim=Bait(memcg(), idle=wait))
    fires(*listeners)


@pytest.mark.clause("K6")
@pytest.mark.parametrize("cause", ["memcg OOM", "sysrq-f"])
def test_panic_on_oom_is_not_for_these(root: Memcg, memcg: Make, cause: str) -> None:
    gate.require("a panic")
    with sysctl("vm/panic_on_oom", "1"):
        if cause == "sysrq-f":
            sysrq_kill(root)
        else:
            memcg_oom(memcg())


@pytest.mark.clause("K6")
def test_allocating_task_is_killed_without_a_search(root: Memcg) -> None:
    told = "Out of memory (oom_kill_allocating_task): "
    with sysctl("vm/oom_kill_allocating_task", "1"):
        # A kernel thread that runs out of memory cannot be killed for it, and has a search made.
        found = any(
            line.startswith(told) for _ in range(3) for line in system_oom(allocator=root).lines
        )
    assert found, "vm.oom_kill_allocating_task is set, and a victim was looked for"


@pytest.mark.clause("K6")
def test_memcg_oom_is_none_of_the_allocating_tasks(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listen(root, "root")
    kmsg = Kmsg()
    with sysctl("vm/oom_kill_allocating_task", "1"):
        hog = hog_at_limit(memcg())
        status = hog.ended()
    assert status == -9, f"beyond its memcg's limit nobody was killed, the hog's status is {status}"
    if not kmsg.wait(lambda lines: hog.pid in {kill.pid for kill in kills(lines)}, 5):
        raise Inconclusive("the kernel's log does not name the victim")
    assert Kill(hog.pid, memcg=True) in kills(kmsg.lines), "the log calls it a system OOM"
    kmsg.close()


@pytest.mark.clause("K6")
def test_allocating_task_that_is_spared_goes_on(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        bait = Bait(root)
        hog = Child(lambda: exhaust(bait.tether), root, score=SPARED)
        try:
            status = hog.wait()
            killed = status == 0 and bait.wait() == -9  # its end of the tether closes before that
        finally:
            hog.kill()
            bait.kill()
            os.close(bait.tether)
    if status is None:
        raise Inconclusive("there was no system OOM")
    assert status == 0, f"who may not be killed for a system OOM ended with status {status}"
    assert killed, "the system OOM is over, and who was to be killed lives"
