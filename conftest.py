# SPDX-License-Identifier: GPL-2.0-only
"""Options, the safety gate, and the fixtures that the contract tests are written in.

The same file serves three sessions: on the host, where ``vm.plugin`` sends the contract tests into
guests and none of these fixtures runs; in the guest; and in place, with ``--here``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.outcomes import Failed, OutcomeException

from helpers import gate, preflight, triggers
from helpers.evidence import Complaints, Deaf, Inconclusive, Silent, Unproven
from helpers.listeners import Listener
from helpers.memcgs import Memcg
from helpers.whitebox import Unavailable, Whitebox

CONTRACT = Path(__file__).parent / "tests" / "contract"
CLAUSES = CONTRACT / "clauses.toml"

MARKERS = (
    "clause(id): the clause of the contract that the test holds",
    "system_oom: causes a system OOM, a sysrq kill or a panic; only in a guest or when allowed",
    "profile(name): the kind of machine that the test needs",
    "pristine: needs a machine in which no other test has run",
    "long: takes minutes; run only when asked for, with -m long",
    "dies(panic, armed, shows, lacking, otherwise): ends its machine; judged by what that printed",
)

OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Silent, "silent"),
    (Deaf, "deaf"),
    (Unproven, "unproven"),
    (Inconclusive, "inconclusive"),
)

# The guest is sent no vm package: tests run there, they are not sent on.
GUEST = not Path(__file__).with_name("vm").is_dir()
pytest_plugins = [] if GUEST else ["vm.plugin"]

SLOWLY = 2000  # microseconds
STACK = 1 << 18  # bytes, of a thread: glibc keeps it, and who stays resident takes all of it

MOUNT = pytest.StashKey[str]()
CLEANUP = pytest.StashKey[contextlib.ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernel under test")
    group.addoption("--here", action="store_true", help="run the tests on the running kernel")
    group.addoption(
        "--allow-system-oom",
        action="store_true",
        help="with --here: cause system OOMs, sysrq kills and panics ON THIS MACHINE",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    here, allowed = config.getoption("--here"), config.getoption("--allow-system-oom")
    if allowed and not here:
        raise pytest.UsageError("--allow-system-oom goes with --here")
    if here and config.getoption("--kernel", None):
        raise pytest.UsageError("--here and --kernel exclude each other")
    gate.permit(allowed)
    if not here or config.option.collectonly:
        return
    threading.stack_size(STACK)
    stack = contextlib.ExitStack()
    config.stash[CLEANUP] = stack
    try:
        config.stash[MOUNT] = stack.enter_context(preflight.memory_controller())
    except preflight.Unfit as error:
        if not GUEST:  # the host asks for a guest without memcg only where a test wants one
            raise pytest.UsageError(str(error)) from None
    stack.enter_context(preflight.markers_in_the_log())
    if allowed:
        try:
            stack.enter_context(preflight.ready_for_system_oom())
        except preflight.Unfit as error:
            raise pytest.UsageError(str(error)) from None


def pytest_unconfigure(config: pytest.Config) -> None:
    if CLEANUP in config.stash:
        config.stash[CLEANUP].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the clause into every report; a contract test without one could not be judged."""
    known = tomllib.loads(CLAUSES.read_text())
    for item in items:
        marks = list(item.iter_markers("clause"))
        if len(marks) > 1 or (not marks and item.path.is_relative_to(CONTRACT)):
            raise pytest.UsageError(f"{item.nodeid} must carry one clause, and has {len(marks)}")
        for mark in marks:
            if mark.args[0] not in known:
                raise pytest.UsageError(f"{item.nodeid}: no clause {mark.args[0]} in {CLAUSES}")
            item.user_properties.append(("clause", mark.args[0]))
            item.extra_keyword_matches.add(mark.args[0])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("clause") is None:
        return
    if not item.config.getoption("--here"):
        pytest.skip("needs a kernel: --kernel KERNEL for a guest, or --here for the running one")
    if item.get_closest_marker("system_oom") and not gate.permitted():
        pytest.skip("would cause a system OOM on this machine: --allow-system-oom, or a guest")
    if item.get_closest_marker("dies") and not GUEST:
        pytest.skip("would end this machine: only in a guest")


def _outcome(error: BaseException) -> str | None:
    """What an exception that ended a test means, where pytest's own word for it is too coarse."""
    if isinstance(error, Failed) and str(error).startswith("Timeout "):
        return "timeout"  # pytest-timeout's words
    for kind, name in OUTCOMES:
        if isinstance(error, kind):
            return name
    # An exception that is no judgement is a fault of the suite, not of the kernel.
    return None if isinstance(error, AssertionError | OutcomeException) else "error"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if call.excinfo is not None:
        name = _outcome(call.excinfo.value)
        if name:
            report.user_properties.append(("outcome", name))
        if name == "silent":  # told by the sentence; without the patch there is one for every test
            report.longrepr = str(call.excinfo.value)


@pytest.fixture(autouse=True)
def no_complaints(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test asks of the kernel, the kernel must not come to complain of itself.

    Set up before all other fixtures, it looks when they are torn down.
    """
    if request.node.get_closest_marker("clause") is None:
        yield
        return
    complaints = Complaints()
    yield
    found = complaints.found()
    assert not found, f"the kernel complains: {'; '.join(found[:3])}"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Put something measured into the test's report: ``record("name, with its unit", value)``.

    What pytest's own ``record_property`` does, whose plugin is not there in a guest.
    """
    properties: list[tuple[str, object]] = request.node.user_properties
    return lambda name, value: properties.append((name, value))


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Memcg:
    """The root memcg."""
    return Memcg.root(request.config.stash[MOUNT])


@pytest.fixture
def memcg(root: Memcg) -> Iterator[Callable[..., Memcg]]:
    """Make memcgs: ``memcg()`` below root, ``memcg(parent)`` below another one."""
    made: list[Memcg] = []
    serial = itertools.count()

    def make(parent: Memcg | None = None) -> Memcg:
        child = (parent or root).child(f"oomtest-{os.getpid()}-{next(serial)}")
        made.append(child)
        # Before 5.11 a parent's limit binds its children only with this (mm/memcontrol.c).
        child.use_hierarchy(True)
        return child

    yield make
    for one in reversed(made):
        triggers.remove(one)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    """Register listeners: ``listen(memcg, "name")``; further arguments as for Listener.on."""
    made: list[Listener] = []

    def make(where: Memcg, name: str, *arguments: Any) -> Listener:
        made.append(Listener(name))
        return made[-1].on(where, *arguments)

    yield make
    for one in made:
        one.close()


@pytest.fixture
def whitebox() -> Iterator[Whitebox]:
    """The white-box module, loaded."""
    try:
        loaded = Whitebox()
    except Unavailable as error:
        pytest.skip(str(error))
    yield loaded
    loaded.unload()


@pytest.fixture
def slowly() -> Iterator[bool]:
    """Have a system OOM take its time from one listener to the next, and before the kill, where the
    module can do that: what others can do meanwhile is no matter of luck. False where it cannot.
    """
    try:
        loaded = Whitebox()
    except Unavailable:
        yield False
        return
    loaded.slow(SLOWLY)
    yield True
    loaded.unload()


@pytest.fixture
def stuck(memcg: Callable[..., Memcg]) -> Iterator[Callable[..., Memcg]]:
    """Make a memcg that is stuck under OOM: its killer is disabled and a hog waits at its limit."""
    hogs = []

    def make(child: Memcg | None = None, limit: int = triggers.SMALL) -> Memcg:
        child = child or memcg()
        hogs.append(triggers.blocked_hog(child, limit))
        return child

    yield make
    for hog in hogs:
        hog.kill()
