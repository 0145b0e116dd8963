# SPDX-License-Identifier: GPL-2.0-only
"""A kernel image: is it one, is it whole, which release."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from vm.errors import UserError

# Documentation/arch/x86/boot.rst (x86/boot.rst before 6.5): the setup header.
MAGIC_AT, SECTS_AT, SIZE_AT, VERSION_AT, PROTOCOL_AT = 0x202, 0x1F1, 0x1F4, 0x20E, 0x206


@dataclass(frozen=True)
class Kernel:
    """An image that can be booted.

    :ivar image: the bzImage.
    :ivar name: how the user named it: a path, or ``SERIES/FLAVOUR``.
    :ivar release: as ``uname -r`` will say, from the image's header.
    :ivar build: its build directory, to build modules against, if it is known.
    """

    image: Path
    name: str
    release: str
    build: Path | None = None


def inspect(path: Path, name: str = "") -> Kernel:
    """Look at an image.

    :param path: what should be a bzImage; a link ``build`` beside it leads to where it was built.
    :param name: how to call it; the path if empty.
    :returns: the kernel.
    :raises UserError: if there is no such file, or it is not a whole x86 bzImage.
    """
    try:
        with path.open("rb") as file:
            head = file.read(0x10000)
            size = file.seek(0, 2)
    except FileNotFoundError:
        raise UserError(f"no such kernel image: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if head[:4] == b"\x7fELF":
        raise UserError(
            f"{path} is an ELF file (vmlinux?): give the bzImage (arch/x86/boot/bzImage)"
        )
    if len(head) < 0x260 or head[MAGIC_AT : MAGIC_AT + 4] != b"HdrS":
        raise UserError(f"{path} is not an x86 Linux kernel image (bzImage)")
    sectors = head[SECTS_AT] or 4
    (paragraphs,) = struct.unpack_from("<I", head, SIZE_AT)
    wanted = (sectors + 1) * 512 + paragraphs * 16
    if size < wanted:
        raise UserError(f"{path} is truncated: {size} bytes of {wanted}; copy it again")
    (at,) = struct.unpack_from("<H", head, VERSION_AT)
    text = head[at + 0x200 :].partition(b"\0")[0].decode(errors="replace") if at else ""
    build = path.resolve().with_name("build")
    return Kernel(
        path.resolve(),
        name or str(path),
        text.partition(" ")[0] or "unknown",
        build if build.is_symlink() and build.is_dir() else None,
    )
