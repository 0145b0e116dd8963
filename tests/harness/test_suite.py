# SPDX-License-Identifier: GPL-2.0-only
"""What is sent into a guest, and that the same is sent for the same."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from _pytest.assertion.rewrite import _read_pyc

from tests.harness.conftest import ROOT
from vm import suite
from vm.errors import USAGE, UserError

CONTRACT = ROOT / "tests" / "contract"
FILES = {
    "conftest.py": "c = 1\n",
    "helpers/gate.py": "g = 1\n",
    "helpers/__pycache__/gate.py": "no\n",
    "helpers/kmod/build.py": "no\n",
    "tests/contract/test_a.py": "a = 1\n",
    "tests/contract/clauses.toml": "",
    "tests/contract/notes.txt": "no\n",
    "tests/rehearsal.py": "r = 1\n",
    "tests/harness/test_h.py": "no\n",
    "tests/mine/test_m.py": "m = 1\n",
    "vm/plugin.py": "no\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def contents(packed: suite.Suite) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(packed.payload), mode="r:gz") as tar:
        found = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            if not member.name.endswith(".pyc"):
                found[member.name] = file.read().decode()
        return found


def test_what_is_sent(checkout: Path) -> None:
    packed = suite.pack(checkout, [checkout / "tests/contract"], 60.0)
    sent = {name: text for name, text in FILES.items() if text != "no\n" and "mine" not in name}
    got = contents(packed)
    ini = got.pop("guest.ini")
    assert got == sent
    assert "timeout = 60\n" in ini
    assert "--allow-system-oom" in ini
    assert packed.args == ("tests/rehearsal.py", "tests/contract")


def test_what_was_asked_for_is_sent_along(checkout: Path) -> None:
    mine = checkout / "tests/mine/test_m.py"
    packed = suite.pack(checkout, [mine, mine, checkout / "tests/contract"], 60.0)
    assert contents(packed)["tests/mine/test_m.py"] == "m = 1\n"
    assert packed.args == ("tests/rehearsal.py", "tests/contract", "tests/mine/test_m.py")


def test_same_input_same_bytes(checkout: Path) -> None:
    wanted = [checkout / "tests/contract", checkout / "tests/mine"]
    packed = suite.pack(checkout, wanted, 60.0)
    for path in checkout.rglob("*.py"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o600)
    # A set's order is another one in every process.
    assert suite.files(checkout, wanted) == sorted(suite.files(checkout, wanted))
    again = suite.pack(checkout, wanted[::-1], 60.0)
    assert again == packed
    assert again.key == packed.key


@pytest.mark.parametrize("name", [n for n, text in FILES.items() if text.endswith("1\n")])
def test_other_input_other_key(checkout: Path, name: str) -> None:
    wanted = [checkout / "tests/contract", checkout / "tests/mine"]
    before = suite.pack(checkout, wanted, 60.0).key
    (checkout / name).write_text("changed = 1\n")
    assert suite.pack(checkout, wanted, 60.0).key != before


def test_further_differences_in_the_key(checkout: Path) -> None:
    wanted = [checkout / "tests/contract"]
    packed = suite.pack(checkout, wanted, 60.0)
    assert suite.pack(checkout, wanted, 61.0).key != packed.key
    assert suite.pack(checkout, [*wanted, checkout / "tests/mine"], 60.0).key != packed.key
    (checkout / "vm/plugin.py").write_text("the host's, and never sent\n")
    assert suite.pack(checkout, wanted, 60.0).key == packed.key


@pytest.mark.parametrize("outside", ["/etc", "../elsewhere", "tests/link"])
def test_outside(checkout: Path, outside: str) -> None:
    (checkout / "tests/link").symlink_to("/etc")
    with pytest.raises(UserError, match="is outside of") as caught:
        suite.pack(checkout, [checkout / outside], 60.0)
    assert caught.value.exit_code == USAGE


def test_command(checkout: Path) -> None:
    packed = suite.pack(checkout, [checkout / "tests/contract"], 60.0)
    command = packed.command()
    assert command["size"] == len(packed.payload)
    assert command["args"] == list(packed.args)


def test_the_projects_own() -> None:
    sent = contents(suite.pack(ROOT, [CONTRACT], 60.0))
    assert {"conftest.py", "helpers/gate.py", "tests/contract/clauses.toml"} <= set(sent)
    assert not [name for name in sent if name.startswith(("vm/", "tests/harness/"))]


def test_bytecode_is_what_the_guest_would_make(checkout: Path) -> None:
    packed = suite.pack(checkout, [checkout / "tests/contract"], 60.0)
    with tarfile.open(fileobj=io.BytesIO(packed.payload), mode="r:gz") as tar:
        names = {name for name in tar.getnames() if name.endswith(".pyc")}
        tar.extractall(checkout / "unpacked")  # noqa: S202  our own
    assert {Path(name).name.split(".")[0] for name in names} == {
        Path(name).stem for name in FILES if name in dict(packed.files) and name.endswith(".py")
    }
    for name in names:
        source = (
            checkout / "unpacked" / name
        ).parent.parent / f"{Path(name).name.split('.')[0]}.py"
        assert _read_pyc(source, checkout / "unpacked" / name) is not None


def test_source_with_an_error_is_sent_as_it_is(checkout: Path) -> None:
    (checkout / "tests/contract/test_a.py").write_text("a =\n")
    packed = suite.pack(checkout, [checkout / "tests/contract"], 60.0)
    assert contents(packed)["tests/contract/test_a.py"] == "a =\n"
