# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest doctor``: what this host can do, and what to install where it cannot."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vm import accel, cache, qemu, series
from vm.errors import UserError

BUILD_TOOLS = ("gcc", "make", "flex", "bison", "bc", "perl", "rsync", "patch", "xz")
MIN_FREE = 6 << 30  # bytes: a source tree, its objects, images and snapshots

Check = tuple[str, bool, str]


def _qemu() -> Check:
    try:
        qemu.binary()
    except UserError as error:
        return "QEMU", False, str(error)
    return "QEMU", True, f"{qemu.BINARY} {qemu.version()}"


def _acceleration() -> Check:
    """What ``--accel auto`` takes; to find it out a kernel must have been built or booted."""
    images = sorted((cache.cache_dir() / "images").glob("*/bzImage"))
    if not images:
        return "acceleration", True, "found out at the first run: there is no kernel to try it with"
    try:
        chosen = accel.choose("auto", images[0])
    except UserError as error:
        return "acceleration", False, str(error)
    return "acceleration", True, f"{chosen.name} ({chosen.reason})"


def _tools() -> Check:
    missing = [tool for tool in BUILD_TOOLS if shutil.which(tool) is None]
    told = f"missing: {', '.join(missing)}" if missing else ", ".join(BUILD_TOOLS)
    return "building kernels", not missing, told


def _sources() -> Iterator[Check]:
    for name in series.SERIES:
        package = f"linux-source-{name}"
        done = subprocess.run(
            ["apt-cache", "policy", package], capture_output=True, text=True, check=False
        ) if shutil.which("apt-cache") else None  # fmt: skip
        found = re.search(r"Candidate: (\d\S*)", done.stdout) if done else None
        kept = sorted((cache.cache_dir() / "sources" / "debian").glob(f"{package}_*"))
        if found:
            yield f"source of {name}", True, f"{package} {found[1]} from apt"
        elif kept:
            yield f"source of {name}", True, f"{kept[-1].name} in the cache"
        else:
            yield f"source of {name}", True, "none from this release's apt; asked of others"


def _in_place() -> Check:
    """Whether ``pytest --here`` would find a v1 memory controller."""
    name = "memcg v1 in place"
    if os.geteuid() != 0:
        return name, True, "root only: pytest --here needs root"
    mounts = Path("/proc/self/mountinfo").read_text()
    if re.search(r" - cgroup \S+ \S*\bmemory\b", mounts):
        return name, True, "mounted"
    rows = Path("/proc/cgroups").read_text() if Path("/proc/cgroups").exists() else ""
    row = re.search(r"^memory\s+(\d+)\s+\d+\s+1", rows, re.MULTILINE)
    if row is None:
        return name, True, "this kernel has none: use a guest"
    used = "taken by cgroup v2: use a guest" if row[1] == "0" and " cgroup2 " in mounts else "free"
    return name, True, used


def _cache() -> Check:
    where = cache.cache_dir()
    place = where
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    told = f"{where}: {cache.size() / (1 << 30):.1f} GiB used, {free / (1 << 30):.0f} GiB free"
    return "cache", free > MIN_FREE, told


def main(_: argparse.Namespace) -> int:
    """Print the table.

    :returns: 0, or 1 if something is missing that a run in a guest needs.
    """
    checks = [_qemu(), _acceleration(), _tools(), *_sources(), _in_place(), _cache()]
    table = Table(box=None, show_header=False, padding=(0, 1))
    for name, good, told in checks:
        table.add_row("ok" if good else "MISSING", name, told, style="" if good else "bold red")
    Console().print(table)
    return 0 if all(good for _, good, _ in checks) else 1
