# SPDX-License-Identifier: GPL-2.0-only
"""The catalogue of wrong kernels, and what is made of the judgement on one."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from vm import hunt, matrix, mutants, series, verdict
from vm.known import Known
from vm.mutants import Mutant, Outcome
from vm.target import split
from vm.verdict import Answer

CONTRACT = verdict.clauses()


def outcome(kind: str, named: tuple[str, ...], **states: str) -> Outcome:
    """What becomes of a mutant whose tests ended so, one for each clause; the others pass."""
    answers = [Answer(name, name, states.get(name, "passed")) for name in CONTRACT]
    judgement = verdict.judge(answers, CONTRACT)
    return mutants.weigh(Mutant(7, "name <&>", "mistake", kind, named), judgement)


@pytest.mark.parametrize(
    ("kind", "named", "states", "state", "by"),
    [
        ("wrong", ("P3",), {"P3": "failed"}, "killed", ("P3",)),
        ("wrong", ("P4", "P3"), {"P3": "failed", "P4": "panic"}, "killed", ("P4", "P3")),
        ("wrong", ("P3",), {"N1": "failed", "P3": "failed"}, "killed", ("P3", "N1")),
        ("wrong", ("P3",), {"N1": "failed"}, "killed by another", ("N1",)),
        ("wrong", ("P1",), {"P1": "silent"}, "killed", ("P1",)),
        ("wrong", ("P3",), {}, "survived", ()),
        ("wrong", ("P3",), {"P3": "skipped"}, "survived", ()),
        ("wrong", ("P3",), {"P3": "unproven"}, "survived", ()),
        ("wrong", ("P3",), {"P9": "failed"}, "survived", ()),
        ("deviation", ("P9",), {"P9": "silent"}, "deviates", ("P9",)),
        ("deviation", ("P9",), {"P8": "failed"}, "deviates", ("P8",)),
        ("deviation", ("P9",), {"P9": "failed", "P1": "failed"}, "wrongly rejected", ("P9", "P1")),
        ("deviation", ("P9",), {}, "survived", ()),
        ("right", (), {}, "left alone", ()),
        ("right", (), {"P9": "failed"}, "left alone", ()),
        ("right", (), {"K3": "failed"}, "wrongly rejected", ("K3",)),
        ("right", (), {"N1": "unproven"}, "inconclusive", ()),
    ],
)
def test_weigh(
    kind: str, named: tuple[str, ...], states: dict[str, str], state: str, by: tuple[str, ...]
) -> None:
    found = outcome(kind, named, **states)
    assert (found.state, found.by) == (state, by)


@pytest.mark.parametrize("name", series.SERIES)
def test_every_mistake_of_the_catalogue_is_in_the_patches_and_the_other_way_round(
    name: str,
) -> None:
    major, minor = name.split(".")
    ports = series.ports(series.flavour("mutants"), (int(major), int(minor)))
    text = "".join(path.read_text() for path in ports)
    added = "\n".join(re.findall(r"^\+(?!\+\+)(.*)$", text, re.MULTILINE))
    named = r"(?:oom_mutant|mutant_keeps|notify_for)\(|case "
    singles = re.findall(rf"(?:{named})(\d+)(?!\d| \.\.\.)", added)
    ranges = re.findall(r"case (\d+) \.\.\. (\d+)", added)
    made = {int(number) for number in singles}
    made |= {number for first, last in ranges for number in range(int(first), int(last) + 1)}
    listed = {one.number for one in mutants.catalogue().values() if not one.patch}
    assert made == listed - {0}


def test_patches_of_the_catalogue_are_there() -> None:
    patches = [one.patch for one in mutants.catalogue().values() if one.patch]
    assert patches
    for name in patches:
        assert (mutants.HERE / "patches" / name).is_file()


@pytest.mark.parametrize(
    "row",
    [
        'kind = "wrong"\nclauses = []',
        'kind = "right"\nclauses = ["P1"]',
        'kind = "odd"\nclauses = ["P1"]',
        'kind = "wrong"\nclauses = ["P99"]',
        'kind = "wrong"\nclauses = ["P1"]\nnot_on = { "2.6" = "no such series" }',
        'kind = "wrong"\nclauses = ["P1"]\nnot_on = { "6.1" = "" }',
    ],
)
def test_catalogue_refuses(tmp_path: Path, row: str) -> None:
    file = tmp_path / "mutants.toml"
    file.write_text(f'[[mutant]]\nnumber = 1\nname = "n"\nmistake = "m"\n{row}\n')
    with pytest.raises(ValueError, match="mutant 1: "):
        mutants.catalogue(file)


def test_where_a_mistake_can_be_none_nothing_is_run_and_nothing_survives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "matrix.json"
    parser = argparse.ArgumentParser()
    mutants.arguments(parser)
    given = ["--series", "5.10", "--json", str(file), "--svg", str(tmp_path / "m.svg")]
    given += ["--html", str(tmp_path / "m.html"), "31"]
    assert mutants.main(parser.parse_args(given)) == 0
    (found,) = json.loads(file.read_text())["mutants"]
    reason = mutants.catalogue()[31].not_on["5.10"]
    assert (found["state"], found["why"], found["rejected_by"]) == ("not applicable", reason, [])
    assert reason in (tmp_path / "m.html").read_text()
    printed = capsys.readouterr().out
    assert f"not applicable: {reason}" in printed
    assert "1 mutants: 1 not applicable" in printed


def test_a_mutants_kernel_is_of_the_series_asked_for() -> None:
    known = mutants.catalogue()
    assert known[17].kernel("6.12") == "6.12/mutants#17"
    assert known[0].kernel("7.3") == "7.3/mutants"


@pytest.mark.parametrize("whole", [False, True])
def test_a_rejection_is_told_once_and_ends_that_mutants_run_unless_all_is_asked(
    whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--rejected": tmp_path, "--all-clauses": whole}
    hunter = hunt.Hunt(cast(Any, SimpleNamespace(getoption=options.get)))
    said = [("kernel", "6.1/mutants#1"), ("clause", "P1")]
    for test in ("one", "another"):
        for when in ("setup", "call", "teardown"):
            how: Any = "failed" if when == "call" else "passed"
            place, phase = ("test.py", 1, test), cast(Any, when)
            hunter.pytest_runtest_logreport(
                pytest.TestReport(test, place, {}, how, None, phase, user_properties=said)
            )
    assert capsys.readouterr().err.count("rejected by P1") == 1
    assert [path.name for path in tmp_path.iterdir()] == ([] if whole else ["1-named"])


def test_the_next_run_begins_with_the_test_that_has_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path / "cache"))
    for number, found in (("1", {"1": "one[]"}), ("2", {"1": "one[]", "2": "two[]"})):
        during = tmp_path / number
        during.mkdir()
        before = Known(during)
        before.lay_out()
        (during / f"{number}-named").write_text({"1": "one[]", "2": "two[]"}[number])
        (during / f"{number}-other").write_text("not by a clause that must")
        before.keep()
        after = tmp_path / f"after {number}"
        after.mkdir()
        Known(after).lay_out()
        assert Known(after).read() == found


def test_picture_is_xml_with_a_box_for_each_clause() -> None:
    rows = [outcome("wrong", ("P3",), P3="failed"), outcome("right", (), K3="failed")]
    picture = ElementTree.fromstring(matrix.svg(rows))  # noqa: S314  our own
    boxes = picture.findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(boxes) == 1 + 2 * len(CONTRACT) + len(matrix.CELLS)


@pytest.mark.parametrize(
    ("name", "kernel", "number"),
    [
        ("6.1/mutants#17", "6.1/mutants", 17),
        ("6.1/mutants", "6.1/mutants", 0),
        ("/boot/a#b", "/boot/a#b", 0),
        ("#3", "#3", 0),
    ],
)
def test_a_kernels_name_may_choose_a_mutant(name: str, kernel: str, number: int) -> None:
    assert split(name) == (kernel, number)
