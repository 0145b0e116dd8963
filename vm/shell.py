# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest shell``: a shell in a guest, with the suite in it.

The guest is a booted one, not restored from a snapshot: whoever looks at a kernel by hand may want
to see it boot, and has the console to himself.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vm import accel, build, cache, initramfs, qemu
from vm.errors import UserError
from vm.run import say
from vm.suite import files

ROOT = Path(__file__).resolve().parent.parent
BANNER = """\
Everything here is lost when you leave (exit, or Ctrl-A X). The root memcg is
/sys/fs/cgroup/memory; run the contract with, for example:
  oomtest -k P1
"""
PROFILE = f"""\
export PATH=/bin PYTHONPATH=/site PYTHONDONTWRITEBYTECODE=1 PS1='guest# '
oomtest() {{ (cd /suite && {{python}} -m pytest "$@"); }}
cat <<'EOF'
{BANNER}EOF
"""
INI = """\
[pytest]
testpaths = tests/contract
addopts = --here --allow-system-oom -p no:cacheprovider -p pytest_timeout
timeout = 120
"""


def _busybox() -> Path:
    """A statically linked busybox.

    :raises UserError: if there is none.
    """
    found = shutil.which("busybox")
    if found is None:
        raise UserError("busybox not found: install it (Debian: apt install busybox-static)")
    return Path(found)


def overlay() -> bytes:
    """A second cpio archive, unpacked over the first: the shell's tools and the suite."""
    archive = initramfs.Archive()
    busybox = _busybox()
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for name in listing.stdout.split():
        if name not in {"busybox", "init"}:
            archive.link(f"bin/{name}", "busybox")
    for path in files(ROOT, ()):
        archive.file(f"suite/{path.relative_to(ROOT)}", path.read_bytes())
    archive.file("suite/pytest.ini", INI.encode())
    archive.file("etc/profile", PROFILE.replace("{python}", str(initramfs.interpreter())).encode())
    return archive.finish()


def main(given: argparse.Namespace) -> int:
    """Boot the guest on this terminal.

    :param given: ``kernel``.
    :raises UserError: if the kernel is none, or QEMU or busybox is missing.
    """
    if not sys.stdin.isatty():
        raise UserError("shell: standard input is not a terminal")
    kernel = build.resolve(given.kernel, say)
    chosen = accel.choose("auto", kernel.image)
    with tempfile.TemporaryDirectory() as directory, cache.disk_full(Path(directory)):
        archive = Path(directory, "initramfs.cpio")
        archive.write_bytes(initramfs.path().read_bytes() + overlay())
        spec = qemu.Spec(kernel.image, archive, chosen.name, cmdline="oomtest.shell")
        command = [
            *("setpriv", "--pdeathsig", "KILL", qemu.binary(), *spec.hardware(), *spec.boot()),
            *("-object", f"memory-backend-ram,id=ram,size={qemu.MEMORY_MIB}M"),
            *("-serial", "mon:stdio"),
        ]
        return subprocess.run(command, check=False).returncode
