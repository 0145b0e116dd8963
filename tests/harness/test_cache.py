# SPDX-License-Identifier: GPL-2.0-only
"""The cache: files appear whole or not at all, and a full disk is one line."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.harness.conftest import ROOT
from vm import cache, initramfs, snapshot
from vm.errors import INCONCLUSIVE, HostError
from vm.profiles import PROFILES


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path))
    assert cache.cache_dir() == tmp_path
    monkeypatch.delenv("OOMTEST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "oomtest"


def test_atomic(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with cache.atomic(target) as scratch:
        scratch.write_text("whole")
        assert not target.exists()
        assert scratch.parent == target.parent  # a rename between file systems is none
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_leaves_nothing_on_error(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(error), cache.atomic(target) as scratch:
        scratch.write_text("half")
        raise error
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(HostError) as caught, cache.disk_full(tmp_path):
        raise OSError(number, "x")
    assert caught.value.exit_code == INCONCLUSIVE
    assert f"no space left for {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), cache.disk_full(tmp_path):
        raise PermissionError(errno.EACCES, "x")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    where = tmp_path / "tiny"
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_really_full_disk(tiny: Path) -> None:
    with (
        pytest.raises(HostError, match=r"no space left for .*/tiny/file: free some"),
        cache.atomic(tiny / "file") as scratch,
    ):
        scratch.write_bytes(bytes(1 << 17))
    assert os.listdir(tiny) == []
    with cache.atomic(tiny / "file") as scratch:
        scratch.write_bytes(bytes(1 << 12))
    assert os.listdir(tiny) == ["file"]


def test_lock_is_a_lock(cache_dir: Path) -> None:
    def free() -> bool:
        command = ["flock", "-n", str(cache_dir / "locks" / "one.lock"), "true"]
        return subprocess.run(command, check=False).returncode == 0

    with cache.locked("one"), cache.locked("other"):
        assert not free()
    assert free()


def test_size_and_clean(cache_dir: Path) -> None:
    assert cache.size() == 0
    (cache_dir / "images").mkdir(parents=True)
    (cache_dir / "images" / "a").write_bytes(os.urandom(1 << 16))
    with (cache_dir / "images" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert 1 << 16 <= cache.size() < 1 << 20
    cache.clean()
    assert not cache_dir.exists()
    cache.clean()


def test_clean_leaves_what_is_not_ours(cache_dir: Path) -> None:
    for name in (*cache.CONTENT, "photographs"):
        (cache_dir / name).mkdir(parents=True)
    cache.clean()
    assert os.listdir(cache_dir) == ["photographs"]


def test_all_that_is_cached_is_known() -> None:
    used = {
        name
        for path in (ROOT / "vm").glob("*.py")
        for name in re.findall(r'cache_dir\(\)\)? / "([^"]+)"', path.read_text())
    }
    assert used <= {*cache.CONTENT}
    assert {"snapshots", "rejected-by.json"} <= used


def elsewhere(expression: str) -> subprocess.Popen[str]:
    """Evaluate something in a process of its own, which lives until its input ends."""
    imports = "import sys; from pathlib import Path; from vm import cache"
    script = f"{imports}; print({expression}, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in {"True", "None"}
    return process


@pytest.mark.parametrize("hold", [cache.hold, None], ids=["here", "elsewhere"])
def test_what_is_held_is_not_forgotten(tmp_path: Path, hold: Callable[[Path], bool] | None) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    if hold:
        assert hold(kept)
        elsewhere(f"cache.forget(Path({str(kept)!r}))").communicate()
    else:
        with elsewhere(f"cache.hold(Path({str(kept)!r}))") as holder:
            cache.forget(kept)
            holder.communicate()
    assert (kept / "file").exists()
    if not hold:  # nobody holds it any more
        cache.forget(kept)
        assert os.listdir(tmp_path) == []


def test_what_is_not_there_is_neither_held_nor_forgotten(tmp_path: Path) -> None:
    cache.forget(tmp_path / "nothing")
    assert not cache.hold(tmp_path / "nothing")


def test_only_old_layers_that_nobody_holds_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "KEEP", 2)
    for age, name in enumerate(("held", "old", "older", "young", "youngest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state").touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "no layer").mkdir()
    assert cache.hold(tmp_path / "held")
    snapshot._prune(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["held", "no layer", "young", "youngest"]


def test_what_the_dead_left_behind_is_deleted(tmp_path: Path) -> None:
    now = time.time()
    for name, age in ((".new-stale", snapshot.LEFT + 60), (".new-made", 60), ("layer", 1e6)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now, now - age))
    snapshot._prune(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".new-made", "layer"]


def test_the_layer_below_is_as_young_as_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path))
    monkeypatch.setattr(initramfs, "path", lambda: tmp_path / "initramfs")
    monkeypatch.setattr(snapshot, "_digest", lambda *_: "key")
    monkeypatch.setattr(snapshot, "_file_digest", lambda _: "image")
    layers = [tmp_path / "snapshots" / f"key-{name}" for name in ("base", "suite")]
    for layer in layers:
        layer.mkdir(parents=True)
        (layer / "state").touch()
        os.utime(layer, (1, 1))
    kernel, suite = SimpleNamespace(image=tmp_path / "bzImage"), SimpleNamespace(key="suite")
    asyncio.run(snapshot.prepare(kernel, PROFILES["default"], "tcg", suite, print))  # type: ignore[arg-type]
    assert all(layer.stat().st_mtime > 1 for layer in layers)
