# SPDX-License-Identifier: GPL-2.0-only
"""I: the control files of root, as a user meets them."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from helpers import kinds
from helpers.evidence import Inconclusive
from helpers.hogs import SPARED, Child, populate
from helpers.judge import (
    alive_on_root,
    signalled,
    somebody_dies,
    stays_silent,
    witnessed,
)
from helpers.listeners import Listener, register
from helpers.memcgs import MIB, Memcg, write
from helpers.refusals import REFUSALS, refused
from helpers.triggers import memcg_oom, sysrq_kill, system_oom
from helpers.versions import need
from helpers.waiters import refusal

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
MANY = 60
THRESHOLD = 4 * MIB


def name(number: int) -> str:
    """An errno's name, for messages."""
    return errno.errorcode.get(number, "success") if number else "success"


@pytest.mark.clause("I1")
def test_roots_killer_cannot_be_disabled(root: Memcg, memcg: Make) -> None:
    for text in ("1", "0", "2", "-1", "1\n", "0\n", "garbage", " 1"):
        got = write(root.file("memory.oom_control"), text)
        assert name(got) == "EINVAL", f"writing {text!r} to root's memory.oom_control: {name(got)}"
        now = root.oom_control()
        assert (now.oom_kill_disable, now.under_oom) == (0, 0), (
            f"writing {text!r} to root's memory.oom_control changed it"
        )
        inherited = memcg().oom_control().oom_kill_disable
        assert not inherited, f"a memcg that is made after {text!r} was refused has no killer"


@pytest.mark.clause("I1")
def test_roots_killer_cannot_be_disabled_while_somebody_listens(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listen(root, "root")
    memcg().disable_killer()
    got = write(root.file("memory.oom_control"), "1")
    assert name(got) == "EINVAL", f"writing 1 to root's memory.oom_control: {name(got)}"
    assert root.oom_control().oom_kill_disable == 0


@pytest.mark.clause("I1")
@pytest.mark.system_oom
def test_system_oom_still_kills_after_an_attempt(root: Memcg) -> None:
    write(root.file("memory.oom_control"), "1")
    somebody_dies(root)
    assert root.oom_control().oom_kill_disable == 0, "the attempt took effect"


@pytest.mark.clause("I2")
@pytest.mark.parametrize("control", ["memory.oom_control", "cgroup.event_control"])
def test_root_has_the_file(root: Memcg, control: str) -> None:
    assert os.path.exists(root.file(control)), f"root has no {control}"


@pytest.mark.clause("I2")
def test_root_takes_an_eventfd_and_a_descriptor_open_for_reading(root: Memcg) -> None:
    need("registration of eventfds", root)
    listener = Listener("root")
    for mode in (os.O_RDONLY, os.O_RDWR):
        control = os.open(root.file("memory.oom_control"), mode)
        try:
            for arguments in ("", "anything"):
                got = register(root, listener.fd, control, arguments)
                assert not got, f"registering on root is refused: {name(got)}"
        finally:
            os.close(control)
    listener.close()


@pytest.mark.clause("I2")
@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("memory.usage_in_bytes", str(THRESHOLD)),
        ("memory.memsw.usage_in_bytes", str(THRESHOLD)),
        ("memory.pressure_level", "low"),
    ],
)
def test_other_files_take_listeners(root: Memcg, memcg: Make, file: str, arguments: str) -> None:
    need("registration of eventfds", root)
    if not os.path.exists(root.file(file)):
        pytest.skip(f"this kernel has no {file}")
    for where, home in (("root", root), ("a memcg", memcg())):
        listener = Listener(file)
        got = listener.refused(home, file, arguments)
        listener.close()
        assert not got, f"registering on {where}'s {file} is refused: {name(got)}"


@pytest.mark.clause("I2")
def test_use_beyond_a_threshold_signals(memcg: Make, listen: Listen) -> None:
    home = memcg()
    listener = listen(home, "threshold", "memory.usage_in_bytes", str(THRESHOLD))
    hog = Child(lambda: populate(4 * THRESHOLD), home)
    if hog.ended():
        raise Inconclusive(f"the hog has status {hog.status}")
    signalled(listener, by="use beyond its threshold")


@pytest.mark.clause("I2")
@pytest.mark.parametrize("end", ["\n", "\0", " \n"], ids=["newline", "NUL", "blank and newline"])
def test_root_takes_a_line_however_it_ends(root: Memcg, end: str) -> None:
    """A newline is what a shell's echo writes, the zero tools/cgroup/cgroup_event_listener.c."""
    need("registration of eventfds", root)
    listener = Listener("root")
    control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
    got = write(root.file("cgroup.event_control"), f"{listener.fd} {control}{end}")
    os.close(control)
    listener.close()
    assert not got, f"registering on root by a line that ends with {end!r}: {name(got)}"


@pytest.mark.clause("I2")
@pytest.mark.parametrize("end", ["", "\n"], ids=["bare", "newline"])
def test_all_of_a_line_is_taken(root: Memcg, memcg: Make, end: str) -> None:
    """Whoever writes through a buffer writes the rest again, and all of it if nothing was taken."""
    need("registration of eventfds", root)
    for home in (root, memcg()):
        listener = Listener("counted")
        control = os.open(home.file("memory.oom_control"), os.O_RDONLY)
        door = os.open(home.file("cgroup.event_control"), os.O_WRONLY)
        line = f"{listener.fd} {control}{end}".encode()
        try:
            count = os.write(door, line)
        finally:
            os.close(control)
            os.close(door)
            listener.close()
        assert count == len(line), f"{home}: {count} bytes are taken of a line of {len(line)}"


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_root_takes_any_number_at_any_time(root: Memcg, memcg: Make, stuck: Make) -> None:
    need("registration of eventfds", root)
    limited = memcg()
    states: dict[str, Callable[[], object]] = {
        "at first": lambda: None,
        "while a child is under OOM": stuck,
        "after a memcg OOM": lambda: memcg_oom(limited),
        "after a system OOM": lambda: system_oom(allocator=root),
        "after a kill by sysrq-f": lambda: sysrq_kill(root),
    }
    listeners: list[Listener] = []
    control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
    try:
        for state, reach in states.items():
            reach()
            for _ in range(MANY):
                listeners.append(Listener("one of many"))
                got = register(root, listeners[-1].fd, control)
                assert not got, f"{state}, listener #{len(listeners)} is refused: {name(got)}"
    finally:
        os.close(control)
        for one in listeners:
            one.close()


def register_and_exit(listener: Listener, root: Memcg) -> None:
    """End with what the registration gets."""
    os._exit(listener.refused(root))


@pytest.mark.clause("I2")
def test_root_takes_listeners_of_whoever_lives_anywhere(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    need("registration of eventfds", root)
    listen(root, "this process's")
    below = memcg()
    listeners: list[Listener] = []

    at_home = partial(register_and_exit, root=root)

    def in_a_container(one: Listener) -> None:
        with suppress(OSError):  # there is no such thing before 4.6
            kinds.unshare(kinds.CLONE_NEWCGROUP)
        register_and_exit(one, root)

    for where, home, body in (
        ("root", root, at_home),
        ("a memcg", below, at_home),
        ("one below it", memcg(below), at_home),
        ("a container", below, in_a_container),
    ):
        # Held here, so that all of them stay registered.
        one = Listener("another process's")
        listeners.append(one)
        got = refusal(Child(partial(body, one), home, SPARED))
        assert not got, f"somebody who lives in {where} is refused: {name(got)}"
    for one in listeners:
        one.close()


@pytest.mark.clause("I2")
def test_registration_is_refused(root: Memcg, memcg: Make) -> None:
    need("registration of eventfds", root)
    other = memcg()
    for case, wanted in REFUSALS.items():
        listener = Listener(case)
        got = refused(root, other, listener.fd, case)
        assert name(got) == name(wanted), f"{case}: {name(got)} instead of {name(wanted)}"
        assert listener.count() == 0, f"{case}: signalled at once"
        listener.close()


@pytest.mark.clause("I2")
def test_arguments_do_not_matter(root: Memcg, memcg: Make) -> None:
    need("registration of eventfds", root)
    for home, arguments in itertools.product((root, memcg()), ("critical", "0")):
        listener = Listener(f"with {arguments!r}")
        trouble = listener.refused(home, arguments=arguments)
        assert not trouble, f"{home}: refused {listener.name}: {name(trouble)}"
        listener.close()


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_refused_registration_leaves_nothing_behind(
    root: Memcg, memcg: Make, listen: Listen
) -> None:
    listener = Listener("refused")
    for case in REFUSALS:
        refused(root, memcg(), listener.fd, case)
    witness = listen(root, "witness")
    system_oom(allocator=root)
    witnessed(witness)
    stays_silent(root, listener, after="a system OOM")
    listener.on(root)
    alive_on_root(listener)
    listener.close()
