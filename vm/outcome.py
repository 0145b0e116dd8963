# SPDX-License-Identifier: GPL-2.0-only
"""Why a machine ended as it did, in words: pure functions on what was printed and received."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Only the kernel's own lines count, at the start of a line and with its time stamp: a test may
# print anything at all.
PANIC = re.compile(r"^\[ *\d+\.\d+\](?:\[[^]]*\])? Kernel panic - not syncing: (.*)$", re.MULTILINE)
TAIL_LINES = 40
NO_BOOT = "does not boot here"


@dataclass(frozen=True)
class Crash:
    """How a test's machine was lost.

    :ivar kind: ``panic``, ``reset`` (the kernel had the machine start anew), ``hang`` (it no longer
        answers), ``stuck`` (the test hangs in it, the kernel answers), ``lost`` (QEMU ended) or
        ``worker-died``.
    :ivar reason: one sentence.
    """

    kind: str
    reason: str


def tail(console: str, lines: int = TAIL_LINES) -> str:
    """The console's last lines."""
    return "\n".join(console.rstrip().splitlines()[-lines:])


def panic(console: str) -> str | None:
    """The reason of the kernel's panic, if it panicked."""
    found = PANIC.findall(console)
    return str(found[-1]) if found else None


def lost(console: str, complaint: str) -> Crash:
    """The end of a machine that went away by itself.

    :param complaint: QEMU's last words. It has none, and ends with 0, where its guest wanted a new
        start, by a triple fault for example; that it was sent a signal it says.
    """
    reason = panic(console)
    if reason is not None:
        return Crash("panic", f"the kernel panicked: {reason}")
    if complaint == "exit status 0":
        return Crash("reset", "the kernel reset or switched off the machine, without a panic")
    return Crash("lost", f"QEMU ended: {complaint or 'no reason given'}")


def worker_died(record: dict[str, Any], console: str) -> Crash:
    """The death of the guest's pytest process."""
    status, pid = record.get("status", 0), record.get("pid")
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    if re.search(rf"Kill(?:ed)? process {pid}\b", console):
        return Crash(
            "panic", f"the kernel's OOM killer killed the harness ({how}), which is at -1000"
        )
    return Crash("worker-died", f"the harness in the guest died ({how})")


def stuck(answer: str | None, seconds: float, console: str) -> Crash:
    """A test that did not end.

    :param answer: what PID 1 answered to a ping, None if it did not.
    :param seconds: how long the test had been running.
    """
    reason = panic(console)
    if reason is not None:
        return Crash("panic", f"the kernel panicked: {reason}")
    if answer is None:
        return Crash("hang", f"the kernel hangs: no answer to a ping after {seconds:.0f} s")
    return Crash("stuck", f"the test hangs, the kernel answers ({seconds:.0f} s): {answer}")


def no_boot(kernel: str, console: str, error: str) -> str:
    """Why a kernel did not get as far as a waiting session, and how to mend it."""
    reason = panic(console)
    if not console.strip():
        why = "it printed nothing: it needs CONFIG_SERIAL_8250_CONSOLE=y (or is no x86-64 kernel)"
    elif reason and "unable to mount root" in reason.lower():
        why = "it has no initramfs: it needs CONFIG_BLK_DEV_INITRD=y"
    elif "no second serial port" in console:
        why = "it has no second serial port: it needs CONFIG_SERIAL_8250_RUNTIME_UARTS >= 2"
    elif reason and ("init" in reason.lower()):
        why = f"it cannot run PID 1 ({reason}): it needs CONFIG_BINFMT_ELF and CONFIG_BINFMT_SCRIPT"
    elif reason:
        why = f"it panicked: {reason}"
    else:
        why = f"no waiting session in time ({error or 'timeout'}); last line: {tail(console, 1)}"
    return f"{kernel} {NO_BOOT}: {why}"


def no_memcg(kernel: str, facts: dict[str, Any]) -> str:
    """Why a kernel without the v1 memory controller cannot be asked."""
    if "memory" in facts["controllers"]:
        why = "built without it: set CONFIG_MEMCG_V1=y (an option of its own since 6.11)"
    elif "cgroup_disable=memory" in facts["cmdline"]:
        why = "it is off: drop cgroup_disable=memory from the command line"
    else:
        why = "built without it: set CONFIG_MEMCG=y (and CONFIG_MEMCG_V1=y since 6.11)"
    return f"{kernel} ({facts['release']}) has no memcg v1 ({facts['memcg']}), {why}"
