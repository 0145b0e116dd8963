# SPDX-License-Identifier: GPL-2.0-only
"""The guest's file system: the host's Python, trimmed, with pytest and PID 1, as a cpio archive.

Nothing of the suite is in here: that is sent to the running guest, so that a changed test needs no
new boot. Modules travel as bytecode without their source, which halves the archive and spares the
guest the compiling.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vm import cache
from vm.errors import UserError

HERE = Path(__file__).parent
STDLIB = Path(sysconfig.get_path("stdlib"))
# Whole packages of the standard library that neither pytest nor a test of a kernel imports.
UNUSED = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"),
        *("pydoc_data", "sqlite3", "dbm", "curses", "wsgiref", "xmlrpc", "msilib"),
        *(
            "venv",
            "site-packages",
            "dist-packages",
            "__pycache__",
            "lib-dynload",
            "turtle.py",
            "zoneinfo",
        ),
        *("antigravity.py", "this.py"),
    )
)
UNUSED_SO = re.compile(
    "_test|xx|_tkinter|_sqlite|_curses|_dbm|_gdbm|readline|nis|ossaudio|audioop|"
    "_ssl|_hashlib|_codecs_|_decimal"
)
# What the guest imports of the host's site-packages, by import name.
PACKAGES = (
    *("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py"),
    *("pytest_timeout", "cgroupspy"),
)
# pytest highlights Python and diffs; pygments' hundreds of other lexers stay behind.
LEXERS = frozenset({"__init__.py", "_mapping.py", "python.py", "diff.py"})
INIT = """\
#!{python} -IS
import sys
sys.path[:0] = ["/site"]
from oomtest_guest.init import main
main()
"""
NODES = {
    "console": (0o600, 5, 1),
    "null": (0o666, 1, 3),
    "zero": (0o666, 1, 5),
    "urandom": (0o666, 1, 9),
    "kmsg": (0o600, 1, 11),
    "ttyS0": (0o600, 4, 64),
    "ttyS1": (0o600, 4, 65),
}


class Archive:
    """A cpio archive in the ``newc`` format that the kernel unpacks (init/initramfs.c)."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.known: set[str] = set()
        self.inode = 0

    def _entry(
        self, name: str, mode: int, data: bytes = b"", rdev: tuple[int, int] = (0, 0)
    ) -> None:
        self.inode += 1
        raw = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self.chunks.append(header + raw + bytes(-(len(header) + len(raw)) % 4))
        self.chunks.append(data + bytes(-len(data) % 4))

    def parents(self, name: str) -> None:
        """Add the directories above ``name``."""
        for parent in reversed(Path(name).parents[:-1] if name else []):
            if str(parent) not in self.known:
                self.known.add(str(parent))
                self._entry(str(parent), stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file; a second one of the same name is ignored."""
        name = name.lstrip("/")
        if name in self.known:
            return
        self.parents(name)
        self.known.add(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, name: str) -> None:
        """Add an empty directory."""
        self.parents(name.lstrip("/") + "/x")

    def node(self, name: str, mode: int, major: int, minor: int) -> None:
        """Add a character device."""
        self.parents(name)
        self._entry(name, stat.S_IFCHR | mode, rdev=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", 0)
        data = b"".join(self.chunks)
        return data + bytes(-len(data) % 512)


def interpreter() -> Path:
    """The real binary behind the one that runs this, virtual environments looked through."""
    return Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


def _libraries(*binaries: Path) -> Iterator[Path]:
    """The shared libraries of binaries, as the dynamic linker of this host finds them."""
    command = ["ldd", *map(str, binaries)]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    for match in re.finditer(r"(?:=> )?(/\S+) \(0x", listing.stdout):
        yield Path(match[1])


def _stripped(binary: Path) -> bytes:
    """A binary without its symbols where the host can do that: they would fill guest memory."""
    strip = shutil.which("strip")
    with tempfile.NamedTemporaryFile() as scratch:
        if (
            strip
            and not subprocess.run(
                [strip, "-o", scratch.name, str(binary)], capture_output=True, check=False
            ).returncode
        ):
            return Path(scratch.name).read_bytes()
    return binary.read_bytes()


def _bytecode(source: Path) -> bytes:
    """The module's bytecode: the host's own cached one where there is one."""
    cached = Path(importlib.util.cache_from_source(str(source)))
    if not cached.exists() or cached.stat().st_mtime < source.stat().st_mtime:
        with tempfile.NamedTemporaryFile(suffix=".pyc") as scratch:
            py_compile.compile(str(source), cfile=scratch.name, dfile=str(source), doraise=True)
            return Path(scratch.name).read_bytes()
    return cached.read_bytes()


def _modules(top: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(top):
        names[:] = sorted(n for n in names if n not in UNUSED and not n.startswith("config-"))
        for name in sorted(files):
            lexer = directory.endswith("pygments/lexers") and name not in LEXERS
            if name.endswith(".py") and name not in UNUSED and not lexer:
                yield Path(directory, name)


def _origin(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed for {sys.executable}: run ./oomtest doctor")
    return Path(spec.origin)


def build() -> bytes:
    """Put the archive together.

    :returns: the uncompressed cpio archive.
    :raises UserError: if a package that the guest needs is not installed on the host.
    """
    archive = Archive()
    for directory in ("proc", "sys", "dev", "tmp", "suite", "run", "root"):
        archive.directory(directory)
    for name, (mode, major, minor) in NODES.items():
        archive.node(f"dev/{name}", mode, major, minor)
    python = interpreter()
    binaries = [python]
    extensions = STDLIB / "lib-dynload"
    binaries += sorted(p for p in extensions.glob("*.so") if not UNUSED_SO.match(p.name))
    parts = dict.fromkeys([*binaries, *_libraries(*binaries)])
    # Each strip is a process of its own to wait for.
    with ThreadPoolExecutor() as pool:
        stripped = pool.map(lambda part: _stripped(part.resolve()), parts)
        for part, data in zip(parts, stripped, strict=True):
            archive.file(str(part), data, 0o755)
    for source in _modules(STDLIB):
        archive.file(str(source) + "c", _bytecode(source))
    for package in PACKAGES:
        origin = _origin(package)
        top = origin.parent if origin.name == "__init__.py" else None
        for source in _modules(top) if top else [origin]:
            where = Path("site", source.relative_to(top.parent if top else origin.parent))
            archive.file(f"{where}c", _bytecode(source))
    for name in ("pluggy", "pytest", "pytest-timeout", "cgroupspy"):
        version = importlib.metadata.version(name)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.file(f"site/{name}-{version}.dist-info/METADATA", text.encode())
    archive.file("init", INIT.format(python=python).encode(), 0o755)
    for source in sorted((HERE / "guest").glob("*.py")):
        archive.file(f"site/oomtest_guest/{source.name}c", _bytecode(source))
    return archive.finish()


def path() -> Path:
    """The archive in the cache, made if it is not there.

    The name is a digest of the content; what it is made from (interpreter, packages, guest code)
    is remembered by a cheaper one, so that an unchanged host does not read it all again.

    :raises UserError: as :func:`build`, or if the cache's disk is full.
    """
    inputs = hashlib.sha256(f"{sys.version}{interpreter()}{STDLIB}".encode())
    for source in [*sorted(HERE.glob("guest/*.py")), Path(__file__)]:
        inputs.update(source.read_bytes())
    for source in map(_origin, PACKAGES):
        inputs.update(f"{source}{source.stat().st_mtime_ns}".encode())
    target = cache.cache_dir() / "initramfs" / f"{inputs.hexdigest()[:20]}.cpio"
    if not target.exists():
        with cache.atomic(target) as scratch:
            scratch.write_bytes(build())
    os.utime(target)
    return target
