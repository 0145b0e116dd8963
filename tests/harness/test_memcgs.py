# SPDX-License-Identifier: GPL-2.0-only
"""Control files: one write, and its errno kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from helpers.memcgs import Memcg, OomControl, put, write


@pytest.mark.parametrize(
    ("path", "trouble"),
    [
        ("/dev/null", 0),
        ("/dev/full", errno.ENOSPC),  # refused by write(2), where a buffered file says nothing
        ("/nonexistent/file", errno.ENOENT),
        ("/dev", errno.EISDIR),
        ("/dev/null/x", errno.ENOTDIR),
    ],
)
def test_write_tells_the_errno(path: str, trouble: int) -> None:
    assert write(path, "1") == trouble


def test_write_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []

    def record(_: int, data: bytes) -> int:
        calls.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", record)
    assert write("/dev/null", "3 4 argument") == 0
    assert calls == [b"3 4 argument"]


def test_write_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")
    write("/dev/full", "1")
    write("/dev/null", "1")
    assert os.listdir("/proc/self/fd") == before


def test_put_raises() -> None:
    put("/dev/null", "1")
    with pytest.raises(OSError, match="/dev/full") as caught:
        put("/dev/full", "1")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("oom_kill_disable 0\nunder_oom 1\n", OomControl(0, 1, None)),  # until 4.13
        ("oom_kill_disable 1\nunder_oom 0\noom_kill 7\n", OomControl(1, 0, 7)),
    ],
)
def test_oom_control(tmp_path: Path, text: str, read: OomControl) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text(text)
    assert Memcg.root(f"{tmp_path}/memory").oom_control() == read


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    root = Memcg.root(f"{tmp_path}/memory")
    child = root.child("a")
    assert child.path == f"{tmp_path}/memory/a"
    assert child.file("tasks") == f"{tmp_path}/memory/a/tasks"
    child.remove()
    assert not Path(child.path).exists()


def test_a_name_can_be_used_again(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    mount.mkdir()
    root = Memcg.root(str(mount))
    for _ in range(2):
        root.child("a").remove()
    root.child("a")
    assert [one.name for one in mount.iterdir()] == ["a"]
