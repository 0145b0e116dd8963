# SPDX-License-Identifier: GPL-2.0-only
"""The guest's file system, read back from the archive."""

from __future__ import annotations

import importlib.util
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vm import initramfs
from vm.errors import UserError
from vm.initramfs import Archive


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    data: bytes
    rdev: tuple[int, int]


def entries(archive: bytes) -> Iterator[Entry]:
    """A reader of the newc format, written from the kernel's init/initramfs.c."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, rdev, length = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield Entry(name, mode, archive[start : start + size], rdev)
        at = (start + size + 3) & ~3


def test_small() -> None:
    archive = Archive()
    archive.directory("proc")
    archive.file("/a/b/file", b"12345", 0o755)
    archive.file("a/b/file", b"a second one of the same name")
    archive.file("a/other", b"")
    archive.link("a/link", "b/file")
    archive.node("dev/null", 0o666, 1, 3)
    data = archive.finish()
    assert len(data) % 512 == 0
    assert list(entries(data)) == [
        Entry("proc", stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("a", stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("a/b", stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("a/b/file", stat.S_IFREG | 0o755, b"12345", (0, 0)),
        Entry("a/other", stat.S_IFREG | 0o644, b"", (0, 0)),
        Entry("a/link", stat.S_IFLNK | 0o777, b"b/file", (0, 0)),
        Entry("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        Entry("dev/null", stat.S_IFCHR | 0o666, b"", (1, 3)),
    ]


@pytest.fixture(scope="module")
def built() -> dict[str, Entry]:
    """The real archive, by name; a name that comes twice is an error."""
    found: dict[str, Entry] = {}
    for entry in entries(initramfs.build()):
        assert entry.name not in found, f"twice: {entry.name}"
        found[entry.name] = entry
    return found


def test_what_the_guest_needs(built: dict[str, Entry]) -> None:
    lib = str(initramfs.STDLIB).lstrip("/")
    shebang = built["init"].data.partition(b"\n")[0].decode()
    assert shebang.startswith("#!/")
    python = shebang.removeprefix("#!/").split()[0]
    for name in (
        *("init", python, f"{lib}/os.pyc", f"{lib}/asyncio/__init__.pyc"),
        *("site/pytest/__init__.pyc", "site/_pytest/main.pyc", "site/pytest_timeout.pyc"),
        *("site/cgroupspy/nodes.pyc", "site/oomtest_guest/agent.pyc"),
        *("dev/console", "dev/kmsg", "dev/ttyS1", "proc", "sys", "suite", "tmp"),
    ):
        assert name in built
    assert stat.S_ISDIR(built["suite"].mode)
    assert stat.S_ISCHR(built["dev/ttyS1"].mode)
    assert built["dev/ttyS1"].rdev == (4, 65)
    assert built["init"].mode & 0o111
    assert built[python].data[:4] == b"\x7fELF"
    linker = [name for name in built if Path(name).name.startswith("ld-linux")]
    assert len(linker) == 1


def test_every_entry_comes_after_its_directory(built: dict[str, Entry]) -> None:
    seen: set[str] = set()
    for name in built:
        parent = str(Path(name).parent)
        assert parent in seen | {"."}
        seen.add(name)


def test_bytecode_is_this_interpreters(built: dict[str, Entry]) -> None:
    modules = [entry for name, entry in built.items() if name.endswith(".pyc")]
    assert len(modules) > 300
    assert {entry.data[:4] for entry in modules} == {importlib.util.MAGIC_NUMBER}


def test_what_stays_behind(built: dict[str, Entry]) -> None:
    lib = str(initramfs.STDLIB).lstrip("/")
    for name in ("test", "idlelib", "site-packages"):
        assert not [entry for entry in built if entry.startswith(f"{lib}/{name}/")]
    assert not [name for name in built if Path(name).stem == "conftest" or "helpers/" in name]


def test_cached(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def build() -> bytes:
        calls.append(1)
        return b"archive"

    monkeypatch.setattr(initramfs, "build", build)
    first = initramfs.path()
    assert first.read_bytes() == b"archive"
    assert first.is_relative_to(cache_dir)
    assert initramfs.path() == first
    assert len(calls) == 1


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "no_such_package", None)
    with pytest.raises(UserError, match="no_such_module is not installed"):
        initramfs._origin("no_such_module")
