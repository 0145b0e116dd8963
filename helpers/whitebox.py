# SPDX-License-Identifier: GPL-2.0-only
"""The white-box module: system OOMs that user space cannot cause, and a count of all of them.

``kmod/`` is the source; a guest is sent the module as the host has built it, in place it is made
by hand (``make -C helpers/kmod``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from dataclasses import dataclass, fields
from pathlib import Path

from helpers import gate
from helpers.memcgs import Memcg, put
from helpers.waiters import stay_resident, wait_for_a_copy

KMOD = Path(__file__).with_name("kmod")
MODULE = KMOD / "oomtest.ko"
ABSENT = KMOD / "absent"  # comes instead of the module and says why
NAME = b"oomtest"
DEVICE = "/dev/oomtest"
FINIT_MODULE = {"x86_64": 313, "aarch64": 273}  # no wrapper in the C library
EVERYTHING = 1 << 30  # blocks; more than there are

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """The module cannot be had here; the message says why, in one line."""


@dataclass(frozen=True)
class Counts:
    """What the module has counted.

    Every call of out_of_memory() for the system is counted under the first reason that it has to
    leave before a victim is looked for (mm/oom_kill.c), or else as due.

    :ivar freed: OOM notifiers had freed memory.
    :ivar dying: the allocating task will free its memory itself.
    :ivar nofs: the allocation lacks ``__GFP_FS``.
    :ivar sysrq: forced by sysrq-f; this one does look for a victim.
    :ivar due: none of these, so that listeners on root are to be signalled.
    :ivar own: how many of all these calls the allocation loop itself made.
    :ivar met: how many of them began while :meth:`Whitebox.slow` delayed somebody else's signal.
    :ivar blocks: how many the last allocation loop got.
    :ivar refused: 1 if it ended because the allocator gave up, 0 otherwise.
    """

    freed: int
    dying: int
    nofs: int
    sysrq: int
    due: int
    own: int
    met: int
    blocks: int
    refused: int

    @property
    def calls(self) -> int:
        """All calls of out_of_memory() that a system OOM made."""
        return self.freed + self.dying + self.nofs + self.due

    def since(self, before: Counts) -> Counts:
        """What has been added; ``blocks`` and ``refused`` as they are now."""
        added = {
            field.name: getattr(self, field.name) - getattr(before, field.name)
            for field in fields(self)
            if field.name not in {"blocks", "refused"}
        }
        return Counts(**added, blocks=self.blocks, refused=self.refused)


class Whitebox:
    """The module, loaded as long as this is in use.

    :raises Unavailable: if there is none, or the kernel does not take it.
    """

    def __init__(self) -> None:
        number = FINIT_MODULE.get(platform.machine())
        if not MODULE.exists() or number is None:
            raise Unavailable(_why_absent())
        fd = os.open(MODULE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.syscall(number, fd, b"", 0):
                trouble = errno.errorcode.get(ctypes.get_errno(), "?")
                raise Unavailable(f"the kernel does not load the white-box module: {trouble}")
        finally:
            os.close(fd)
        if not os.path.exists(DEVICE):
            self.unload()
            raise Unavailable(f"the white-box module has no {DEVICE}: CONFIG_DEVTMPFS=y")

    def unload(self) -> None:
        """Have the kernel forget it, if it can (CONFIG_MODULE_UNLOAD).

        :raises OSError: if it is in use.
        """
        if _libc.delete_module(NAME, os.O_NONBLOCK):
            trouble = ctypes.get_errno()
            if trouble == errno.ENOSYS:
                return
            raise OSError(trouble, os.strerror(trouble), MODULE)

    def counts(self) -> Counts:
        """All calls since it was loaded."""
        with open(DEVICE, encoding="ascii") as file:
            return Counts(**{name: int(value) for name, value in map(str.split, file)})

    def alloc(
        self,
        gfp: str,
        *,
        order: int = 0,
        blocks: int = EVERYTHING,
        context: str = "task",
        within: Memcg | None = None,
    ) -> None:
        """Allocate in the kernel and give it all back, up to the first system OOM or a refusal.

        :param gfp: ``kernel``, ``nofs``, ``nofs_account`` (charged to the caller's memcg),
            ``nofail``, ``nofs_nofail``, ``noio``, ``dma32``, ``noretry``, ``retry_mayfail`` or
            ``thisnode``.
        :param order: of each block; it has ``2 ** order`` pages.
        :param blocks: how many at most.
        :param context: who allocates: ``task``, the caller; ``dying``, the caller, who has been
            sent SIGKILL and does not come back; ``shared``, the same, but his memory is in use by
            somebody who lives on; ``dumping``, the caller, as if it dumped its core; ``thread``,
            one of the kernel's; ``worker``, one of a workqueue's.
        :param within: where the caller moves at the last moment, with nothing left that would be
            charged there.
        :raises Forbidden: unless system OOMs are allowed.
        """
        gate.require("exhausting the system's memory")
        wanted = f"alloc {gfp} {order} {blocks} {context}".encode()
        fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if within is not None:
                wait_for_a_copy()
                stay_resident()
                within.attach()
            os.write(fd, wanted)
        finally:
            os.close(fd)

    def hold(self, size: int, *, report: bool) -> None:
        """Keep memory and free it from within the next call of out_of_memory(), by a notifier.

        :param size: in bytes.
        :param report: whether the notifier tells out_of_memory(), which then has nothing to do.
        :raises OSError: if there is not so much.
        """
        put(DEVICE, f"hold {size // os.sysconf('SC_PAGE_SIZE')} {int(report)}")

    def slow(self, microseconds: int, *, everybody: bool = False) -> None:
        """Delay every eventfd's signal that comes from within out_of_memory(), and the kill.

        :param microseconds: by how much; 0 not at all.
        :param everybody: whether to delay all other signals of eventfds as well.
        """
        put(DEVICE, f"slow {microseconds} {int(everybody)}")


def _why_absent() -> str:
    """Why there is no module to load."""
    if ABSENT.exists():
        return f"no white-box module: {ABSENT.read_text().strip()}"
    return "no white-box module: make -C helpers/kmod builds it for the running kernel"
