# SPDX-License-Identifier: GPL-2.0-only
"""Commands that are watched: their last lines, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.conftest import ROOT, clean_environment
from vm import run


def ended(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process is gone or a zombie, within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_lines_of_both_streams() -> None:
    lines: list[str] = []
    run.watch(["sh", "-c", "echo one; echo two >&2"], lines.append)
    assert lines == ["one", "two"]


def test_where_and_with_what(tmp_path: Path) -> None:
    lines: list[str] = []
    command = ["sh", "-c", "pwd; echo $NEW $LC_ALL; readlink /proc/self/fd/0"]
    run.watch(command, lines.append, cwd=tmp_path, env={"NEW": "1"})
    assert lines == [str(tmp_path), "1 C", "/dev/null"]


def test_failed_keeps_the_last_lines() -> None:
    with pytest.raises(run.Failed, match="sh ended with status 3") as caught:
        run.watch(["sh", "-c", "seq 100; exit 3"])
    assert caught.value.lines == [str(n) for n in range(100 - run.KEEP + 1, 101)]


def test_no_such_command() -> None:
    """What callers turn into a line that says what to install."""
    with pytest.raises(FileNotFoundError):
        run.watch(["/nonexistent/command"])


def test_an_error_in_the_watcher_ends_the_command_and_its_children() -> None:
    pids: list[int] = []

    def each(line: str) -> None:
        pids.append(int(line))
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.watch(["sh", "-c", "echo $$; sleep 300 & echo $!; wait"], each)
    assert all(ended(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_caller(number: signal.Signals) -> None:
    # Whoever runs us in the background may have had SIGINT ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from vm import run; run.watch(['sh', '-c', 'echo $$; exec sleep 300'], print)"
    with subprocess.Popen(
        [sys.executable, "-uc", code],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        os.kill(pid, 0)
        caller.send_signal(number)
    assert ended(pid)
