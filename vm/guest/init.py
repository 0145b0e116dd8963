# SPDX-License-Identifier: GPL-2.0-only
"""PID 1 of the guest: mounts, a worker that runs pytest, and a line to the host.

Imports nothing of the host's side. The console has ``ttyS0`` to itself; JSON lines travel over
``ttyS1``. PID 1 alone reads that line: it answers pings itself, so that the host can tell a hung
test from a hung kernel, and hands everything else to the worker through a pipe. The worker writes
its records straight to the line.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import termios
import time
from typing import Any

CGROUP = "/sys/fs/cgroup/memory"
PORT = "/dev/ttyS1"

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, where: str, options: str = "") -> int:
    """Mount a pseudo file system; returns 0 or an errno, since some kernels lack some of them."""
    os.makedirs(where, exist_ok=True)
    failed = libc.mount(kind.encode(), where.encode(), kind.encode(), 0, options.encode())
    return ctypes.get_errno() if failed else 0


def write(path: str, text: str) -> bool:
    """Write a control file in one call; False where the kernel has no such file or value."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def read(path: str) -> str:
    """The text of a small file, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def say(port: int, event: str, **fields: Any) -> None:
    """Send one record. One write(2): the tty keeps it whole, the worker writes here as well."""
    line = json.dumps({"event": event, **fields}).encode() + b"\n"
    while line:
        line = line[os.write(port, line) :]


def open_port() -> int:
    """Open the second serial port as a plain byte pipe."""
    fd = os.open(PORT, os.O_RDWR | os.O_NOCTTY)
    mode = termios.tcgetattr(fd)
    mode[0] = mode[1] = mode[3] = 0
    mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    mode[4] = mode[5] = termios.B115200
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    return fd


def prepare() -> dict[str, Any]:
    """Mount what the suite needs and describe the kernel that was found."""
    for kind, where, options in (
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("tmpfs", "/tmp", ""),  # noqa: S108  the guest is ours alone
        ("tracefs", "/sys/kernel/tracing", ""),
    ):
        if kind != "tracefs" or os.path.isdir(where):
            mount(kind, where, options)
    # v1 controllers need a directory that sysfs offers only where cgroups are built in.
    mount("tmpfs", "/sys/fs/cgroup", "mode=755")
    trouble = mount("cgroup", CGROUP, "memory")
    mount("cgroup", "/sys/fs/cgroup/cpuset", "cpuset")
    # The boot is told on the console, for whoever must know why there is none. After it a line
    # costs a trap for each character, and the log has it. A panic raises the level by itself.
    write("/proc/sys/kernel/printk", "4")
    # With the default heuristic, mmap refuses what would have caused the OOM (mm/util.c).
    write("/proc/sys/vm/overcommit_memory", "1")
    # Since 6.7 a CPU may keep many MiB of free pages to itself, and it is not asked for them when
    # nothing can be reclaimed (__alloc_pages_direct_reclaim(), mm/page_alloc.c).
    write("/proc/sys/vm/percpu_pagelist_high_fraction", "1000")
    # Since 5.0 a zone may keep some MiB more than its minimum for a while, which nothing tells of
    # (boost_watermark(), mm/page_alloc.c).
    write("/proc/sys/vm/watermark_boost_factor", "0")
    # Whoever moves a process into a memcg waits for a grace period of RCU, a matter of ticks
    # (percpu_down_write(), kernel/locking/percpu-rwsem.c). call_rcu() is as before.
    write("/sys/kernel/rcu_expedited", "1")
    return {
        "release": os.uname().release,
        "version": os.uname().version,
        "cmdline": read("/proc/cmdline").strip(),
        "memcg": os.strerror(trouble) if trouble else "",
        "controllers": [line.split()[0] for line in read("/proc/cgroups").splitlines()[1:]],
    }


def harden() -> None:
    """Keep the worker out of the OOM killer's reach and in memory."""
    write("/proc/self/oom_score_adj", "-1000")
    mcl_current, mcl_future, mcl_onfault = 1, 2, 4
    if libc.mlockall(mcl_current | mcl_future | mcl_onfault):
        libc.mlockall(mcl_current)  # MCL_ONFAULT is 4.4's


def worker(port: int, commands: int) -> None:
    """The process that runs pytest; never returns."""
    status = 1
    try:
        os.setsid()
        from oomtest_guest import agent  # noqa: PLC0415  only after the fork, PID 1 stays small

        agent.serve(port, commands)
        status = 0
    except BaseException:  # PID 1's child has nobody to raise to
        import traceback  # noqa: PLC0415

        say(port, "fault", text=traceback.format_exc())
    finally:
        os._exit(status)


def autopsy(pid: int) -> str:
    """Where a worker is stuck: its state and, where the kernel tells, its kernel stack."""
    where = f"/proc/{pid}"
    tasks = []
    for entry in sorted(os.listdir("/proc")):
        if entry.isdigit() and read(f"/proc/{entry}/cmdline"):
            fields = read(f"/proc/{entry}/stat").rpartition(")")[2].split()
            state = fields[0] if fields else "?"
            tasks.append(f"{entry}:{state}:{read(f'/proc/{entry}/wchan') or '-'}")
    return f"{read(where + '/stack')}tasks pid:state:wchan {' '.join(tasks)}"


def serve(port: int, child: int, to_worker: int) -> None:
    """Forward the host's lines, answer its pings, tell it when the worker dies; forever."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    while True:
        ready, _, _ = select.select([port, wake_r], [], [])
        if wake_r in ready:
            os.read(wake_r, 512)
            reap(port, child)
        if port not in ready:
            continue
        pending += os.read(port, 65536)
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            if b'"ping"' in line[:20]:
                say(port, "pong", text=autopsy(child))
                continue
            with contextlib.suppress(BrokenPipeError):  # of a dead worker, as reap() has said
                os.write(to_worker, line + b"\n")


def reap(port: int, child: int) -> None:
    """Collect orphans; a dead worker is news."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            say(port, "worker-died", pid=pid, status=os.waitstatus_to_exitcode(status))


def shell() -> None:
    """Give the console to a shell and switch the machine off when it ends."""
    child = os.fork()
    if child == 0:
        os.setsid()
        console = os.open("/dev/ttyS0", os.O_RDWR)  # becomes the controlling terminal
        for fd in range(3):
            os.dup2(console, fd)
        os.execv("/bin/busybox", ["-sh"])  # noqa: S606  a login shell reads /etc/profile
    while os.wait()[0] != child:
        pass
    os.sync()
    libc.reboot(0x4321FEDC)  # RB_POWER_OFF


def main() -> None:
    """Bring the guest up and serve the host until the machine is thrown away."""
    facts = prepare()
    if "oomtest.shell" in facts["cmdline"]:
        shell()
    try:
        port = open_port()
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "?")
        print(f"oomtest: {PORT}: {reason}: this kernel has no second serial port", flush=True)
        while True:
            signal.pause()
    say(port, "hello", clock=time.monotonic(), **facts)
    commands, to_worker = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_worker)
        worker(port, commands)
    os.close(commands)
    write("/proc/self/oom_score_adj", "-1000")
    serve(port, child, to_worker)
