# SPDX-License-Identifier: GPL-2.0-only
"""I3 and I4: a kernel without the memory controller, and users without privileges."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from helpers.evidence import Inconclusive, Kill, Kmsg, kills
from helpers.hogs import SPARED, Child, touch
from helpers.judge import PATIENCE, somebody_dies, witnessed
from helpers.kinds import unprivileged
from helpers.listeners import Listener, register
from helpers.memcgs import Memcg, put, write
from helpers.triggers import MUCH, remove, system_oom
from helpers.versions import need, release
from helpers.waiters import UNABLE, Waiter, poll, refusal

Listen = Callable[..., Listener]

CONTROL, EVENTS = "memory.oom_control", "cgroup.event_control"


def controller() -> str:
    """The memory controller's line in /proc/cgroups."""
    with open("/proc/cgroups", encoding="ascii") as file:
        return next((line for line in file if line.startswith("memory\t")), "")


def told(parameter: str) -> pytest.MarkDecorator:
    """Skip unless the kernel was booted with that parameter."""
    with open("/proc/cmdline", encoding="ascii") as file:
        there = parameter in file.read().split()
    return pytest.mark.skipif(not there, reason=f"needs {parameter} on the command line")


@contextmanager
def mounted(kind: str, options: str = "") -> Iterator[str | None]:
    """Mount cgroups for the duration; None if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="oomtest-") as directory:
        target = os.path.join(directory, kind)
        os.mkdir(target)
        if libc.mount(b"cgroup", target.encode(), kind.encode(), 0, options.encode() or None):
            yield None
            return
        try:
            yield target
        finally:
            libc.umount(target.encode())


@pytest.mark.clause("I3")
@pytest.mark.profile("nomemcg")
@told("cgroup_disable=memory")
@pytest.mark.system_oom
def test_without_the_controller() -> None:
    assert controller().split()[-1:] in ([], ["0"]), f"not off: {controller()}"
    with mounted("cgroup", "memory") as v1:
        assert v1 is None, "the memory controller is off, and can be mounted"
    for _ in range(2):
        somebody_dies()


@pytest.mark.clause("I3")
@pytest.mark.profile("v2")
@told("cgroup_no_v1=memory")
@pytest.mark.system_oom
def test_with_cgroup_v2_only() -> None:
    if release() < (4, 6):
        pytest.skip("this kernel lacks cgroup_no_v1 (since 4.6, kernel/cgroup/cgroup-v1.c)")
    with mounted("cgroup", "memory") as v1:
        assert v1 is None, "the memory controller is v2's, and can be mounted as v1"
    with mounted("cgroup2") as v2:
        assert v2 is not None, "cgroup v2 cannot be mounted"
        if write(f"{v2}/cgroup.subtree_control", "+memory"):
            raise Inconclusive("cgroup v2 does not offer the memory controller")
        root = Memcg.root(v2)
        home = root.child("oomtest")
        try:
            for where in (None, home):
                somebody_dies(where)
            put(home.file("memory.max"), str(MUCH // 2))
            kmsg = Kmsg()
            hog = Child(lambda: touch(MUCH), home)
            hog.ended()
            found = kills(kmsg.read())
            kmsg.close()
            assert Kill(hog.pid, memcg=True) in found, f"the hog at its limit ended: {hog.status}"
            somebody_dies()
        finally:
            remove(home)


def registers(memcg: Memcg, given: int | None = None) -> int:
    """The errno that nobody's registration of an own eventfd gets; 0 if it succeeds.

    :param given: a descriptor of the control file that somebody else has opened.
    """

    def body() -> None:
        trouble = 0
        try:
            unprivileged()
        except OSError:
            os._exit(UNABLE)
        try:
            control = os.open(memcg.file(CONTROL), os.O_RDONLY) if given is None else given
            trouble = register(memcg, os.eventfd(0), control)
        except OSError as error:
            trouble = error.errno or 255
        os._exit(trouble)

    return refusal(Child(body, score=SPARED))


@contextmanager
def modes(memcg: Memcg, events: int, control: int) -> Iterator[None]:
    """Give a memcg's files other modes for the duration."""
    paths = {memcg.file(EVENTS): events, memcg.file(CONTROL): control}
    before = {path: stat.S_IMODE(os.stat(path).st_mode) for path in paths}
    try:
        for path, mode in paths.items():
            os.chmod(path, mode)
        yield
    finally:
        for path, mode in before.items():
            os.chmod(path, mode)


@pytest.mark.clause("I4")
@pytest.mark.parametrize("below", [False, True], ids=["root", "a child"])
def test_modes_decide(
    root: Memcg,
    memcg: Callable[..., Memcg],
    record: Callable[[str, object], None],
    below: bool,
) -> None:
    need("registration of eventfds", root)
    where = memcg() if below else root
    got = registers(where)
    # It has been up to the kernel and to whoever mounted it: told, not judged.
    record("nobody registers", errno.errorcode.get(got, "yes" if not got else str(got)))
    for events, control, wanted in (
        (0o222, 0o644, 0),
        (0o200, 0o644, errno.EACCES),
        (0o222, 0o600, errno.EACCES),
    ):
        with modes(where, events, control):
            got = registers(where)
        told = errno.errorcode.get(got, "success") if got else "success"
        assert got == wanted, f"{told} with modes {events:o} of {EVENTS} and {control:o}"
    opened = os.open(where.file(CONTROL), os.O_RDONLY)
    with modes(where, 0o222, 0o600):
        got = registers(where, opened)
    os.close(opened)
    told = errno.errorcode.get(got, "success") if got else "success"
    assert got == errno.EACCES, f"{told} by a descriptor of a file that nobody may read"


@pytest.mark.clause("I4")
@pytest.mark.system_oom
def test_unprivileged_listener_is_woken(root: Memcg, listen: Listen) -> None:
    inherited, witness = listen(root, "inherited by nobody"), listen(root, "root's")
    own = Listener("registered by nobody")

    def enlist() -> None:
        unprivileged()
        own.on(root)

    waiters = [Waiter(inherited, poll, unprivileged)]
    try:
        with modes(root, 0o222, 0o644):
            waiters.append(Waiter(own, poll, enlist))
        system_oom(allocator=root)
        witnessed(witness)
        asleep = [one.name for one in waiters if not one.woken(PATIENCE)]
        assert not asleep, f"a system OOM that woke root's listener did not wake {asleep}"
    finally:
        for one in waiters:
            one.close()
        own.close()
