# SPDX-License-Identifier: GPL-2.0-only
"""What differs between kernels, in one place: tests ask here and compare no versions.

The kernel is asked itself where it can be, since vendors carry changes back; the versions in the
table are mainline's. The code is in mm/memcontrol.c, since 6.11 in mm/memcontrol-v1.c. What no
test has to ask about:

- Page faults that ran out of memory call out_of_memory() themselves until 5.15
  (pagefault_out_of_memory(), mm/oom_kill.c); since then they are tried again.
- Since 6.12 the log says once of each file of v1 that it "is deprecated". That is no complaint.
- A line beginning with "oom-kill:" sums each OOM up in the log since 5.0.
- /proc/vmstat has oom_kill since 4.13.
- cgroup.event_control is there for anybody to write until 6.12, for root in 7.3.
- PREEMPT_RT refuses every registration with EOPNOTSUPP since 5.18.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.triggers import remove

LRU_GEN = "/sys/kernel/mm/lru_gen"


def release() -> tuple[int, int]:
    """Version and patch level of the running kernel, for what cannot be asked otherwise."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def _flat(root: Memcg) -> bool:
    scratch = root.child(f"oomtest-flat-{os.getpid()}")
    try:
        return scratch.use_hierarchy(False)
    finally:
        scratch.remove()


def _registers(root: Memcg) -> bool:
    """Asked of a child: a port that refuses root alone is another matter.

    Only of PREEMPT_RT is a refusal believed.
    """
    if "PREEMPT_RT" not in os.uname().version:
        return True
    scratch, listener = root.child(f"oomtest-registers-{os.getpid()}"), Listener("registers")
    try:
        return listener.refused(scratch) != errno.EOPNOTSUPP
    finally:
        listener.close()
        remove(scratch)


def _quarantine() -> bool:
    """Whether what is freed is, or may be, kept from use for a while (mm/kasan/quarantine.c)."""
    try:
        with open("/proc/kallsyms", encoding="ascii") as file:
            return any(line.endswith(" kasan_quarantine_put\n") for line in file)
    except FileNotFoundError:
        return True


@dataclass(frozen=True)
class Difference:
    """Something that not every kernel has.

    :ivar versions: the mainline kernels that have it.
    :ivar ask: given the root memcg, whether this one has it.
    """

    versions: str
    ask: Callable[[Memcg], bool]


DIFFERENCES = {
    "a memory.use_hierarchy that can be cleared": Difference("until 5.10", _flat),
    "oom_kill in memory.oom_control": Difference(
        "since 4.14", lambda root: root.oom_control().oom_kill is not None
    ),
    "a killer that can be disabled at any depth": Difference(
        "since 3.16", lambda root: release() >= (3, 16)
    ),
    # Before, a charge that is no user fault's just fails (mem_cgroup_oom(), mm/memcontrol.c).
    "memcg OOMs of the kernel's own charges": Difference(
        "since 4.19", lambda root: release() >= (4, 19)
    ),
    "registration of eventfds": Difference("all but PREEMPT_RT, since 5.18", _registers),
    # In 5.10 a notifier that has freed memory is enough (out_of_memory(), mm/oom_kill.c).
    "a sysrq-f that no OOM notifier keeps from killing": Difference(
        "since 6.1 at the latest", lambda root: release() >= (6, 1)
    ),
    # Before, its order is 0, and vm.panic_on_oom is for it as well, as is the panic where there is
    # nobody to kill (out_of_memory(), mm/oom_kill.c).
    "a sysrq-f that never panics": Difference("since 4.3", lambda root: release() >= (4, 3)),
    # In between it counts those below as well (memcg_memory_event(), linux/memcontrol.h).
    "an oom_kill of each memcg alone": Difference(
        "4.14 to 5.1, since 5.7",
        lambda root: root.oom_control().oom_kill is not None and not (5, 2) <= release() <= (5, 6),
    ),
    # Before, nobody else is killed as long as a victim has not gone (mm/oom_kill.c).
    "an OOM reaper": Difference("since 4.6", lambda root: release() >= (4, 6)),
    "an OOM killer that helps out who was killed already": Difference(
        "since 4.8",
        lambda root: release() >= (4, 8),  # task_will_free_mem(), mm/oom_kill.c
    ),
    "an allocator that has back at once what is freed": Difference(
        "all but KASAN's", lambda root: not _quarantine()
    ),
    "MGLRU": Difference(
        "since 6.1, CONFIG_LRU_GEN", lambda root: os.path.exists(f"{LRU_GEN}/min_ttl_ms")
    ),
}


def has(what: str, root: Memcg) -> bool:
    """Whether this kernel has it.

    :param what: a key of :data:`DIFFERENCES`.
    """
    return DIFFERENCES[what].ask(root)


def need(what: str, root: Memcg) -> None:
    """Skip the test unless this kernel has it.

    :param what: a key of :data:`DIFFERENCES`.
    """
    if not has(what, root):
        pytest.skip(f"this kernel lacks {what} ({DIFFERENCES[what].versions})")
