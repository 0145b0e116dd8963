# SPDX-License-Identifier: GPL-2.0-only
"""What is sent into a guest: the tests, the helpers they use, and the ini file they run under."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import marshal
import re
import sys
import tarfile
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from _pytest.assertion.rewrite import PYC_TAIL, rewrite_asserts

from vm.errors import UserError

REHEARSAL = "tests/rehearsal.py"
SHIPPED = ("conftest.py", "helpers", "tests/contract", REHEARSAL)
REWRITTEN = ("conftest.py", "rehearsal.py")  # beside test_*.py: those whose asserts explain
TESTS = re.compile(r"tests/contract/test_\w+\.py")
SKIPPED_DIRS = frozenset({"__pycache__", "kmod"})


@dataclass(frozen=True)
class Suite:
    """A suite as it travels.

    :ivar files: name and content, sorted; the names are relative to where the node ids start.
    :ivar args: what the guest's pytest is called with.
    """

    files: tuple[tuple[str, bytes], ...]
    args: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """A digest of all that the guest is sent."""
        digest = hashlib.sha256("\0".join(self.args).encode())
        for name, data in self.digests.items():
            digest.update(f"\0{name}\0{data}".encode())
        return digest.hexdigest()[:20]

    @cached_property
    def payload(self) -> bytes:
        """A gzipped tar archive of the files and of their bytecode."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in self.files:
                _add(tar, name, data)
                if name.endswith(".py"):
                    with suppress(SyntaxError):  # which the guest's pytest tells of
                        _add(tar, *_compiled(name, data))
        return zlib.compress(buffer.getvalue(), 9, wbits=31)

    def command(self) -> dict[str, Any]:
        """The line that tells the guest's worker of the payload that it was given."""
        return {"size": len(self.payload), "args": list(self.args)}

    @cached_property
    def digests(self) -> dict[str, str]:
        """What tells one suite's files from another's, by name."""
        return {name: hashlib.sha256(data).hexdigest()[:20] for name, data in self.files}

    def changed(self, digests: Mapping[str, str]) -> list[str] | None:
        """Which tests are others than those of another suite.

        :param digests: the other one's.
        :returns: their files' names; None if the two differ in more than the contract's tests.
        """
        if digests.keys() != self.digests.keys():
            return None
        names = [name for name, digest in self.digests.items() if digest != digests[name]]
        return names if all(TESTS.fullmatch(name) for name in names) else None

    def with_file(self, name: str, data: bytes) -> Suite:
        """The same suite but for one file, which it may have had already."""
        return replace(self, files=tuple(sorted({**dict(self.files), name: data}.items())))

    def amendment(self, names: Sequence[str]) -> dict[str, Any]:
        """The line that has a guest which has collected another suite take these tests anew."""
        files = tuple((name, data) for name, data in self.files if name in names)
        packed = Suite(files, ()).payload
        return {"amend": [name for name, _ in files], "packed": b64encode(packed).decode()}


def _compiled(name: str, source: bytes) -> tuple[str, bytes]:
    """Name and content of a module's bytecode, which costs the emulated guest seconds to make.

    With a hash of the source, as both importlib and pytest check it; what either does not like, it
    makes again.
    """
    path = PurePath(name)
    tree = ast.parse(source, name)
    tail = f".{sys.implementation.cache_tag}.pyc"
    if path.name in REWRITTEN or path.match("test_*.py"):
        rewrite_asserts(tree, source, name)
        tail = PYC_TAIL
    code = marshal.dumps(compile(tree, f"/suite/{name}", "exec", dont_inherit=True))
    checked = (3).to_bytes(4, "little")  # PEP 552
    data = importlib.util.MAGIC_NUMBER + checked + importlib.util.source_hash(source) + code
    return str(path.parent / "__pycache__" / f"{path.stem}{tail}"), data


def files(root: Path, extra: Iterable[Path]) -> list[Path]:
    """What is sent: the project's own part and what was asked for besides, sorted."""
    found: set[Path] = set()
    for top in [*(root / name for name in SHIPPED), *extra]:
        inside = [top] if top.is_file() else top.rglob("*")
        found |= {
            path
            for path in inside
            if path.suffix in {".py", ".toml"} and not SKIPPED_DIRS.intersection(path.parts)
        }
    return sorted(found)


def pack(
    root: Path, wanted: Iterable[Path], timeout: float, more: Mapping[str, bytes] | None = None
) -> Suite:
    """Pack the suite.

    :param root: the checkout.
    :param wanted: test files or directories that were asked for; those outside of
        ``tests/contract`` are sent along.
    :param timeout: seconds after which a test is stopped by pytest-timeout inside the guest.
    :param more: files that are not in the checkout, by name.
    :returns: the suite; equal inputs give equal bytes.
    :raises UserError: if a wanted path lies outside of the checkout.
    """
    wanted = sorted({path.resolve() for path in wanted})
    for path in wanted:
        if not path.is_relative_to(root):
            raise UserError(f"{path} is outside of {root}: tests are sent to the guest from there")
    ini = f"[pytest]\ntimeout = {timeout:g}\naddopts = --here --allow-system-oom\n"
    sent = {str(path.relative_to(root)): path.read_bytes() for path in files(root, wanted)}
    sent |= {"guest.ini": ini.encode(), **(more or {})}
    args = (REHEARSAL, *(str(path.relative_to(root)) for path in wanted))
    return Suite(tuple(sorted(sent.items())), args)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
