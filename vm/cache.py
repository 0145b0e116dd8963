# SPDX-License-Identifier: GPL-2.0-only
"""The cache: sources, builds, snapshots, all outside of the checkout and all safe to delete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import platformdirs

from vm.errors import HostError

CONTENT = (
    "accel", "apt", "builds", "images", "initramfs", "locks", "modules", "rejected-by.json",
    "snapshots", "sources", "tox", "venv",
)  # fmt: skip


def cache_dir() -> Path:
    """Where everything that can be made again is kept: ``OOMTEST_CACHE``, or the user's cache."""
    chosen = os.environ.get("OOMTEST_CACHE")
    return Path(chosen).absolute() if chosen else platformdirs.user_cache_path("oomtest")


@contextlib.contextmanager
def disk_full(where: Path) -> Iterator[None]:
    """Turn a full disk into one line.

    :param where: what was being written.
    :raises HostError: if the body ran into ENOSPC or EDQUOT.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = (
            f"no space left for {where}: free some, run ./oomtest clean, "
            "or point OOMTEST_CACHE elsewhere"
        )
        raise HostError(message) from error


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A scratch file that becomes ``target`` if the body succeeds and is removed if it does not.

    :param target: the file to appear; its directory is made.
    :raises HostError: if the disk is full.
    """
    with disk_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
        os.close(handle)
        scratch = Path(name)
        try:
            yield scratch
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)


def locked(name: str) -> filelock.BaseFileLock:
    """A lock between processes, as a context manager.

    :param name: what is locked; any string that can be a file name.
    """
    directory = cache_dir() / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(directory / f"{name}.lock")


_held: dict[Path, int] = {}  # what is locked to be kept, by the directory


def hold(directory: Path) -> bool:
    """Keep a directory from :func:`forget`, any process's, for as long as this process lives.

    :returns: False if there is no such directory.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    before = _held.pop(directory, None)
    if before is not None:
        os.close(before)
    _held[directory] = descriptor
    return directory.exists()


def forget(directory: Path) -> None:
    """Delete a directory, unless somebody holds it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = Path(tempfile.mkdtemp(prefix=".old-", dir=directory.parent))
        directory.rename(gone)  # at once: what is half there is not to be found
        shutil.rmtree(gone, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def size() -> int:
    """Bytes on disk (sparse files count what they occupy)."""
    total = 0
    for kind in CONTENT:
        for directory, _, files in os.walk(cache_dir() / kind):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total


def clean() -> None:
    """Delete all that is cached, and nothing else: the directory may be somebody's who chose it.

    :raises OSError: if something cannot be deleted.
    """
    for name in CONTENT:
        path = cache_dir() / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        cache_dir().rmdir()
