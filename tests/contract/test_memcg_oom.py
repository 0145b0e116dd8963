# SPDX-License-Identifier: GPL-2.0-only
"""K: what memcg v1 does without the patch, and must go on doing with it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import pytest

from helpers.evidence import Inconclusive
from helpers.hogs import SPARED, Child, apart
from helpers.judge import PATIENCE, goes_on, settled, signalled, stays_silent, under_oom
from helpers.listeners import Listener
from helpers.memcgs import Memcg, line, write
from helpers.triggers import fence, hog_at_limit, memcg_oom, remove, system_oom
from helpers.versions import need, release

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
OOMS = 3
NOT_AT_REST = 7  # a watcher's exit status
CROWD = 40  # of listeners, so many that telling them takes longer than a watcher looks away
LATE = 4
TRIES = 6
SETTLE = 0.15  # seconds


@pytest.mark.clause("K1")
def test_any_memcg_takes_a_listener(root: Memcg, memcg: Make, listen: Listen) -> None:
    need("registration of eventfds", root)
    listen(root, "root")
    listener = Listener("below")
    for depth, home in enumerate(line(memcg, 3), 1):
        got = listener.refused(home)
        assert not got, f"registering on a memcg at depth {depth}: {os.strerror(got)}"
    listener.close()


@pytest.mark.clause("K1")
@pytest.mark.parametrize("hog", ["parent", "child", "grandchild"])
def test_memcg_oom_signals_itself_and_its_descendants(
    root: Memcg, memcg: Make, listen: Listen, hog: str
) -> None:
    parent, sibling = memcg(), memcg()
    child, nephew = memcg(parent), memcg(sibling)
    grandchild = memcg(child)
    inside = {"parent": parent, "child": child, "grandchild": grandchild}
    hit = [listen(one, name) for name, one in inside.items()]
    spared = [listen(sibling, "sibling"), listen(nephew, "sibling's child")]
    memcg_oom(parent, within=inside[hog])
    signalled(*hit, by="an OOM at the parent's limit")
    stays_silent(root, *spared, after="an OOM at the parent's limit")
    memcg_oom(sibling)
    signalled(*spared, by="an OOM at the sibling's limit")


@pytest.mark.clause("K1")
def test_memcg_oom_does_not_signal_its_ancestors(root: Memcg, memcg: Make, listen: Listen) -> None:
    grandparent = memcg()
    parent = memcg(grandparent)
    child = memcg(parent)
    above = [listen(grandparent, "grandparent"), listen(parent, "parent")]
    own = listen(child, "child")
    memcg_oom(child)
    signalled(own, by="an OOM at its own limit")
    stays_silent(root, *above, after="an OOM at a descendant's limit")
    memcg_oom(grandparent)
    signalled(*above, by="an OOM at the grandparent's limit")


@pytest.mark.clause("K1")
def test_memcg_oom_signals_all_down_a_deep_tree(memcg: Make, listen: Listen) -> None:
    tree = line(memcg, 7)
    listeners = [listen(one, f"depth {n}") for n, one in enumerate(tree)]
    memcg_oom(tree[0], within=tree[-1])
    signalled(*listeners, by="an OOM at the top of the tree")


@pytest.mark.clause("K1")
def test_memcg_oom_signals_each_time_and_every_listener(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    listeners = [listen(child, f"listener #{n}") for n in range(3)]
    listeners.append(listen(memcg(child), "a child's"))
    listen(root, "root")
    counts = [0] * len(listeners)
    for _ in range(OOMS):
        memcg_oom(child)
        got = [one.wait(PATIENCE) for one in listeners]
        missed = [one.name for one, n in zip(listeners, got, strict=True) if not n]
        assert not missed, f"a repeated memcg OOM did not signal {', '.join(missed)}"
        counts = [before + n for before, n in zip(counts, got, strict=True)]
    counts = settled(root, listeners, counts)
    # Where the first victim is not enough there may be one more, but not in each of them.
    assert max(counts) < 2 * OOMS, f"{OOMS} memcg OOMs signalled their listeners {counts} times"


@pytest.mark.clause("K1")
def test_without_hierarchy_a_limit_binds_nobody_below(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    need("a memory.use_hierarchy that can be cleared", root)
    parent = memcg()
    parent.use_hierarchy(False)
    child = parent.child("flat")
    try:
        above, own = listen(parent, "parent"), listen(child, "child")
        memcg_oom(child)
        signalled(own, by="an OOM at its own limit")
        stays_silent(root, above, after="an OOM of a memcg outside of its hierarchy")
        memcg_oom(parent)
        signalled(above, by="an OOM at its own limit")
        stays_silent(root, own, after="an OOM of a memcg outside of its hierarchy")
    finally:
        remove(child)


@pytest.mark.clause("K2")
@pytest.mark.parametrize("below", [False, True], ids=["itself", "a child of it"])
def test_registering_under_oom_signals_at_once(
    root: Memcg, memcg: Make, listen: Listen, stuck: Make, below: bool
) -> None:
    need("registration of eventfds", root)
    child = memcg()
    where = memcg(child) if below else child  # before there is no memory left for it
    early = listen(where, "early")
    stuck(child)
    early.count()
    for n in range(LATE):
        late = Listener(f"latecomer #{n}")
        got = late.refused(where)
        assert not got, f"registering under OOM is refused: {os.strerror(got)}"
        signalled(late, by="registering under OOM")
        late.close()
    # Less than each time, as who waits may have tried again meanwhile.
    assert early.count() < LATE, "registering under OOM signals who has registered before"


@pytest.mark.clause("K2")
def test_registering_when_not_under_oom_does_not_signal(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    child = memcg()
    memcg_oom(child)
    fence(root)
    listener = listen(child, "child")
    stays_silent(root, listener, after="registering on a memcg that is no longer under OOM")
    memcg_oom(child)
    signalled(listener, by="a memcg OOM")


@pytest.mark.clause("K3")
def test_removing_a_memcg_signals_its_listeners(memcg: Make, listen: Listen) -> None:
    child = memcg()
    listeners = [listen(child, f"listener #{n}") for n in range(3)]
    remove(child)
    signalled(*listeners, by="removing the memcg")


@pytest.mark.clause("K3")
@pytest.mark.parametrize(
    ("file", "arguments"),
    [("memory.usage_in_bytes", str(1 << 60)), ("memory.pressure_level", "critical")],
)
def test_removing_a_memcg_signals_who_listens_for_something_else(
    memcg: Make, listen: Listen, file: str, arguments: str
) -> None:
    child = memcg()
    if not os.path.exists(child.file(file)):
        pytest.skip(f"this kernel has no {file}")
    listener = listen(child, file, file, arguments)
    remove(child)
    signalled(listener, by="removing the memcg")


@pytest.mark.clause("K3")
def test_removing_a_memcg_signals_nobody_elses_listeners(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    parent, sibling = memcg(), memcg()
    child = memcg(parent)
    others = [listen(parent, "parent"), listen(sibling, "sibling")]
    own, above = listen(child, "child"), listen(root, "root")
    remove(child)
    signalled(own, by="removing the memcg")
    time.sleep(SETTLE)  # no fence before this: it removes a memcg itself
    assert not above.count(), "removing a memcg signalled root"
    stays_silent(root, *others, after="removing another memcg")
    memcg_oom(parent)
    memcg_oom(sibling)
    signalled(*others, by="a memcg OOM")


@pytest.mark.clause("K4")
@pytest.mark.parametrize("release", ["raise the limit", "enable the killer"])
def test_killer_disabled_blocks_the_hog(memcg: Make, listen: Listen, release: str) -> None:
    child = memcg()
    listener = listen(child, "child")
    child.disable_killer()
    hog = hog_at_limit(child)
    try:
        assert under_oom(child, 1), "the hog reached the limit, and under_oom is still 0"
        assert child.oom_control().oom_kill_disable == 1
        assert hog.sleeps(), f"the hog does not wait, its status is {hog.status}"
        signalled(listener, by="a memcg OOM with the killer disabled")
        if release == "raise the limit":
            assert goes_on(hog, child), "the hog did not go on when the limit was raised"
        else:
            child.enable_killer()
            assert hog.wait() == -9, "the hog was not killed when the killer was enabled"
        assert under_oom(child, 0), "under_oom is still 1 afterwards"
    finally:
        hog.kill()


@pytest.mark.clause("K4")
def test_killer_can_be_disabled_and_enabled(memcg: Make) -> None:
    child = memcg()
    assert child.oom_control().oom_kill_disable == 0
    for text, reads in (("1", 1), ("0", 0), ("1", 1)):
        got = write(child.file("memory.oom_control"), text)
        assert not got, f"writing {text} to a memcg's memory.oom_control: {os.strerror(got)}"
        assert child.oom_control().oom_kill_disable == reads
    for text in ("2", "-1", "garbage"):
        got = write(child.file("memory.oom_control"), text)
        assert got == errno.EINVAL, f"writing {text!r} to a memcg's: {os.strerror(got)}"
        assert child.oom_control().oom_kill_disable == 1, (
            f"writing {text!r} to a memcg's took effect"
        )


@pytest.mark.clause("K4")
def test_killer_can_be_disabled_at_any_depth(root: Memcg, memcg: Make, listen: Listen) -> None:
    need("a killer that can be disabled at any depth", root)
    listen(root, "root")
    tree = line(memcg, 3)
    for depth, one in enumerate(tree, 1):
        got = write(one.file("memory.oom_control"), "1")
        assert not got, f"disabling a memcg's killer at depth {depth}: {os.strerror(got)}"
        now = [other.oom_control().oom_kill_disable for other in tree]
        assert now == [1] * depth + [0] * (len(tree) - depth), f"at depth {depth}: {now}"
    new = memcg(tree[-1]).oom_control().oom_kill_disable
    assert new == 1, "a memcg made below one whose killer is disabled has it enabled"


def at_rest(root: Memcg) -> bool:
    """Root's file reads as it must at all times."""
    now = root.oom_control()
    return (now.oom_kill_disable, now.under_oom) == (0, 0)


@pytest.mark.clause("K5")
def test_the_file_says_all_that_it_did(root: Memcg, memcg: Make) -> None:
    wanted = ["oom_kill_disable", "under_oom"] + ["oom_kill"] * (release() >= (4, 14))
    for name, one in (("root", root), ("a memcg", memcg())):
        with open(one.file("memory.oom_control"), encoding="ascii") as file:
            said = {line.split()[0] for line in file if line.split()}
        missing = [field for field in wanted if field not in said]
        assert not missing, f"{name}'s memory.oom_control has lost {', '.join(missing)}"


@pytest.mark.clause("K5")
def test_root_reads_at_rest_around_memcg_ooms(root: Memcg, memcg: Make, stuck: Make) -> None:
    assert at_rest(root), f"before: {root.oom_control()}"
    stuck()
    assert at_rest(root), f"while a child is under OOM: {root.oom_control()}"
    memcg_oom(memcg())
    assert at_rest(root), f"after a memcg OOM: {root.oom_control()}"


@pytest.mark.clause("K5")
@pytest.mark.system_oom
def test_root_reads_at_rest_around_a_system_oom(root: Memcg, listen: Listen, slowly: bool) -> None:
    first, between = listen(root, "at one end"), listen(root, "between")
    for _ in range(CROWD):
        between.on(root)
    last = listen(root, "at the other end")

    def watch() -> None:
        # To open it anew takes memory, which is not to be had until the OOM is over.
        control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
        seen = False
        while not (seen and first.fired() and last.fired()):
            told = first.fired() != last.fired()
            try:
                said = os.pread(control, 256, 0).split(b"\n")
            except OSError:
                os._exit(NOT_AT_REST)
            if not {b"oom_kill_disable 0", b"under_oom 0"} <= {*said}:
                os._exit(NOT_AT_REST)
            seen |= told and first.fired() != last.fired()

    with apart() as hog:
        for _ in range(TRIES):
            for one in (first, last):
                one.count()
            watcher = Child(watch, root, score=SPARED)
            system_oom(allocator=root, body=hog)
            watcher.kill()
            assert watcher.status != NOT_AT_REST, (
                "in a system OOM root's file does not read as ever"
            )
            if watcher.status not in (0, -9):
                raise Inconclusive(f"the watcher ended with status {watcher.status}")
            fence(root)
            assert at_rest(root), f"after a system OOM: {root.oom_control()}"
            if watcher.status == 0 or not slowly or not first.fired():
                return
    raise Inconclusive("root's file was never read while its listeners were told")


@pytest.mark.clause("K5")
def test_root_counts_kills(root: Memcg, memcg: Make) -> None:
    need("oom_kill in memory.oom_control", root)
    child = memcg()
    before = root.oom_control().oom_kill
    memcg_oom(child)
    assert at_rest(root)
    after = root.oom_control().oom_kill
    assert after == before, f"root counts a kill in a memcg: {after} instead of {before}"
