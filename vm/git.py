# SPDX-License-Identifier: GPL-2.0-only
"""Commits of a user's git repository, read without touching its index or what is checked out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vm.errors import UserError
from vm.run import END_WITH_US


def _environment() -> dict[str, str]:
    """The environment without what is set while a hook or git bisect runs us."""
    skipped = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    kept = {name: value for name, value in os.environ.items() if name not in skipped}
    return {**kept, "LC_ALL": "C"}


def _git(repository: Path, *arguments: str, given: bytes = b"", index: Path | None = None) -> bytes:
    """What git prints.

    :param given: its standard input.
    :param index: used instead of the repository's own.
    :raises UserError: if it fails or is not installed.
    """
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments],
            input=given,
            capture_output=True,
            check=False,
            env={**_environment(), **own},
        )
    except FileNotFoundError:
        raise UserError("git not found: install it (Debian: apt install git)") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        told = next((line for line in lines if line.startswith("fatal: ")), lines[-1])
        mend = f": {lines[-1].strip()}" if lines[-1].startswith("\t") else ""
        raise UserError(f"git in {repository}: {told.removeprefix('fatal: ')}{mend}")
    return done.stdout


def commit(repository: Path, revision: str) -> str:
    """The id of the commit that a revision names.

    :raises UserError: if there is no such revision or no such repository.
    """
    command = ("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    try:
        return _git(repository, *command).decode().strip()
    except UserError as error:
        if "Needed a single revision" not in str(error):
            raise
        raise UserError(
            f"{repository} has no commit {revision}: git fetch --tags there, or mend the name"
        ) from None


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
    # A bare repository has no work tree, and this asks for one.
    command = (f"--work-tree={target}", "checkout-index", "-f", "-z", "--stdin", prefix)
    _git(repository, *command, given=names, index=index)
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


def top(path: Path) -> Path:
    """The top of the work tree that a directory is in; the directory, if it is in none."""
    try:
        return Path(os.fsdecode(_git(path, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
    except UserError:
        return path


def changed(repository: Path) -> bool:
    """Whether something is not committed."""
    try:
        return bool(_git(repository, "status", "--porcelain", "--untracked-files=no"))
    except UserError:  # there is no work tree
        return False


def base(repository: Path, one: str, other: str) -> str:
    """What two commits come from.

    :raises UserError: if that is not in the repository.
    """
    try:
        return _git(repository, "merge-base", one, other).decode().strip()
    except UserError:
        why = "the two ends have no history in common"
        if _git(repository, "rev-parse", "--is-shallow-repository").strip() == b"true":
            why = "the history between the two ends is cut off: git fetch --unshallow"
        raise UserError(f"{repository}: {why}") from None


def merges(repository: Path, good: str, bad: str) -> bool:
    """Whether there are merges between two commits."""
    return bool(_git(repository, "rev-list", "--merges", "-n1", f"{good}..{bad}"))


def parent(repository: Path, child: str) -> str:
    """The first parent of a commit, empty if it has none here."""
    try:
        return commit(repository, f"{child}^")
    except UserError:
        return ""


def subject(repository: Path, commit: str) -> str:
    """The first line of a commit's message."""
    return _git(repository, "show", "-s", "--format=%s", commit).decode(errors="replace").strip()


def older(repository: Path, commit: str, than: str) -> bool:
    """Whether a commit is an ancestor of another one."""
    return commit != than and not _git(repository, "rev-list", "-n1", f"{than}..{commit}")


def current(repository: Path) -> str:
    """The commit that a bisection stands at, or what is checked out."""
    try:
        return commit(repository, "BISECT_HEAD")
    except UserError:
        return commit(repository, "HEAD")


def bisection(repository: Path) -> str | None:
    """Git's own log of the bisection that goes on, None if none does."""
    path = directory(repository) / "BISECT_LOG"
    return path.read_text(errors="replace") if path.exists() else None


def bisects(repository: Path, good: str, bad: str) -> bool:
    """Whether the bisection that goes on began with these ends."""
    told = re.findall("^git bisect start (.*)$", bisection(repository) or "", re.MULTILINE)
    return bool(told) and {good, bad} <= set(re.findall("[0-9a-f]{40,}", told[-1]))


def bisect(repository: Path, *arguments: str) -> None:
    """Call git bisect."""
    _git(repository, "bisect", *arguments)


def bisect_run(
    repository: Path, command: Sequence[str], env: dict[str, str], say: Callable[[str], None]
) -> int:
    """Have git bisect with a command, whose standard error is the user's.

    :param env: variables added to the command's environment.
    :param say: takes how much is left.
    :returns: git's exit code.
    """
    with subprocess.Popen(
        # None of them outlives the one that started it.
        [*END_WITH_US, "git", "-C", str(repository), "bisect", "run", *END_WITH_US, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**_environment(), **env},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Bisecting: "):
                say(line.strip())
    return process.returncode


def suspects(repository: Path) -> tuple[str | None, list[str]]:
    """What a bisection has come to.

    :returns: the first bad commit, None if it is not found; and the commits that it is one of, if
        only such are left as cannot be tested.
    """
    log = bisection(repository) or ""
    found = re.search(r"^# first bad commit: \[(\w+)\]", log, re.MULTILINE)
    left = re.findall(r"^# possible first bad commit: \[(\w+)\]", log, re.MULTILINE)
    return (found[1] if found else None), list(dict.fromkeys(left))
