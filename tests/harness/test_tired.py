# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that every system OOM hangs: the run comes to an end, and to a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.conftest import ROOT, Pytest
from vm.plugin import ENOUGH, TIRED

# In place of machines, something that hangs.
STAND_IN = """
from pathlib import Path
from types import SimpleNamespace
from vm import dispatch, plugin
from vm.outcome import Crash

class Target:
    mutant = 0
    def __init__(self, name, *_):
        self.name = name
        self.kernel = SimpleNamespace(name=name, image=Path("/nonexistent/bzImage"))
    def mutated(self, number):
        return self
    def describe(self):
        return {"release": "6.1.0", "how": "", "machine": "", "image": ""}
    def limit(self, seconds):
        return 1.0
    def machine(self, profile):
        return object()

def run(self, *_):
    return dispatch.Result(crash=Crash("hang", "the kernel hangs"))

plugin.Target = Target
dispatch.Dispatcher.run = run
"""


@pytest.fixture
def found(
    tmp_path: Path, run_pytest: Pytest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Have the stand-in asked by the tests of some files, and say what was found."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    def ask(*files: str) -> dict[str, Any]:
        report = tmp_path / "found.json"
        arguments = ["-p", "stand_in", "--kernel", "any", "--json", str(report), "-n", "0"]
        run_pytest(*arguments, *(f"tests/contract/{file}" for file in files))
        kernel: dict[str, Any]
        (kernel,) = json.loads(report.read_text())["kernels"]
        return kernel

    return ask


def test_enough_is_enough(found: Callable[..., dict[str, Any]]) -> None:
    kernel = found("test_memcg_oom.py", "test_silence.py")
    hung = [one for one in kernel["tests"] if one["state"] == "hang"]
    left_out = [one for one in kernel["tests"] if one["state"] == "skipped"]
    assert all("test_silence" in one["test"] for one in hung[:ENOUGH])
    assert all("test_memcg_oom" in one["test"] for one in hung[ENOUGH:])  # nothing deadly there
    assert left_out
    assert all(TIRED in one["detail"] for one in left_out)
    assert kernel["verdict"] == "violates"


def test_as_written_clauses_are_not_enough(found: Callable[..., dict[str, Any]]) -> None:
    kernel = found("test_numa.py")
    assert len(kernel["tests"]) > ENOUGH
    assert {one["state"] for one in kernel["tests"]} == {"hang"}
    assert kernel["verdict"] != "violates"


# A kernel that does not build, and says each time that somebody tries.
UNFIT = """
from vm import plugin
from vm.errors import INCONCLUSIVE, UserError

def target(name, *_):
    print("trying", name)
    raise UserError(f"{name} does not build: why", INCONCLUSIVE)

plugin.Target = target
"""


def test_a_kernel_that_cannot_be_asked_is_tried_once(
    tmp_path: Path, run_pytest: Pytest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfit.py").write_text(UNFIT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    kernels = ("--kernel", "6.1/mutants#1", "--kernel", "6.1/mutants#2", "--kernel", "other")
    done = run_pytest("-p", "unfit", *kernels, "-n", "0", "tests/contract/test_memcg_oom.py")
    assert done.stdout.count("trying 6.1/mutants") == 1
    assert "trying other" in done.stdout
    assert "no kernel can be asked: see above" in done.stdout + done.stderr
