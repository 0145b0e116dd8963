# SPDX-License-Identifier: GPL-2.0-only
"""The series: which port, fragments and suites belong to which version; trees that need none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.kernels import OOM_KILL, quiet, sources
from vm import apt, build, kconfig, series
from vm.errors import UserError
from vm.source import Tree, find

REFERENCE = series.flavour("reference")
STOCK = series.flavour("stock")


@pytest.mark.parametrize(
    ("version", "port"),
    [
        ((5, 10), "reference-5.10.patch"),
        ((6, 1), "reference-5.10.patch"),
        ((6, 10), "reference-5.10.patch"),
        ((6, 11), "reference-6.11.patch"),
        ((7, 3), "reference-6.11.patch"),
    ],
)
def test_port(version: series.Version, port: str) -> None:
    (path,) = series.ports(REFERENCE, version)
    assert path.name == port
    assert path.exists()
    assert series.ports(STOCK, version) == []


@pytest.mark.parametrize(
    ("version", "memcg"),
    [
        ((5, 10), "mutants-memcg-5.10.patch"),
        ((6, 10), "mutants-memcg-5.10.patch"),
        ((6, 11), "mutants-memcg-6.11.patch"),
        ((7, 3), "mutants-memcg-6.11.patch"),
    ],
)
def test_mutants_go_on_top_of_the_port(version: series.Version, memcg: str) -> None:
    paths = series.ports(series.flavour("mutants"), version)
    names = [path.name for path in paths]
    assert names == [series.ports(REFERENCE, version)[0].name, "mutants.patch", memcg]


def test_no_port() -> None:
    with pytest.raises(UserError, match=r"no reference port for Linux 3.13: give yours"):
        series.ports(REFERENCE, (3, 13))


@pytest.mark.parametrize("name", series.SERIES)
def test_every_series_has_all(name: str) -> None:
    major, minor = name.split(".")
    version = int(major), int(minor)
    for flavour in series.FLAVOURS.values():
        assert all(path.exists() for path in series.ports(flavour, version))
        fragments = series.fragments(flavour, version)
        assert fragments[0].name == "base.config"
        assert all(path.exists() for path in fragments)


def test_a_fragment_may_withdraw_what_another_asks_for() -> None:
    wanted = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_A=y  # if known\nCONFIG_B=y  # if known\n"
    assert kconfig.dropped(wanted, "CONFIG_B=y\n") == []
    assert kconfig.dropped(wanted, "# CONFIG_B is not set\n") == ["CONFIG_B=y"]


@pytest.mark.parametrize(
    ("call", "file"),
    [
        ("mem_cgroup_root_oom_notify", "mm/oom_kill.c"),
        ("memcg_notify_system_oom", "mm/oom_kill.c"),
        ("memcg_notify_system_oom", "mm/page_alloc.c"),
    ],
)
def test_a_tree_that_has_the_patch(tmp_path: Path, cache_dir: Path, call: str, file: str) -> None:
    given = sources(tmp_path / "given")
    (given / file).write_text(OOM_KILL.replace("{\n", f"{{\n    {call}();\n"))
    told = rf"has the patch already \({call}\(\) in {file}\).*--patch none"
    with pytest.raises(UserError, match=told):
        build.build_kernel(str(given))
    tree = Tree(find(str(given), quiet))
    assert build._choose(tree, "stock", [], quiet) is STOCK


def test_suites_and_their_archives() -> None:
    archives = {"Debian": "http://x/debian/", "Debian-Security": "http://x/security/"}
    keyring = Path("/keys.gpg")
    assert apt.sources(("a", "a-security"), archives, keyring) == (
        "deb [signed-by=/keys.gpg] http://x/debian/ a main\n"
        "deb [signed-by=/keys.gpg] http://x/security/ a-security main\n"
    )
    del archives["Debian-Security"]
    assert "security" not in apt.sources(("a", "a-security"), archives, keyring)


def test_no_mirror_in_a_file_of_the_project() -> None:
    address = re.compile(r"https?://[\w.]*debian", re.IGNORECASE)
    for path in series.HERE.rglob("*"):
        if path.is_file():
            assert not address.search(path.read_text(errors="replace")), path
