# SPDX-License-Identifier: GPL-2.0-only
"""The host's pytest plugin: with ``--kernel``, tests run in guests of that kernel.

Collection is pytest's. For each item the runtest protocol is replaced: the item's id goes to a
guest, and the reports that come back are emitted as if the test had run here, so that selection,
``-x``, ``--lf``, ``--junitxml``, ``--durations`` and pytest-xdist work unchanged. No test body and
no fixture runs on the host.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.reports import TestReport

from vm import deaths, dispatch, outcome, results, run, stubs, verdict
from vm.errors import INCONCLUSIVE, HostError, LostVM, UserError
from vm.outcome import Crash
from vm.report import check_target
from vm.target import Target, names, split
from vm.verdict import CONTRACT

ROOT = Path(__file__).resolve().parent.parent
HARNESS = ROOT / "tests" / "harness"
KERNELS = "oomtest_kernels"
# What ports break most often comes first. The storms take longest and do not come last: xdist keeps
# a worker's last test back until no other worker has more than one left.
ORDER = "PNSKI"
# So many system OOMs that hang a kernel, in each of xdist's workers, are enough to know it by; each
# takes as long as the timers do. As-written clauses do not count: they break no contract.
ENOUGH = 4
TIRED = f"left out: {ENOUGH} system OOMs have hung this kernel already"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernel under test")
    group.addoption(
        "--kernel",
        action="append",
        metavar="KERNEL",
        help="run the tests in QEMU guests of this kernel: an image, or SERIES/FLAVOUR, or "
        "6.1/mutants#N for one that makes mistake N; may be repeated",
    )
    group.addoption(
        "--accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="acceleration; auto (the default) finds out what works here",
    )
    group.addoption(
        "--kernel-build",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="where a --kernel that was not built here was built, or its headers: the white-box "
        "module is built against it; may be repeated",
    )
    group.addoption(
        "--pristine",
        action="store_true",
        help="a new machine for each test; otherwise those of one clause, one after the other, "
        "share one as long as they pass and leave it as they found it",
    )
    group.addoption("--json", metavar="FILE", help="write the verdict to FILE as data")
    group.addoption("--html", metavar="FILE", help="write the verdict to FILE to be read")
    group.addoption(
        "--clause",
        action="append",
        metavar="ID",
        help="run only the tests of this clause of the contract; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.keyword in verdict.clauses():  # which pytest would find in P10 as well as P1
        config.option.clause = [*(config.option.clause or []), config.option.keyword]
        config.option.keyword = ""
    unknown = set(config.getoption("--clause") or []) - set(verdict.clauses())
    if unknown:
        raise pytest.UsageError(f"--clause {', '.join(sorted(unknown))}: no such clause")
    if not hasattr(config, "workerinput"):
        for target in filter(None, map(config.getoption, ("--json", "--html"))):
            try:
                check_target(Path(target))
            except UserError as error:
                raise pytest.UsageError(str(error)) from None
        config.pluginmanager.register(results.Results(config), results.NAME)
    if config.getoption("--kernel"):
        config.pluginmanager.register(Guests(config), "oomtest-guests")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the contract's files that have no test of the clauses asked for: it saves time."""
    wanted = config.getoption("--clause")
    if not wanted or collection_path.suffix != ".py" or collection_path.parent != CONTRACT:
        return None
    return None if verdict.marks(collection_path, wanted) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--clause")
    if not wanted:
        return

    def asked(item: pytest.Item) -> bool:
        return any(mark.args[0] in wanted for mark in item.iter_markers("clause"))

    config.hook.pytest_deselected(items=[item for item in items if not asked(item)])
    items[:] = filter(asked, items)


def _argument(item: pytest.Item, marker: str) -> Any:
    """What stands in a marker of a test; None without one."""
    found = item.get_closest_marker(marker)
    return found.args[0] if found and found.args else None


class OnKernel(pytest.Item):
    """An item again, with the kernel in its id; it never runs on the host.

    :param item: what was collected.
    :param kernel: the kernel's name.
    """

    def __init__(self, *, item: pytest.Item, kernel: str, **further: Any) -> None:
        super().__init__(name=f"{item.name}[{kernel}]", **further)
        self.item = item
        self.own_markers = list(item.own_markers)
        self.extra_keyword_matches = {*item.extra_keyword_matches, kernel}
        self.user_properties = list(item.user_properties)

    def runtest(self) -> None:
        raise NotImplementedError("tests run in guests")

    def reportinfo(self) -> Any:
        """Where the test stands in its file."""
        return self.item.reportinfo()


class Guests:
    """Sends tests into guests of one kernel or of several."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.dispatcher = dispatch.Dispatcher()
        self.targets: dict[str, Target] = {}
        self.unfit: dict[str, UserError] = {}
        self.routes: dict[str, tuple[Target, str]] = {}
        self.hung: Counter[str] = Counter()  # by kernel
        self.contract = verdict.clauses()

    def say(self, line: str) -> None:
        """Progress, unless this is an xdist worker, whose terminal is nobody's."""
        if not hasattr(self.config, "workerinput"):
            run.say(line)

    def _kernels(self) -> list[str]:
        """What was asked for; an xdist worker is told what of it the controller found fit."""
        told = getattr(self.config, "workerinput", {}).get(KERNELS)
        return names(told or self.config.getoption("--kernel"))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Have the kernels and the default machines ready before anything is collected.

        On xdist's controller too, so that the workers find it done and an error is told once.
        """
        if self.config.option.collectonly:
            return
        for name in self._kernels():
            try:
                target = self._target(name)
            except UserError as error:
                self._unfit(name, error)
                continue
            self.targets[name] = target
            collector = self._collector()
            if collector is not None:
                collector.describe(name, **target.describe())
                if stubs.CLAUSE in (self.config.getoption("--clause") or [stubs.CLAUSE]):
                    for answer in stubs.answers(target.kernel.image):
                        collector.add(name, answer)
        if not self.targets:
            self._stop("no kernel can be asked: see above")

    def _stop(self, why: str) -> None:
        """End the session before it has collected anything; what is known so far is written."""
        collector = self._collector()
        if collector is not None:
            collector.write()
        raise pytest.UsageError(why)

    def _target(self, name: str) -> Target:
        """A kernel, ready; those that differ in nothing but their mistake share all they have, also
        why they cannot be asked.
        """
        stem, mutant = split(name)
        for known in self.targets.values():
            if known.kernel.name == stem:
                return known.mutated(mutant)
        if stem in self.unfit:
            raise self.unfit[stem]
        try:
            new = Target(
                stem,
                self.config.getoption("--accel"),
                self._wanted(),
                self.dispatcher,
                self.say,
                self.config.getoption("--kernel-build"),
            )
        except UserError as error:
            self.unfit[stem] = error
            raise
        return new.mutated(mutant)

    def _collector(self) -> results.Results | None:
        found: results.Results | None = self.config.pluginmanager.getplugin(results.NAME)
        return found

    def _unfit(self, name: str, error: UserError) -> None:
        """Leave out a kernel that has no answer to give, unless it is the only one.

        :raises pytest.UsageError: with that one line, which is all that the user gets to see.
        """
        collector = self._collector()
        if collector is not None and error.exit_code == INCONCLUSIVE:
            collector.give_up(name, str(error), isinstance(error, HostError))
        if error.exit_code != INCONCLUSIVE:
            raise pytest.UsageError(str(error))
        if len(self._kernels()) == 1:
            self._stop(f"inconclusive: {error}")
        self.say(f"inconclusive: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker what it needs."""
        node.workerinput[KERNELS] = list(self.targets)

    def pytest_report_header(self) -> list[str]:
        told = ((name, target.describe()) for name, target in self.targets.items())
        return [f"kernel: {name} ({facts['release']}), {facts['how']}" for name, facts in told]

    def _wanted(self) -> list[Path]:
        """The test files and directories that were asked for and can run in a guest."""
        paths = [Path(arg.partition("::")[0]) for arg in self.config.args]
        found = [(self.config.invocation_params.dir / path).resolve() for path in paths]
        inside = {CONTRACT, *CONTRACT.parents}
        return [CONTRACT] + [
            path
            for path in found
            if path.exists()
            and path not in inside
            and not path.is_relative_to(CONTRACT)
            and not path.is_relative_to(HARNESS)
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Route every item to its kernel; with several, each item becomes one for each."""
        if not self.targets:  # only collecting
            return
        routed: list[pytest.Item] = []
        for item in items:
            if item.path.is_relative_to(HARNESS):
                routed.append(item)
                continue
            for target in self.targets.values():
                one = item
                if len(self.targets) > 1:
                    assert item.parent is not None
                    one = OnKernel.from_parent(item.parent, item=item, kernel=target.name)
                self.routes[one.nodeid] = (target, item.nodeid)
                routed.append(one)
        places = {name: n for n, name in enumerate(self.targets)}
        items[:] = sorted(routed, key=lambda one: self._place(one, places))

    def _place(self, item: pytest.Item, kernels: dict[str, int]) -> tuple[object, ...]:
        """By kernel, and there those that may share a machine beside each other."""
        if item.nodeid not in self.routes:
            return (-1,)
        kernel = kernels[self.routes[item.nodeid][0].name]
        clause = _argument(item, "clause") or ""
        return (kernel, ORDER.find(clause[:1]), clause, _argument(item, "profile") or "")

    def _task(self, item: pytest.Item | None) -> dispatch.Task | None:
        """What the dispatcher is to run; None for what does not run in a guest."""
        if item is None or item.nodeid not in self.routes:
            return None
        target, nodeid = self.routes[item.nodeid]
        alone = self.config.getoption("--pristine") or any(
            map(item.get_closest_marker, ("pristine", "dies"))
        )
        return dispatch.Task(
            nodeid,
            target.machine(_argument(item, "profile") or "default"),
            target.limit(_argument(item, "timeout")),
            target.mutant,
            "" if alone else _argument(item, "clause") or "",
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """The guest's own pytest-timeout and the host's timers watch over an item in a guest."""
        return True if item.nodeid in self.routes else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if item.nodeid not in self.routes:
            return None
        target, _ = self.routes[item.nodeid]
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        began = time.time()
        deadly = item.get_closest_marker("system_oom") is not None
        try:
            task, then = self._task(item), self._task(nextitem)
            assert task is not None
            if deadly and self.hung[target.name] >= ENOUGH:
                result = dispatch.Result(crash=Crash("skipped", TIRED))
            else:
                result = self.dispatcher.run(task, then)
        except (LostVM, UserError) as error:
            result = dispatch.Result(crash=Crash("lost", str(error)))
        clause = self.contract.get(_argument(item, "clause"))
        counts = deadly and (clause is None or clause.level != "as-written")
        if counts and result.crash and result.crash.kind in {"hang", "stuck"}:
            self.hung[target.name] += 1
        for report in self._reports(item, result, began):
            report.user_properties.append(("kernel", target.name))
            silent = ("outcome", "silent") in report.user_properties
            if report.failed and not silent:
                if result.console.strip():
                    report.sections.append(("Kernel console", outcome.tail(result.console)))
                report.sections.append(("To see it again", self._again(item, result)))
            self._show(report)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(
        self, item: pytest.Item, result: dispatch.Result, began: float
    ) -> Iterator[TestReport]:
        phases = set()
        for data in result.reports:
            report = self._revive(item, data)
            phases.add(report.when)
            yield report
        if result.crash is None:
            return
        if result.crash.kind == "skipped":
            yield self._skipped(item, result.crash.reason, began)
            yield self._made(item, "teardown", began, 0.0, None, "passed")
            return
        if "setup" not in phases:
            yield self._made(item, "setup", began, 0.0, None, "passed")
        when = "teardown" if "call" in phases else "call"
        crash = deaths.verdict(item.get_closest_marker("dies"), result.crash, result.console)
        how = "failed" if crash else "passed"
        yield self._made(item, when, began, result.seconds, crash, how)
        if when == "call":
            yield self._made(item, "teardown", began, 0.0, None, "passed")

    def _revive(self, item: pytest.Item, data: dict[str, Any]) -> TestReport:
        """A report as the guest's pytest made it, with JSON's lists turned back and paths ours."""
        data |= {"nodeid": item.nodeid, "location": item.location}
        data["keywords"] = dict.fromkeys(item.keywords, 1)
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
            text = f"{crash.kind}: {crash.reason}"
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

    def _again(self, item: pytest.Item, result: dispatch.Result) -> str:
        """The command that runs a test as it has run, after the same tests in the same machine."""
        target, nodeid = self.routes[item.nodeid]
        command = ["./oomtest", "run", "--kernel", target.name, "-n", "0", "--"]
        return shlex.join([*command, *result.before, nodeid])

    def _skipped(self, item: pytest.Item, why: str, began: float) -> TestReport:
        """A report of a test that was not run."""
        report = self._made(item, "setup", began, 0.0, None, "skipped")
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {why}")
        return report

    def _show(self, report: TestReport) -> None:
        """With ``-s``, what the test printed in the guest; failures show it anyway."""
        if self.config.getoption("capture") == "no" and report.passed and report.when == "call":
            for name, text in report.sections:
                print(f"\n--- {name} ---\n{text}", end="")

    def pytest_unconfigure(self) -> None:
        self.dispatcher.close()
