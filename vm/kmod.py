# SPDX-License-Identifier: GPL-2.0-only
"""Build the white-box module for a kernel, with that kernel's own build system."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vm import cache, run
from vm.errors import INCONCLUSIVE, HostError, UserError
from vm.kernel import Kernel

SOURCE = Path(__file__).resolve().parent.parent / "helpers" / "kmod"
SOURCES = ("Makefile", "oomtest.c")
MODULE = "oomtest.ko"
PLACE = "helpers/kmod"  # in the guest's suite
# What tells one build directory from another, of what a module depends on.
TELLING = (".config", "include/generated/utsrelease.h", "include/generated/autoconf.h")


def payload(kernel: Kernel, directories: Sequence[Path] = ()) -> dict[str, bytes]:
    """What the suite's guest is sent: the module, or a line that says why there is none.

    :param kernel: what it will be loaded into.
    :param directories: build directories of kernels that were not built here.
    :returns: names in the suite and what they hold.
    :raises UserError: if a directory of the user's own is none, or the module does not build
        against it.
    """
    releases = {release(directory): directory for directory in directories}
    directory = releases.get(kernel.release)
    if directory:
        return {f"{PLACE}/{MODULE}": build(directory).read_bytes()}
    if _beside(kernel.image).exists():
        return {f"{PLACE}/{MODULE}": _beside(kernel.image).read_bytes()}
    try:
        if kernel.build is None:
            raise UserError("no build directory of this kernel is known: give --kernel-build DIR")
        return {f"{PLACE}/{MODULE}": build(kernel.build).read_bytes()}
    except UserError as error:
        return {f"{PLACE}/absent": str(error).encode()}


def release(directory: Path) -> str:
    """The release of the kernel that was built in ``directory``.

    :raises UserError: if none was.
    """
    try:
        text = (directory / "include/generated/utsrelease.h").read_text()
    except OSError:
        text = ""
    found = re.search(r'UTS_RELEASE "([^"]+)"', text)
    if found is None or not (directory / "Makefile").exists():
        raise UserError(f"{directory} is not the build directory of a kernel")
    return found[1]


def build(directory: Path) -> Path:
    """Build the module, or find it built.

    What is built against one directory is taken to fit all kernels that were built in it, one
    after the other: patches in ``mm/`` change neither the release nor what a module is compiled
    against. What is built here has a module of its own (:func:`keep`).

    :param directory: where the kernel was built, or its headers are.
    :returns: the module, in the cache.
    :raises UserError: if that is no such directory, or the module does not build.
    """
    directory = directory.resolve()
    release(directory)
    target = cache.cache_dir() / "modules" / _key(directory) / MODULE
    with cache.locked(f"module-{target.parent.name}"):
        if not target.exists():
            _make(directory, target)
    return target


def keep(objects: Path, image: Path) -> None:
    """Leave the module beside an image whose build has just ended.

    Once another kernel was built in the same directory, a module that is built against that one's
    headers may not fit this image.
    """
    try:
        _make(objects, _beside(image))
    except HostError:
        raise
    except UserError:
        return  # payload() will come to the same end, and tell


def _beside(image: Path) -> Path:
    """Where the module is that was built along with an image, for what the module is today."""
    whole = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in SOURCES))
    return image.with_name(f"oomtest-{whole.hexdigest()[:16]}.ko")


def _key(directory: Path) -> str:
    whole = hashlib.sha256(str(directory).encode())
    for path in [*(SOURCE / name for name in SOURCES), *(directory / name for name in TELLING)]:
        whole.update(path.read_bytes() if path.exists() else b"-")
    return whole.hexdigest()[:16]


def _make(directory: Path, target: Path) -> None:
    with cache.disk_full(target), tempfile.TemporaryDirectory(prefix="oomtest-kmod-") as scratch:
        for name in SOURCES:
            shutil.copy(SOURCE / name, scratch)
        try:
            run.watch(["make", "-C", str(directory), f"M={scratch}", "modules"])
        except FileNotFoundError:
            raise UserError(
                "make not found: install it (Debian: apt install build-essential)"
            ) from None
        except run.Failed as error:
            why = _why(error.lines)
            text = f"the white-box module does not build against {directory}: {why}"
            raise UserError(text, INCONCLUSIVE) from None
        with cache.atomic(target) as new:
            shutil.copyfile(Path(scratch, MODULE), new)


def _why(lines: Sequence[str]) -> str:
    """The line of a failed build that tells most."""
    telling = [line for line in lines if re.search(r"error:|undefined!|not present|No rule", line)]
    return (telling or [line for line in lines if line] or ["no output"])[0].strip()
