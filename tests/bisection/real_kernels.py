# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest bisect`` on real kernels, for three clauses, once killed half-way and resumed.

It takes long: ``tox -e bisect`` runs it. The file's name keeps pytest from collecting it unless it
is asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bisection.history import COMMITS, Repository
from tests.harness.conftest import ROOT, clean_environment
from vm import cache, run, source

pytestmark = pytest.mark.timeout(4 * 60 * 60)


@dataclass(frozen=True)
class Ended:
    """A bisection that is over.

    :ivar told: its lines of progress.
    """

    code: int
    report: str
    told: list[str]


class Workshop:
    """A repository, and a cache that is empty at first."""

    def __init__(self, where: Path, tarball: Path) -> None:
        self.cache = where / "cache"
        self.repository = Repository(where / "linux", tarball)
        self.commits = self.repository.commits
        self.compiled: set[int] = set()

    def bisect(self, *arguments: str, enough: Callable[[list[str]], bool] | None = None) -> Ended:
        """Run it as a user does.

        :param enough: looks at what was told so far; then all of it is killed.
        """
        command = [sys.executable, "-m", "vm", "bisect", f"--tree={self.repository.path}"]
        told: list[str] = []
        with (
            tempfile.TemporaryFile("w+") as out,
            subprocess.Popen(
                [*command, *arguments],
                cwd=ROOT,
                env={**clean_environment(), "OOMTEST_CACHE": str(self.cache)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                print(line, end="", flush=True)
                told.append(line)
                if enough and enough(told):
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            code = process.wait()
            out.seek(0)
            report = out.read()
        print(report)
        return Ended(code, report, told)

    def judge(self, ended: Ended, clause: str, good: int, skipped: str) -> None:
        """It has found the right commit, and seen of every commit what is to be seen.

        :param good: the number of the good end.
        :param skipped: what it must have met, whatever way git took.
        """
        first = self.repository.number(clause)
        commit, before = self.commits[first], self.commits[first - 1]
        assert ended.code == 0
        assert f"First bad commit: {commit} {COMMITS[first - 1].subject}\n" in ended.report
        assert f"\nclause: {clause} " in ended.report
        assert f"\nbefore: {before[:12]}: good: kept\n" in ended.report
        assert f"\nafter:  {commit[:12]}: bad: violates {clause}: " in ended.report
        log = self.repository.path / ".git" / "oomtest-bisect"
        assert (log / "report.txt").read_text() == ended.report
        steps = [json.loads(line) for line in (log / "steps.jsonl").read_text().splitlines()]
        found = {self.commits.index(step["commit"]): step["word"] for step in steps}
        assert len(found) == len(steps), "a commit was asked twice"
        assert found == {number: self.word(number, first) for number in found}
        assert {good, len(COMMITS)} <= found.keys()
        assert skipped in found.values()
        for step in steps:
            assert step["commit"][:12] in ended.report
            assert (log / f"{step['commit'][:12]}.log").stat().st_size
        assert not (self.repository.path / ".git" / "BISECT_LOG").exists()
        assert os.listdir(self.repository.path) == [".git"], "something was checked out"

    def word(self, number: int, first: int) -> str:
        """What is to be seen of a commit when the first bad one is another."""
        for trouble in ("does not build", "does not boot"):
            begun = self.repository.number(trouble)
            if number in (begun, begun + 1):  # the one after that mends it
                return trouble
        return "kept" if number < first else "violates"

    def stays_compiled(self) -> None:
        """What no commit touches was compiled once, in the only build directory that there is."""
        (objects,) = (self.cache / "builds").iterdir()
        self.compiled.add((objects / "fs" / "eventfd.o").stat().st_mtime_ns)
        assert len(self.compiled) == 1


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    """Beside the user's cache, which has room, and gone afterwards."""
    tarball = source.find("debian:6.1", run.say).path
    with tempfile.TemporaryDirectory(prefix="bisection-", dir=cache.cache_dir()) as where:
        yield Workshop(Path(where), tarball)


def test_killed_half_way_and_resumed(workshop: Workshop) -> None:
    """Killed when the commit after the first that does not build is being built."""

    def enough(told: list[str]) -> bool:
        at = [n for n, line in enumerate(told) if ": not testable: does not build" in line]
        return bool(at) and "building" in told[-1]

    good, bad = workshop.commits[0], workshop.commits[-1]
    asked = ("--good", good, "--bad", bad, "--clause", "N3")
    killed = workshop.bisect(*asked, enough=enough)
    assert killed.code == -signal.SIGKILL
    assert not killed.report
    workshop.stays_compiled()
    resumed = workshop.bisect()
    workshop.judge(resumed, "N3", 0, "does not build")
    for known in (good, bad):
        assert not any(f"{known[:12]}: " in line for line in resumed.told), "asked again"
    workshop.stays_compiled()


@pytest.mark.parametrize(
    # The middle of an even number of commits is where git looks first.
    ("clause", "good", "skipped"), [("P3", 0, "does not build"), ("N2", 6, "does not boot")]
)  # fmt: skip
def test_bisect(workshop: Workshop, clause: str, good: int, skipped: str) -> None:
    ends = ("--good", workshop.commits[good], "--bad", workshop.commits[-1])
    workshop.judge(workshop.bisect(*ends, "--clause", clause), clause, good, skipped)
    workshop.stays_compiled()
