# SPDX-License-Identifier: GPL-2.0-only
"""Why a machine ended, told from recorded consoles."""

from __future__ import annotations

from typing import Any

import pytest

from vm import outcome

BOOT = """\
[    0.000000] Linux version 6.1.192 (oomtest@oomtest) (gcc 12.2.0) #1 SMP
[    0.000000] Command line: console=ttyS0 panic=-1 rdinit=/init
"""
PANIC = (
    BOOT
    + """\
[   22.768001] Kernel panic - not syncing: sysrq triggered crash
[   22.768655] CPU: 0 PID: 57 Comm: python3 Not tainted 6.1.192 #1
[   22.777851] Kernel Offset: disabled
"""
)
# CONFIG_PRINTK_CALLER puts the task between time stamp and text.
PANIC_CALLER = "[   22.768001][   T57] Kernel panic - not syncing: Fatal exception\n"
PANIC_ON_OOM = (
    "[    9.1] Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled\n"
)
TEST_SAYS_SO = (
    BOOT
    + """\
Kernel panic - not syncing: printed by a test
a test: [    1.000000] Kernel panic - not syncing: printed by a test
[   12.345678] oomtest: Kernel panic - not syncing: written to /dev/kmsg
"""
)
HARNESS_KILLED = BOOT + (
    "[   31.5] Out of memory: Killed process 49 (python3) total-vm:102964kB, anon-rss:94040kB\n"
)
OLD_HARNESS_KILLED = "[   31.5] Out of memory: Kill process 49 (python3) score 1 or sacrifice\n"
NO_ROOT = BOOT + (
    "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
)
NO_INIT = BOOT + ("[    1.2] Kernel panic - not syncing: Requested init /init failed (error -8).\n")
NO_PORT = BOOT + "oomtest: /dev/ttyS1: EIO: this kernel has no second serial port\n"
EARLY = BOOT + "[    0.1] Kernel panic - not syncing: Attempted to kill the idle task!\n"


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        ("", None),
        (BOOT, None),
        (PANIC, "sysrq triggered crash"),
        (PANIC_CALLER, "Fatal exception"),
        (PANIC_ON_OOM, "Out of memory: system-wide panic_on_oom is enabled"),
        (TEST_SAYS_SO, None),
        (TEST_SAYS_SO + PANIC, "sysrq triggered crash"),
    ],
)
def test_panic(console: str, reason: str | None) -> None:
    assert outcome.panic(console) == reason


@pytest.mark.parametrize(
    ("console", "complaint", "kind", "told"),
    [
        (PANIC, "exit status 0", "panic", "the kernel panicked: sysrq triggered crash"),
        (TEST_SAYS_SO, "exit status -9", "lost", "QEMU ended: exit status -9"),
        (BOOT, "", "lost", "no reason given"),
        (BOOT, "exit status 0", "reset", "reset or switched off the machine"),
        (BOOT, "qemu: terminating on signal 15 from pid 9 (sh)", "lost", "signal 15"),
    ],
)
def test_lost(console: str, complaint: str, kind: str, told: str) -> None:
    crash = outcome.lost(console, complaint)
    assert crash.kind == kind
    assert told in crash.reason


@pytest.mark.parametrize(
    ("record", "console", "kind", "told"),
    [
        ({"pid": 49, "status": -9}, HARNESS_KILLED, "panic", "OOM killer killed the harness"),
        ({"pid": 49, "status": -9}, OLD_HARNESS_KILLED, "panic", "OOM killer killed the harness"),
        ({"pid": 49, "status": -9}, BOOT, "worker-died", "died (signal 9)"),
        ({"pid": 4, "status": -9}, HARNESS_KILLED, "worker-died", "died (signal 9)"),
        ({"pid": 49, "status": 3}, BOOT, "worker-died", "died (exit status 3)"),
    ],
)
def test_worker_died(record: dict[str, Any], console: str, kind: str, told: str) -> None:
    crash = outcome.worker_died(record, console)
    assert crash.kind == kind
    assert told in crash.reason


@pytest.mark.parametrize(
    ("answer", "console", "kind", "told"),
    [
        (None, BOOT, "hang", "no answer to a ping after 80 s"),
        ("tasks pid:state:wchan 57:R:-", BOOT, "stuck", "57:R:-"),
        (None, PANIC, "panic", "sysrq triggered crash"),
    ],
)
def test_stuck(answer: str | None, console: str, kind: str, told: str) -> None:
    crash = outcome.stuck(answer, 80.4, console)
    assert crash.kind == kind
    assert told in crash.reason


@pytest.mark.parametrize(
    ("console", "error", "told"),
    [
        ("", "", "CONFIG_SERIAL_8250_CONSOLE=y"),
        ("\n  \n", "QEMU ended at once", "CONFIG_SERIAL_8250_CONSOLE=y"),
        (NO_ROOT, "", "CONFIG_BLK_DEV_INITRD=y"),
        (NO_PORT, "", "CONFIG_SERIAL_8250_RUNTIME_UARTS"),
        (NO_INIT, "", "CONFIG_BINFMT_SCRIPT"),
        (EARLY, "", "it panicked: Attempted to kill the idle task!"),
        (BOOT, "the line closed", "no waiting session in time (the line closed); last line: "
         "[    0.000000] Command line"),
        (BOOT, "", "(timeout)"),
    ],
)  # fmt: skip
def test_no_boot(console: str, error: str, told: str) -> None:
    text = outcome.no_boot("KERNEL", console, error)
    assert text.startswith("KERNEL does not boot here: ")
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("controllers", "cmdline", "told"),
    [
        (["cpuset", "memory"], "quiet", "CONFIG_MEMCG_V1=y"),
        (["cpuset"], "quiet", "CONFIG_MEMCG=y"),
        (["cpuset"], "quiet cgroup_disable=memory", "drop cgroup_disable=memory"),
    ],
)
def test_no_memcg(controllers: list[str], cmdline: str, told: str) -> None:
    facts = {
        "controllers": controllers,
        "cmdline": cmdline,
        "release": "6.12.1",
        "memcg": "Invalid argument",
    }
    text = outcome.no_memcg("KERNEL", facts)
    assert text.startswith("KERNEL (6.12.1) has no memcg v1")
    assert told in text


def test_tail() -> None:
    console = "".join(f"line {n}\n" for n in range(100)) + "\n\n"
    assert outcome.tail(console).splitlines() == [f"line {n}" for n in range(60, 100)]
    assert outcome.tail(console, 1) == "line 99"
    assert outcome.tail("") == ""
