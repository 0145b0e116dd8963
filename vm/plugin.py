# SPDX-License-Identifier: GPL-2.0-only
"""The host's pytest plugin: with ``--kernel``, each test runs in a pristine machine of its own.

Collection is pytest's. For each item the runtest protocol is replaced: the item's id goes to a
guest, and the reports that come back are emitted as if the test had run here, so that selection,
``-x``, ``--lf``, ``--junitxml``, ``--durations`` and pytest-xdist work unchanged. No test body and
no fixture runs on the host.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.reports import TestReport

from vm import accel, build, dispatch, outcome, qemu, results, snapshot, suite, verdict
from vm.errors import INCONCLUSIVE, LostVM, UserError
from vm.kernel import Kernel
from vm.outcome import Crash
from vm.profiles import PROFILES, Profile

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "tests" / "harness"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernel under test")
    group.addoption(
        "--kernel",
        metavar="KERNEL",
        help="run the tests in QEMU guests of this kernel: an image, or SERIES/FLAVOUR",
    )
    group.addoption(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="acceleration; auto (the default) finds out what works here",
    )
    group.addoption("--json", metavar="FILE", help="write the verdict to FILE as data")
    group.addoption(
        "--clause",
        action="append",
        metavar="ID",
        help="run only the tests of this clause of the contract; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(results.Results(config), results.NAME)
    if config.getoption("--kernel"):
        config.pluginmanager.register(Guests(config), "oomtest-guests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--clause")
    if not wanted:
        return
    unknown = set(wanted) - set(verdict.clauses())
    if unknown:
        raise pytest.UsageError(f"--clause {', '.join(sorted(unknown))}: no such clause")

    def asked(item: pytest.Item) -> bool:
        return any(mark.args[0] in wanted for mark in item.iter_markers("clause"))

    config.hook.pytest_deselected(items=[item for item in items if not asked(item)])
    items[:] = filter(asked, items)


class Guests:
    """Sends tests into guests of one kernel."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.dispatcher = dispatch.Dispatcher()
        self.snapshots: dict[str, snapshot.Snapshot] = {}
        self.kernel: Kernel
        self.accel: accel.Accel
        self.suite: suite.Suite

    def say(self, line: str) -> None:
        """Progress, unless this is an xdist worker, whose terminal is nobody's."""
        if not hasattr(self.config, "workerinput"):
            print(f"oomtest: {line}", file=sys.stderr, flush=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Have the kernel and the default machine ready before anything is collected.

        On xdist's controller too, so that the workers find it done and an error is told once.
        """
        if self.config.option.collectonly:
            return
        collector: results.Results | None = self.config.pluginmanager.getplugin(results.NAME)
        try:
            self.kernel = build.resolve(self.config.getoption("--kernel"), self.say)
            self.accel = accel.choose(self.config.getoption("--accel"), self.kernel.image)
            limit = dispatch.TEST * snapshot.scale(self.accel.name)
            self.suite = suite.pack(ROOT, self._wanted(), limit)
            facts = self._snapshot(PROFILES["default"]).facts()
        except UserError as error:
            if collector is not None and error.exit_code == INCONCLUSIVE:
                collector.give_up(self.config.getoption("--kernel"), str(error))
            pytest.exit(str(error), returncode=error.exit_code)
        if collector is not None:
            collector.describe(
                self.kernel.name,
                release=facts["release"],
                how=f"QEMU {qemu.version()}, {self.accel.name} ({self.accel.reason})",
                machine=f"2 vCPUs, {qemu.MEMORY_MIB} MiB",
                image=str(self.kernel.image),
            )

    def pytest_report_header(self) -> list[str]:
        if not self.snapshots:
            return []
        release = self.snapshots["default"].facts()["release"]
        how = f"{self.accel.name} ({self.accel.reason})"
        return [f"kernel: {self.kernel.name} ({release}), QEMU {qemu.version()}, {how}"]

    def _wanted(self) -> list[Path]:
        """The test files and directories that were asked for and can run in a guest."""
        paths = [Path(arg.partition("::")[0]) for arg in self.config.args]
        found = [(self.config.invocation_params.dir / path).resolve() for path in paths]
        wanted = [path for path in found if path.exists() and not path.is_relative_to(HARNESS)]
        whole = ROOT / "tests" / "contract"
        return [
            whole,
            *(
                path
                for path in wanted
                if not path.is_relative_to(whole) and path not in whole.parents
            ),
        ]

    def _snapshot(self, profile: Profile) -> snapshot.Snapshot:
        if profile.name not in self.snapshots:
            self.snapshots[profile.name] = self.dispatcher.wait(
                snapshot.prepare(self.kernel, profile, self.accel.name, self.suite, self.say)
            )
        return self.snapshots[profile.name]

    def _mine(self, item: pytest.Item | None) -> bool:
        return item is not None and not item.path.is_relative_to(HARNESS)

    def _machine(self, item: pytest.Item) -> snapshot.Snapshot:
        marker = item.get_closest_marker("profile")
        return self._snapshot(PROFILES[marker.args[0] if marker else "default"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """The guest's own pytest-timeout and the host's timers watch over an item in a guest."""
        return True if self._mine(item) else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not self._mine(item):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        began = time.time()
        try:
            here = self._machine(item)
            then = self._machine(nextitem) if nextitem and self._mine(nextitem) else None
            result = self.dispatcher.run(item.nodeid, here, self._limit(item), then)
        except (LostVM, UserError) as error:
            result = dispatch.Result(crash=Crash("lost", str(error)))
        for report in self._reports(item, result, began):
            report.user_properties.append(("kernel", self.kernel.name))
            if report.failed and result.console.strip():
                report.sections.append(("Kernel console", outcome.tail(result.console)))
            self._show(report)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _limit(self, item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        factor = snapshot.scale(self.accel.name)
        seconds = float(marker.args[0]) if marker and marker.args else dispatch.TEST * factor
        return seconds + dispatch.GRACE * factor

    def _reports(
        self, item: pytest.Item, result: dispatch.Result, began: float
    ) -> Iterator[TestReport]:
        phases = set()
        for data in result.reports:
            report = self._revive(data)
            phases.add(report.when)
            yield report
        if result.crash is None:
            return
        if "setup" not in phases:
            yield self._made(item, "setup", began, 0.0, None, "passed")
        when = "teardown" if "call" in phases else "call"
        yield self._made(item, when, began, result.seconds, result.crash, "failed")
        if when == "call":
            yield self._made(item, "teardown", began, 0.0, None, "passed")

    def _revive(self, data: dict[str, Any]) -> TestReport:
        """A report as the guest's pytest made it, with JSON's lists turned back and paths ours."""
        report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
        assert isinstance(report, TestReport)
        report.user_properties = [(str(name), value) for name, value in report.user_properties]
        report.sections = [(str(name), str(text)) for name, text in report.sections]
        if isinstance(report.longrepr, list):
            path, line, reason = report.longrepr
            report.longrepr = (path.replace("/suite", str(ROOT), 1), line, reason)
        return report

    def _made(
        self,
        item: pytest.Item,
        when: Any,
        began: float,
        seconds: float,
        crash: Crash | None,
        result: Any,
    ) -> TestReport:
        """A report that the guest could not make."""
        text = None
        properties = list(item.user_properties)
        if crash:
            again = f"./oomtest run --kernel {self.kernel.name} -- '{item.nodeid}'"
            text = f"{crash.kind}: {crash.reason}\nto see it again: {again}"
            properties.append(("outcome", crash.kind))
        return TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome=result,
            longrepr=text,
            when=when,
            duration=seconds,
            start=began,
            stop=began + seconds,
            user_properties=properties,
        )

    def _show(self, report: TestReport) -> None:
        """With ``-s``, what the test printed in the guest; failures show it anyway."""
        if self.config.getoption("capture") == "no" and report.passed and report.when == "call":
            for name, text in report.sections:
                print(f"\n--- {name} ---\n{text}", end="")

    def pytest_unconfigure(self) -> None:
        self.dispatcher.close()
