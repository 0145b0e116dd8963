# SPDX-License-Identifier: GPL-2.0-only
"""Commits of a user's git repository, read without touching its index or what is checked out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from vm.errors import UserError


def _git(repository: Path, *arguments: str, given: bytes = b"", index: Path | None = None) -> bytes:
    """What git prints.

    :param given: its standard input.
    :param index: used instead of the repository's own.
    :raises UserError: if it fails or is not installed.
    """
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    # Set while a hook or git bisect runs us, and meant for another command.
    skipped = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    env = {name: value for name, value in os.environ.items() if name not in skipped}
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments],
            input=given,
            capture_output=True,
            check=False,
            env={**env, "LC_ALL": "C", **own},
        )
    except FileNotFoundError:
        raise UserError("git not found: install it (Debian: apt install git)") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise UserError(f"git in {repository}: {lines[-1].removeprefix('fatal: ')}")
    return done.stdout


def commit(repository: Path, revision: str) -> str:
    """The id of the commit that a revision names.

    :raises UserError: if there is no such revision or no such repository.
    """
    command = ("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    return _git(repository, *command).decode().strip()


def content(repository: Path, commit: str, name: str) -> bytes | None:
    """A file as a commit has it, None if it has no such file."""
    entry = _git(repository, "ls-tree", commit, "--", f":/{name}")
    if not entry:
        return None
    return _git(repository, "cat-file", "blob", entry.split()[2].decode())


def check_out(
    repository: Path, commit: str, home: Path, target: Path, spared: Collection[str]
) -> None:
    """Make a directory hold what a commit does; a file that is the same keeps its time stamp.

    :param home: where notes are kept between calls; they go with ``target``. Only one at a time
        may use it.
    :param spared: files that are left as they are.
    :raises UserError: if git fails.
    """
    index, noted = home / "index", home / "commit"
    target.mkdir(parents=True, exist_ok=True)
    index.with_name("index.lock").unlink(missing_ok=True)  # of a git that was killed
    empty = _git(repository, "hash-object", "-t", "tree", "--stdin").decode().strip()
    before = noted.read_text().split() if noted.exists() else [empty]
    if not all(_has(repository, one) for one in before):
        shutil.rmtree(target)  # another repository's, or of commits that were pruned since
        target.mkdir()
        before = [empty]
    # Written down first: after an interruption each file is as one of these has it.
    _note(noted, [*before, commit])
    _git(repository, "read-tree", commit, index=index)
    status: dict[str, str] = {}
    for one in before:
        status |= _differences(repository, one, commit)
    for name in [name for name, kind in status.items() if kind == "D" and name not in spared]:
        (target / name).unlink(missing_ok=True)
    wanted = [name for name, kind in status.items() if kind != "D" and name not in spared]
    names = "".join(f"{name}\0" for name in wanted).encode(errors="surrogateescape")
    prefix = f"--prefix={target}/"
    _git(repository, "checkout-index", "-f", "-z", "--stdin", prefix, given=names, index=index)
    _note(noted, [commit])


def _has(repository: Path, name: str) -> bool:
    try:
        _git(repository, "cat-file", "-e", f"{name}^{{tree}}")
    except UserError:
        return False
    return True


def _note(where: Path, commits: Collection[str]) -> None:
    scratch = where.with_name(f"{where.name}.new")
    scratch.write_text("\n".join(commits))
    scratch.replace(where)


def _differences(repository: Path, before: str, after: str) -> dict[str, str]:
    """What became of each file, in a letter."""
    change = _git(
        repository, "diff-tree", "-r", "-z", "--no-renames", "--name-status", before, after
    )
    fields = change.decode(errors="surrogateescape").split("\0")[:-1]
    return dict(zip(fields[1::2], fields[::2], strict=True))


def directory(repository: Path) -> Path:
    """Where git keeps its own files.

    :raises UserError: if this is no repository.
    """
    return Path(_git(repository, "rev-parse", "--absolute-git-dir").decode().strip())


def subject(repository: Path, commit: str) -> str:
    """The first line of a commit's message."""
    return _git(repository, "show", "-s", "--format=%s", commit).decode(errors="replace").strip()


def bisecting(repository: Path) -> bool:
    """Whether a bisection goes on."""
    return (directory(repository) / "BISECT_LOG").exists()


def current(repository: Path) -> str:
    """The commit that a bisection stands at, or what is checked out."""
    at = "BISECT_HEAD" if (directory(repository) / "BISECT_HEAD").exists() else "HEAD"
    return commit(repository, at)


def bisect(repository: Path, *arguments: str) -> None:
    """Call git bisect."""
    _git(repository, "bisect", *arguments)


def bisect_run(repository: Path, command: Sequence[str]) -> int:
    """Have git bisect with a command, whose standard error is the user's.

    :returns: git's exit code.
    """
    done = subprocess.run(
        ["git", "-C", str(repository), "bisect", "run", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode


def first_bad(repository: Path) -> tuple[str | None, bool]:
    """What a bisection has come to.

    :returns: the commit, None if it is not found; and whether no commit is left to be tested.
    """
    log = (directory(repository) / "BISECT_LOG").read_text()
    found = re.search(r"^# first bad commit: \[(\w+)\]", log, re.MULTILINE)
    return (found[1] if found else None), "# only skipped commits left" in log
