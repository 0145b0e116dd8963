# SPDX-License-Identifier: GPL-2.0-only
"""P10 and N7 where there is swap: the system is out of memory only once that is full as well."""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from helpers.evidence import Inconclusive, Kmsg, kills, meminfo, vmstat
from helpers.hogs import CHUNK, Child, populate
from helpers.judge import alive_on_root, fires, settled, stays_silent
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.triggers import Proof, system_oom
from helpers.whitebox import Whitebox

pytestmark = [pytest.mark.system_oom, pytest.mark.profile("swap")]

Listen = Callable[..., Listener]
DISK = "/dev/vda"
TRIES = 6  # somebody else may be out of memory first
TOTAL = re.compile(r"Total swap = [1-9]")  # show_swap_cache_info(), mm/swap_state.c

libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def swap() -> Iterator[None]:
    """A swap area on the machine's own disk.

    Not while anything is judged: a memcg at its limit, as a fence is, swaps instead of killing.
    """
    if not os.path.exists(DISK):
        pytest.skip("no disk to swap to")
    page = os.sysconf("SC_PAGE_SIZE")
    with open(DISK, "r+b", buffering=0) as disk:
        pages = disk.seek(0, os.SEEK_END) // page
        # union swap_header, include/linux/swap.h: version, last page, no bad ones; at the end magic
        header = bytes(1024) + struct.pack("=III", 1, pages - 1, 0)
        disk.seek(0)
        disk.write(header.ljust(page - 10, b"\0") + b"SWAPSPACE2")
    if libc.swapon(DISK.encode(), 0):
        pytest.skip(f"no swap: {os.strerror(ctypes.get_errno())} (CONFIG_SWAP)")
    try:
        yield
    finally:
        libc.swapoff(DISK.encode())


@pytest.mark.clause("P10")
def test_swap_that_is_full(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root (swap)")
    with swap():
        proof = system_oom(allocator=root)
    if not any(TOTAL.match(line) for line in proof.lines):
        raise Inconclusive("the kernel does not say that there was swap")
    fires(listener)


def fill(size: int) -> None:
    """Populate so much and keep it, little by little."""
    for _ in range(size // CHUNK):
        populate(CHUNK)


def half() -> int:
    """The memory that is free and half of the swap, in bytes.

    The rest is for what swapping itself takes, and others' pages that go first.
    """
    return meminfo("MemFree") + meminfo("SwapFree") // 2


def swapoff_without_room(root: Memcg) -> Proof:
    """A system OOM that swapoff causes: the kernel kills who runs it before all others
    (oom_task_origin(), linux/oom.h).
    """
    filled, tell = os.pipe()
    with swap():
        size = half()

        def body() -> None:
            fill(size)
            os.write(tell, b".")
            libc.swapoff(DISK.encode())

        proof = system_oom(allocator=root, body=body)
    os.close(tell)
    before = not os.read(filled, 1)
    os.close(filled)
    if before:
        raise Inconclusive("the system was out of memory before swapoff")
    return proof


@pytest.mark.clause("P10")
def test_swapoff_that_finds_no_room(root: Memcg, listen: Listen, whitebox: Whitebox) -> None:
    listener = listen(root, "root (swapoff)")
    for _ in range(TRIES):
        listener.count()
        before = whitebox.counts()
        proof = swapoff_without_room(root)
        (count,) = settled(root, [listener], fires(listener))
        # Others may run out of memory meanwhile, and be told of.
        each = count >= whitebox.counts().since(before).due
        if each and any("swapoff" in line for line in proof.lines):
            return
    raise Inconclusive("it was never swapoff that ran out of memory, with a signal for each call")


@pytest.mark.clause("N7")
def test_swapping_is_no_oom(root: Memcg, listen: Listen) -> None:
    if vmstat("pswpout") is None:
        pytest.skip("the kernel does not count what it swaps (CONFIG_VM_EVENT_COUNTERS)")
    listener = listen(root, "root")
    kmsg = Kmsg()
    with swap():
        before = vmstat("pswpout")
        size = half()
        status = Child(lambda: fill(size), root).wait()
    swapped, killed = (vmstat("pswpout") or 0) - (before or 0), kills(kmsg.read())
    if status != 0 or killed or not swapped:
        raise Inconclusive(f"not just swapping: status {status}, {killed}, {swapped} pages swapped")
    kmsg.close()
    stays_silent(root, listener, after="swapping")
    alive_on_root(listener)
