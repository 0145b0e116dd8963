# SPDX-License-Identifier: GPL-2.0-only
"""I: the control files of root, as a user meets them."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from helpers.evidence import Inconclusive, meminfo
from helpers.hogs import SPARED, Child, populate
from helpers.judge import (
    PATIENCE,
    alive_on_root,
    over,
    signalled,
    somebody_dies,
    stays_silent,
    witnessed,
)
from helpers.listeners import Listener, register, register_often
from helpers.memcgs import MIB, Memcg, write
from helpers.patience import slices
from helpers.preflight import mounted
from helpers.triggers import memcg_oom, remove, sysrq_kill, system_oom
from helpers.versions import need
from helpers.waiters import refusal

Make = Callable[..., Memcg]
Listen = Callable[..., Listener]
MANY, FEW = 60, 8
# To signal all costs the square of OFTEN, to close them that of its product with MANY.
OFTEN, ROUNDS, TRIES = 40, 4, 6
THRESHOLD = 4 * MIB
ENTRY = 32  # bytes; a list's links and an eventfd, as the allocator rounds them up


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


def identity(eventfd: int) -> int:
    """The number that an eventfd has in the kernel, the lowest that was free (fs/eventfd.c)."""
    with open(f"/proc/self/fdinfo/{eventfd}", encoding="ascii") as file:
        found = [line.split()[1] for line in file if line.startswith("eventfd-id:")]
    if not found:
        pytest.skip("this kernel does not number its eventfds (since 5.2, fs/eventfd.c)")
    return int(found[0])


def come_and_go(root: Memcg, often: int = OFTEN) -> None:
    """Register what leaves again once it has been signalled."""
    for _ in range(ROUNDS):
        passing = [Listener("passing") for _ in range(MANY)]
        register_often(root, [one.fd for one in passing], often)
        system_oom(allocator=root)
        for one in passing:
            one.close()
    over(root)


def taken() -> int:
    """What the kernel has taken for its own objects, in bytes, but for those of its threads.

    A port that sleeps to strike somebody off has hundreds of kworkers started. A thread has half
    as much of such objects as it has of stack.
    """
    return meminfo("SUnreclaim") - meminfo("KernelStack") // 2


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_memory_of_who_has_left_is_given_back(root: Memcg) -> None:
    need("registration of eventfds", root)
    need("an allocator that has back at once what is freed", root)
    come_and_go(root)  # from here on there are slabs enough for all who are there at a time
    registrations = MANY * OFTEN * ROUNDS
    least = ENTRY * registrations
    given_back = 0
    # The kernel takes memory for other things as well, but not each time. And it may free this
    # later: what is left to RCU waits for 5 s (kfree_rcu(), kernel/rcu/tree.c) or 10
    # (CONFIG_RCU_LAZY).
    for more in reversed(range(TRIES)):
        before = taken()
        come_and_go(root)
        for _ in slices(0 if more else 4 * PATIENCE):
            left = taken() - before
            if left < least // 2:
                given_back += 1
                break
            time.sleep(0.05)
        if given_back == 2:  # once may be something else that was given back meanwhile
            return
    before = taken()
    come_and_go(root, often=0)
    if taken() - before > least // 4:
        raise Inconclusive("system OOMs alone leave the kernel with more memory in use here")
    pytest.fail(
        f"{left} bytes of the kernel's are gone after {registrations} registrations that ended"
    )


@contextmanager
def shared_descriptors() -> Iterator[None]:
    """Have a second thread meanwhile.

    Where there is none the kernel takes no reference to a file that it could fail to put
    (__fget_light(), fs/file.c).
    """
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def lowest_free(count: int) -> set[int]:
    """The numbers that the next eventfds get. Between them are those of other processes'."""
    probes = [Listener("probe") for _ in range(count)]
    numbers = {identity(probe.fd) for probe in probes}
    for probe in probes:
        probe.close()
    return numbers


def eventfds_kept(root: Memcg, many: int, few: int, passing: Callable[[], None]) -> int:
    """How many eventfds the kernel keeps of those that come and go meanwhile.

    :param many: so many come.
    :param few: less need not be waited for: it lets go of them in work items, and may take its
        time to.
    """
    over(root)
    before = lowest_free(many)
    with shared_descriptors():
        passing()
    for _ in slices(3 * PATIENCE):
        over(root)
        left = len(before - lowest_free(many))
        if left < few:
            break
    return left


@pytest.mark.clause("I2")
@pytest.mark.system_oom
def test_what_was_registered_is_let_go(root: Memcg) -> None:
    def passing() -> None:
        listeners = [Listener("passing").on(root) for _ in range(MANY)]
        system_oom(allocator=root)
        for one in listeners:
            one.close()

    left = eventfds_kept(root, MANY, MANY // 2, passing)
    assert left < MANY // 2, f"of {MANY} eventfds registered on root and closed, {left} are kept"


@pytest.mark.clause("I2")
def test_what_was_registered_on_a_memcg_that_is_removed_is_let_go(root: Memcg, memcg: Make) -> None:
    def passing() -> None:
        for _ in range(2 * FEW):
            home, listener = memcg(), Listener("below")
            listener.on(home)
            remove(home)
            listener.wait(PATIENCE)
            listener.close()

    left = eventfds_kept(root, 2 * FEW, FEW, passing)
    assert left < FEW, f"of {2 * FEW} eventfds on memcgs that were removed, {left} are kept"


@pytest.mark.clause("I2")
def test_the_file_that_is_registered_on_is_let_go(root: Memcg) -> None:
    """A file that is open keeps what it is on mounted."""
    need("registration of eventfds", root)
    for case in ("registered", *REFUSALS):
        listener = Listener(case)
        try:
            with mounted() as mount, shared_descriptors():
                there = Memcg.root(mount)
                other = there.child(f"oomtest-other-{os.getpid()}")
                if case == "registered":
                    listener.on(there)
                else:
                    refused(there, other, listener.fd, case)
                listener.close()
                remove(other)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            pytest.fail(f"{case}: a file is kept that was opened to register on")


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
    for where, home in (("root", root), ("a memcg", below), ("one below it", memcg(below))):
        # Held here, so that all of them stay registered.
        one = Listener("another process's")
        listeners.append(one)
        got = refusal(Child(partial(register_and_exit, one, root), home, SPARED))
        assert not got, f"somebody who lives in {where} is refused: {name(got)}"
    for one in listeners:
        one.close()


def refused(root: Memcg, other: Memcg, eventfd: int, case: str) -> int:
    """Try one registration that v1 refuses; the errno (memcg_write_event_control())."""
    control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
    foreign = os.open(other.file("memory.oom_control"), os.O_RDONLY)
    limit = os.open(root.file("memory.limit_in_bytes"), os.O_RDONLY)
    usage = os.open(root.file("memory.usage_in_bytes"), os.O_RDONLY)
    pressure = os.open(root.file("memory.pressure_level"), os.O_RDONLY)
    null = os.open(os.devnull, os.O_RDONLY)
    closed = 1 << 14  # a number that no descriptor has
    line = {
        "garbage": "garbage",
        "only an eventfd": f"{eventfd}",
        "no number for the file": f"{eventfd} x",
        "more than a number for the file": f"{eventfd} {control}x",
        "a comma between": f"{eventfd},{control}",
        "a closed eventfd": f"{closed} {control}",
        "a closed file": f"{eventfd} {closed}",
        "no eventfd": f"{null} {control}",
        "a device": f"{eventfd} {null}",
        "a file without events": f"{eventfd} {limit}",
        "another memcg's file": f"{eventfd} {foreign}",
        "a threshold that is no number": f"{eventfd} {usage} x",
        "a pressure that is no level": f"{eventfd} {pressure} x",
        "root's file by another memcg": f"{eventfd} {control}",
    }[case]
    through = other if case == "root's file by another memcg" else root
    try:
        return write(through.file("cgroup.event_control"), line)
    finally:
        for fd in (control, foreign, limit, usage, pressure, null):
            os.close(fd)


REFUSALS = {
    "garbage": errno.EINVAL,
    "only an eventfd": errno.EINVAL,
    "no number for the file": errno.EINVAL,
    "more than a number for the file": errno.EINVAL,
    "a comma between": errno.EINVAL,
    "a closed eventfd": errno.EBADF,
    "a closed file": errno.EBADF,
    "no eventfd": errno.EINVAL,
    "a device": errno.EINVAL,
    "a file without events": errno.EINVAL,
    "another memcg's file": errno.EINVAL,
    "a threshold that is no number": errno.EINVAL,
    "a pressure that is no level": errno.EINVAL,
    "root's file by another memcg": errno.EINVAL,
}


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
def test_what_was_refused_is_let_go(root: Memcg, memcg: Make) -> None:
    other = memcg()

    def passing() -> None:
        for case in [*REFUSALS] * FEW:
            listener = Listener(case)
            refused(root, other, listener.fd, case)
            listener.close()

    left = eventfds_kept(root, FEW * len(REFUSALS), FEW, passing)
    assert left < FEW, f"of each refusal's {FEW} eventfds, {left} in all are kept"


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
