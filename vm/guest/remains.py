# SPDX-License-Identifier: GPL-2.0-only
"""What a test can leave behind in the kernel it ran on: looked at before another one runs there."""

from __future__ import annotations

import contextlib
import os
from functools import cache

from oomtest_guest import init

FILES = (
    *("/proc/mounts", "/proc/modules", "/proc/swaps", "/proc/self/cgroup"),
    *("/proc/self/oom_score_adj", "/proc/sys/kernel/printk"),
    *("/proc/sys/vm/panic_on_oom", "/proc/sys/vm/oom_kill_allocating_task"),
    *("/proc/sys/vm/oom_dump_tasks", "/proc/sys/vm/overcommit_memory"),
    *("/proc/sys/vm/nr_hugepages", "/proc/sys/vm/min_free_kbytes"),
    *("/sys/kernel/mm/lru_gen/enabled", "/sys/kernel/tracing/kprobe_events"),
)
DIRECTORIES = (init.CGROUP, "/sys/fs/cgroup/cpuset", "/sys/kernel/tracing/instances")
KTHREADD = "2"


def look() -> dict[str, object]:
    """The kernel's state as far as tests change it: settings, memcgs, processes."""
    seen: dict[str, object] = {path: init.read(path) for path in FILES}
    for path in DIRECTORIES:
        with contextlib.suppress(OSError):  # not every kernel has them
            seen[path] = {entry.name for entry in os.scandir(path) if entry.is_dir()}
    seen["processes"] = {pid for pid in os.listdir("/proc") if pid.isdigit() and _user(pid)}
    return seen


@cache  # what a kernel thread is it stays, and there are many of them
def _user(pid: str) -> bool:
    """Whether it is a process of user space, or what has not been collected of one."""
    fields = init.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return bool(fields) and fields[1] != KTHREADD


def left(before: dict[str, object]) -> list[str]:
    """What is no longer as it was, by name."""
    now = look()
    return [name for name, state in before.items() if now.get(name) != state]
