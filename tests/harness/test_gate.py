# SPDX-License-Identifier: GPL-2.0-only
"""The safety gate: while it is closed, no way leads to a system OOM, a sysrq or a panic."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import mmap
import os
import pkgutil
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import helpers
from helpers import gate, hogs, triggers
from tests.harness import reach
from tests.harness.conftest import ROOT

MODULES = [
    importlib.import_module(f"helpers.{found.name}")
    for found in pkgutil.iter_modules(helpers.__path__)
]
DANGEROUS = {
    f"{module.__name__}.{name}": thing
    for module in MODULES
    if module is not gate
    for name, thing in reach.public(module)
    if inspect.isfunction(thing) and reach.reaches(thing)
}
TOOLS = ("put", "write", "populate", "touch", "Kmsg", "Child", "Bait")
SOURCES = [
    path
    for top in (ROOT / "helpers", ROOT / "tests", ROOT / "conftest.py")
    for path in ([top] if top.is_file() else sorted(top.rglob("*.py")))
    if "harness" not in path.parts
]


class Reached(BaseException):
    """Something was done that the gate should have kept from being done."""


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The gate is closed; should something leak through, this keeps the machine from harm."""

    def reached(*arguments: object, **_: object) -> None:
        raise Reached(*arguments)

    monkeypatch.setattr(gate, "_permitted", False)
    with pytest.raises(gate.Forbidden):
        gate.require("nothing else is tried if this does not hold")
    null = os.open(os.devnull, os.O_RDWR)
    for name in ("open", "memfd_create"):
        monkeypatch.setattr(os, name, lambda *_: os.dup(null))
    for module, name in ((os, "fork"), (mmap, "mmap"), (os, "kill")):
        monkeypatch.setattr(module, name, reached)
    for module, name in itertools.product(MODULES, TOOLS):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, reached)
    few = (resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + 32)
    small = (resource.RLIMIT_FSIZE, 64 << 20)
    before = {what: resource.getrlimit(what) for what, _ in (few, small)}
    for what, limit in (few, small):
        resource.setrlimit(what, (limit, before[what][1]))
    yield
    for what, limits in before.items():
        resource.setrlimit(what, limits)
    os.close(null)


def test_what_is_known_to_be_dangerous_is_found() -> None:
    known = {
        "helpers.hogs.exhaust",
        "helpers.triggers.system_oom",
        "helpers.triggers.sysrq_f",
        "helpers.triggers.sysrq_kill",
        "helpers.triggers.sysrq_nobody",
        "helpers.judge.alive_on_root",
    }
    assert known <= set(DANGEROUS)


@pytest.mark.parametrize(
    "name", ["populate", "touch", "sleep_forever", "memcg_oom", "fence", "blocked_hog", "remove"]
)
def test_what_is_known_to_be_harmless_is_not_taken_for_dangerous(name: str) -> None:
    harmless = getattr(triggers, name, None) or getattr(hogs, name)
    assert not reach.reaches(harmless)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("function", DANGEROUS.values(), ids=DANGEROUS)
def test_nothing_dangerous_does_anything_while_the_gate_is_closed(
    function: Callable[..., Any],
) -> None:
    needed = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL
    ]
    with pytest.raises(gate.Forbidden, match="--allow-system-oom"):
        result = function(*(MagicMock() for _ in needed))
        if hasattr(result, "__enter__"):
            result.__enter__()
        elif callable(result):  # what a hog is to do later
            result()


@pytest.mark.usefixtures("closed")
def test_the_gate_lets_through_what_was_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_permitted", True)
    with pytest.raises(Reached, match=str(hogs.CHUNK)):
        hogs.exhaust()
    with pytest.raises(Reached, match="sysrq-trigger"):
        triggers.sysrq_f()


def guarded(module: ast.AST) -> set[int]:
    """Identities of the nodes that a ``gate.require`` above them in their function covers."""
    covered: set[int] = set()
    for function in (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)):
        asked = False
        for statement in function.body:
            if asked:
                covered |= {id(node) for node in ast.walk(statement)}
            asked = asked or reach.asks(statement)
    return covered


def endless(node: ast.AST) -> bool:
    """Whether a node is a loop that takes more and more memory."""
    counts = isinstance(node, ast.For) and re.search(r"\b(count|cycle)\(", ast.unparse(node.iter))
    if not isinstance(node, ast.While) and not counts:
        return False
    calls = (ast.unparse(inner.func) for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return any(call.rpartition(".")[2] in {"populate", "touch", "mmap"} for call in calls)


def bare(source: str, dangerous: Callable[[ast.AST], bool]) -> list[str]:
    """The dangerous nodes of a module that no ``gate.require`` covers."""
    module = ast.parse(source)
    covered = guarded(module)
    return [
        f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for node in ast.walk(module)
        if dangerous(node) and id(node) not in covered
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_that_ends_a_session_is_named_without_asking_the_gate(path: Path) -> None:
    assert not bare(path.read_text(), reach.deadly)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "helpers").glob("*.py")), ids=lambda path: str(path.name)
)
def test_no_endless_allocation_without_asking_the_gate(path: Path) -> None:
    assert not bare(path.read_text(), endless)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def f():\n    put('/proc/sysrq-trigger', 'f')", reach.deadly),
        ("def f():\n    put('/proc/sysrq-trigger', 'f')\n    gate.require('x')", reach.deadly),
        ("def f():\n    if a:\n        gate.require('x')\n    put('/proc/sysrq-trigger', 'f')",
         reach.deadly),
        ("TRIGGER = '/proc/sysrq-trigger'", reach.deadly),
        ("with sysctl('vm/panic_on_oom', '1'):\n    pass", reach.deadly),
        ("def f():\n    while True:\n        hogs.populate(1)", endless),
        ("def f():\n    for n in itertools.count():\n        mmap.mmap(-1, n)", endless),
    ],
)  # fmt: skip
def test_the_scan_finds_what_it_looks_for(source: str, kind: Callable[[ast.AST], bool]) -> None:
    assert bare(source, kind)


def test_the_scan_accepts_what_asks_first() -> None:
    guarded = "def f():\n    gate.require('x')\n    put('/proc/sysrq-trigger', 'f')"
    assert not bare(guarded, reach.deadly)
