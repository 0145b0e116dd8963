# SPDX-License-Identifier: GPL-2.0-only
"""The white-box module's way to a guest, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm import cache, kmod, run
from vm.errors import USAGE, UserError
from vm.kernel import Kernel

KO = "helpers/kmod/oomtest.ko"
ABSENT = "helpers/kmod/absent"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What make was called with; it makes a module."""
    calls: list[list[str]] = []

    def watch(command: list[str]) -> None:
        calls.append(command)
        Path(command[3].removeprefix("M="), kmod.MODULE).write_bytes(b"module")

    monkeypatch.setattr(run, "watch", watch)
    return calls


def build_directory(where: Path, release: str = "6.1.1") -> Path:
    (where / "include/generated").mkdir(parents=True)
    (where / "include/generated/utsrelease.h").write_text(f'#define UTS_RELEASE "{release}"\n')
    (where / "Makefile").touch()
    return where


def kernel(build: Path | None = None) -> Kernel:
    return Kernel(Path("bzImage"), "one", "6.1.1", build)


def test_module_is_built_once(tmp_path: Path, made: list[list[str]]) -> None:
    one = kernel(build_directory(tmp_path / "one"))
    assert kmod.payload(one) == kmod.payload(one) == {KO: b"module"}
    assert len(made) == 1
    assert [path.name for path in (cache.cache_dir() / "modules").glob("*/*")] == [kmod.MODULE]


def test_module_is_built_again_for_another_configuration(
    tmp_path: Path, made: list[list[str]]
) -> None:
    one = build_directory(tmp_path / "one")
    kmod.build(one)
    (one / ".config").write_text("CONFIG_SMP=y\n")
    kmod.build(one)
    assert len(made) == 2


def test_directory_of_the_users_is_found_by_its_release(
    tmp_path: Path, made: list[list[str]]
) -> None:
    other = build_directory(tmp_path / "other", "6.1.2")
    assert ABSENT in kmod.payload(kernel(), [other])
    right = build_directory(tmp_path / "right")
    assert kmod.payload(kernel(), [other, right]) == {KO: b"module"}
    assert made[0][2] == str(right)


def test_without_a_directory_the_guest_is_told_why() -> None:
    assert b"--kernel-build" in kmod.payload(kernel())[ABSENT]


def test_directory_that_is_none_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the build directory of a kernel") as caught:
        kmod.payload(kernel(), [tmp_path])
    assert caught.value.exit_code == USAGE


def test_compilers_complaint_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(command: list[str]) -> None:
        raise run.Failed(command, 2, ["  CC [M]  oomtest.o", "oomtest.c:1: error: no", "make: 2"])

    monkeypatch.setattr(run, "watch", watch)
    one = build_directory(tmp_path / "one")
    with pytest.raises(UserError, match=r"oomtest\.c:1: error: no$"):
        kmod.build(one)
    assert b"error: no" in kmod.payload(kernel(one))[ABSENT]
    with pytest.raises(UserError):
        kmod.payload(kernel(), [one])


def test_an_image_keeps_the_module_of_its_own_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is built in the same directory later may have other headers."""
    objects = build_directory(tmp_path / "objects")

    def watch(command: list[str]) -> None:
        made = (objects / "Makefile").read_bytes()
        Path(command[3].removeprefix("M="), kmod.MODULE).write_bytes(made)

    monkeypatch.setattr(run, "watch", watch)
    images = [tmp_path / name / "bzImage" for name in ("first", "second")]
    for image in images:
        (objects / "Makefile").write_text(str(image))
        kmod.keep(objects, image)
    for image in images:
        one = Kernel(image, "one", "6.1.1", objects)
        assert kmod.payload(one) == {KO: str(image).encode()}
    monkeypatch.setattr(kmod, "SOURCE", tmp_path)
    for name in kmod.SOURCES:
        (tmp_path / name).write_text("changed since")
    assert kmod.payload(one) == {KO: str(images[-1]).encode()}


def test_no_module_is_no_reason_not_to_have_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(command: list[str]) -> None:
        raise run.Failed(command, 2, ["oomtest.c:1: error: no"])

    monkeypatch.setattr(run, "watch", watch)
    kmod.keep(build_directory(tmp_path / "one"), tmp_path / "bzImage")
    assert not list(tmp_path.glob("*.ko"))
