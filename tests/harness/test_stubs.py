# SPDX-License-Identifier: GPL-2.0-only
"""vm.stubs: what is told of a tree that does not build without something."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vm import run, source, stubs
from vm.errors import UserError
from vm.stubs import Variant

VARIANT = Variant("without memcg", "no-memcg.config", ("mm/memcontrol.o",))
ALIKE = Variant("alike", "no-memcg.config", (), same=("mm/oom_kill.o",))


def compiled(target: Path, code: str) -> None:
    """Put an object file where a build would."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-c", "-o", str(target), "-"]
    subprocess.run(command, input=code, text=True, check=True)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which make has nothing to do, and a whole build with a memcontrol.o."""
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path))
    monkeypatch.setattr(stubs, "configure", lambda *_: None)
    monkeypatch.setattr(stubs, "version", lambda _: (6, 1))
    compiled(tmp_path / "whole/mm/memcontrol.o", "void notify(void) {}")
    return tmp_path


def complain(built: Path, variant: Variant = VARIANT) -> str:
    given = source.Source("key", built)
    return stubs.complaint(given, source.Tree(given), built / "whole", variant)


def oom_kill(built: Path, code: str, name: str = "mm/oom_kill.o") -> None:
    objects = built / "builds" / f"{source.Source('key', built).name}-no-memcg"
    compiled(objects / name, code)


def quiet(*_: object, **__: object) -> None:
    """Make has nothing to do."""


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("void notify(void); void oom(void) { notify(); }", "mm/oom_kill.o: undefined reference"),
        ("static void notify(void) {} void oom(void) { notify(); }", ""),
        ("void printk(void); void oom(void) { printk(); }", ""),
    ],
)
def test_what_another_file_would_have(
    built: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    monkeypatch.setattr(run, "watch", quiet)
    oom_kill(built, code)
    assert complain(built).startswith(told)
    assert bool(complain(built)) == bool(told)


@pytest.mark.parametrize(("how", "told"), [("", "multiple definition of stub"), ("static ", "")])
def test_what_two_files_define(
    built: Path, monkeypatch: pytest.MonkeyPatch, how: str, told: str
) -> None:
    monkeypatch.setattr(run, "watch", quiet)
    for name in ("mm/oom_kill.o", "mm/page_alloc.o"):
        oom_kill(built, f"{how}void stub(void) {{}}", name)
    assert told in complain(built)
    assert bool(complain(built)) == bool(told)


@pytest.mark.parametrize("name", ["notify", "notify_v1"])
@pytest.mark.parametrize("calls", [False, True])
def test_what_a_file_no_longer_refers_to(
    built: Path, monkeypatch: pytest.MonkeyPatch, name: str, calls: bool
) -> None:
    monkeypatch.setattr(run, "watch", quiet)
    compiled(built / "whole/mm/memcontrol-v1.o", "void notify_v1(void) {}")
    oom_kill(built, "void notify(void) {} void notify_v1(void) {}", "mm/memcontrol.o")
    code = f"void {name}(void); void oom(void) {{ %s }}"
    compiled(built / "whole/mm/oom_kill.o", code % f"{name}();")
    oom_kill(built, code % (f"{name}();" if calls else ""))
    told = "" if calls else f"mm/oom_kill.o: no longer refers to {name}, which is there"
    assert complain(built, ALIKE) == told


@pytest.mark.parametrize("defined", [False, True])
def test_what_memcg_no_longer_defines(
    built: Path, monkeypatch: pytest.MonkeyPatch, defined: bool
) -> None:
    monkeypatch.setattr(run, "watch", quiet)
    code = "void notify(void); void oom(void) { notify(); }"
    compiled(built / "whole/mm/oom_kill.o", code)
    oom_kill(built, code)
    oom_kill(built, "void notify(void) {}" if defined else "", "mm/memcontrol.o")
    assert ("undefined reference to notify" in complain(built, ALIKE)) == (not defined)


def test_what_the_compiler_says(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(command: Sequence[str], *_: object, **__: object) -> None:
        if "prepare" not in command:
            raise run.Failed(command, 2, ["CC x", "oom_kill.c:3: error: implicit declaration", "x"])

    monkeypatch.setattr(run, "watch", watch)
    assert complain(built) == "oom_kill.c:3: error: implicit declaration"


@pytest.mark.parametrize(
    "trouble", [run.Failed(["make"], 2, ["no rule"]), UserError("this kernel drops CONFIG_X=n")]
)
def test_a_variant_that_cannot_be_configured_is_no_answer(
    built: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def configure(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(stubs, "configure", configure)
    given, image = source.Source("key", built), built / "bzImage"
    stubs.examine(given, source.Tree(given), built / "whole", image, [VARIANT], print)
    (answer,) = stubs.answers(image)
    assert answer.state == "inconclusive"


@pytest.mark.parametrize(
    ("said", "state"), [("", "passed"), ("no such function", "failed"), (None, "inconclusive")]
)
def test_answers(tmp_path: Path, said: str | None, state: str) -> None:
    image = tmp_path / "bzImage"
    assert not list(stubs.answers(image))
    image.with_name(stubs.FILE).write_text(json.dumps({"without memcg": said}))
    (answer,) = stubs.answers(image)
    assert (answer.clause, answer.state) == ("I5", state)
    assert (said or "") in answer.detail
