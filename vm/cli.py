# SPDX-License-Identifier: GPL-2.0-only
"""``./oomtest``: the verbs, their arguments, and the one line that a user's mistake ends in."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vm import bench, bisect, build, cache, contract, doctor, mutants, series, shell
from vm.errors import INCONCLUSIVE, INTERRUPTED, USAGE, UserError
from vm.run import say

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = "6.1/reference"
KERNEL_HELP = "an image's path, or SERIES/FLAVOUR, built if it is not cached (default: %(default)s)"

EPILOG = f"""\
Without a verb: run, on {DEFAULT}.

A kernel is named by the path of its image or as SERIES/FLAVOUR.
Series: {", ".join(series.SERIES)}. Flavours: {", ".join(series.FLAVOURS)}.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="oomtest",
        description="Does a kernel keep the contract of system OOM notification on the root memcg?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(
        name: str, action: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(action=action)
        return added

    contract.arguments(verb("run", contract.main, "run the contract on a kernel, in QEMU"), DEFAULT)
    one = verb("build", _build, "build a kernel and print the path of its image")
    one.add_argument("kernel", nargs="?", metavar="SERIES/FLAVOUR", help="what to build")
    one.add_argument(
        "--source",
        metavar="WHERE",
        help="a directory, a tarball, DIR@REV of a git repository, or debian:SERIES",
    )
    one.add_argument(
        "--config", type=Path, metavar="FILE", help="a .config of yours to start from, not nothing"
    )
    one.add_argument("--flavour", choices=series.FLAVOURS, help="with --source: what goes on first")
    one.add_argument(
        "--patch",
        action="append",
        default=[],
        metavar="FILE",
        help="goes on top; with --source, a port of your own replaces the project's, "
        "and 'none' keeps the tree as it is",
    )
    sh = verb("shell", shell.main, "open a shell in a guest, with the suite in it")
    sh.add_argument("--kernel", default=DEFAULT, metavar="KERNEL", help=KERNEL_HELP)
    bisect.arguments(verb("bisect", bisect.main, "find the commit that broke the contract"))
    bisect.step_arguments(
        verb("bisect-step", bisect.step_main, "judge one commit, as git bisect run wants it")
    )
    mutants.arguments(
        verb("mutants", mutants.main, "run the contract on kernels that are wrong on purpose")
    )
    verb("check", _check, "run the project's own tests: lint, types, harness, contract")
    verb("doctor", doctor.main, "say what this host can do")
    bench.arguments(verb("bench", bench.main, "measure and print the project's figures"), DEFAULT)
    verb("clean", _clean, "delete everything that is cached: sources, builds, snapshots")
    return top


def _build(given: argparse.Namespace) -> int:
    if bool(given.kernel) == bool(given.source):
        raise UserError("build: give either SERIES/FLAVOUR or --source WHERE")
    if given.kernel and given.flavour:
        raise UserError("build: --flavour goes with --source")
    none = given.patch == ["none"]
    if "none" in given.patch and (not none or given.kernel):
        raise UserError("build: --patch none goes with --source, and with no other patch")
    patches = [Path(name) for name in given.patch if not none]
    if given.kernel:
        source, flavour = build.named(given.kernel)
    else:
        source, flavour = given.source, "stock" if none else given.flavour
    kernel = build.build_kernel(
        source, flavour=flavour, patches=patches, config=given.config, say=say
    )
    print(kernel.image)
    return 0


def _check(_: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "tox", "run", "--workdir", str(cache.cache_dir() / "tox")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _clean(_: argparse.Namespace) -> int:
    say(f"{cache.size() / (1 << 30):.1f} GiB in {cache.cache_dir()}")
    cache.clean()
    return 0


def _terminated(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: with nothing left behind."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    :param arguments: as on the command line.
    :returns: the exit code; each verb's help tells its own.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words.insert(0, "run")
    given, further = parser().parse_known_args(words)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        if given.verb == "run":
            given.pytest = further
        elif further:
            raise UserError(f"{given.verb}: unknown argument {further[0]}; see --help", USAGE)
        return int(given.action(given))
    except UserError as error:
        print(f"oomtest: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("oomtest: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return INTERRUPTED
    except OSError as error:
        print(f"oomtest: {error}: mend that, then say it again", file=sys.stderr)
        return INCONCLUSIVE
