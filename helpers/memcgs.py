# SPDX-License-Identifier: GPL-2.0-only
"""Memory cgroups of version 1, through cgroupspy; writes whose errno matters go by os.write."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cgroupspy.nodes import Node

from helpers.evidence import Inconclusive, meminfo

MIB = 1 << 20


def write(path: str, text: str) -> int:
    """Write a control file in one system call.

    A buffered file object would lose the errno, or tell it at close.

    :returns: 0, or the errno with which open(2) or write(2) was refused.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or -1
    try:
        os.write(fd, text.encode())
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(fd)
    return 0


def put(path: str, text: str) -> None:
    """Write a control file that must take it.

    :raises OSError: if it does not.
    """
    trouble = write(path, text)
    if trouble:
        raise OSError(trouble, os.strerror(trouble), path)


@dataclass(frozen=True)
class OomControl:
    """``memory.oom_control`` as it reads.

    :ivar oom_kill: kills of this memcg's tasks by whatever OOM (4.14, mm/memcontrol.c); None on
        older kernels.
    """

    oom_kill_disable: int
    under_oom: int
    oom_kill: int | None = None


class Memcg:
    """One memory cgroup.

    :param node: cgroupspy's node; its controller reads and writes the plain values.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.path: str = os.fsdecode(node.full_path)

    @classmethod
    def root(cls, mount: str) -> Memcg:
        """The root memcg.

        :param mount: where the v1 memory controller is mounted; the last part is ``memory``.
        """
        above, _, name = mount.rpartition("/")
        return cls(Node(name.encode(), parent=Node(above.encode())))

    def __repr__(self) -> str:
        return f"<memcg {self.path}>"

    def file(self, name: str) -> str:
        """The path of a control file."""
        return f"{self.path}/{name}"

    def child(self, name: str) -> Memcg:
        """Create a memcg below this one.

        Before 5.11 a parent's limit binds its children only with ``use_hierarchy``
        (mm/memcontrol.c), which must be set while there are none: it is set where the file
        takes it, except on the root, which refuses it on some kernels.

        :raises OSError: if the kernel refuses.
        """
        return Memcg(self.node.create_cgroup(name))

    def limit(self, size: int) -> None:
        """Set ``memory.limit_in_bytes``; -1 lifts it.

        The limit of memory and swap follows where the kernel has one: with swap, a hog at the
        former alone swaps instead of being killed.

        :param size: in bytes.
        :raises Inconclusive: if it has none, and there is swap: nobody is killed for the former.
        """
        swap = self.file("memory.memsw.limit_in_bytes")
        write(swap, "-1")  # never the lower one of the two
        put(self.file("memory.limit_in_bytes"), str(size))
        write(swap, str(size))
        if size >= 0 and not os.path.exists(swap) and meminfo("SwapTotal"):
            raise Inconclusive("no limit of memory and swap here: swapoff -a, or swapaccount=1")

    @property
    def usage(self) -> int:
        """``memory.usage_in_bytes``."""
        return int(self.node.controller.usage_in_bytes)

    @property
    def failures(self) -> int:
        """How often its limits had something refused, be it only to be tried again."""
        count = 0
        for name in ("memory.failcnt", "memory.memsw.failcnt"):
            if os.path.exists(self.file(name)):
                with open(self.file(name), encoding="ascii") as file:
                    count += int(file.read())
        return count

    def oom_control(self) -> OomControl:
        """Read ``memory.oom_control``."""
        with open(self.file("memory.oom_control"), encoding="ascii") as file:
            lines = (line.split() for line in file)
            fields = dict(line for line in lines if len(line) == 2)
        return OomControl(
            int(fields["oom_kill_disable"]),
            int(fields["under_oom"]),
            int(fields["oom_kill"]) if "oom_kill" in fields else None,
        )

    def disable_killer(self) -> None:
        """Have tasks at the limit wait instead of being killed.

        :raises Inconclusive: if the kernel refuses, which is a clause of its own.
        """
        trouble = write(self.file("memory.oom_control"), "1")
        if trouble:
            raise Inconclusive(f"{self}: its killer cannot be disabled: {os.strerror(trouble)}")

    def enable_killer(self) -> None:
        """Undo :meth:`disable_killer`."""
        put(self.file("memory.oom_control"), "0")

    def use_hierarchy(self, on: bool) -> bool:
        """Set ``memory.use_hierarchy`` (dropped in 5.11); False if the kernel does not take it."""
        return write(self.file("memory.use_hierarchy"), str(int(on))) == 0

    def attach(self, pid: int = 0) -> None:
        """Move a process in here; 0 is the caller."""
        put(self.file("cgroup.procs"), str(pid))

    def tasks(self) -> set[int]:
        """The processes in here."""
        return set(self.node.controller.procs)

    def remove(self) -> None:
        """rmdir(2) it.

        :raises OSError: if there are tasks or children in it.
        """
        os.rmdir(self.path)
        self.node.parent.children.remove(self.node)  # or cgroupspy takes the name for taken


def line(make: Callable[..., Memcg], depth: int) -> list[Memcg]:
    """Memcgs one below the other, from the top.

    :param make: makes one below root, or below the memcg it is given.
    """
    made = [make()]
    while len(made) < depth:
        made.append(make(made[-1]))
    return made
