# SPDX-License-Identifier: GPL-2.0-only
"""vm.bisect on a history that is more than a line, with the kernels left out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.test_bisect import call, steps
from tests.harness.test_git import git as as_nobody
from vm import bisect, git
from vm.errors import UserError
from vm.examine import BAD, GOOD, Question, Step


class Vendor:
    """A vendor's tree that merges another one, whose commits never had the port.

    :ivar top: the repository.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        top.mkdir()
        self.git("init", "-q", "-b", "vendor")
        self.commit("base", port="")
        self.git("branch", "stable")
        self.commit("port", port="kept")
        self.git("tag", "good")
        self.git("checkout", "-q", "stable")
        for number in range(4):
            self.commit(f"stable {number}", other=str(number))
        self.git("checkout", "-q", "vendor")
        self.git("merge", "-q", "--no-edit", "stable")
        self.commit("culprit", port="wrong")
        self.commit("harmless", other="more")

    def git(self, *arguments: str) -> None:
        as_nobody(self.top, *arguments)

    def commit(self, subject: str, **files: str) -> None:
        for name, text in files.items():
            (self.top / name).write_text(text)
        self.git("add", ".")
        self.git("commit", "-q", "-m", subject)

    def examine(self, commit: str, question: Question, out: Any, say: Any) -> Step:
        port = git.content(self.top, commit, "port") or b""
        if port == b"kept":
            return Step(commit, GOOD, "conforms")
        word = "violates" if port else "not patched"
        return Step(commit, BAD, word, "", ("N2",) if port else ("P1",))


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    one = Vendor(tmp_path / "vendor")
    monkeypatch.setattr(bisect, "examine", one.examine)
    monkeypatch.setattr(git, "bisect_run", lambda where, command, *_: steps(where, command))
    return one.top


@pytest.mark.parametrize("how", [[], ["--first-parent"]])
def test_what_a_merge_brought_without_the_port_is_not_blamed(
    vendor: Path, how: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(vendor, "--good=good", "--bad=vendor", *how) == 0
    told = capsys.readouterr()
    assert f"First bad commit: {git.commit(vendor, 'vendor~1')} culprit\n" in told.out
    assert ("--first-parent would" in told.err) == (not how)
    assert bool(re.search(r"stable \d", told.out)) == (not how)


def test_a_good_end_that_is_elsewhere(vendor: Path) -> None:
    with pytest.raises(UserError, match=r"both ends come from is not good: .*port with --patch"):
        call(vendor, "--good=good", "--bad=stable")


def test_a_history_that_is_cut_off(vendor: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    command = ["git", "clone", "-q", "--depth=1", "--no-single-branch", f"file://{vendor}"]
    subprocess.run([*command, str(shallow)], check=True, capture_output=True)
    with pytest.raises(UserError, match="is cut off: git fetch --unshallow"):
        call(shallow, "--good=good", "--bad=origin/vendor")


def test_a_directory_below_the_top(vendor: Path) -> None:
    (vendor / "mm").mkdir()
    assert call(vendor / "mm", "--good=good", "--bad=vendor", "--first-parent") == 0
