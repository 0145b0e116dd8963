# SPDX-License-Identifier: GPL-2.0-only
"""N7: memory that is refused without an OOM."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Callable
from functools import partial

import pytest

from helpers import kinds
from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import Child
from helpers.judge import alive_on, alive_on_root, over, stays_silent
from helpers.listeners import Listener
from helpers.memcgs import MIB, Memcg
from helpers.preflight import sysctl

pytestmark = [pytest.mark.system_oom, pytest.mark.clause("N7")]

ANYWHERE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
TOO_MUCH = 1 << 44


def refused(attempt: Callable[[], object]) -> int:
    """The errno with which something is refused; 0 if it is not."""
    try:
        attempt()
    except OSError as error:
        return error.errno or -1
    return 0


def map_too_much() -> int:
    """A mapping that no machine has the memory for."""
    return refused(lambda: mmap.mmap(-1, TOO_MUCH, flags=ANYWHERE).close())


def strict_overcommit() -> int:
    """A mapping beyond the limit of vm.overcommit_memory=2."""
    with sysctl("vm/overcommit_memory", "2"):
        return map_too_much()


def heuristic_overcommit() -> int:
    """A mapping that is obviously too large for vm.overcommit_memory=0."""
    with sysctl("vm/overcommit_memory", "0"):
        return map_too_much()


def address_space() -> int:
    """A mapping that is larger than addresses go."""
    return refused(lambda: mmap.mmap(-1, 1 << 60, flags=ANYWHERE).close())


def rlimit() -> int:
    """A mapping beyond RLIMIT_AS; in a child, since limits do not come back."""

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (64 * MIB, 64 * MIB))
        os._exit(refused(lambda: mmap.mmap(-1, 256 * MIB, flags=ANYWHERE)))

    return Child(body).wait() or 0


def full_tmpfs() -> int:
    """A file larger than its tmpfs."""
    with kinds.tmpfs("size=1m") as directory, open(f"{directory}/file", "wb", 0) as file:
        return refused(lambda: [file.write(bytes(1 << 18)) for _ in range(8)])


def huge_pages() -> int:
    """More huge pages than there is memory for; the kernel takes the number and makes fewer."""
    path = "/proc/sys/vm/nr_hugepages"
    if not os.path.exists(path):
        return errno.ENOMEM  # CONFIG_HUGETLBFS=n
    with sysctl("vm/nr_hugepages", "1000000"), open(path, encoding="ascii") as file:
        return errno.ENOMEM if int(file.read()) < 1000000 else 0


def high_order() -> int:
    """Pipes of so many buffers that the array of them is one of many contiguous pages."""
    ends: list[int] = []
    try:
        for _ in range(256):
            ends += os.pipe()
            trouble = refused(partial(fcntl.fcntl, ends[-1], kinds.F_SETPIPE_SZ, 1 << 28))
            if trouble:
                return trouble
        return 0
    finally:
        for end in ends:
            os.close(end)


WAYS = {
    "vm.overcommit_memory=2": (strict_overcommit, errno.ENOMEM),
    "vm.overcommit_memory=0": (heuristic_overcommit, errno.ENOMEM),
    "a mapping too large for any address": (address_space, errno.ENOMEM),
    "RLIMIT_AS": (rlimit, errno.ENOMEM),
    "a full tmpfs": (full_tmpfs, errno.ENOSPC),
    "too many huge pages": (huge_pages, errno.ENOMEM),
    "an allocation of a high order": (high_order, errno.ENOMEM),
}


def test_refusals_signal_nobody(
    root: Memcg, memcg: Callable[..., Memcg], listen: Callable[..., Listener]
) -> None:
    child = memcg()
    listener, below = listen(root, "root"), listen(child, "child")
    kmsg = Kmsg()
    for name, (way, wanted) in WAYS.items():
        got = way()
        if got != wanted:
            raise Inconclusive(f"{name}: {os.strerror(got)} instead of {os.strerror(wanted)}")
        fired = [one.name for one in (listener, below) if one.count()]
        if fired:  # of an OOM the log tells later
            over(root)
        if kills(kmsg.read()):
            raise Inconclusive(f"{name}: there has been an OOM")
        assert not fired, f"{name}: signalled {fired}"
    kmsg.close()
    stays_silent(root, listener, below, after="a refusal without an OOM")
    alive_on_root(listener)
    alive_on(child, below)
