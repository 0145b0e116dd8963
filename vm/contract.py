# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest run``: the contract on a kernel, and an exit code that is the verdict's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.errors import INCONCLUSIVE
from vm.results import NAME, Results

ROOT = Path(__file__).resolve().parent.parent
EXIT_CODES = """\
Exit codes: 0 conforms, 1 violates or not patched, 125 inconclusive, 2 wrong usage, 130 interrupted.
Further arguments are pytest's: -k P1, -x, --junitxml FILE, --durations 10, -v, a test's id ...
"""


def arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare what the verb takes; all else is left to pytest."""
    parser.epilog = EXIT_CODES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "oomtest run [--kernel KERNEL] [PYTEST ARGUMENTS]"
    parser.add_argument(
        "--kernel",
        default=default,
        metavar="KERNEL",
        help="an image's path, or SERIES/FLAVOUR (default: %(default)s)",
    )
    parser.add_argument(
        "-n", metavar="N", default="auto", help="tests at once (default: %(default)s)"
    )


class _Exit:
    """Has pytest end with the verdict's exit code."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        result = yield
        results: Results | None = session.config.pluginmanager.getplugin(NAME)
        finished = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if finished and results is not None:
            codes = [judgement.exit_code for judgement in results.judgements.values()]
            session.exitstatus = max(codes, key=(0, INCONCLUSIVE, 1).index, default=INCONCLUSIVE)
        return result


def main(given: argparse.Namespace) -> int:
    """Run it.

    :param given: ``kernel``, ``n`` and pytest's further arguments in ``pytest``.
    """
    workers = str(os.cpu_count() or 1) if given.n == "auto" else given.n
    options = ["--kernel", given.kernel, "-c", str(ROOT / "pyproject.toml"), "-q"]
    options += ["--rootdir", str(ROOT), "-n", workers, "-p", "no:cacheprovider"]
    further = [argument for argument in given.pytest if argument != "--"]
    tests = [argument for argument in further if _is_test(argument)]
    if not tests:
        further.append(str(ROOT / "tests" / "contract"))
    code = int(pytest.main([*options, *further], plugins=[_Exit()]))
    if code == pytest.ExitCode.INTERRUPTED:
        return 130
    if code == pytest.ExitCode.INTERNAL_ERROR:
        return INCONCLUSIVE
    return 2 if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED) else code


def _is_test(argument: str) -> bool:
    return not argument.startswith("-") and Path(argument.partition("::")[0]).exists()
