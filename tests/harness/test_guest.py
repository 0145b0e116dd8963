# SPDX-License-Identifier: GPL-2.0-only
"""Tests that end badly in real guests, watched as a user of pytest sees them.

What they run is tests/samples/endings.py. One run serves most of what is asserted here; it is made
once for all xdist workers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import filelock
import pytest

from tests.harness.conftest import LIMIT, REFERENCE, ROOT, Pytest, clean_environment
from vm.kernel import Kernel

SAMPLES = "tests/samples/endings.py"
# The first of them may have to boot a guest.
pytestmark = [pytest.mark.usefixtures("reference"), pytest.mark.timeout(LIMIT + 60)]

PASSED = (
    "test_passes_first",
    "test_passes_after_the_panic",
    "test_passes_after_the_loop",
    "test_passes_last",
)


@dataclass(frozen=True)
class Run:
    """What a user sees of a run."""

    code: int
    output: str
    errors: str
    junit: str
    verdict: str

    def section(self, test: str) -> str:
        """What is told of one failed test."""
        parts = re.split(r"^_{5,} (\w+) _{5,}$", self.output, flags=re.MULTILINE)
        told = dict(zip(parts[1::2], parts[2::2], strict=True))
        return str(told[test]).partition("\n=====")[0]

    def summary(self, test: str) -> str:
        """The line about a test in the short summary."""
        (line,) = [
            line
            for line in self.output.splitlines()
            if re.match(rf"(?:PASSED|FAILED|SKIPPED) \S*::{test}\b", line)
        ]
        return line


def descendants() -> set[int]:
    """The QEMU processes below this one, whoever their parent is by now."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        marked = f"OOMTEST_MARK={os.getpid()}".encode() in environment.split(b"\0")
        if marked and command[0].endswith(b"qemu-system-x86_64"):
            found.add(int(entry.name))
    return found


def make_run(where: Path) -> Run:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", SAMPLES, "-rA", "-n", "2"]
    command += ["--kernel", REFERENCE, "--junitxml", str(where / "junit.xml")]
    command += ["--json", str(where / "verdict.json")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment() | {"COLUMNS": "200", "OOMTEST_MARK": str(os.getpid())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    texts = [(where / name).read_text() for name in ("junit.xml", "verdict.json")]
    return Run(done.returncode, done.stdout, done.stderr, *texts)


@pytest.fixture(scope="session")
def run(reference: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every sample, run once."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / "endings.json"
    with filelock.FileLock(shared / "endings.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(vars(make_run(shared))))
    return Run(**json.loads(kept.read_text()))


def test_the_run_goes_on(run: Run) -> None:
    assert run.code == pytest.ExitCode.TESTS_FAILED, run.output + run.errors
    assert "5 failed, 4 passed, 1 skipped" in run.output.splitlines()[-1]
    for name in PASSED:
        assert run.summary(name).startswith("PASSED")


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("test_panics", "panic: the kernel panicked: sysrq triggered crash"),
        ("test_resets", "reset: the kernel reset or switched off the machine"),
        ("test_loops_forever", "Timeout (>2.0s) from pytest-timeout"),
        ("test_kills_the_worker", "worker-died: the harness in the guest died (signal 9)"),
        ("test_fails", "AssertionError: one is not two"),
    ],
)
def test_each_bad_end_is_explained(run: Run, test: str, told: str) -> None:
    assert run.summary(test).startswith("FAILED")
    assert told in run.section(test)


@pytest.mark.parametrize("test", ["test_panics", "test_kills_the_worker"])
def test_a_lost_machine_tells_how_to_see_it_again(run: Run, test: str) -> None:
    again = f"./oomtest run --kernel {REFERENCE} -n 0 -- {SAMPLES}::{test}"
    assert again in run.section(test).partition("To see it again")[2]


def test_the_console_is_shown(run: Run) -> None:
    console = run.section("test_panics").partition("Kernel console")[2]
    assert "Kernel panic - not syncing: sysrq triggered crash" in console
    assert "Call Trace" in console


def test_where_a_loop_hangs_is_shown(run: Run) -> None:
    section = run.section("test_loops_forever")
    assert ">       while True:" in section
    assert f"{SAMPLES}:" in section


def test_what_a_failed_test_printed_is_shown(run: Run) -> None:
    section = run.section("test_fails")
    assert "Captured stdout call" in section
    assert "a failing test's words" in section
    assert '>       assert measured == 2, "one is not two"' in section


def test_junit(run: Run) -> None:
    suite = ElementTree.fromstring(run.junit).find("testsuite")  # noqa: S314  our own
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("10", "5", "1")
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    bad = ("panics", "resets", "loops_forever", "kills_the_worker", "fails")
    assert failed == {f"test_{end}" for end in bad}
    verdict = suite.find("properties/property")
    assert verdict is not None
    assert verdict.get("name") == f"verdict on {REFERENCE}"
    assert str(verdict.get("value")).startswith("violates: P1")
    (panic,) = (case for case in suite if case.get("name") == "test_panics")
    properties = {p.get("name"): p.get("value") for p in panic.iter("property")}
    assert properties["clause"] == "P1"
    assert properties["kernel"] == REFERENCE
    failure = panic.find("failure")
    assert failure is not None
    assert "sysrq triggered crash" in (failure.text or "")


def test_only_what_the_kernel_did_is_held_against_it(run: Run) -> None:
    (kernel,) = json.loads(run.verdict)["kernels"]
    states = {row["id"]: row["state"] for row in kernel["clauses"]}
    assert states["P1"] == states["P4"] == states["K4"] == "broken"
    assert states["P2"] == "no answer"  # it ran out of time, perhaps on a busy host
    assert states["P3"] == "no answer"  # the harness died
    assert states["I1"] == "no answer"  # it was inconclusive
    assert states["K5"] == states["K3"] == "kept"
    assert kernel["clauses_named"] == ["P1", "P4", "K4"]
    assert re.search(rf"^{REFERENCE}: violates: P1, P4, K4 \(P1: panic", run.output, re.MULTILINE)


def test_nothing_is_left_running(run: Run) -> None:
    assert not descendants()


def test_plain(run_pytest: Pytest) -> None:
    done = run_pytest("--kernel", REFERENCE, f"{SAMPLES}::test_passes_first", "-s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert f"kernel: {REFERENCE} (6.1." in done.stdout
    assert "a passing test's words" in done.stdout


def test_selection_and_stop(run_pytest: Pytest) -> None:
    done = run_pytest("--kernel", REFERENCE, SAMPLES, "-k", "test_fails or panics", "-x", "-v")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "::test_panics FAILED" in done.stdout
    assert "::test_fails" not in done.stdout
    assert "1 failed" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
    assert "stopping after 1 failures" in done.stdout


def test_stop_is_no_interruption() -> None:
    """With several workers -x is xdist's, and ends a session as Ctrl-C does."""
    command = [sys.executable, "-m", "vm", "run", "--kernel", REFERENCE, "-n", "2", "-x"]
    done = subprocess.run(
        [*command, "-k", "test_fails or last", SAMPLES],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "violates: K4" in done.stdout


def test_last_failed(run_pytest: Pytest, tmp_path: Path) -> None:
    arguments = ["--kernel", REFERENCE, SAMPLES, "-o", f"cache_dir={tmp_path}"]
    done = run_pytest(*arguments, "-k", "test_fails or first")
    assert "1 failed, 1 passed" in done.stdout
    done = run_pytest(*arguments, "--lf", "-v")
    assert "::test_fails FAILED" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
