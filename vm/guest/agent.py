# SPDX-License-Identifier: GPL-2.0-only
"""The worker's side of a test's travel: receive the suite, collect it, run what is asked for.

It stands still twice, each time at a blocking read and each time so that the host can take a
snapshot: once with pytest imported and no suite yet, once with the suite collected. A changed test
thus costs no boot. Standing there it can be sent test files that have changed, too.
"""

from __future__ import annotations

import base64
import gc
import importlib
import io
import json
import mmap
import os
import re
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _pytest.assertion.rewrite
import _pytest.junitxml
import cgroupspy
import pytest
import pytest_timeout
from _pytest.runner import runtestprotocol
from oomtest_guest import init, remains

SUITE = "/suite"
PAGE = 4096
MAIL = 256  # pages; more than the suite comes to
UNDERSTUDIES = 6
REHEARSAL = "rehearsal.py"
MUTANT = "/sys/module/oom_kill/parameters/mutant"  # of a kernel of the flavour "mutants"
# Plugins that do nothing for a test in a guest but cost emulated time around each of its phases.
IDLE = (
    *("cacheprovider", "doctest", "faulthandler", "junitxml", "logging", "pastebin", "setuponly"),
    *("setupplan", "stepwise", "threadexception", "unittest", "unraisableexception", "warnings"),
)
# Of a report, what the host knows: emulated, the line takes a millisecond for 40 bytes.
KNOWN = ("nodeid", "location", "keywords")
# Imported so that the snapshot holds them, not because anything here calls them.
PRELOADED = (cgroupspy, pytest_timeout, _pytest.assertion.rewrite, _pytest.junitxml)


def commands(pipe: int) -> Any:
    """The host's lines, decoded, one after the other; blocks between them."""
    with os.fdopen(pipe, "rb") as stream:
        for line in stream:
            yield json.loads(line)


def mailbox(tag: bytes) -> mmap.mmap:
    """Pages in which the host, which sees this machine's memory, lays the suite."""
    box = mmap.mmap(-1, MAIL * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for number in range(MAIL):
        box[number * PAGE : number * PAGE + len(tag) + 4] = tag + number.to_bytes(4, "little")
    return box


def unpack(archive: bytes) -> None:
    """Lay the suite, or a part of it, where it is collected."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        tar.extractall(SUITE)  # noqa: S202  the archive is the host's own


def leave_behind(prepare: Callable[[], object]) -> None:
    """Have a process that sleeps for good once it has done ``prepare``, and keeps what it made.

    It is PID 1's: the worker has no child that a test might meet.
    """
    done, tell = os.pipe()
    if os.fork() == 0:
        try:
            if os.fork() == 0:
                held = prepare()
                os.write(tell, b".")
                while held is None or held:
                    signal.pause()
        finally:
            os._exit(0)
    os.close(tell)
    os.wait()
    os.read(done, 1)
    os.close(done)


def understudy() -> None:
    """Be the last that an OOM kills.

    A kernel that finds nobody to kill panics (out_of_memory(), mm/oom_kill.c), and it may look for
    somebody right when the victim has gone and its memory has not come back yet.
    """
    init.write("/proc/self/oom_score_adj", "-900")


def ballast(keep: int) -> object:
    """Take all of the guest's free memory but ``keep`` MiB.

    What a hog has to fill is most of what a system OOM costs when emulated. The ballast is out of
    the OOM killer's reach, its memory locked.
    """
    free = re.search(r"^MemFree: *(\d+) kB", init.read("/proc/meminfo"), re.MULTILINE)
    size = (int(free[1]) >> 10) - keep if free else 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    held = mmap.mmap(-1, size << 20, flags=flags) if size > 0 else None
    init.harden()  # afterwards: what is locked on fault is not populated
    return held


class Agent:
    """A pytest plugin that turns the session into a server of single tests.

    :param port: the descriptor of the line to the host.
    :param asked: the iterator over the host's commands.
    :param free: MiB of memory to leave to the tests.
    """

    def __init__(self, port: int, asked: Any, free: int) -> None:
        self.port = port
        self.free = free
        self.asked = asked
        self.config: Any = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            init.say(self.port, "collect-error", id=report.nodeid, text=str(report.longrepr))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        rehearsal = [item for item in session.items if item.path.name == REHEARSAL]
        items = {item.nodeid: item for item in session.items if item not in rehearsal}
        for rehearsed in rehearsal:
            for report in runtestprotocol(rehearsed, log=False, nextitem=None):
                self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        gc.collect()
        gc.freeze()
        for _ in range(UNDERSTUDIES):
            leave_behind(understudy)
        leave_behind(lambda: ballast(self.free))
        found = remains.look()
        init.say(self.port, "collected", ids=list(items))
        for command in self.asked:
            if "amend" in command:
                items = self.amend(session, items, command)
                gc.collect()
                gc.freeze()
                init.say(self.port, "collected", ids=list(items))
                continue
            item = items.get(command["id"])
            if item is None:
                init.say(self.port, "unknown", id=command["id"])
                continue
            if command["mutant"] and not init.write(MUTANT, str(command["mutant"])):
                init.say(self.port, "fault", text="this kernel has no mutants to choose from")
                continue
            os.environ["OOMTEST_SEED"] = str(command["seed"])
            init.say(self.port, "started", id=item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            left = remains.left(found) if command["keep"] else []
            init.say(self.port, "finished", id=item.nodeid, left=left)
        return True

    def amend(
        self, session: pytest.Session, items: dict[str, pytest.Item], command: dict[str, Any]
    ) -> dict[str, pytest.Item]:
        """Take some test files anew, which have changed since all were collected.

        :returns: the items, with those of these files in place of the old ones.
        """
        unpack(base64.b64decode(command["packed"]))
        importlib.invalidate_caches()
        for name in command["amend"]:
            path = Path(SUITE, name)
            old = [item for item in items.values() if item.path == path]
            module = old[0].getparent(pytest.Module)
            assert module is not None
            assert module.parent is not None
            del sys.modules[module.obj.__name__]
            new = list(session.genitems(pytest.Module.from_parent(module.parent, path=path)))
            self.config.hook.pytest_collection_modifyitems(
                session=session, config=self.config, items=new
            )
            items = {id: item for id, item in items.items() if item not in old}
            items |= {item.nodeid: item for item in new}
        return items

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        for known in KNOWN:
            del data[known]
        init.say(self.port, "report", data=data)


def serve(port: int, pipe: int) -> None:
    """Run the guest's pytest session; returns when the host hangs up.

    :param port: the descriptor of the line to the host.
    :param pipe: the descriptor that PID 1 forwards the host's lines to.
    :raises OSError: if the suite cannot be unpacked.
    """
    init.harden()
    asked = commands(pipe)
    gc.collect()
    tag = os.urandom(16)
    box = mailbox(tag)
    init.say(port, "ready", clock=time.monotonic(), tag=tag.hex(), pages=MAIL)
    command = next(asked)
    unpack(box[: command["size"]])
    box.close()
    os.chdir(SUITE)
    sys.path.insert(0, SUITE)
    sys.dont_write_bytecode = True
    # The reports travel over the line; what the terminal plugin prints matters only if the session
    # never gets as far as waiting.
    sink = os.open("/tmp/session", os.O_RDWR | os.O_CREAT)  # noqa: S108  the guest is ours alone
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["--rootdir=" + SUITE, "-c", SUITE + "/guest.ini", "-p", "pytest_timeout"]
    options += ["--capture=sys", *(f"-pno:{name}" for name in IDLE)]
    pytest.main([*command["args"], *options], plugins=[Agent(port, asked, command["free"])])
    init.say(port, "fault", text=os.pread(sink, 1 << 16, 0).decode(errors="replace"))
