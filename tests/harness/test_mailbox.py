# SPDX-License-Identifier: GPL-2.0-only
"""Pages of a guest that the host finds in the file behind its memory, and writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm import mailbox
from vm.errors import LostVM, UserError
from vm.mailbox import CHUNK, PAGE

TAG = b"sixteen bytes it"
PAGES = [5 * PAGE, 2 * PAGE, CHUNK - PAGE, CHUNK]  # out of order, and on either side of a chunk


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(CHUNK + 4 * PAGE)
        for number, at in enumerate(PAGES):
            file.seek(at)
            file.write(TAG + number.to_bytes(4, "little"))
        file.seek(PAGE + 100)
        file.write(TAG)  # the guest's own copy of the tag, not at the start of a page
    return path


def test_pages_are_found(memory: Path) -> None:
    assert mailbox.find(memory, TAG, len(PAGES)) == PAGES


def test_mail(memory: Path) -> None:
    data = bytes(range(256)) * 40  # two pages and a half
    mailbox.put(memory, PAGES, data)
    with memory.open("rb") as file:
        got = []
        for at in PAGES:
            file.seek(at)
            got.append(file.read(PAGE))
    assert b"".join(got)[: len(data)] == data
    assert got[3].startswith(TAG)


@pytest.mark.parametrize("count", [3, 5])
def test_not_all_there(memory: Path, count: int) -> None:
    with pytest.raises(LostVM, match="4 are found"):
        mailbox.find(memory, TAG, count)


def test_one_twice(memory: Path) -> None:
    with memory.open("r+b") as file:
        file.seek(3 * PAGE)
        file.write(TAG + (1).to_bytes(4, "little"))
    with pytest.raises(LostVM):
        mailbox.find(memory, TAG, 4)


def test_too_much(memory: Path) -> None:
    before = memory.read_bytes()
    with pytest.raises(UserError, match="takes 16 KiB"):
        mailbox.put(memory, PAGES, bytes(4 * PAGE + 1))
    assert memory.read_bytes() == before
