# SPDX-License-Identifier: GPL-2.0-only
"""Before tests run in place: is this a machine they can run on, and what must be put back."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator

from helpers.memcgs import put, write

STANDARD = "/sys/fs/cgroup/memory"


class Unfit(Exception):
    """The machine cannot run the suite; the message says what is missing and how to mend it."""


def find_mount(mountinfo: str, controller: str = "memory") -> str | None:
    """Where a v1 controller is mounted.

    :param mountinfo: the text of /proc/self/mountinfo.
    :param controller: its name.
    :returns: a directory of that name that shows the root cgroup, or None.
    """
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.partition(" ")
        fields = left.split()
        whole = fields[3] == "/" and fields[4].endswith(f"/{controller}")
        if whole and kind == "cgroup" and re.search(rf"\b{controller}\b", options.split()[-1]):
            return fields[4]
    return None


def _missing(controllers: str, cmdline: str, trouble: int) -> str:
    """Why no v1 memory controller can be mounted."""
    row = re.search(r"^memory\s+(\d+)\s+\d+\s+(\d)", controllers, re.MULTILINE)
    if row is None:
        return "this kernel has no memory controller: it needs CONFIG_MEMCG=y"
    if row[2] == "0" or "cgroup_disable=memory" in cmdline:
        return "the memory controller is off: boot without cgroup_disable=memory"
    if trouble == errno.EBUSY:
        return (
            "the memory controller belongs to cgroup v2 here: boot with "
            "systemd.unified_cgroup_hierarchy=0, or use a guest: ./oomtest run"
        )
    return (
        f"memcg v1 cannot be mounted ({os.strerror(trouble)}): "
        "since 6.11 it needs CONFIG_MEMCG_V1=y"
    )


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


@contextlib.contextmanager
def mounted() -> Iterator[str]:
    """A mount of the v1 memory controller, maybe one of several.

    :raises OSError: if it cannot be mounted; EBUSY if something is still in use at the end, in
        which case it is detached.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="oomtest-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103  the modes of what is mounted decide
        target = f"{directory}/memory"
        os.mkdir(target)
        if libc.mount(b"cgroup", target.encode(), b"cgroup", 0, b"memory"):
            raise OSError(ctypes.get_errno(), "mounting memcg v1")
        try:
            yield target
        finally:
            if libc.umount(target.encode()):
                trouble = ctypes.get_errno()
                libc.umount2(target.encode(), 2)  # MNT_DETACH
                raise OSError(trouble, os.strerror(trouble), target)


@contextlib.contextmanager
def memory_controller() -> Iterator[str]:
    """The v1 memory controller's directory, mounted for the duration if it is not mounted.

    :raises Unfit: if the caller is not root or there is no such controller to be had.
    """
    if os.geteuid() != 0:
        raise Unfit("--here needs root: run it with sudo, or use a guest: ./oomtest run")
    found = find_mount(_text("/proc/self/mountinfo"))
    if found:
        yield found
        return
    with contextlib.ExitStack() as stack:
        try:
            target = stack.enter_context(mounted())
        except OSError as error:
            missing = _missing(_text("/proc/cgroups"), _text("/proc/cmdline"), error.errno or 0)
            raise Unfit(missing) from None
        yield target


@contextlib.contextmanager
def on_cpus(cpus: Iterable[int]) -> Iterator[None]:
    """Have this process run on these CPUs alone, for the duration."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """Set a sysctl for the duration.

    :param name: as under /proc/sys, with slashes.
    :raises OSError: if the kernel does not have it.
    """
    path = f"/proc/sys/{name}"
    before = _text(path).strip()
    # kernel.printk_devkmsg is refused without the newline (kernel/printk/printk.c).
    put(path, f"{value}\n")
    try:
        yield
    finally:
        put(path, f"{before}\n")


@contextlib.contextmanager
def markers_in_the_log() -> Iterator[None]:
    """Let every marker through to the kernel's log: by default ten in five seconds are (4.10)."""
    try:
        limited = _text("/proc/sys/kernel/printk_devkmsg").strip() == "ratelimit"
    except FileNotFoundError:
        limited = False
    with sysctl("kernel/printk_devkmsg", "on") if limited else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def ready_for_system_oom() -> Iterator[None]:
    """Keep the caller from being the victim, and mmap from refusing what should cause the OOM."""
    before = _text("/proc/self/oom_score_adj").strip()
    if write("/proc/self/oom_score_adj", "-1000"):
        raise Unfit("--allow-system-oom needs CAP_SYS_RESOURCE, to keep pytest from being killed")
    try:
        # With the default heuristic mmap says ENOMEM first (mm/util.c); 3.13 always does.
        with sysctl("vm/overcommit_memory", "1"):
            yield
    finally:
        put("/proc/self/oom_score_adj", before)
