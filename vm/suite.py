# SPDX-License-Identifier: GPL-2.0-only
"""What is sent into a guest: the tests, the helpers they use, and the ini file they run under."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm.errors import UserError

REHEARSAL = "tests/rehearsal.py"
SHIPPED = ("conftest.py", "helpers", "tests/contract", REHEARSAL)
SKIPPED_DIRS = frozenset({"__pycache__", "kmod"})


@dataclass(frozen=True)
class Suite:
    """A suite as it travels.

    :ivar payload: a gzipped tar archive, rooted where the tests' node ids are.
    :ivar args: what the guest's pytest is called with.
    """

    payload: bytes
    args: tuple[str, ...]

    @property
    def key(self) -> str:
        """A digest of all that the guest is sent."""
        return hashlib.sha256(self.payload + "\0".join(self.args).encode()).hexdigest()[:20]

    def command(self) -> dict[str, Any]:
        """The line that carries the suite to the guest's worker."""
        return {"suite": base64.b64encode(self.payload).decode(), "args": list(self.args)}


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
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files(root, wanted):
            _add(tar, str(path.relative_to(root)), path.read_bytes())
        ini = f"[pytest]\ntimeout = {timeout:g}\naddopts = --here --allow-system-oom\n"
        _add(tar, "guest.ini", ini.encode())
        for name, data in sorted((more or {}).items()):
            _add(tar, name, data)
    packed = zlib.compress(buffer.getvalue(), 9, wbits=31)
    return Suite(packed, (REHEARSAL, *(str(path.relative_to(root)) for path in wanted)))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
