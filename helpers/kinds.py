# SPDX-License-Identifier: GPL-2.0-only
"""Ways to run a system out of memory: each body goes on until whoever runs it is killed.

Those that fill kernel memory hold what the OOM reaper cannot take from them (mm/oom_kill.c): it is
free when they have exited.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import mmap
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from helpers import gate
from helpers.evidence import vmstat
from helpers.hogs import CHUNK, populate, sleep_forever
from helpers.listeners import register_often
from helpers.memcgs import MIB, Memcg, put

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

IPC_PRIVATE, IPC_RMID = 0, 0
CLONE_NEWCGROUP, CLONE_NEWPID = 0x02000000, 0x20000000  # since 4.6 and 3.8
NOBODY = 65534
PR_SET_PDEATHSIG = 1
SO_SNDBUFFORCE = 32
F_SETPIPE_SZ = 1031
PMD = 2 * MIB  # what one table of page table entries maps (x86-64, arm64 with pages of 4 KiB)

LEFT = 2 * MIB  # beyond what the kernel keeps for itself; for what is said to fill the rest

# Each zone of /proc/zoneinfo: free pages, its minimum, what it keeps from those with a better one.
ZONE = re.compile(r"pages free +(\d+)\n(?:.*\n)*? +min +(\d+)\n(?:.*\n)*? +protection: \((.*)\)")

_held: list[object] = []


def forever() -> Iterator[int]:
    """Count without end, where that may be done.

    :raises Forbidden: unless system OOMs are allowed.
    """
    gate.require("exhausting the system's memory")
    return itertools.count()


def anonymous_by_faults() -> None:
    """Private anonymous memory, touched page by page."""
    for _ in forever():
        area = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _held.append(area)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(area)), 1, CHUNK)


def by_a_thread() -> None:
    """Private anonymous memory, asked for by a thread that is not the first of its process."""
    gate.require("exhausting the system's memory")
    thread = threading.Thread(target=anonymous_by_faults)
    thread.start()
    thread.join()


def unprivileged() -> None:
    """Become nobody."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def by_nobody() -> None:
    """Private anonymous memory, asked for without any privilege."""
    gate.require("exhausting the system's memory")
    unprivileged()
    anonymous_by_faults()


def _fork(body: Callable[[], None]) -> None:
    """Have a child run ``body``; it goes with its parent."""
    if os.fork() == 0:
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            body()
        finally:
            os._exit(0)


def unshare(flag: int) -> None:
    """Have a namespace of one's own; of PIDs, one's children have it.

    :raises OSError: if the kernel has none of that kind.
    """
    if libc.unshare(flag):
        raise OSError(ctypes.get_errno(), f"unshare({flag:#x})")


def in_a_namespace(flag: int, body: Callable[[], None]) -> Callable[[], None]:
    """A child, the first in a new namespace, that runs ``body``; it goes with its parent.

    :param flag: of unshare(2).
    """

    def begin() -> None:
        unshare(flag)
        _fork(body)
        os.wait()

    return begin


def locked() -> None:
    """Anonymous memory through mlock(2)."""
    for _ in forever():
        area = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _held.append(area)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(CHUNK))


def shared_anonymous() -> None:
    """Shared anonymous memory: shmem without a name."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    for _ in forever():
        _held.append(mmap.mmap(-1, CHUNK, flags=flags))


def _write_on(fd: int) -> None:
    data = bytes(1 << 18)
    for _ in forever():
        os.write(fd, data)


def memfd() -> None:
    """A memfd, written to."""
    _write_on(os.memfd_create("oomtest"))


@contextlib.contextmanager
def tmpfs(options: str) -> Iterator[str]:
    """A tmpfs of our own.

    :param options: such as ``size=1m``; ``size=0`` is without a limit.
    :raises OSError: if it cannot be mounted.
    """
    with tempfile.TemporaryDirectory(prefix="oomtest-") as directory:
        if libc.mount(b"oomtest", directory.encode(), b"tmpfs", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mounting a tmpfs")
        try:
            yield directory
        finally:
            libc.umount2(directory.encode(), 2)  # MNT_DETACH: a dying hog may still hold it


def tmpfs_file(directory: str) -> Callable[[], None]:
    """A file on a tmpfs that goes when its hog does.

    :param directory: on the tmpfs.
    """
    return lambda: _write_on(os.open(directory, os.O_TMPFILE | os.O_RDWR))


def sysv() -> bool:
    """Whether the kernel has System V shared memory (CONFIG_SYSVIPC)."""
    segment = libc.shmget(IPC_PRIVATE, mmap.PAGESIZE, 0o600)
    return bool(segment >= 0 and libc.shmctl(segment, IPC_RMID, None) == 0)


def sysv_segments() -> None:
    """System V shared memory, attached and touched."""
    for _ in forever():
        segment = libc.shmget(IPC_PRIVATE, CHUNK, 0o600)
        address = libc.shmat(segment, None, 0)
        libc.shmctl(segment, IPC_RMID, None)  # from now on it goes with whoever is attached
        ctypes.memset(address, 1, CHUNK)


def pipes() -> None:
    """Pipe buffers: kernel memory that belongs to no address space."""
    data = bytes(1 << 16)
    for _ in forever():
        reading, writing = os.pipe()
        _held.append((reading, writing))
        fcntl.fcntl(writing, F_SETPIPE_SZ, MIB)
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, data)


def sockets() -> None:
    """Unix sockets that nobody reads from."""
    data = bytes(1 << 16)
    for _ in forever():
        pair = socket.socketpair()
        _held.append(pair)
        pair[0].setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 * MIB)
        pair[0].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                pair[0].send(data)


def page_tables() -> None:
    """Page tables: reading untouched memory maps the zero page and fills nothing but them."""
    for _ in forever():
        area = mmap.mmap(-1, 512 * PMD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _held.append(area)
        area[::PMD]  # reads one byte of each


def processes() -> None:
    """Children by the dozen, each with a little memory of its own; they go with their parent."""

    def child() -> None:
        put("/proc/self/oom_score_adj", "0")
        populate(MIB)
        sleep_forever()

    for _ in forever():
        _fork(child)


def _fill(left: int = LEFT) -> None:
    """Take what is free but for a little, so that what is asked for next is what runs out."""
    for _ in forever():
        free = _free()
        if free <= left:
            return
        populate(free - left)


def _free() -> int:
    """What user space can have before the OOM killer is called, in bytes.

    Each zone keeps its minimum, and more from those who could have had a higher one
    (__zone_watermark_ok(), mm/page_alloc.c).
    """
    with open("/proc/zoneinfo", encoding="ascii") as file:
        zones = ZONE.findall(file.read())
    pages = 0
    for free, least, kept in zones:
        pages += max(0, int(free) - int(least) - max(map(int, kept.split(", "))))
    return pages * mmap.PAGESIZE


def mappings() -> None:
    """Mappings split in two, again and again: what describes them is allocated with the
    ``mmap_lock`` of its process held for writing.

    It stops short of ``vm.max_map_count``: once somebody else has died, there is nothing to do.
    """
    _fill()
    size = 1 << 16
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    area = mmap.mmap(-1, size * mmap.PAGESIZE, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    page = ctypes.c_size_t(mmap.PAGESIZE)
    for at in range(0, size, 2):
        if libc.mprotect(ctypes.c_void_p(start + at * mmap.PAGESIZE), page, mmap.PROT_READ):
            break
    sleep_forever()


def memcgs(above: Memcg) -> Callable[[], None]:
    """Memcgs, which are made with ``cgroup_mutex`` held.

    :param above: where; they are left behind.
    """

    def make() -> None:
        _fill()
        for number in forever():
            os.mkdir(f"{above.path}/{os.getpid()}-{number}")

    return make


def registrations(root: Memcg) -> Callable[[], None]:
    """Registrations on root: whatever lock is held while what they need is allocated.

    Some at a time, as reclaim may still find something; none any more once somebody has died.
    """

    def register() -> None:
        eventfd, before = os.eventfd(0), vmstat("oom_kill")
        for _ in forever():
            _fill(LEFT // 8)
            register_often(root, [eventfd], 1000)
            if vmstat("oom_kill") != before:
                sleep_forever()

    return register


def slowly() -> None:
    """Private anonymous memory, slowly enough for kswapd to run out of it first."""
    for _ in forever():
        populate(MIB // 2)
        time.sleep(0.002)
