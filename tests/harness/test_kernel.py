# SPDX-License-Identifier: GPL-2.0-only
"""Kernel images, good ones and files that are none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from vm.errors import USAGE, UserError
from vm.kernel import inspect

SECTORS, PARAGRAPHS = 3, 0x200


def bzimage(release: str = "6.1.192") -> bytes:
    """The least that is a whole bzImage: header, version string, the size that it tells."""
    data = bytearray((SECTORS + 1) * 512 + PARAGRAPHS * 16)
    data[0x1F1] = SECTORS
    struct.pack_into("<I", data, 0x1F4, PARAGRAPHS)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<HxxxxxxH", data, 0x206, 0x20F, 0x400)
    text = f"{release} (oomtest@oomtest) #1 SMP\0".encode()
    data[0x600 : 0x600 + len(text)] = text
    return bytes(data)


def test_good(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage("6.1.0-rc1"))
    found = inspect(image)
    assert (found.image, found.name, found.release) == (image, str(image), "6.1.0-rc1")
    assert inspect(image, "6.1/reference").name == "6.1/reference"


def test_longer_than_needed(tmp_path: Path) -> None:
    (tmp_path / "signed").write_bytes(bzimage() + b"signature")
    assert inspect(tmp_path / "signed").release == "6.1.192"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (bzimage()[:-1], "is truncated: 10239 bytes of 10240"),
        (bzimage()[:0x800], "is truncated"),
        (bzimage()[:0x210], "is not an x86 Linux kernel image"),
        (b"", "is not an x86 Linux kernel image"),
        (b"a text file\n" * 500, "is not an x86 Linux kernel image"),
        (b"\x7fELF" + bytes(4096), "give the bzImage"),
    ],
    ids=["one byte short", "truncated", "cut in the header", "empty", "text", "vmlinux"],
)
def test_not_an_image(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "image").write_bytes(content)
    refused(tmp_path / "image", told)


def refused(path: Path, told: str) -> None:
    with pytest.raises(UserError, match="image") as caught:
        inspect(path)
    assert caught.value.exit_code == USAGE
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "image", "no such kernel image")


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    refused(tmp_path / "image", "Is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "image").touch(0)
    refused(tmp_path / "image", "Permission denied")
