# SPDX-License-Identifier: GPL-2.0-only
"""Child processes that use memory, forked from the worker: starting an interpreter costs more
than most tests when the machine is emulated.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from helpers import gate
from helpers.evidence import Inconclusive, available
from helpers.memcgs import MIB, Memcg, write
from helpers.patience import slices
from helpers.preflight import on_cpus

VICTIM = 1000  # oom_score_adj: before anything else on the machine
SPARED = -1000
CHUNK = 2 * MIB
ROOM = 4 * MIB  # that a child needs besides what it is to take
# Seconds, together less than a test may take on hardware (vm/dispatch.py): what does not end must
# be said before the test itself is ended.
EXIT_WAIT = 20.0
KILL_WAIT = 8.0
ROOM_WAIT = 5.0
LOOKS = 8  # at a process, each of which finds it asleep

PTRACE_SEIZE, PTRACE_O_TRACEEXIT = 0x4206, 1 << 6

_held: list[object] = []  # what a hog keeps allocated until it dies


def _take(score: int) -> None:
    """Set the caller's ``oom_score_adj``.

    A negative one needs CAP_SYS_RESOURCE, which root in a container may lack. It only spares a
    child in a system OOM; whoever may cause those has it (preflight.ready_for_system_oom()).
    """
    trouble = write("/proc/self/oom_score_adj", str(score))
    if trouble and score >= 0:
        raise OSError(trouble, os.strerror(trouble), "oom_score_adj")


def state(task: int | str) -> str:
    """What /proc says that a task does, in one letter.

    :param task: a process, or ``PID/task/TID`` for a thread.
    :raises OSError: if it is gone.
    """
    with open(f"/proc/{task}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


class Child:
    """A forked child; reaped by :meth:`wait` or :meth:`kill`.

    :param body: what it runs; it exits with 0 when that returns.
    :param memcg: where it moves itself before that, the caller's own memcg if None.
    :param score: its ``oom_score_adj``: the worker's would be inherited.
    """

    def __init__(
        self, body: Callable[[], None], memcg: Memcg | None = None, score: int = VICTIM
    ) -> None:
        self._started, started = os.pipe()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                # It must not run on into the worker's pytest, whatever happens here.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                gc.disable()  # it would touch what is not a hog's to touch at a limit
                _take(score)
                if memcg is not None:
                    memcg.attach()
                os.write(started, b".")
                body()
                code = 0
            except OSError as error:
                os.write(started, str(error).encode())
            finally:
                os._exit(code)
        os.close(started)
        said = os.read(self._started, 512)
        if said != b".":
            self.wait(EXIT_WAIT)
            why = said.decode() or f"status {self.status}"
            raise Inconclusive(f"a child could not be started in {memcg}: {why}")

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
        return self.status is None

    def _ended(self, status: int) -> None:
        self.status = os.waitstatus_to_exitcode(status)
        os.close(self._started)

    def wait(self, seconds: float = EXIT_WAIT) -> int | None:
        """Wait for its end.

        :returns: the exit status, negative for a signal; None if it still runs after ``seconds``.
        """
        for moment in slices(seconds):
            if not self.alive():
                break
            # Its end of the pipe closes as it ends, unless a child of its own keeps it open. To
            # look again and again costs an emulated hog as much time as it has itself, and memory
            # when there is none.
            if select.select([self._started], [], [], moment)[0]:
                time.sleep(0.001)
        self.alive()
        return self.status

    def asleep(self) -> bool:
        """Whether it sleeps in the kernel where only SIGKILL wakes it (state D).

        Its state is set before it is done with what it does before it sleeps; to read ``syscall``
        waits for it to leave its CPU (task_current_syscall() in lib/syscall.c, since 2.6.27).
        """
        try:
            with open(f"/proc/{self.pid}/syscall", encoding="ascii") as file:
                left = not file.read().startswith("running")
            return left and state(self.pid) == "D"
        except OSError:  # it is about to end
            return False

    def sleeps(self, seconds: float = KILL_WAIT) -> bool:
        """Wait until it is :meth:`asleep`, for some time.

        :returns: False if it ends, or does not within ``seconds``.
        """
        seen = 0
        for _ in slices(seconds):
            seen = seen + 1 if self.asleep() else 0
            if seen == LOOKS or not self.alive():
                break
            time.sleep(0.01)
        return seen == LOOKS

    def kill(self) -> None:
        """End it with SIGKILL and reap it.

        :raises AssertionError: if it does not die of that: the kernel does not let go of it.
        """
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            died = self.wait(KILL_WAIT) is not None
            assert died, f"process {self.pid} is stuck in the kernel and does not die of SIGKILL"

    def ended(self) -> int | None:
        """Wait for its end, and kill it if there is none.

        :returns: what :meth:`wait` found: None if it had to be killed.
        :raises AssertionError: as :meth:`kill` does.
        """
        status = self.wait()
        self.kill()
        return status


POPULATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE


def populate(size: int) -> None:
    """Fault ``size`` bytes in and keep them: in one system call, from within the kernel."""
    _held.append(mmap.mmap(-1, size, flags=POPULATE))


def populate_for_a_moment(size: int) -> None:
    """Fault ``size`` bytes in, or what of it can be had, and give them back at once.

    Who keeps them at a limit is stuck with the next page that it touches itself: what the second
    time touches has been touched the first time.
    """
    for part in (mmap.PAGESIZE, size):
        mmap.mmap(-1, part, flags=POPULATE).close()


def touch(size: int) -> None:
    """Fault ``size`` bytes in and keep them, by user faults.

    A memcg whose killer is disabled makes only these wait; a fault from within the kernel fails
    instead (mem_cgroup_oom(), mm/memcontrol.c).
    """
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _held.append(area)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    ctypes.memset(start, 1, size)


def wait_for_room(size: int) -> None:
    """Wait for memory that victims and hogs still have: it may take longer to go than they do.

    :param size: in bytes; what a child needs besides comes on top of it.
    """
    size += ROOM
    for _ in slices(ROOM_WAIT):
        if available() >= size:
            return
        time.sleep(0.01)


def exhaust(until: int | None = None) -> None:
    """Populate memory without end: the caller dies of it, or somebody else.

    :param until: a pipe's reading end; stop once its writers are gone.
    :raises Forbidden: unless system OOMs are allowed.
    """
    gate.require("exhausting the system's memory")
    while until is None or not select.select([until], [], [], 0)[0]:
        populate(CHUNK)


@contextmanager
def apart() -> Iterator[Callable[[], None]]:
    """Yield an :func:`exhaust` for a hog that has the first CPU to itself.

    This process, and what it starts meanwhile, stays on the last one.

    Who is told of a system OOM need not wait for who is out of memory. And whatever else wants
    memory, and tells listeners of that, does not take the CPU that whoever is dying needs: with
    nobody left to kill the system panics.

    :raises Forbidden: unless system OOMs are allowed.
    """
    gate.require("exhausting the system's memory")
    cpus = sorted(os.sched_getaffinity(0))

    def body() -> None:
        os.sched_setaffinity(0, cpus[:1])
        exhaust()

    with on_cpus(cpus[-1:]):
        yield body


def sleep_forever() -> None:
    """Wait for a signal."""
    while True:
        signal.pause()


class Bait(Child):
    """A victim that holds memory and does nothing with it.

    :param size: in bytes.
    :param idle: what it does meanwhile; does not return.
    :ivar tether: the reading end of a pipe that ends when the bait does.
    """

    def __init__(
        self,
        memcg: Memcg | None,
        size: int = 24 * MIB,
        idle: Callable[[], None] = sleep_forever,
    ) -> None:
        wait_for_room(size)
        self.tether, held = os.pipe()
        ready, tell = os.pipe()

        def body() -> None:
            populate(size)
            os.write(tell, b".")
            idle()

        try:
            super().__init__(body, memcg)
            os.close(tell)
            tell = -1
            if not os.read(ready, 1):
                raise Inconclusive("the bait died before it was needed")
        finally:
            os.close(held)
            os.close(ready)
            if tell >= 0:
                os.close(tell)


@contextmanager
def lingering(memcg: Memcg, *, doomed: bool = False) -> Iterator[int]:
    """Somebody to be killed first, who does not go before the context ends; yields his pid.

    Who is traced stops on his way out, as a victim already, with all that he has (do_exit() in
    kernel/exit.c; PTRACE_SEIZE since 3.4), until there is nobody to trace him.

    :param memcg: where he lives.
    :param doomed: whether he is on his way out from the beginning, and not for an OOM's sake.
    :raises Inconclusive: if nobody can be traced.
    """
    known, tell = os.pipe()

    def trace() -> None:
        bait = Bait(memcg, MIB)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(PTRACE_SEIZE, bait.pid, None, ctypes.c_void_p(PTRACE_O_TRACEEXIT)):
            bait.kill()
            raise OSError(ctypes.get_errno(), "ptrace")
        if doomed:
            os.kill(bait.pid, signal.SIGKILL)
            os.waitpid(bait.pid, 0)
        os.write(tell, str(bait.pid).encode())
        sleep_forever()

    try:
        tracer = Child(trace, score=SPARED)
    finally:
        os.close(tell)
    try:
        pid = os.read(known, 16)
        if not pid:
            raise Inconclusive("a victim that does not go: it cannot be traced")
        yield int(pid)
    finally:
        tracer.kill()
        os.close(known)
