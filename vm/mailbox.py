# SPDX-License-Identifier: GPL-2.0-only
"""Lay data into the memory of a guest that stands still.

The serial line is all that any kernel offers, and when emulated it carries some 40 KB in a second.
But a guest's memory is a file of ours: the guest's worker puts pages up that each begin with a tag
and their number, and the host finds them in the file and writes there. No driver is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vm.errors import LostVM, UserError

PAGE = 4096
CHUNK = 8 << 20


def find(memory: Path, tag: bytes, count: int) -> list[int]:
    """Where the guest's pages lie.

    :param memory: the file behind the memory of a guest that stands still.
    :param tag: what each begins with, followed by its number in four bytes, the lowest first.
    :param count: how many there are.
    :returns: their offsets in the file, in order of their numbers.
    :raises LostVM: if they are not all there, once each.
    """
    found: list[tuple[int, int]] = []
    with memory.open("rb") as file:
        for start in range(0, os.fstat(file.fileno()).st_size, CHUNK):
            data = file.read(CHUNK)
            at = data.find(tag)
            while at >= 0:
                if at % PAGE == 0:
                    number = data[at + len(tag) : at + len(tag) + 4]
                    found.append((int.from_bytes(number, "little"), start + at))
                at = data.find(tag, at + 1)
    found.sort()
    if [number for number, _ in found] != list(range(count)):
        raise LostVM(f"of {count} pages that the guest put up for its mail, {len(found)} are found")
    return [at for _, at in found]


def put(memory: Path, pages: Sequence[int], data: bytes) -> None:
    """Write ``data`` into the guest's pages.

    :param pages: their offsets, from :func:`find`.
    :raises UserError: if it is more than goes into them.
    """
    if len(data) > len(pages) * PAGE:
        limit = len(pages) * PAGE >> 10
        raise UserError(f"the tests come to {len(data) >> 10} KiB, and a guest takes {limit} KiB")
    with memory.open("r+b") as file:
        for number, at in enumerate(pages[: -(-len(data) // PAGE)]):
            file.seek(at)
            file.write(data[number * PAGE : (number + 1) * PAGE])
