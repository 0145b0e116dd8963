# SPDX-License-Identifier: GPL-2.0-only
"""Which acceleration is taken, with a QEMU that is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vm import accel
from vm.accel import Accel, choose
from vm.errors import USAGE, UserError

KERNEL = Path(__file__)  # which nobody boots
VERSION = '[ "$1" = --version ] && { echo "QEMU emulator version 7.2.22 (x)"; exit; }\n'

HANGS = "exec sleep 60"
BOOTS = "echo '[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs'"
REFUSES = "echo 'qemu-system-x86_64: kvm.c:3183: put msrs failed' >&2; exit 134"
SILENT = "exit 0"

Fake = Callable[[str], None]


@pytest.fixture
def fake_qemu(own_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Install a QEMU that runs a shell script, and count its boots in the file ``boots``."""
    monkeypatch.setattr(accel, "LIMIT", 0.5)
    monkeypatch.setattr(accel, "os", host())

    def install(script: str) -> None:
        binary = own_path / "qemu-system-x86_64"
        count = f"echo boot >> {own_path}/boots\n"
        binary.write_text(f"#!/bin/sh\n{VERSION}{count}{script}\n")
        binary.chmod(0o755)

    return install


def host(exists: bool = True, ours: bool = True) -> SimpleNamespace:
    """The os module of a host whose /dev/kvm is there, or is ours."""
    return SimpleNamespace(
        path=SimpleNamespace(exists=lambda path: exists),
        access=lambda path, mode: ours,
        R_OK=os.R_OK,
        W_OK=os.W_OK,
        getuid=os.getuid,
    )


def boots(own_path: Path) -> int:
    count = own_path / "boots"
    return len(count.read_text().split()) if count.exists() else 0


def test_kvm_that_works(fake_qemu: Fake) -> None:
    fake_qemu(BOOTS)
    assert choose("auto", KERNEL) == Accel("kvm", "probed: a guest ran")
    assert choose("kvm", KERNEL).name == "kvm"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (HANGS, "/dev/kvm opens, but a guest gets nowhere in"),
        (REFUSES, "put msrs failed"),
        (SILENT, "/dev/kvm does not run a guest"),
        (f"{BOOTS}; exit 1", "/dev/kvm does not run a guest"),
    ],
    ids=["hangs", "refuses", "prints nothing", "fails"],
)
def test_kvm_that_does_not(fake_qemu: Fake, script: str, reason: str) -> None:
    fake_qemu(script)
    chosen = choose("auto", KERNEL)
    assert chosen.name == "tcg"
    assert reason in chosen.reason


@pytest.mark.parametrize(
    ("machine", "reason"),
    [(host(exists=False), "no /dev/kvm"), (host(ours=False), "/dev/kvm is not ours to open")],
)
def test_no_kvm(
    fake_qemu: Fake,
    own_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: SimpleNamespace,
    reason: str,
) -> None:
    fake_qemu(BOOTS)
    monkeypatch.setattr(accel, "os", machine)
    assert choose("auto", KERNEL) == Accel("tcg", reason)
    assert boots(own_path) == 0


def test_the_answer_is_remembered(fake_qemu: Fake, own_path: Path) -> None:
    fake_qemu(HANGS)
    first = choose("auto", KERNEL)
    assert boots(own_path) == 1
    fake_qemu(BOOTS)
    assert choose("auto", KERNEL) == first
    assert boots(own_path) == 1


def test_kvm_that_works_is_remembered(fake_qemu: Fake, own_path: Path) -> None:
    fake_qemu(BOOTS)
    for kernel in (KERNEL, Path("/bin/sh")):
        assert choose("auto", kernel).name == "kvm"
    assert boots(own_path) == 1


def test_one_bad_kernel_does_not_condemn_kvm(fake_qemu: Fake, own_path: Path) -> None:
    """A second one has its chance; after that they all share what the first has met."""
    fake_qemu(HANGS)
    assert choose("auto", KERNEL).name == "tcg"
    fake_qemu(REFUSES)
    assert "put msrs failed" in choose("auto", Path("/bin/sh")).reason
    assert "gets nowhere" in choose("auto", Path("/bin/true")).reason
    assert boots(own_path) == 2


def test_what_is_mended_is_not_remembered(fake_qemu: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(BOOTS)
    for machine, name in (
        (host(exists=False), "tcg"),
        (host(ours=False), "tcg"),
        (host(), "kvm"),
        (host(exists=False), "tcg"),
    ):
        monkeypatch.setattr(accel, "os", machine)
        assert choose("auto", KERNEL).name == name


def test_another_qemu_is_asked_again(fake_qemu: Fake, own_path: Path) -> None:
    fake_qemu(REFUSES)
    assert choose("auto", KERNEL).name == "tcg"
    fake_qemu(BOOTS)
    binary = own_path / "qemu-system-x86_64"
    binary.write_text(binary.read_text().replace("7.2.22", "8.0.0"))
    assert choose("auto", KERNEL).name == "kvm"


def test_kvm_is_refused_with_one_line(fake_qemu: Fake) -> None:
    fake_qemu(HANGS)
    with pytest.raises(
        UserError, match=r"no KVM here: /dev/kvm opens, but .*; use --accel tcg"
    ) as caught:
        choose("kvm", KERNEL)
    assert caught.value.exit_code == USAGE
    assert "\n" not in str(caught.value)


def test_tcg_needs_no_probe(fake_qemu: Fake, own_path: Path) -> None:
    fake_qemu(HANGS)
    assert choose("tcg", KERNEL) == Accel("tcg", "as asked")
    assert boots(own_path) == 0


@pytest.mark.usefixtures("own_path", "cache_dir")
@pytest.mark.parametrize("requested", ["auto", "kvm", "tcg"])
def test_qemu_is_not_installed(requested: str) -> None:
    with pytest.raises(UserError, match="qemu-system-x86_64 not found: install it") as caught:
        choose(requested, KERNEL)
    assert "\n" not in str(caught.value)
