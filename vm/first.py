# SPDX-License-Identifier: GPL-2.0-only
"""A pytest plugin that ends the asking with the first test that speaks against the kernel.

pytest's -x stops at any failure, of the suite's own or for want of time as well; those decide
nothing. It works in xdist's workers, too: whoever has the answer leaves a file for the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vm import verdict


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kernel under test").addoption("--decided", type=Path, help=argparse.SUPPRESS)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(First(config), "oomtest-first")


class First:
    """Leaves out what comes after the first."""

    def __init__(self, config: pytest.Config) -> None:
        self.decided: Path = config.getoption("--decided")
        asked = config.getoption("--clause") or []
        known = verdict.clauses().values()
        self.deciding = {one.id for one in known if one.level != "as-written" or one.id in asked}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        """Without a report, as if there were no such test."""
        return True if self.decided.exists() else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = dict(report.user_properties)
        state = said.get("outcome", report.outcome)
        if state in verdict.AGAINST and said.get("clause") in self.deciding:
            self.decided.touch()
