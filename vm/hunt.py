# SPDX-License-Identifier: GPL-2.0-only
"""A pytest plugin for runs over mutants: the clauses that must reject one come first, and once one
of them has, the rest of that mutant's tests are left out. First of all comes the test that has
rejected it the last time.

It works in xdist's workers, too. One that rejects a mutant leaves a file of its number for the
others, which may have got a part of that mutant's tests. Where a clause did that need not, those
that must are still asked: what becomes of a mutant is no matter of who was first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vm import mutants, plugin, verdict
from vm.known import NAMED, Known
from vm.mutants import Mutant
from vm.results import Results
from vm.run import say
from vm.target import split

NAME = "oomtest-hunt"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kernel under test").addoption(
        "--all-clauses",
        action="store_true",
        help="run all tests on a mutant, not only until the first that rejects it",
    )
    parser.getgroup("kernel under test").addoption("--rejected", type=Path, help=argparse.SUPPRESS)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Hunt(config), NAME)


def _bare(node: str, kernel: str) -> str:
    """A test's name on whatever kernel."""
    return node.replace(kernel, "")


class Hunt:
    """Orders and leaves out."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.catalogue = mutants.catalogue()
        self.seen = Results(config)
        self.rejected: Path = config.getoption("--rejected")
        self.told: set[int] = set()
        self.known = Known(self.rejected).read()

    def _mutant(self, kernel: str) -> Mutant:
        return self.catalogue[split(kernel)[1]]

    def _kernel(self, item: pytest.Item) -> str:
        guests: plugin.Guests = self.config.pluginmanager.getplugin("oomtest-guests")
        return guests.routes[item.nodeid][0].name

    def _rank(self, item: pytest.Item) -> int:
        """Where its clause stands among those that must reject the mutant, or behind them.

        Before them all stands the test that rejected it the last time.
        """
        kernel = self._kernel(item)
        mutant = self._mutant(kernel)
        if self.known.get(str(mutant.number)) == _bare(item.nodeid, kernel):
            return -1
        clause, named = next(item.iter_markers("clause")).args[0], mutant.clauses
        return named.index(clause) if clause in named else len(named)

    def _mark(self, mutant: Mutant, *, named: bool) -> Path:
        """The file that says that it was rejected, by a clause that must or by another."""
        return self.rejected / f"{mutant.number}{NAMED if named else '-other'}"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Within each mutant's tests, which stand together: the named clauses' first."""
        order = {self._kernel(item): n for n, item in reversed(list(enumerate(items)))}
        items.sort(key=lambda item: (order[self._kernel(item)], self._rank(item)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Leave out what is decided; without a report, as if there were no such test."""
        mutant = self._mutant(self._kernel(item))
        decided = self._mark(mutant, named=True).exists() or (
            self._mark(mutant, named=False).exists() and self._rank(item) == len(mutant.clauses)
        )
        return True if decided else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kernel = dict(report.user_properties).get("kernel")
        if kernel is None:
            return
        self.seen.pytest_runtest_logreport(report)
        mutant = self._mutant(str(kernel))
        whole = self.config.getoption("--all-clauses") or mutant.kind == "right"
        tell = not hasattr(self.config, "workerinput") and mutant.number not in self.told
        if report.when != "teardown" or (whole and not tell):
            return
        answers = self.seen.answers[str(kernel)].values()
        rejecting = mutant.rejecting(verdict.judge(answers, self.seen.contract))
        if not rejecting:
            return
        if not whole:
            mark = self._mark(mutant, named=rejecting[0] in mutant.clauses)
            if not mark.exists():
                mark.write_text(_bare(report.nodeid, str(kernel)))
        if tell:
            self.told.add(mutant.number)
            say(f"{mutant.number} {mutant.name}: rejected by {rejecting[0]}")
