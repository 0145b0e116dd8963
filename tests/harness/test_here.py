# SPDX-License-Identifier: GPL-2.0-only
"""In place: what harms nobody runs, what could is skipped, and wrong usage is one clear line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import conftest
from helpers import gate, preflight
from tests.harness.conftest import Pytest

CONTRACT = "tests/contract"
HARMLESS = "test_removing_a_memcg_signals_its_listeners"
REASON = "would cause a system OOM on this machine"

# Loaded with -p: root in name only. Nothing that it lets through can harm the machine, whatever
# becomes of the gate.
FAKE_ROOT = """
import contextlib
from helpers import hogs, memcgs, preflight

def refuse(*arguments):
    raise RuntimeError(f"reached: {arguments}")

hogs.populate = hogs.touch = hogs.Child.__init__ = memcgs.write = refuse
preflight.memory_controller = lambda: contextlib.nullcontext("/nonexistent/memory")
preflight.markers_in_the_log = contextlib.nullcontext
"""


def has_memory_controller() -> bool:
    """Whether the harmless tests can run on this very machine."""
    try:
        with preflight.memory_controller() as mount:
            probe = Path(mount, "cgroup.event_control")
            return os.access(probe, os.W_OK)
    except preflight.Unfit:
        return False


def test_system_oom_tests_are_skipped_in_place(
    run_pytest: Pytest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_root.py").write_text(FAKE_ROOT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_pytest("--here", "-p", "fake_root", CONTRACT, "-m", "system_oom", "-q", "-rs")
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.strip().splitlines()[-1].split()
    assert words[1] == "skipped,", done.stdout
    assert int(words[0]) > 30
    skips = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skips
    assert all(REASON in line and "--allow-system-oom" in line for line in skips)


def test_without_a_kernel_every_contract_test_is_skipped(run_pytest: Pytest) -> None:
    done = run_pytest(CONTRACT, "-q", "-rs")
    assert done.returncode == 0
    assert "passed" not in done.stdout
    assert "failed" not in done.stdout
    assert "needs a kernel: --kernel KERNEL" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--allow-system-oom",), "--allow-system-oom goes with --here"),
        (("--here", "--kernel", "x"), "--here and --kernel exclude each other"),
        # Before anything else, --allow-system-oom of a guest's run is refused as well.
        (("--allow-system-oom", "--kernel", "x"), "--allow-system-oom goes with --here"),
    ],
)
def test_wrong_usage(run_pytest: Pytest, arguments: tuple[str, ...], line: str) -> None:
    done = run_pytest(*arguments, CONTRACT, "-q", "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def item(*marks: pytest.Mark, here: bool = True) -> SimpleNamespace:
    """As much of an item as the gate's hook looks at."""
    found = {mark.name: mark for mark in marks}
    return SimpleNamespace(
        get_closest_marker=found.get, config=SimpleNamespace(getoption=lambda name: here)
    )


CLAUSE = pytest.mark.clause("P1").mark
SYSTEM_OOM = pytest.mark.system_oom.mark


@pytest.mark.parametrize(
    ("marks", "here", "allowed", "skipped"),
    [
        ((), False, False, None),
        ((CLAUSE,), False, False, "needs a kernel"),
        ((CLAUSE,), True, False, None),
        ((CLAUSE, SYSTEM_OOM), True, False, REASON),
        ((CLAUSE, SYSTEM_OOM), True, True, None),
        ((CLAUSE, SYSTEM_OOM), False, True, "needs a kernel"),
    ],
)
def test_what_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
    marks: tuple[pytest.Mark, ...],
    here: bool,
    allowed: bool,
    skipped: str | None,
) -> None:
    monkeypatch.setattr(gate, "_permitted", allowed)
    one = item(*marks, here=here)
    if skipped is None:
        conftest.pytest_runtest_setup(one)  # type: ignore[arg-type]
    else:
        with pytest.raises(pytest.skip.Exception, match=skipped):
            conftest.pytest_runtest_setup(one)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_harmless_clause_runs_in_place(run_pytest: Pytest) -> None:
    if not has_memory_controller():
        pytest.skip("this machine has no memcg v1 to be had")
    before = Path("/proc/self/mountinfo").read_text()
    done = run_pytest("--here", CONTRACT, "-q", "-k", HARMLESS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "here: inconclusive" in done.stdout  # one clause makes no verdict
    assert Path("/proc/self/mountinfo").read_text() == before


def test_in_place_needs_root(run_pytest: Pytest, tmp_path: Path) -> None:
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        before = ("setpriv", "--reuid", "65534", "--clear-groups", "--inh-caps=-all")
        reach = [*before, sys.executable, "-c", "import pytest"]
        if subprocess.run(reach, capture_output=True, check=False).returncode:
            pytest.skip("the Python environment is root's alone")
    done = run_pytest("--here", CONTRACT, "-q", "-k", HARMLESS, before=before)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line == "ERROR: --here needs root: run it with sudo, or use a guest: ./oomtest run"
