# SPDX-License-Identifier: GPL-2.0-only
"""Which acceleration works here, found out by running a guest and remembered.

A ``/dev/kvm`` that opens proves nothing, nor does a VM that could be created, nor even one that
runs a few instructions in real mode: there are hosts where all of that works and a kernel then
never gets anywhere. So the probe boots a real kernel without a root file system, and believes in
KVM if it gets as far as to panic for want of one.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vm import cache, qemu
from vm.errors import UserError

LIMIT = 6.0  # seconds; hardware takes about one
BELIEVED = 2  # kernels that get nowhere


@dataclass(frozen=True)
class Accel:
    """An acceleration and why it was taken.

    :ivar name: ``kvm`` or ``tcg``.
    :ivar reason: one phrase for headers and reports.
    """

    name: str
    reason: str


def _probe(kernel: Path, cpu: str = "host") -> str:
    """Empty if KVM boots a kernel here, otherwise why not."""
    command = [
        *("setpriv", "--pdeathsig", "KILL", qemu.binary(), "-accel", "kvm", "-cpu", cpu),
        *("-machine", "pc", "-smp", "2", "-m", "256", "-no-reboot"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
        *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1", "-serial", "stdio"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a terminal would be QEMU's to set up, and is left so
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"/dev/kvm opens, but a guest gets nowhere in {LIMIT:.0f} s"
    if done.returncode == 0 and "Kernel panic" in done.stdout:
        return ""
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"/dev/kvm does not run a guest: {last.rpartition(': ')[2]}"


def _closed() -> str:
    """Why KVM need not be probed, if it need not: what a user can mend any moment."""
    if not os.path.exists("/dev/kvm"):
        return "no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not ours to open"
    return ""


def _remembered(kernel: Path) -> str:
    """What :func:`_probe` says, or has said; that holds for this boot of this host and this QEMU.

    What it says against KVM may be the kernel's fault: it holds for others too once a second one
    has had no luck.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    where = cache.cache_dir() / "accel" / f"{boot}-{qemu.version()}-{os.getuid()}.json"
    with cache.locked("accel"):
        known: dict[str, str] = json.loads(where.read_text()) if where.exists() else {}
        if "" in known.values():
            return ""
        image = f"{kernel} {kernel.stat().st_mtime_ns}"
        if image not in known and len(known) < BELIEVED:
            known[image] = _probe(kernel)
            with cache.atomic(where) as scratch:
                scratch.write_text(json.dumps(known))
        return known.get(image, next(iter(known.values())))


def choose(requested: str, kernel: Path) -> Accel:
    """Decide.

    :param requested: ``auto``, ``kvm`` or ``tcg``.
    :param kernel: an image to boot if the answer is not known yet.
    :raises UserError: if KVM was asked for and does not work here, or QEMU is missing.
    """
    qemu.binary()
    if requested == "tcg":
        return Accel("tcg", "as asked")
    trouble = _closed() or _remembered(kernel)
    if not trouble:
        return Accel("kvm", "probed: a guest ran")
    if requested == "kvm":
        raise UserError(f"no KVM here: {trouble}; use --accel tcg")
    return Accel("tcg", trouble)
