# SPDX-License-Identifier: GPL-2.0-only
"""Collects how tests ended, and ends the session with a verdict on each kernel."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vm.report import html, publish
from vm.run import columns
from vm.verdict import (
    AGAINST,
    INCONCLUSIVE,
    NO_ANSWER,
    UNASKED,
    Answer,
    Judgement,
    Row,
    clauses,
    judge,
)

NAME = "oomtest-results"
STYLES = {"kept": "green", "broken": "bold red", "silent": "red", "deviates": "yellow"}
OURS = frozenset({"clause", "kernel", "outcome"})  # properties that are not a test's own


def reason(ended: pytest.TestReport) -> str:
    """Why a test did not pass, in one line."""
    longrepr: Any = ended.longrepr
    if isinstance(longrepr, tuple):
        text = str(longrepr[2])
    elif hasattr(longrepr, "reprcrash") and longrepr.reprcrash is not None:
        text = str(longrepr.reprcrash.message)
    else:
        text = str(longrepr or "")
    first = (text.strip().splitlines() or [""])[0]
    for prefix in ("Skipped: ", "AssertionError: ", "Failed: "):
        first = first.removeprefix(prefix)
    return re.sub(r"^helpers\.evidence\.\w+: ", "", first)


def severity(state: str) -> int:
    """How much a state of a test weighs beside another phase's: a splat outweighs silence."""
    ranks = (frozenset({"passed"}), frozenset({"skipped"}), NO_ANSWER, {"silent"}, AGAINST)
    return next(rank for rank, states in enumerate(ranks) if state in states)


class Results:
    """Gathers answers, by kernel; prints and writes the verdicts at the end.

    :ivar judgements: by kernel, once the session is finished.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.contract = clauses()
        self.answers: dict[str, dict[str, Answer]] = {}
        self.facts: dict[str, dict[str, str]] = {}
        self.judgements: dict[str, Judgement] = {}
        self.unfit: set[str] = set()
        self.host_faults: set[str] = set()
        self.orphans: list[str] = []

    def describe(self, kernel: str, **facts: str) -> None:
        """Remember how a kernel is run."""
        self.facts[kernel] = facts
        self.answers.setdefault(kernel, {})

    def add(self, kernel: str, answer: Answer) -> None:
        """Take an answer that no test in this session gives."""
        self.answers[kernel][answer.test] = answer

    def give_up(self, kernel: str, why: str, host: bool = False) -> None:
        """A kernel that cannot be asked at all.

        :param host: whether that says nothing of the kernel.
        """
        if host:
            self.host_faults.add(kernel)
        self.unfit.add(kernel)
        nothing = judge([], self.contract)
        self.judgements[kernel] = Judgement(INCONCLUSIVE, why, (), nothing.rows)
        self.facts.setdefault(kernel, {})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = {str(name): value for name, value in report.user_properties}
        if "clause" not in said:
            if str(report.when) == "???":  # xdist's, of a test whose worker died: by its name alone
                self.orphans.append(report.nodeid)
            return
        kernel = str(said.get("kernel", "here"))
        state = str(said.get("outcome", report.outcome))
        known = self.answers.setdefault(kernel, {}).get(report.nodeid)
        seconds = report.duration + (known.seconds if known else 0.0)
        if known and severity(known.state) >= severity(state):
            state, detail = known.state, known.detail
        else:
            detail = "" if report.passed else reason(report)
        measured = {name: value for name, value in said.items() if name not in OURS}
        clause = str(said["clause"])
        answer = Answer(report.nodeid, clause, state, detail, round(seconds, 3), measured)
        self.answers[kernel][report.nodeid] = answer

    @pytest.hookimpl(tryfirst=True)  # before the JUnit XML is written
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
            return  # nobody was asked
        if self.config.getoption("--here"):
            self.facts["here"] = {"release": os.uname().release, "how": "in place"}
        # As they were named, and not as it was known what becomes of them.
        self.judgements = {
            kernel: self.judgements[kernel] if kernel in self.unfit else self._judge(kernel)
            for kernel in self.facts
            if kernel in self.unfit | self.answers.keys()
        }
        self.write()

    def _judge(self, kernel: str) -> Judgement:
        judgement = judge(self.answers[kernel].values(), self.contract)
        lost = [
            node for node in self.orphans if len(self.facts) == 1 or node.endswith(f"[{kernel}]")
        ]
        told = f"no answer, as their process on the host died: {', '.join(lost)}" * bool(lost)
        return replace(judgement, why="; ".join(filter(None, (judgement.why, told))))

    def write(self) -> None:
        """Write what was asked for; the JUnit XML, which is pytest's own, is told the verdicts."""
        if not self.judgements:
            return
        for option, written in (
            ("--json", lambda data: json.dumps(data, indent=1) + "\n"),
            ("--html", html),
        ):
            target = self.config.getoption(option)
            if target:
                publish(Path(target), written(self.data()))
        junit = self.config.stash.get(xml_key, None)
        if junit is not None:
            for kernel, judgement in self.judgements.items():
                junit.add_global_property(f"verdict on {kernel}", judgement.line)

    def data(self) -> dict[str, Any]:
        """The verdicts as data: what the JSON file holds, docs/REPORTS.md describes."""
        return {
            "format": 1,
            "kernels": [
                {
                    "kernel": kernel,
                    **self.facts[kernel],
                    **({"fault": "host"} if kernel in self.host_faults else {}),
                    "verdict": judgement.verdict,
                    "why": judgement.why,
                    "clauses_named": judgement.named,
                    "exit_code": judgement.exit_code,
                    "clauses": [row.data() for row in judgement.rows],
                    "tests": [asdict(one) for one in self.answers.get(kernel, {}).values()],
                }
                for kernel, judgement in self.judgements.items()
            ],
        }

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.judgements:
            return
        terminalreporter.section("contract")
        for kernel in self.judgements:
            how = ", ".join(self.facts[kernel].values())
            terminalreporter.write_line(f"{kernel}: {how}" if how else kernel)
        if len(self.judgements) == 1:
            shown, width = one(self.judgements), terminalreporter._tw.fullwidth
        else:
            shown, width = several(self.judgements), columns()
        terminalreporter.write(render(shown, width, terminalreporter.hasmarkup))
        left_out = ", ".join(sorted(_unasked(self.judgements), key=list(self.contract).index))
        if left_out:
            terminalreporter.write_line(f"not asked, as {UNASKED}: {left_out}")
        for kernel, judgement in self.judgements.items():
            good = judgement.exit_code == 0
            terminalreporter.write_line(f"{kernel}: {judgement.line}", green=good, red=not good)


def render(table: Table, width: int, color: bool) -> str:
    """A table as text."""
    buffer = io.StringIO()
    Console(file=buffer, width=max(width, 60), force_terminal=color).print(table)
    return buffer.getvalue()


def _unasked(judgements: Mapping[str, Judgement]) -> set[str]:
    """The clauses of which no kernel was asked anything: they are told in one line."""
    told = (row for judgement in judgements.values() for row in judgement.rows)
    asked = {row.clause.id for row in told if row.detail != UNASKED}
    return {row.clause.id for row in next(iter(judgements.values())).rows} - asked


def _cell(row: Row) -> Text:
    return Text(row.state, STYLES.get(row.state, "dim"))


def one(judgements: Mapping[str, Judgement]) -> Table:
    """The clauses of one kernel, with what each says or why it is not kept."""
    (judgement,) = judgements.values()
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("clause", "level", "state", "tests"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("what it says, or why not")
    left_out = _unasked(judgements)
    for row in judgement.rows:
        if row.clause.id in left_out:
            continue
        count = f"{row.passed}/{row.total}" if row.total else "-"
        clause = row.clause
        shown.add_row(clause.id, clause.level, _cell(row), count, Text(row.detail or clause.text))
    return shown


def several(judgements: Mapping[str, Judgement]) -> Table:
    """The clauses of several kernels side by side."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("clause", "level"):
        shown.add_column(column, no_wrap=True)
    for kernel in judgements:
        shown.add_column(Text(kernel), overflow="fold")
    left_out = _unasked(judgements)
    for rows in zip(*(judgement.rows for judgement in judgements.values()), strict=True):
        if rows[0].clause.id in left_out:
            continue
        shown.add_row(rows[0].clause.id, rows[0].clause.level, *map(_cell, rows))
    return shown
