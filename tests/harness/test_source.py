# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources and the work trees that patches are put on and off."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.kernels import (
    A_PORT,
    ANOTHER,
    BROKEN,
    MAKEFILE,
    ON_TOP,
    OOM_KILL,
    REMOVES,
    quiet,
    sources,
    tarball,
    tree_of,
)
from vm import source
from vm.errors import INCONCLUSIVE, UserError
from vm.source import Tree, find

KINDS = pytest.mark.parametrize("kind", ["directory", "tarball"])
pytestmark = pytest.mark.usefixtures("cache_dir")
OLD = 1_000_000_000


def patch(where: Path, text: str, name: str = "x.patch") -> Path:
    (where / name).write_text(text)
    return where / name


def state(tree: Tree) -> dict[str, str]:
    """The content of every file of a work tree."""
    files = (path for path in tree.path.rglob("*") if path.is_file())
    return {str(path.relative_to(tree.path)): path.read_text() for path in files}


def ported(text: str = OOM_KILL, call: str = "root_notify") -> str:
    return text.replace("{\n", f"{{\n    {call}();\n")


def test_find(tmp_path: Path) -> None:
    directory, archive = sources(tmp_path / "given"), tarball(tmp_path)
    found = find(str(directory), quiet)
    assert (found.path, found.fixed, found.key[:4]) == (directory, False, "dir-")
    found = find(str(archive), quiet)
    assert (found.path, found.fixed, found.key[:4]) == (archive, True, "tar-")
    copy = tmp_path / "copy.tar"
    copy.write_bytes(archive.read_bytes())
    assert find(str(copy), quiet).key == found.key
    copy.write_bytes(archive.read_bytes() + b"\0")
    assert find(str(copy), quiet).key != found.key


def test_find_refuses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a kernel source tree"):
        find(str(tmp_path), quiet)
    with pytest.raises(UserError, match="no such kernel source: /nonexistent"):
        find("/nonexistent", quiet)


def test_archive_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").touch()
    archive = tmp_path / "other.tar"
    subprocess.run(["tar", "-C", tmp_path, "-cf", archive, "top"], check=True)
    tree = Tree(find(str(archive), quiet))
    with pytest.raises(UserError, match="holds no kernel source"):
        tree.prepare(quiet)
    assert not tree.path.exists()
    assert not os.listdir(tree.home)


@pytest.mark.parametrize("member", ["./linux-6.1", "."])
def test_archives_of_other_shapes(tmp_path: Path, member: str) -> None:
    top = sources(tmp_path / "linux-6.1")
    archive = tmp_path / "x.tar"
    where = tmp_path if member != "." else top
    subprocess.run(["tar", "-C", where, "-cf", archive, member], check=True)
    tree = Tree(find(str(archive), quiet))
    tree.prepare(quiet)
    assert state(tree)["Makefile"] == MAKEFILE


def test_what_is_the_matter_with_an_archive_is_told(tmp_path: Path) -> None:
    archive = tarball(tmp_path)
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(UserError, match="Unexpected end of input"):
        Tree(find(str(archive), quiet)).prepare(quiet)


def test_directory_that_was_built_in_place(tmp_path: Path) -> None:
    given = sources(tmp_path / "given")
    (given / "Makefile").write_text(f"{MAKEFILE}mrproper:\n\trm .config made.h\n")
    for name in (".config", "made.h", "mm/oom_kill.o"):
        (given / name).touch()
    tree = Tree(find(str(given), quiet))
    tree.prepare(quiet)
    assert set(state(tree)) == {"Makefile", "Kbuild", "mm/oom_kill.c", "README"}
    assert (given / ".config").exists()


def test_no_archive_at_all(tmp_path: Path) -> None:
    text = tmp_path / "linux.tar.xz"
    text.write_text("a text file\n")
    tree = Tree(find(str(text), quiet))
    with pytest.raises(UserError, match=str(text)):
        tree.prepare(quiet)
    assert not tree.path.exists()


@KINDS
def test_prepare(tmp_path: Path, kind: str) -> None:
    tree = tree_of(tmp_path, kind)
    assert state(tree)["Makefile"] == MAKEFILE
    assert source.version(tree.path) == (6, 1)
    tree.prepare(quiet)
    assert state(tree)["mm/oom_kill.c"] == OOM_KILL


def test_version_of_something_else(tmp_path: Path) -> None:
    for makefile in (None, "all:\n"):
        if makefile:
            (tmp_path / "Makefile").write_text(makefile)
        with pytest.raises(UserError, match="tells no kernel version"):
            source.version(tmp_path)


@KINDS
def test_on_another_and_off(tmp_path: Path, kind: str) -> None:
    tree = tree_of(tmp_path, kind)
    before = state(tree)
    port, another = patch(tmp_path, A_PORT, "a"), patch(tmp_path, ANOTHER, "b")
    removes, on_top = patch(tmp_path, REMOVES, "c"), patch(tmp_path, ON_TOP, "d")
    tree.patch([port])
    assert state(tree) == before | {"mm/oom_kill.c": ported()}
    tree.patch([port, on_top])
    assert state(tree) == before | {"mm/oom_kill.c": ported(call="root_notify_all")}
    tree.patch([another])
    nobody = OOM_KILL.replace("bad_process", "nobody")
    assert state(tree) == before | {"mm/oom_kill.c": nobody, "mm/new.c": "int new;\n"}
    tree.patch([removes, port])
    left = {name: text for name, text in before.items() if name != "README"}
    assert state(tree) == left | {"mm/oom_kill.c": ported()}
    tree.patch([])
    assert state(tree) == before


@KINDS
def test_time_stamps_of_what_does_not_change(tmp_path: Path, kind: str) -> None:
    tree = tree_of(tmp_path, kind)
    port = patch(tmp_path, A_PORT)
    tree.patch([port])
    for path in tree.path.rglob("*"):
        os.utime(path, (OLD, OLD))

    def touched() -> set[str]:
        files = (path for path in tree.path.rglob("*") if path.is_file())
        return {path.name for path in files if path.stat().st_mtime != OLD}

    tree.prepare(quiet)
    tree.patch([port])
    assert touched() == set()
    tree.patch([port, patch(tmp_path, REMOVES, "c")])
    assert touched() == set()
    tree.patch([])
    assert touched() == {"oom_kill.c", "README"}


@KINDS
def test_what_does_not_apply_leaves_the_tree_as_it_was(tmp_path: Path, kind: str) -> None:
    tree = tree_of(tmp_path, kind)
    port, broken = patch(tmp_path, A_PORT, "a"), patch(tmp_path, BROKEN, "b")
    tree.patch([port])
    before = state(tree)
    with pytest.raises(UserError, match=r"b does not apply: patching file mm/oom_kill.c; Hunk"):
        tree.patch([patch(tmp_path, REMOVES, "c"), broken])
    assert state(tree) == before
    tree.patch([])
    assert state(tree)["mm/oom_kill.c"] == OOM_KILL


@KINDS
def test_what_is_there_already_is_not_taken_off(tmp_path: Path, kind: str) -> None:
    tree = tree_of(tmp_path, kind)
    port = patch(tmp_path, A_PORT, "a")
    with pytest.raises(UserError, match=r"b does not apply: .*previously applied"):
        tree.patch([port, patch(tmp_path, A_PORT, "b")])


@pytest.mark.parametrize("names", [("i/", "w/"), ("linux-6.1.orig/", "linux-6.1/"), ("./", "./")])
def test_the_first_part_of_a_name_does_not_count(tmp_path: Path, names: tuple[str, str]) -> None:
    tree = tree_of(tmp_path)
    text = A_PORT.replace("a/mm", f"{names[0]}mm").replace("b/mm", f"{names[1]}mm")
    tree.patch([patch(tmp_path, text)])
    assert state(tree)["mm/oom_kill.c"] == ported()


def test_check_leaves_the_tree_alone(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    before = state(tree)
    tree.check([patch(tmp_path, A_PORT)])
    with pytest.raises(UserError, match="does not apply"):
        tree.check([patch(tmp_path, BROKEN)])
    assert state(tree) == before


@KINDS
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_interrupted(
    tmp_path: Path, kind: str, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever had been written when it was interrupted, the next one finds its way."""
    tree = tree_of(tmp_path, kind)
    before = state(tree)
    real, done = Tree._write, 0

    def interrupted(self: Tree, name: str, content: bytes | None) -> None:
        nonlocal done
        if done == writes:
            raise KeyboardInterrupt
        done += 1
        real(self, name, content)

    monkeypatch.setattr(Tree, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tree.patch([patch(tmp_path, ANOTHER, "b"), patch(tmp_path, REMOVES, "c")])
    monkeypatch.setattr(Tree, "_write", real)
    again = Tree(tree.source)
    again.prepare(quiet)
    again.patch([patch(tmp_path, A_PORT, "a")])
    assert state(again) == before | {"mm/oom_kill.c": ported()}
    again.patch([])
    assert state(again) == before


def test_changes_of_the_directory_come_over(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    port = patch(tmp_path, A_PORT)
    tree.patch([port])
    given = tree.source.path
    (given / "mm/oom_kill.c").write_text("/* mine */\n" + OOM_KILL)
    (given / "README").unlink()
    (given / "mm/mine.c").write_text("int mine;\n")
    tree.prepare(quiet)
    tree.patch([port])
    assert state(tree)["mm/oom_kill.c"] == "/* mine */\n" + ported()
    assert state(tree)["mm/mine.c"] == "int mine;\n"
    assert "README" not in state(tree)
    assert (given / "mm/oom_kill.c").read_text() == "/* mine */\n" + OOM_KILL


@pytest.mark.parametrize("name", ["../outside", "mm/../../outside", "/etc/outside"])
def test_no_patch_reaches_out_of_the_tree(tmp_path: Path, name: str) -> None:
    tree = tree_of(tmp_path)
    outside = patch(tmp_path, f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+x\n")
    if name.startswith("/"):
        outside.write_text(outside.read_text().replace("b//", "/"))
    with pytest.raises(UserError, match="reaches outside of the source tree"):
        tree.patch([outside])
    assert not list(tmp_path.rglob("outside"))


def test_not_a_patch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a patch"):
        source.check_readable([patch(tmp_path, "a text file\n")])
    with pytest.raises(UserError, match=r"cannot read patch .*: Is a directory"):
        source.check_readable([tmp_path])


def test_tools_that_are_not_installed(tmp_path: Path, own_path: Path) -> None:
    tree = Tree(find(str(sources(tmp_path / "given")), quiet))
    with pytest.raises(UserError, match="rsync not found: install it"):
        tree.prepare(quiet)
    with pytest.raises(UserError, match="patch not found: install it"):
        tree.patch([patch(tmp_path, A_PORT)])


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tree, command: list[str]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tree, "_run", full)
    with pytest.raises(UserError, match="no space left for ") as caught:
        tree_of(tmp_path)
    assert caught.value.exit_code == INCONCLUSIVE
