# SPDX-License-Identifier: GPL-2.0-only
"""Sources that are commits of a git repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.kernels import A_PORT, MAKEFILE, OOM_KILL, quiet, sources
from vm import git as vm_git
from vm.errors import UserError
from vm.source import Tree, find

pytestmark = pytest.mark.usefixtures("cache_dir")
OLD = 1_000_000_000


def git(where: Path, *arguments: str) -> str:
    """Run git as nobody in particular."""
    command = ["git", "-C", str(where), "-c", "user.name=x", "-c", "user.email=x", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(where: Path, **files: str | None) -> str:
    """Commit files, given by names with ``__`` for a slash and ``_`` for a dot; None removes."""
    for name, text in files.items():
        path = where / name.replace("__", "/").replace("_c", ".c")
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    git(where, "add", "-A")
    git(where, "commit", "-q", "-m", "x")
    return git(where, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits."""
    where = sources(tmp_path / "repository")
    git(where, "init", "-q")
    (where / "link").symlink_to("README")
    commit(where)
    commit(where, README=None, mm__new_c="int new;\n")
    return where


def tree_at(repository: Path, revision: str) -> Tree:
    tree = Tree(find(f"{repository}@{revision}", quiet))
    tree.prepare(quiet)
    return tree


def state(tree: Tree) -> set[str]:
    return {str(path.relative_to(tree.path)) for path in tree.path.rglob("*")}


def test_names(repository: Path) -> None:
    now, before = find(f"{repository}@HEAD", quiet), find(f"{repository}@HEAD~1", quiet)
    assert now.fixed
    assert now.key != before.key
    assert now.name == before.name
    assert now.key == find(f"{repository}@{now.commit[:9]}", quiet).key


def test_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{repository} has no commit nonsense"):
        find(f"{repository}@nonsense", quiet)
    with pytest.raises(UserError, match="not a git repository"):
        find(f"{tmp_path}@HEAD", quiet)
    with pytest.raises(UserError, match="git in /nonexistent: "):
        find("/nonexistent@HEAD", quiet)


def test_below_the_top_and_bare(repository: Path, tmp_path: Path) -> None:
    assert find(f"{repository}/mm@HEAD", quiet) == find(f"{repository}@HEAD", quiet)
    bare = tmp_path / "bare.git"
    git(repository, "clone", "-q", "--bare", str(repository), str(bare))
    assert state(tree_at(bare, "HEAD")) == state(tree_at(repository, "HEAD"))


def test_back_and_forth(repository: Path) -> None:
    new = state(tree_at(repository, "HEAD"))
    assert {"mm/new.c", "link"} <= new
    assert "README" not in new
    old = tree_at(repository, "HEAD~1")
    assert state(old) == new - {"mm/new.c"} | {"README"}
    assert os.readlink(old.path / "link") == "README"
    assert state(tree_at(repository, "HEAD")) == new


def test_the_repository_is_left_alone(repository: Path) -> None:
    (repository / "mm/oom_kill.c").write_text("unfinished\n")
    (repository / "staged").touch()
    git(repository, "add", "staged")
    before = git(repository, "status", "--porcelain")
    head = git(repository, "rev-parse", "HEAD")
    tree = tree_at(repository, "HEAD~1")
    assert (tree.path / "mm/oom_kill.c").read_text() == OOM_KILL
    assert git(repository, "status", "--porcelain") == before
    assert git(repository, "rev-parse", "HEAD") == head


def test_only_what_changes_is_written(repository: Path, tmp_path: Path) -> None:
    port = tmp_path / "port.patch"
    port.write_text(A_PORT)
    tree = tree_at(repository, "HEAD~1")
    tree.patch([port])
    for path in tree.path.rglob("*"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    tree = tree_at(repository, "HEAD")
    tree.patch([port])
    files = (path for path in tree.path.rglob("*") if path.is_file())
    assert {path.name for path in files if path.stat().st_mtime != OLD} == {"new.c"}


def test_a_commit_that_changes_what_is_patched(repository: Path, tmp_path: Path) -> None:
    port = tmp_path / "port.patch"
    port.write_text(A_PORT)
    tree = tree_at(repository, "HEAD")
    tree.patch([port])
    changed = "/* new */\n" + OOM_KILL
    commit(repository, mm__oom_kill_c=changed)
    tree = tree_at(repository, "HEAD")
    tree.patch([port])
    ported = (tree.path / "mm/oom_kill.c").read_text()
    assert ported == changed.replace("{\n", "{\n    root_notify();\n")
    tree.patch([])
    assert (tree.path / "mm/oom_kill.c").read_text() == changed
    commit(repository, mm__oom_kill_c=None)
    tree.patch([port])
    tree = tree_at(repository, "HEAD")
    tree.patch([])
    assert "mm/oom_kill.c" not in state(tree)


@pytest.mark.parametrize("at", [1, 2])
def test_interrupted(repository: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whatever was written of the one commit, the next one asked for is another."""
    tree_at(repository, "HEAD")
    middle = commit(repository, Makefile="VERSION = 7\n", mm__only_c="int only;\n")
    last = commit(repository, Makefile=MAKEFILE, mm__only_c=None)
    real, notes = vm_git._note, 0

    def interrupted(*given: Any) -> None:
        nonlocal notes
        notes += 1
        if notes == at:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(vm_git, "_note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tree_at(repository, middle)
    tree = tree_at(repository, last)
    assert (tree.path / "Makefile").read_text() == MAKEFILE
    assert "mm/only.c" not in state(tree)


def test_a_lock_of_a_git_that_was_killed(repository: Path) -> None:
    tree = tree_at(repository, "HEAD~1")
    (tree.home / "index.lock").touch()
    assert "mm/new.c" in state(tree_at(repository, "HEAD"))


def test_another_repository_in_the_same_place(repository: Path) -> None:
    tree_at(repository, "HEAD")
    shutil.rmtree(repository / ".git")
    (repository / "mm/new.c").unlink()
    git(repository, "init", "-q")
    commit(repository, Makefile="VERSION = 7\n")
    tree = tree_at(repository, "HEAD")
    assert (tree.path / "Makefile").read_text() == "VERSION = 7\n"
    assert "mm/new.c" not in state(tree)


def test_older(repository: Path) -> None:
    new, old = (vm_git.commit(repository, name) for name in ("HEAD", "HEAD~1"))
    assert vm_git.older(repository, old, new)
    assert not vm_git.older(repository, new, old)
    assert not vm_git.older(repository, new, new)
