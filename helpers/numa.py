# SPDX-License-Identifier: GPL-2.0-only
"""Memory nodes, and what confines a process to some of them: memory policies and cpusets (v1)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from helpers.evidence import CONSTRAINT, Inconclusive
from helpers.hogs import exhaust
from helpers.memcgs import Memcg, put
from helpers.preflight import find_mount
from helpers.triggers import Proof, remove

NODES = "/sys/devices/system/node/has_memory"
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
MPOL_BIND = 2

libc = ctypes.CDLL(None, use_errno=True)


def nodes() -> list[int]:
    """The nodes that have memory, in order; only one where there is no NUMA."""
    try:
        with open(NODES, encoding="ascii") as file:
            text = file.read().strip()
    except FileNotFoundError:
        return [0]
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


# Without NUMA such tests are skipped, not failed: the reason says what is missing.
two_nodes = pytest.mark.skipif(len(nodes()) < 2, reason="needs two memory nodes")


def bind(node: int) -> None:
    """Confine the caller to one node's memory by a memory policy.

    :raises OSError: if the kernel refuses.
    """
    mask = ctypes.c_ulong(1 << node)
    number = SET_MEMPOLICY[os.uname().machine]
    if libc.syscall(number, MPOL_BIND, ctypes.byref(mask), ctypes.c_ulong(64)):
        trouble = ctypes.get_errno()
        raise OSError(trouble, os.strerror(trouble))


def exhaust_node(node: int) -> None:
    """Exhaust one node's memory, which ends the caller or somebody else.

    :raises Forbidden: unless system OOMs are allowed.
    """
    bind(node)
    exhaust()


@contextmanager
def cpuset(node: int) -> Iterator[str | None]:
    """A cpuset of all CPUs and one memory node.

    :returns: its ``cgroup.procs``; None if no v1 cpuset controller is mounted.
    """
    with open("/proc/self/mountinfo", encoding="ascii", errors="replace") as file:
        mount = find_mount(file.read(), "cpuset")
    if mount is None:
        yield None
        return
    # Any v1 cgroup will do for making and removing it.
    made = Memcg.root(mount).child(f"oomtest-{os.getpid()}")
    path = made.path
    try:
        with open(f"{mount}/cpuset.cpus", encoding="ascii") as file:
            put(f"{path}/cpuset.cpus", file.read().strip())
        put(f"{path}/cpuset.mems", str(node))
        yield f"{path}/cgroup.procs"
    finally:
        remove(made)


def confined(proof: Proof, wanted: str) -> None:
    """The kernel says that this OOM was confined, and by what.

    :raises Inconclusive: if it does not.
    """
    seen = {match[1] for line in proof.lines if (match := CONSTRAINT.match(line))}
    if seen != {wanted}:
        raise Inconclusive(f"the kernel speaks of {', '.join(seen) or 'no constraint'}")
