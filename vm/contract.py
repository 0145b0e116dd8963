# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest run``: the contract on a kernel, and an exit code that is the verdict's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from vm.errors import INCONCLUSIVE, INTERRUPTED, USAGE, UserError
from vm.results import NAME, Results
from vm.target import names, reported
from vm.verdict import CONTRACT, EXIT_CODES, marks

ROOT = Path(__file__).resolve().parent.parent
HELP = """\
Exit codes: 0 conforms, 1 violates or not patched, 125 inconclusive, 2 wrong usage, 130 interrupted.

  --json FILE, --html FILE    write the verdict, as data or to be read
  --clause ID                 only the tests of this clause; may be repeated
  --accel auto|kvm|tcg        acceleration; auto, the default, finds out what works here
  --kernel-build DIR          where a kernel that was not built here was built, or its headers
  --pristine                  a new machine for each test

Further arguments are pytest's: -k P1, -x, --junitxml FILE, --durations 10, -v, a test's id ...
A -k that is a clause's name stands for the tests of that clause, as --clause does.
"""


def arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare what the verb takes; all else is left to pytest."""
    parser.epilog = HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "oomtest run [--kernel KERNEL]... [--expect VERDICT]... [PYTEST ARGUMENTS]"
    parser.add_argument(
        "--kernel",
        action="append",
        metavar="KERNEL",
        help=f"an image's path, or SERIES/FLAVOUR; may be repeated (default: {default})",
    )
    parser.set_defaults(default=default)
    parser.add_argument(
        "--expect",
        action="append",
        choices=list(EXIT_CODES),
        metavar="VERDICT",
        help="exit with 0 if this is the verdict and with 1 if not; one for each --kernel",
    )
    parser.add_argument(
        "-n", metavar="N", default="auto", help="tests at once (default: one for each CPU)"
    )


# Options whose value may look like a test.
TAKES = {
    "-k", "-m", "--json", "--html", "--junitxml", "--kernel-build", "--basetemp", "--ignore",
    "--deselect", "--confcutdir",
}  # fmt: skip


class _Session:
    """What the verb adds to pytest: how many workers there are, and the verdict's exit code.

    :param expected: kernels and their verdicts; empty if none in particular is expected.
    """

    def __init__(self, expected: Sequence[tuple[str, str]]) -> None:
        self.expected = expected
        self.config: pytest.Config | None = None
        self.enough = False

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_xdist_auto_num_workers(self, config: pytest.Config) -> int | None:
        """None where a single test is asked for: to start workers would take longer than it does.

        xdist asks before the plugins are configured, which make a clause's name of a -k.
        """
        if len(config.getoption("--kernel")) > 1:
            return None
        if any("::" in argument for argument in config.args):
            return 0 if len(config.args) == 1 else None
        clauses = config.getoption("--clause") or [config.option.keyword]
        return 0 if sum(marks(path, clauses) for path in CONTRACT.glob("test_*.py")) == 1 else None

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell an interruption from xdist's way to end a session on -x or --maxfail."""
        # Not imported: xdist is a plugin, and pytest wants to be the first to import it.
        xdist = type(excinfo.value).__module__ == "xdist.dsession"
        self.enough = xdist and str(excinfo.value).startswith("stopping after")

    def code(self, ended: int) -> int:
        """The exit code of the run, the worst of all kernels.

        :param ended: pytest's own.
        """
        if ended == pytest.ExitCode.INTERRUPTED and not self.enough:
            return INTERRUPTED
        results: Results | None = None
        if self.config is not None:
            results = self.config.pluginmanager.getplugin(NAME)
        judgements = results.judgements if results else {}
        if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
            return USAGE
        if ended == pytest.ExitCode.USAGE_ERROR and not self._none_fit(results):
            return USAGE
        if not judgements:  # nothing was to be run, or pytest itself fell over
            return ended and INCONCLUSIVE
        if self.expected:
            told = {name: judgement.verdict for name, judgement in judgements.items()}
            return int(any(told.get(name) != verdict for name, verdict in self.expected))
        codes = [judgement.exit_code for judgement in judgements.values()]
        return max(codes, key=(0, INCONCLUSIVE, 1).index)

    def _none_fit(self, results: Results | None) -> bool:
        """Whether the session had to end since no kernel could be asked: that is an answer."""
        if self.config is None or results is None:
            return False
        return results.unfit.issuperset(names(self.config.getoption("--kernel")))


def main(given: argparse.Namespace) -> int:
    """Run it.

    :param given: ``kernel``, ``expect``, ``n``, and pytest's further arguments in ``pytest``.
    :raises UserError: if there is not one expected verdict for each kernel.
    """
    kernels = given.kernel or [given.default]
    expected = given.expect or []
    if expected and len(expected) != len(kernels):
        raise UserError("run: give --expect once for each --kernel, in the same order")
    options = [
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
        "-q",
        "-n",
        given.n,
        "--tb=short",
    ]
    options += ["-p", "no:cacheprovider", *(f"--kernel={name}" for name in kernels)]
    further = [argument for argument in given.pytest if argument != "--"]
    if not any(_is_test(before, argument) for before, argument in pairwise(["", *further])):
        further.append(str(CONTRACT))
    session = _Session(list(zip(map(reported, kernels), expected, strict=False)))
    return session.code(int(pytest.main([*options, *further], plugins=[session])))


def _is_test(before: str, argument: str) -> bool:
    """Whether an argument names a test, and is not another one's value."""
    if before in TAKES or argument.startswith("-"):
        return False
    path = argument.partition("::")[0]
    return path.endswith(".py") or os.path.isdir(path)  # unlike Path's, for any string
