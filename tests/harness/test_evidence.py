# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's log as proof: lines recorded from kernels of several ages."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from helpers import evidence
from helpers.evidence import Inconclusive, Kill, Kmsg, Silent, Unproven, kills, splats

# 3.13: mm/oom_kill.c oom_kill_process() names the victim twice, here with a parent's child in its
# place: only the first line tells memcg from system.
OLD_SYSTEM = [
    "python3 invoked oom-killer: gfp_mask=0x280da, order=0, oom_score_adj=1000",
    "[ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name",
    "[   87]     0    87    62017    49710     128        0          1000 python3",
    "Out of memory: Kill process 87 (python3) score 1819 or sacrifice child",
    "Killed process 87 (python3) total-vm:248068kB, anon-rss:196768kB, file-rss:2072kB",
]
OLD_MEMCG = [
    "Task in /a/b killed as a result of limit of /a",
    "Memory cgroup out of memory: Kill process 91 (python3) score 1700 or sacrifice child",
    "Killed process 91 (python3) total-vm:24068kB, anon-rss:1768kB, file-rss:2072kB",
]
# 4.19
MIDDLE_SYSTEM = [
    "Out of memory: Kill process 301 (hog) score 1904 or sacrifice child",
    "Killed process 301 (hog) total-vm:248068kB, anon-rss:196768kB, file-rss:0kB, shmem-rss:0kB",
    "oom_reaper: reaped process 301 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB",
]
NEW_SYSTEM = [
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/oomtest-49-0,task=python3,pid=66,uid=0",
    "Out of memory: Killed process 66 (python3) total-vm:102964kB, anon-rss:94040kB, "
    "file-rss:4kB, shmem-rss:4kB, UID:0 pgtables:236kB oom_score_adj:1000",
]
ALLOCATING_TASK = [
    "Out of memory (oom_kill_allocating_task): Killed process 67 (python3) total-vm:102964kB, "
    "anon-rss:94040kB, file-rss:4kB, shmem-rss:4kB, UID:0 pgtables:236kB oom_score_adj:1000",
]
NEW_MEMCG = [
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/a,task_memcg=/a/b,task=python3,pid=68,uid=0",
    "Memory cgroup out of memory: Killed process 68 (python3) total-vm:18984kB, "
    "anon-rss:1812kB, file-rss:2816kB, shmem-rss:4kB, UID:0 pgtables:68kB oom_score_adj:1000",
]


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (OLD_SYSTEM, [Kill(87, memcg=False)]),
        (OLD_MEMCG, [Kill(91, memcg=True)]),
        (MIDDLE_SYSTEM, [Kill(301, memcg=False)]),
        (NEW_SYSTEM, [Kill(66, memcg=False)]),
        (ALLOCATING_TASK, [Kill(67, memcg=False)]),
        (NEW_MEMCG, [Kill(68, memcg=True)]),
        (NEW_SYSTEM + NEW_MEMCG, [Kill(66, memcg=False), Kill(68, memcg=True)]),
        (["Out of memory and no killable processes..."], []),
        (["Tasks state (memory values in pages):"], []),
        (["sysrq: Manual OOM execution"], []),
        (["a test says: Out of memory: Killed process 66 (python3)"], []),
        ([], []),
    ],
)
def test_kills(lines: list[str], found: list[Kill]) -> None:
    assert kills(lines) == found


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (NEW_SYSTEM[0], "CONSTRAINT_NONE"),
        (NEW_MEMCG[0], "CONSTRAINT_MEMCG"),
        ("oom-kill:constraint=CONSTRAINT_CPUSET,nodemask=(null)", "CONSTRAINT_CPUSET"),
        ("oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=1", "CONSTRAINT_MEMORY_POLICY"),
        (NEW_SYSTEM[1], None),
        (OLD_SYSTEM[0], None),
    ],
)
def test_constraint(line: str, name: str | None) -> None:
    match = evidence.CONSTRAINT.search(line)
    assert (match and match[1]) == name


Log = Callable[..., Kmsg]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Make a reader of recorded /dev/kmsg records; an OSError among them is raised."""

    def make(*records: bytes | OSError) -> Kmsg:
        reader = Kmsg.__new__(Kmsg)
        reader.fd, reader.lines, reader.stamps = -1, [], []
        left = [*records, BlockingIOError()]

        def read(_: int, size: int) -> bytes:
            record = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(record, OSError):
                raise record
            return record[:size]

        monkeypatch.setattr(os, "read", read)
        return reader

    return make


def test_records_lose_prefix_and_dictionary(log: Log) -> None:
    reader = log(b"3,812,5120,-;Out of memory: x; y\n SUBSYSTEM=mm\n", b"6,813,5121,c;second\n")
    assert reader.read() == ["Out of memory: x; y", "second"]
    assert reader.read() == ["Out of memory: x; y", "second"]


def test_when_a_message_was_logged(log: Log) -> None:
    reader = log(b"3,812,5120,-;first\n", b"6,813,5121,-;second\n", b"6,814,5122,-;second\n")
    reader.read()
    assert reader.when("sec") == 5121
    assert reader.when("third") is None


def test_an_overrun_log_proves_nothing(log: Log) -> None:
    reader = log(b"6,1,1,-;first\n", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    with pytest.raises(Inconclusive, match="overran"):
        reader.read()


def test_other_errors_of_the_log_are_not_swallowed(log: Log) -> None:
    with pytest.raises(OSError, match="Input/output"):
        log(OSError(errno.EIO, "Input/output error")).read()


def test_what_the_exceptions_are() -> None:
    assert issubclass(Silent, AssertionError)
    assert issubclass(Unproven, Inconclusive)
    assert not issubclass(Inconclusive, Exception)  # no except clause of a test stops it


@pytest.mark.parametrize(
    ("message", "is_one"),
    [
        ("BUG: sleeping function called from invalid context at mm/slab.h:421", True),
        ("BUG: unable to handle page fault for address: 0000000000001", True),
        ("WARNING: CPU: 0 PID: 1 at mm/memcontrol.c:3 f+0x1/0x2", True),
        ("list_del corruption. next->prev should be 1, but was 2", True),
        ("general protection fault: 0000 [#1] SMP", True),
        # What a busy host, or every kernel of that configuration, has.
        ("BUG: workqueue lockup - pool cpus=0 stuck for 31s!", False),
        ("BUG: MAX_LOCKDEP_CHAINS too low!", False),
        ("BUG: KCSAN: data-race in __mod_memcg_state / memory_stat_format", False),
        ("WARNING: timekeeping: Cycle offset (1) is larger than allowed", False),
        ("python3 says BUG: nothing", False),
    ],
)
def test_what_is_a_splat(message: str, is_one: bool) -> None:
    assert bool(splats([f"4,100,1000,-;{message}\n"])) == is_one
    assert not splats([f"12,100,1000,-;{message}\n"]), "user space has written that"
