# SPDX-License-Identifier: GPL-2.0-only
"""P10: whatever it is that runs the system out of memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from helpers import kinds
from helpers.evidence import Inconclusive
from helpers.judge import fires, settled
from helpers.listeners import Listener
from helpers.memcgs import Memcg, put
from helpers.preflight import sysctl
from helpers.triggers import system_oom
from helpers.versions import LRU_GEN, need
from helpers.whitebox import Unavailable, Whitebox

pytestmark = [pytest.mark.system_oom, pytest.mark.clause("P10")]

Listen = Callable[..., Listener]

TRIES = 6  # the next to ask for memory may be somebody else

USER = {
    "anonymous": kinds.anonymous_by_faults,
    "mlock": kinds.locked,
    "shared anonymous": kinds.shared_anonymous,
    "memfd": kinds.memfd,
    "by a thread": kinds.by_a_thread,
    "by nobody": kinds.by_nobody,
}
KERNEL = {
    "pipes": kinds.pipes,
    "unix sockets": kinds.sockets,
    "page tables": kinds.page_tables,
}


@pytest.mark.parametrize("kind", USER)
def test_user_memory(root: Memcg, listen: Listen, kind: str) -> None:
    listener = listen(root, f"root ({kind})")
    for _ in range(2):  # somebody else may be out of memory at the same moment, and be heard
        system_oom(allocator=root, body=USER[kind])
        settled(root, [listener], fires(listener))


def test_tmpfs(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root (tmpfs)")
    with kinds.tmpfs("size=0") as directory:
        system_oom(allocator=root, body=kinds.tmpfs_file(directory))
    fires(listener)


def test_sysv_shared_memory(root: Memcg, listen: Listen) -> None:
    if not kinds.sysv():
        pytest.skip("this kernel has no System V shared memory (CONFIG_SYSVIPC)")
    listener = listen(root, "root (System V shared memory)")
    system_oom(allocator=root, body=kinds.sysv_segments)
    fires(listener)


@pytest.mark.parametrize("kind", KERNEL)
def test_kernel_memory(root: Memcg, listen: Listen, kind: str) -> None:
    listener = listen(root, f"root ({kind})")
    system_oom(allocator=root, body=KERNEL[kind])
    fires(listener)


def test_many_processes(root: Memcg, listen: Listen) -> None:
    listener = listen(root, "root (many processes)")
    system_oom(allocator=root, body=kinds.processes)
    fires(listener)


def under_a_lock(
    root: Memcg,
    listen: Listen,
    name: str,
    body: Callable[[], None],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Whoever asks for memory may hold a lock meanwhile: telling the listeners must not want it.

    :param name: of the function that holds it.
    :param body: has it called, not to be the victim.
    :param after: takes away what that leaves behind.
    """
    listener = listen(root, f"root ({name}())")
    caller = re.compile(rf" \??\s*{name}\+0x")
    for _ in range(TRIES):
        try:
            proof = system_oom(allocator=root, victim=root, body=body)
        finally:
            after()
        fires(listener)
        if any(map(caller.match, proof.lines)):
            return
    raise Inconclusive(f"it was never {name}() that ran out of memory")


@pytest.mark.pristine
def test_with_the_mmap_lock_held(root: Memcg, listen: Listen) -> None:
    under_a_lock(root, listen, "mprotect_fixup", kinds.mappings)


@pytest.mark.pristine
def test_with_cgroup_mutex_held(root: Memcg, memcg: Callable[..., Memcg], listen: Listen) -> None:
    above = memcg()

    def remove_all() -> None:
        for entry in os.scandir(above.path):
            if entry.is_dir():
                os.rmdir(entry)

    under_a_lock(root, listen, "cgroup_mkdir", kinds.memcgs(above), remove_all)


@pytest.mark.pristine
def test_while_registering(root: Memcg, listen: Listen) -> None:
    under_a_lock(root, listen, "memcg_write_event_control", kinds.registrations(root))


@contextmanager
def min_ttl(milliseconds: int) -> Iterator[None]:
    """MGLRU that had rather kill than evict what was used a moment ago (6.1, mm/vmscan.c)."""
    before = {}
    for name, value in (("enabled", "7"), ("min_ttl_ms", str(milliseconds))):
        path = os.path.join(LRU_GEN, name)
        with open(path, encoding="ascii") as file:
            before[path] = file.read().strip()
        put(path, value)
    try:
        with sysctl("vm/watermark_scale_factor", "1000"):
            yield
    finally:
        for path, value in reversed(before.items()):
            with suppress(OSError):
                put(path, value)


@pytest.mark.pristine
def test_kswapd_of_mglru(root: Memcg, listen: Listen) -> None:
    need("MGLRU", root)
    whitebox = None
    with suppress(Unavailable):
        whitebox = Whitebox()
    listener = listen(root, "root (kswapd)")
    with min_ttl(3600_000):
        proof = system_oom(allocator=root, body=kinds.slowly)
    if not any(re.match(r"kswapd\d+ invoked oom-killer", line) for line in proof.lines):
        raise Inconclusive("it was not kswapd that invoked the OOM killer")
    (count,) = settled(root, [listener], fires(listener))
    if whitebox is not None:
        calls = whitebox.counts().calls
        whitebox.unload()
        assert count <= calls, f"{count} signals for {calls} calls of the OOM killer"
