# SPDX-License-Identifier: GPL-2.0-only
"""K6 and S3: who is killed, and a victim that listened itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from helpers import gate, numa
from helpers.evidence import (
    INVOKED,
    NOBODY,
    SYSRQ,
    Inconclusive,
    Kill,
    Kmsg,
    Overrun,
    available,
    kills,
)
from helpers.hogs import (
    CHUNK,
    SPARED,
    VICTIM,
    Bait,
    Child,
    exhaust,
    lingering,
    populate,
    populate_for_a_moment,
    sleep_forever,
    touch,
)
from helpers.judge import PATIENCE, fires, somebody_dies
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl
from helpers.triggers import MUCH, hog_at_limit, sysrq_f, sysrq_kill, system_oom
from helpers.versions import need
from helpers.waiters import poll
from helpers.whitebox import Whitebox

pytestmark = pytest.mark.system_oom

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
TRIES = 6
# In the stack dump of who invoked the OOM killer (dump_header(), mm/oom_kill.c).
CALLER = re.compile(r"\bPID: (\d+) Comm: ")


@contextmanager
def bystanders(*scores: int) -> Iterator[list[Child]]:
    """Somebody for each of these oom_score_adj, who is not the one to be killed.

    Who has the lowest is the biggest: for whom the score is nothing that is the one to choose.
    """

    def body(size: int) -> None:
        populate(size)
        sleep_forever()

    made = []
    try:
        for score in scores:
            size = (4 if score == min(scores) else 1) * MIB
            made.append(Child(partial(body, size), score=score))
        yield made
    finally:
        for one in made:
            one.kill()


@pytest.mark.clause("K6")
@pytest.mark.parametrize("below", [False, True], ids=["in root", "below root"])
def test_sysrq_kills(root: Memcg, memcg: Make, listen: Listen, below: bool) -> None:
    listen(root, "root")
    sysrq_must_kill(memcg() if below else root)


@pytest.mark.clause("K6")
def test_sysrq_kills_in_spite_of_a_notifier(
    root: Memcg, listen: Listen, whitebox: Whitebox
) -> None:
    need("a sysrq-f that no OOM notifier keeps from killing", root)
    listen(root, "root")
    whitebox.hold(MIB, report=True)
    sysrq_must_kill(root)


def sysrq_must_kill(home: Memcg, size: int = MIB) -> None:
    """Sysrq-f kills a child of ours that lives there.

    Where :func:`helpers.triggers.sysrq_kill` only finds no proof, this is a judgement.

    :param size: what it has, in bytes.
    :raises Forbidden: unless system OOMs are allowed.
    :raises AssertionError: if it lives.
    :raises Inconclusive: if the kernel does not say that it was asked.
    """
    gate.require("sysrq-f")
    kmsg, bait = Kmsg(), Bait(home, size)
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
    if faults is populate:
        need("memcg OOMs of the kernel's own charges", root)
    limited = memcg()
    dies(hog_at_limit(limited, memcg(limited) if below else None, body=lambda: faults(MUCH)))


def dies(hog: Child) -> None:
    """Who hits a limit is killed for it.

    :raises AssertionError: if not.
    """
    status = hog.ended()
    assert status == -9, f"beyond its memcg's limit nobody was killed, the hog's status is {status}"


@pytest.mark.clause("K6")
@pytest.mark.pristine
@pytest.mark.parametrize("cause", ["system OOM", "below root", "in a memcg under OOM", "sysrq-f"])
def test_the_highest_score_dies_and_nobody_else(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make, cause: str
) -> None:
    listen(root, "root")
    home = memcg()
    kmsg = Kmsg()
    with bystanders(0, 300, 600) as others, sysctl("vm/oom_kill_allocating_task", "0"):
        # There is no room for more beside the bystanders.
        bait = Bait(home, (12 if cause in ("system OOM", "below root") else 1) * MIB)
        try:
            if cause == "in a memcg under OOM":
                stuck(home, 8 * MIB)
            if cause == "sysrq-f":
                proof = sysrq_kill(bait)
            else:
                proof = system_oom(memcg() if cause == "below root" else root, victim=bait)
        except Overrun:
            raise
        except Inconclusive:
            wrong = [kill.pid for kill in kills(kmsg.read()) if not kill.memcg][:1]
            wrong += [one.pid for one in others if not one.alive()]
            assert {*wrong} <= {bait.pid}, f"{cause}: not who has the highest score was killed"
            raise
        first = proof.kills[0].pid
        wrong = [one.pid for one in others if one.pid == first]
        assert not wrong, f"{cause}: somebody was killed before the one with the highest score"
        dead = {one.pid for one in others if not one.alive()}
    # To others it may be a shortage still.
    assert not dead or cause != "sysrq-f", "sysrq-f has killed more than one"

    def told(lines: list[str]) -> bool:
        return dead <= {kill.pid for kill in kills(lines)}

    assert kmsg.wait(told, 5), f"{cause}: somebody died of whom the log says nothing"
    kmsg.close()


@pytest.mark.clause("K6")
def test_who_is_on_his_way_out_is_not_killed(root: Memcg, listen: Listen) -> None:
    """He is helped out, and the log has no more of that than that his memory was taken."""
    need("an OOM killer that helps out who was killed already", root)
    listen(root, "root")
    with lingering(root, doomed=True) as first:
        proof = system_oom(allocator=root, score=VICTIM // 4)
    assert first not in {kill.pid for kill in proof.kills}, "who was dying already was killed again"


@pytest.mark.clause("K6")
def test_sysrq_kills_while_a_victim_is_dying(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    with lingering(root) as first:
        kmsg = Kmsg()
        sysrq_f()
        named = kmsg.wait(lambda lines: first in {kill.pid for kill in kills(lines)}, PATIENCE)
        kmsg.close()
        if not named:
            raise Inconclusive(f"sysrq-f has not killed process {first}")
        sysrq_must_kill(root, 4 * MIB)  # more than the dying one has


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
        lines = kmsg.read()
        if not any(NOBODY in line for line in lines):
            asked = any(INVOKED in line for line in lines) and not kills(lines)
            assert not asked, "the OOM killer has found nobody to kill, and does not say so"
            raise Inconclusive("the kernel does not say that there was nobody to kill")
    kmsg.close()
    assert status == 0, f"there is nobody to kill, and the hog tries for ever: status {status}"


@pytest.mark.clause("K6")
@pytest.mark.profile("numa")
@numa.two_nodes
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


HOMES = ["root", "below root", "killer disabled"]


def home_of(where: str, root: Memcg, memcg: Make) -> Memcg:
    """The memcg that is called so in :data:`HOMES`."""
    home = root if where == "root" else memcg()
    if where == "killer disabled":
        home.disable_killer()
    return home


@pytest.mark.clause("K6")
@pytest.mark.parametrize(("where", "heard"), [*((home, True) for home in HOMES), ("root", False)])
def test_a_hog_beyond_capacity_does_not_go_on(
    root: Memcg, memcg: Make, listen: Listen, where: str, heard: bool
) -> None:
    if heard:
        listen(root, "root")
    somebody_dies(home_of(where, root, memcg))


@pytest.mark.clause("K6")
def test_the_highest_score_in_a_memcg_dies_first(root: Memcg, memcg: Make, listen: Listen) -> None:
    listen(root, "root")
    home, kmsg = memcg(), Kmsg()
    bait = Bait(home, MIB)
    try:
        hog_at_limit(home, limit=MUCH // 2, score=0).ended()
        pids = [kill.pid for kill in kills(kmsg.read()) if kill.memcg]
        if not pids:
            raise Inconclusive("nobody was killed at the limit")
        assert pids[0] == bait.pid, "a memcg OOM killed somebody before who has the highest score"
    finally:
        bait.kill()
        os.close(bait.tether)
        kmsg.close()


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
@pytest.mark.parametrize(
    ("cause", "panic"), [("memcg OOM", "1"), ("sysrq-f", "1"), ("sysrq-f", "2")]
)
def test_panic_on_oom_is_not_for_these(root: Memcg, memcg: Make, cause: str, panic: str) -> None:
    gate.require("a panic")
    if cause == "sysrq-f":
        need("a sysrq-f that never panics", root)
    with sysctl("vm/panic_on_oom", panic):
        if cause == "sysrq-f":
            sysrq_must_kill(root)
        else:
            dies(hog_at_limit(memcg()))


@pytest.mark.clause("K6")
@pytest.mark.parametrize(
    ("where", "heard"),
    [*((home, False) for home in HOMES), ("root", True), ("below root", True)],
)
def test_allocating_task_is_killed_without_a_search(
    root: Memcg, memcg: Make, listen: Listen, where: str, heard: bool
) -> None:
    told = "Out of memory (oom_kill_allocating_task): "
    home = home_of(where, root, memcg)
    if heard:
        for one in (root, home):
            listen(one, f"on {one}")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        # Who runs out of memory beside the hog, and cannot be killed for it, has a search made.
        found = any(line.startswith(told) for _ in range(TRIES) for line in somebody_dies(home))
    assert found, "vm.oom_kill_allocating_task is set, and a victim was looked for"


@pytest.mark.clause("K6")
def test_memcg_oom_is_none_of_the_allocating_tasks(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listen(root, "root")
    kmsg = Kmsg()
    with sysctl("vm/oom_kill_allocating_task", "1"):
        hog = hog_at_limit(memcg())
        dies(hog)
    if not kmsg.wait(lambda lines: hog.pid in {kill.pid for kill in kills(lines)}, 5):
        raise Inconclusive("the kernel's log does not name the victim")
    assert Kill(hog.pid, memcg=True) in kills(kmsg.lines), "the log calls it a system OOM"
    kmsg.close()


def spared_asks_for_a_kill(root: Memcg) -> bool:
    """Have a hog that may not be killed run out of memory, beside somebody who may.

    :returns: False if the kernel says that it was for somebody else's need alone that it killed.
    """
    kmsg, bait = Kmsg(), Bait(root)
    hog = Child(lambda: exhaust(bait.tether), root, score=SPARED)
    try:
        status = hog.wait()
        killed = status == 0 and bait.wait() == -9  # its end of the tether closes before that
        short = available() < CHUNK
    finally:
        hog.kill()
        bait.kill()
        os.close(bait.tether)
    assert status is not None or not short, "there is no memory left, and nobody is killed"
    if status is None:
        raise Inconclusive("there was no system OOM")
    assert status == 0, f"who may not be killed for a system OOM ended with status {status}"
    assert killed, "the system OOM is over, and who was to be killed lives"
    callers = CALLER.findall("\n".join(kmsg.read()))
    kmsg.close()
    # It does not say so too often (oom_rs, mm/oom_kill.c).
    return not callers or str(hog.pid) in callers


@pytest.mark.clause("K6")
def test_allocating_task_that_is_spared_goes_on(root: Memcg, listen: Listen) -> None:
    listen(root, "root")
    with sysctl("vm/oom_kill_allocating_task", "1"):
        # What others ask for meanwhile may get the bait killed as well.
        asked = any(spared_asks_for_a_kill(root) for _ in range(TRIES))
    assert asked, "somebody is killed, but not because who may not be killed himself has asked"
