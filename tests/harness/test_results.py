# SPDX-License-Identifier: GPL-2.0-only
"""From pytest's reports to answers, and the file that holds the verdicts as data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.errors import UserError
from vm.report import check_target, publish
from vm.results import Results, one, reason, render, several, severity
from vm.run import WIDTH
from vm.series import SERIES
from vm.verdict import clauses

KERNEL = "6.1/test"
CLAUSES = ("P1", "P2", "N1", "N2", "N3", "K1", "I1")  # a verdict needs these


def report(
    when: Any,
    ended: Any,
    longrepr: Any = None,
    clause: str | None = "P1",
    node: str = "test_x.py::test",
    **properties: str,
) -> pytest.TestReport:
    said = {"clause": clause, "kernel": KERNEL, **properties}
    return pytest.TestReport(
        nodeid=node,
        location=("test_x.py", 1, "test"),
        keywords={},
        outcome=ended,
        longrepr=longrepr,
        when=when,
        duration=0.25,
        user_properties=[(name, value) for name, value in said.items() if value is not None],
    )


def crash(message: str) -> Any:
    """What pytest makes of an exception, as far as it is looked at."""
    return SimpleNamespace(reprcrash=SimpleNamespace(message=message))


@pytest.mark.parametrize(
    ("longrepr", "told"),
    [
        (None, ""),
        (("test_x.py", 3, "Skipped: no such file"), "no such file"),
        (("test_x.py", 3, "helpers.evidence.Inconclusive: nothing seen"), "nothing seen"),
        (("test_x.py", 3, "helpers.evidence.Unproven: but it is silent"), "but it is silent"),
        (crash("AssertionError: one is not two\nassert 1 == 2"), "one is not two"),
        (crash("helpers.evidence.Silent: root was not signalled"), "root was not signalled"),
        (crash("Failed: Timeout (>2.0s) from pytest-timeout."), "Timeout (>2.0s) from"),
        (crash("OSError: [Errno 5] Input/output error"), "OSError: [Errno 5]"),
        ("panic: the kernel panicked: x\nto see it again: y", "panic: the kernel panicked: x"),
        ("\n\nlate\n", "late"),
    ],
)
def test_reason(longrepr: Any, told: str) -> None:
    got = reason(report("call", "failed", longrepr))
    assert got.startswith(told)
    assert bool(got) == bool(told)
    assert "\n" not in got


@pytest.fixture
def results(tmp_path: Path) -> Results:
    options = {"--json": str(tmp_path / "verdict.json"), "--html": None, "--here": False}
    config: Any = SimpleNamespace(getoption=options.__getitem__, stash={})
    collected = Results(config)
    collected.describe(KERNEL, release="6.1.192", how="QEMU 7.2, tcg")
    return collected


PASSED = [report("setup", "passed"), report("call", "passed"), report("teardown", "passed")]
LEAK = ("teardown", "failed", crash("OSError: [Errno 16] Device or resource busy: '/x'"))


@pytest.mark.parametrize(
    ("reports", "state", "detail"),
    [
        (PASSED, "passed", ""),
        ([report("setup", "failed", crash("AssertionError: set-up")), PASSED[2]],
         "failed", "set-up"),
        ([report("setup", "failed", crash("OSError: no"), outcome="error"), PASSED[2]],
         "error", "OSError: no"),
        ([report("setup", "skipped", ("f", 1, "Skipped: no")), PASSED[2]], "skipped", "no"),
        ([PASSED[0], report("call", "failed", crash("AssertionError: broken")), PASSED[2]],
         "failed", "broken"),
        ([PASSED[0], report("call", "failed", crash("x"), outcome="silent"), PASSED[2]],
         "silent", "x"),
        ([PASSED[0], report("call", "skipped", ("f", 1, "gone"), outcome="inconclusive"),
          PASSED[2]], "inconclusive", "gone"),
        # A test that passed, and could not clean up or whose machine died then, has not passed.
        ([*PASSED[:2], report(*LEAK, outcome="error")], "error", "OSError: [Errno 16]"),
        ([*PASSED[:2], report("teardown", "failed", "panic: x\ny", outcome="panic")],
         "panic", "panic: x"),
        # Nor does what happens afterwards cover up why it failed, or that it could not be asked.
        ([PASSED[0], report("call", "failed", crash("first")),
          report(*LEAK, outcome="error")], "failed", "first"),
        ([PASSED[0], report("call", "skipped", ("f", 1, "gone"), outcome="inconclusive"),
          report(*LEAK, outcome="error")], "inconclusive", "gone"),
        ([PASSED[0], report("call", "skipped", ("f", 1, "Skipped: no")),
          report(*LEAK, outcome="error")], "error", "OSError: [Errno 16]"),
    ],
)  # fmt: skip
def test_phases(
    results: Results, reports: list[pytest.TestReport], state: str, detail: str
) -> None:
    for phase in reports:
        results.pytest_runtest_logreport(phase)
    (answer,) = results.answers[KERNEL].values()
    assert (answer.state, answer.clause) == (state, "P1")
    assert answer.detail.startswith(detail)
    assert bool(answer.detail) == bool(detail)
    assert answer.seconds == 0.25 * len(reports)


def test_what_carries_no_clause_is_no_answer(results: Results) -> None:
    results.pytest_runtest_logreport(report("call", "failed", "x", clause=None))
    assert results.answers == {KERNEL: {}}


def test_json_round_trip(results: Results, tmp_path: Path) -> None:
    for name in CLAUSES:
        results.pytest_runtest_logreport(report("call", "passed", clause=name, node=name))
    failed = report("call", "failed", crash("AssertionError: not so"), clause="P3", node="three")
    results.pytest_runtest_logreport(failed)
    results.pytest_sessionfinish(0)
    written = tmp_path / "verdict.json"
    data = json.loads(written.read_text())
    assert data == json.loads(json.dumps(results.data()))
    (kernel,) = data["kernels"]
    assert (kernel["kernel"], kernel["release"], kernel["exit_code"]) == (KERNEL, "6.1.192", 1)
    assert kernel["verdict"] == "violates"
    assert kernel["why"] == "P3 (P3: not so)"
    assert kernel["clauses_named"] == ["P3"]
    rows = {row["id"]: row for row in kernel["clauses"]}
    assert list(rows) == list(clauses())
    assert (rows["P1"]["state"], rows["P1"]["passed"], rows["P1"]["total"]) == ("kept", 1, 1)
    assert (rows["P3"]["state"], rows["P3"]["detail"]) == ("broken", "not so")
    tests = {test["test"]: test for test in kernel["tests"]}
    assert tests["three"]["detail"] == "not so"
    assert len(tests) == len(CLAUSES) + 1
    assert written.stat().st_mode & 0o777 == 0o644


def test_a_kernel_that_cannot_be_asked(results: Results, tmp_path: Path) -> None:
    results.give_up("bad", "bad does not boot here: it panicked")
    results.write()
    (kernel,) = json.loads((tmp_path / "verdict.json").read_text())["kernels"]
    assert (kernel["kernel"], kernel["verdict"], kernel["exit_code"]) == (
        "bad",
        "inconclusive",
        125,
    )
    assert kernel["why"] == "bad does not boot here: it panicked"
    assert all(row["state"] == "not asked" for row in kernel["clauses"])
    assert "fault" not in kernel
    results.give_up("bad", "no space left", host=True)
    results.write()
    (kernel,) = json.loads((tmp_path / "verdict.json").read_text())["kernels"]
    assert kernel["fault"] == "host"


def test_two_kernels_are_told_apart(results: Results) -> None:
    results.describe("other")
    for name in CLAUSES:
        results.pytest_runtest_logreport(report("call", "passed", clause=name, node=name))
        both = report("call", "failed", "x", clause=name, node=name, kernel="other")
        results.pytest_runtest_logreport(both)
    results.pytest_sessionfinish(0)
    lines = {kernel: judgement.verdict for kernel, judgement in results.judgements.items()}
    assert lines == {KERNEL: "conforms", "other": "violates"}


def test_nothing_is_said_of_a_machine_that_no_test_has_asked(tmp_path: Path) -> None:
    options = {"--json": str(tmp_path / "verdict.json"), "--html": None, "--here": True}
    config: Any = SimpleNamespace(getoption=options.__getitem__, stash={})
    gathered = Results(config)
    gathered.pytest_sessionfinish(0)
    assert not gathered.judgements


def test_kernels_stand_as_they_were_named(results: Results) -> None:
    results.give_up("second", "it panicked")
    results.describe("third")
    results.pytest_sessionfinish(0)
    assert list(results.judgements) == [KERNEL, "second", "third"]


@pytest.mark.parametrize(
    "status", [pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED]
)
def test_no_verdict_where_nobody_was_asked(
    results: Results, tmp_path: Path, status: pytest.ExitCode
) -> None:
    results.pytest_sessionfinish(status)
    assert not results.judgements
    assert not (tmp_path / "verdict.json").exists()


def test_a_test_whose_process_died_on_the_host_is_named(results: Results) -> None:
    """Of such a one xdist knows no more than the name."""
    results.describe("other")
    for name in CLAUSES:
        for kernel in (KERNEL, "other"):
            node = f"{name}[{kernel}]"
            results.pytest_runtest_logreport(
                report("call", "passed", clause=name, node=node, kernel=kernel)
            )
    died = pytest.TestReport(
        "test_x.py::test[other]",
        ("test_x.py", None, ""),
        {},
        "failed",
        "died",
        "???",  # type: ignore[arg-type]
    )
    results.pytest_runtest_logreport(died)
    results.pytest_sessionfinish(0)
    lines = [judgement.line for judgement in results.judgements.values()]
    told = "no answer, as their process on the host died: test_x.py::test[other]"
    assert lines == ["conforms", f"conforms: {told}"]


def test_the_kernels_words_are_no_markup(results: Results) -> None:
    said = "Oops: 0000 [#1] [/sys/fs] test_x[root]"
    failed = report("call", "failed", crash(f"AssertionError: {said}"))
    results.pytest_runtest_logreport(failed)
    results.pytest_sessionfinish(0)
    assert said in render(one(results.judgements), WIDTH, False)


def test_eight_kernels_side_by_side_keep_their_words(results: Results) -> None:
    names = [f"{series}/{flavour}" for series in SERIES for flavour in ("stock", "reference")]
    for kernel in names:
        results.describe(kernel)
        results.pytest_runtest_logreport(report("call", "passed", kernel=kernel))
    results.pytest_sessionfinish(0)
    lines = render(several({name: results.judgements[name] for name in names}), WIDTH, False)
    assert all(name in lines for name in names)


def test_a_page_that_stands_alone(tmp_path: Path) -> None:
    target = tmp_path / "verdict.html"
    options = {"--html": str(target), "--json": None, "--here": False}
    config: Any = SimpleNamespace(getoption=options.__getitem__, stash={})
    gathered = Results(config)
    gathered.give_up("<kernel>", "no memcg v1")
    gathered.write()
    page = target.read_text()
    assert "&lt;kernel&gt;" in page
    assert "inconclusive: no memcg v1" in page
    assert "http" not in page, "it loads something"


def test_a_report_goes_where_it_is_wanted(tmp_path: Path) -> None:
    real, link, pipe = (tmp_path / name for name in ("real", "link", "pipe"))
    link.symlink_to(real)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in (link, pipe, tmp_path / "new" / "file"):
        check_target(target)
        publish(target, "verdict")
    assert os.read(reader, 100) == b"verdict"
    os.close(reader)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert real.read_text() == (tmp_path / "new" / "file").read_text() == "verdict"


def test_where_no_report_can_go(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory: name a file in it"):
        check_target(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"no report can be written to .*/file/under/it: "):
        check_target(tmp_path / "file" / "under" / "it")


def test_a_splat_outweighs_silence() -> None:
    order = ["passed", "skipped", "inconclusive", "silent", "failed"]
    assert sorted(order, key=severity) == order
