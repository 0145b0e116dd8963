# SPDX-License-Identifier: GPL-2.0-only
"""What is decided before and after make runs; no kernel is built."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.kernels import A_PORT, BROKEN, ON_TOP, quiet, tree_of
from vm import build, kconfig, run, series, stubs
from vm.errors import INCONCLUSIVE, USAGE, HostError, UserError


@pytest.mark.parametrize(
    ("wanted", "config", "lost"),
    [
        ("CONFIG_A=y\n", "CONFIG_A=y\n", []),
        ("CONFIG_A=y\n", "# CONFIG_A is not set\n", ["CONFIG_A=y"]),
        ("CONFIG_A=y\n", "", ["CONFIG_A=y"]),
        ("CONFIG_A=y\n", "CONFIG_A=m\n", ["CONFIG_A=y"]),
        ("CONFIG_A=y\n", "CONFIG_AB=y\n", ["CONFIG_A=y"]),
        ("CONFIG_A=n\n", "", []),
        ("CONFIG_A=n\n", "# CONFIG_A is not set\n", []),
        ("CONFIG_A=n\n", "CONFIG_A=y\n", ["CONFIG_A=n"]),
        ("CONFIG_A=8\n", "CONFIG_A=4\n", ["CONFIG_A=8"]),
        ('CONFIG_A="x"\n', 'CONFIG_A="x"\n', []),
        ("# CONFIG_A=y\nCONFIG_B=y\n", "CONFIG_B=y\n", []),
        # Later fragments override earlier ones.
        ("CONFIG_A=y\nCONFIG_A=n\n", "", []),
        ("CONFIG_A=n\nCONFIG_A=y\n", "CONFIG_A=y\n", []),
        # What some versions do not know counts where it is known.
        ("CONFIG_A=y # if known\n", "", []),
        ("CONFIG_A=y # if known\n", "# CONFIG_A is not set\n", ["CONFIG_A=y"]),
        ("CONFIG_A=y # if known\n", "CONFIG_A=y\n", []),
        ("CONFIG_A=y\nCONFIG_B=y\n", "", ["CONFIG_A=y", "CONFIG_B=y"]),
    ],
)
def test_dropped(wanted: str, config: str, lost: list[str]) -> None:
    assert kconfig.dropped(wanted, config) == lost


def test_configurations(tmp_path: Path) -> None:
    plain = "# Linux/x86 6.1.0 Kernel Configuration\nCONFIG_A=y\n"
    for name, data in (("config", plain.encode()), ("config.gz", gzip.compress(plain.encode()))):
        (tmp_path / name).write_bytes(data)
        assert kconfig.text(tmp_path / name) == plain


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "cannot read the kernel configuration .*: Is a directory"),
        (b"\x1f\x8bcut", "cannot read the kernel configuration"),
        (b"a text file\n", "is no kernel configuration"),
        (b"# Linux/arm64 6.1.0 Kernel Configuration\nCONFIG_A=y\n", "is .* for arm64"),
    ],
)
def test_configurations_that_will_not_do(tmp_path: Path, data: bytes | None, told: str) -> None:
    given = tmp_path / "config"
    if data is None:
        given.mkdir()
    else:
        given.write_bytes(data)
    with pytest.raises(UserError, match=told):
        build.build_kernel("debian:6.1", config=given)


class Kconfig:
    """Stands in for make: what it makes of a configuration is what it is given."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], *, env: dict[str, str]) -> None:
        self.commands.append(command)
        (objects,) = (Path(word[2:]) for word in command if word.startswith("O="))
        if env:
            text = Path(env["KCONFIG_ALLCONFIG"]).read_text()
            (objects / "new.config").write_text(text)


def test_a_configuration_that_is_the_same_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was built there before, and make takes no configuration for a new one."""
    kconf = Kconfig()
    monkeypatch.setattr(run, "watch", kconf)
    fragment, objects = tmp_path / "fragment", tmp_path / "objects"
    fragment.write_text("CONFIG_A=y\n")
    kconfig.configure(tmp_path, objects, [fragment])
    os.utime(objects / ".config", (0, 0))
    kconfig.configure(tmp_path, objects, [fragment])
    assert (objects / ".config").stat().st_mtime == 0
    fragment.write_text("CONFIG_B=y\n")
    kconfig.configure(tmp_path, objects, [fragment])
    assert (objects / ".config").read_text() == "CONFIG_B=y\n"
    assert all("allnoconfig" in command for command in kconf.commands)


@pytest.mark.parametrize("name", ["with blank", "with:colon"])
def test_where_make_cannot_build(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OOMTEST_CACHE", str(tmp_path / name))
    with pytest.raises(UserError, match="point OOMTEST_CACHE elsewhere"):
        build.build_kernel("debian:6.1")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("6.1/reference", True),
        ("6.12/stock", True),
        ("5.10/debug-kasan", True),
        ("6/stock", False),
        ("6.1.3/stock", False),
        ("6.1/", False),
        ("/boot/6.1/stock", False),
        ("6.1/stock/bzImage", False),
        ("bzImage", False),
    ],
)
def test_what_a_name_looks_like(name: str, is_one: bool) -> None:
    assert bool(build.NAME.match(name)) == is_one


@pytest.mark.parametrize("name", series.SERIES)
@pytest.mark.parametrize("flavour", series.FLAVOURS)
def test_named(name: str, flavour: str) -> None:
    assert build.named(f"{name}/{flavour}") == (f"debian:{name}", flavour)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("reference", "reference: not SERIES/FLAVOUR, as in 6.1/reference"),
        ("2.6/reference", "no series 2.6: there are "),
        ("6.1/refrence", "no flavour refrence: there are stock, reference"),
    ],
)
def test_wrong_names(name: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        build.named(name)
    assert str(caught.value).startswith(told)
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("6.1/refrence", "no flavour refrence"),
        ("/nonexistent/bzImage", "no such kernel image: /nonexistent/bzImage"),
    ],
)
def test_resolve_refuses(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        build.resolve(name)


@pytest.mark.parametrize(
    ("patches", "is_port"),
    [
        ((A_PORT,), True),
        ((ON_TOP,), False),
        ((A_PORT, ON_TOP), True),
        ((BROKEN,), False),
        ((), False),
    ],
)
def test_is_port(cache_dir: Path, tmp_path: Path, patches: tuple[str, ...], is_port: bool) -> None:
    tree = tree_of(tmp_path)
    files = []
    for n, text in enumerate(patches):
        files.append(tmp_path / f"{n}.patch")
        files[-1].write_text(text)
    assert build._is_port(tree, files) == is_port
    assert "notify" not in (tree.path / "mm/oom_kill.c").read_text()


def test_a_comment_about_notification_makes_no_port(cache_dir: Path, tmp_path: Path) -> None:
    patch = tmp_path / "comment.patch"
    patch.write_text(A_PORT.replace("+    root_notify();", "+    /* notify nobody */"))
    assert not build._is_port(tree_of(tmp_path), [patch])


def test_missing_patch_is_told_before_anything_else(cache_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read patch .*gone.patch: No such file"):
        build.build_kernel("debian:6.1", patches=[tmp_path / "gone.patch"])
    assert not cache_dir.exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["  CC x.o", "x.c:1:2: error: 'y' undeclared", "make: *** [x.o] Error 1"],
         "x.c:1:2: error: 'y' undeclared"),
        (["ld: x.o: undefined reference to `root_notify'", "make: *** Error 1"],
         "ld: x.o: undefined reference to `root_notify'"),
        (["/bin/sh: 1: scripts/x.sh: not found", "make: ***"],
         "/bin/sh: 1: scripts/x.sh: not found"),
        (["make: Entering directory '/x'", "", "make: *** No rule"], "make: *** No rule"),
        ([], "no output"),
    ],
)  # fmt: skip
def test_why_a_build_failed(lines: list[str], told: str) -> None:
    assert build._why(lines) == told


def test_a_build_on_a_full_disk_is_told_as_such() -> None:
    with pytest.raises(OSError, match="No space left"):
        build._why(["as: x.o: No space left on device"])


def test_a_compiler_that_the_host_ended_is_no_fault_of_the_kernels() -> None:
    with pytest.raises(HostError, match="ended the compiler: gcc: fatal error: Killed"):
        build._why(["gcc: fatal error: Killed signal terminated program cc1", "make: *** Error 1"])


@pytest.mark.parametrize(
    "line", ["/bin/sh: 1: flex: not found", "bash: line 1: bison: command not found"]
)
def test_a_program_that_is_missing_is_no_fault_of_the_kernels(line: str) -> None:
    with pytest.raises(HostError, match=r"a program is missing on this host: .*sh: "):
        build._why([line, "make: *** Error 127"])


def test_an_image_without_the_variants_will_do_where_they_are_not_asked_for(
    cache_dir: Path,
) -> None:
    image = cache_dir / "images" / "key" / "bzImage"
    assert not build._complete("key", variants=False)
    image.parent.mkdir(parents=True)
    image.touch()
    assert build._complete("key", variants=False)
    assert not build._complete("key", variants=True)
    image.with_name(stubs.FILE).touch()
    assert build._complete("key", variants=True)


def test_a_failed_build_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, cache_dir: Path, tmp_path: Path
) -> None:
    def fail(command: list[str], each: Callable[[str], None] = quiet, **_: object) -> None:
        each("mm/oom_kill.c:9: error: expected ';'")
        raise run.Failed(command, 2, ["  CC      fs/sync.o"])

    monkeypatch.setattr(build, "configure", lambda *_: None)
    monkeypatch.setattr(run, "watch", fail)
    with pytest.raises(
        UserError, match=r"6\.1/x does not build: mm/oom_kill\.c:9: error"
    ) as caught:
        build._make(tmp_path, tmp_path / "objects", [], "6.1/x", lambda line: None)
    assert caught.value.exit_code == INCONCLUSIVE


def test_make_is_not_installed(own_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make not found: install it"):
        build._make(tmp_path, tmp_path / "objects", [], "6.1/x", lambda line: None)
