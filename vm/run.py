# SPDX-License-Identifier: GPL-2.0-only
"""Run a long command: its output watched, nothing of it left behind; and tell progress."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

KEEP = 60  # last lines kept for the error
WIDTH = 160  # columns where there is no terminal
# Goes before a command that must not outlive the thread that starts it.
END_WITH_US = ("setpriv", "--pdeathsig", "TERM")


def columns() -> int:
    """How wide a table may be."""
    return shutil.get_terminal_size((WIDTH, 0)).columns


def say(line: str) -> None:
    """Tell progress; standard output is for results."""
    print(f"oomtest: {line}", file=sys.stderr, flush=True)


class Failed(Exception):
    """A command ended with a non-zero status.

    :ivar lines: its last lines.
    """

    def __init__(self, command: Sequence[str], status: int, lines: Sequence[str]) -> None:
        super().__init__(f"{command[0]} ended with status {status}")
        self.lines = list(lines)


def watch(
    command: Sequence[str],
    each: Callable[[str], None] = lambda line: None,
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> None:
    """Run ``command`` to its end.

    :param each: called with every line that it prints on either stream.
    :param env: variables added to the environment.
    :raises Failed: if it ends with a non-zero status.
    :raises FileNotFoundError: if there is no such command.
    """
    if shutil.which(command[0]) is None:  # setpriv would only say so
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    process = subprocess.Popen(
        [*END_WITH_US, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=KEEP)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            each(lines[-1])
        status = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status:
        raise Failed(command, status, lines)
