# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the harness share: a cache of their own, pytest as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vm import build, qemu
from vm.kernel import Kernel

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = "6.1/reference"
LIMIT = 240.0  # seconds for a pytest of its own; 8 alone, 20 if it must boot a guest first

Pytest = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment() -> dict[str, str]:
    """The environment without what the pytest around put into it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}


@pytest.fixture
def run_pytest() -> Pytest:
    """Call pytest as a user does, from the checkout: ``run_pytest("--here", ...)``.

    :param before: a command in front of it, such as setpriv.
    """

    def run(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*before, sys.executable, "-m", "pytest"]
        if not any("cache_dir" in argument for argument in arguments):
            command += ["-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env=clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    return run


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    where = tmp_path / "cache"
    monkeypatch.setenv("OOMTEST_CACHE", str(where))
    return where


@pytest.fixture
def own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole of PATH but for the commands that vm starts others with."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("setpriv", "sh", "sleep", "echo"):
        (directory / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(directory))
    qemu.version.cache_clear()
    monkeypatch.setattr(qemu, "version", qemu.version.__wrapped__)
    return directory


@pytest.fixture(scope="session")
def reference() -> Kernel:
    """The reference kernel from the cache; these tests build none."""

    def busy(line: str) -> None:
        pytest.skip(f"{REFERENCE} is not in the cache ({line}): ./oomtest build {REFERENCE}")

    return build.resolve(REFERENCE, busy)
