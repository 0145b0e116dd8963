# SPDX-License-Identifier: GPL-2.0-only
"""Judge one commit: build it, ask it, and ask again what speaks against it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from vm import build, outcome, qemu, run, stubs, verdict
from vm.errors import INCONCLUSIVE, HostError, UserError
from vm.source import Say
from vm.verdict import AGAINST, NOT_PATCHED, VIOLATES

ROOT = Path(__file__).resolve().parent.parent
GOOD, BAD, UNTESTABLE, BROKEN = 0, 1, INCONCLUSIVE, 128
# Where these two hear nothing, and no other of their kind hears anything, there is no patch.
TELLING = ("P1", "P2")


@dataclass(frozen=True)
class Question:
    """What is asked of every commit.

    :ivar tree: the repository.
    :ivar clause: the one clause that matters, all if empty.
    :ivar patches: put on every commit; empty for a tree that has the port.
    :ivar config: a configuration that the fragments go on top of; empty for none.
    :ivar content: digest of what these files hold: other patches make another question.
    """

    tree: str
    clause: str = ""
    patches: tuple[str, ...] = ()
    config: str = ""
    content: str = ""


@dataclass(frozen=True)
class Step:
    """What was found out of one commit.

    :ivar code: as git bisect run understands it.
    :ivar word: the verdict in one or two words.
    :ivar detail: the first thing seen, or why there is no answer.
    :ivar clauses: the ids that are broken.
    """

    commit: str
    code: int
    word: str
    detail: str = ""
    clauses: tuple[str, ...] = ()
    seconds: float = 0.0


class Found(NamedTuple):
    """The same, of whatever commit."""

    code: int
    word: str
    detail: str = ""
    clauses: tuple[str, ...] = ()


def read(result: dict[str, Any], clause: str) -> Found:
    """Judge what ``run --json`` wrote of one kernel.

    :param clause: the clause that matters, all if empty.
    """
    rows = [row for row in result["clauses"] if clause in ("", row["id"])]
    against = {"broken", "silent", "deviates"}
    # What deviates from a clause as it is written conforms, unless just that is asked.
    binding = [row for row in rows if clause or row["level"] != "as-written"]
    wrong = [row for row in binding if row["state"] in against]
    if wrong:
        return Found(BAD, VIOLATES, wrong[0]["detail"], tuple(row["id"] for row in wrong))
    if clause and rows[0]["state"] == "kept":
        return Found(GOOD, "kept")
    if not clause and result["exit_code"] == 0:
        return Found(GOOD, verdict.CONFORMS)
    why = result["why"]
    if outcome.NO_BOOT in why:
        return Found(UNTESTABLE, "does not boot", why)
    if clause and rows[0]["detail"] != verdict.UNASKED:
        why = rows[0]["detail"]
    return Found(UNTESTABLE, verdict.INCONCLUSIVE, why)


def unpatched(result: dict[str, Any]) -> bool:
    """Whether the clauses that a kernel was asked are broken as they are without any patch."""
    state = {row["id"]: row["state"] for row in result["clauses"]}
    heard = any(state[name] in {"kept", "broken"} for name in state if name.startswith("P"))
    silent = all(state[name] == "silent" for name in TELLING)
    return silent and not heard and "broken" not in state.values()


def _ask(image: Path, arguments: Sequence[str], out: IO[str]) -> dict[str, Any]:
    """Run the contract, or a part of it, on one kernel.

    :raises UserError: if that ended without an answer in writing, or for the host's sake.
    """
    out.flush()
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "verdict.json")
        command = [*run.END_WITH_US, sys.executable, "-m", "vm", "run", f"--kernel={image}"]
        # What is seen twice must not depend on which tests have run before.
        command += [f"--json={target}", "--pristine", *arguments]
        if "vm.first" in arguments:
            command.append(f"--decided={Path(directory, 'decided')}")
        code = subprocess.run(command, cwd=ROOT, stdout=out, check=False).returncode
        if code not in (0, 1, INCONCLUSIVE) or not target.exists():
            raise UserError(f"the run of the contract ended with {code}", BROKEN)
        answer: dict[str, Any] = json.loads(target.read_text())["kernels"][0]
    if answer.get("fault") == "host":
        raise UserError(answer["why"], BROKEN)
    return answer


def _compiled(image: Path) -> Found:
    """What the compiler has said of the variants without memcg and the like."""
    judgement = verdict.judge(stubs.answers(image), verdict.clauses())
    rows = [row.data() for row in judgement.rows]
    return read({"clauses": rows, "why": judgement.why}, stubs.CLAUSE)


def examine(commit: str, question: Question, out: IO[str], say: Say) -> Step:
    """Build one commit and ask it; what speaks against it is seen twice before it is believed.

    :param out: takes what a failed build and the runs of the contract print.
    :param say: takes progress lines.
    :raises UserError: with :data:`BROKEN`, if this host or the harness is at fault.
    """
    began = time.monotonic()
    found = _judge(commit, question, out, say)
    return Step(commit, *found, round(time.monotonic() - began, 1))


def _judge(commit: str, question: Question, out: IO[str], say: Say) -> Found:
    clause = question.clause
    qemu.binary()
    try:
        kernel = build.build_kernel(
            f"{question.tree}@{commit}",
            flavour="stock",
            patches=[Path(name) for name in question.patches],
            config=Path(question.config) if question.config else None,
            name=commit[:12],
            variants=clause in ("", stubs.CLAUSE),
            say=say,
        )
    except UserError as error:
        if isinstance(error, HostError) or error.exit_code != INCONCLUSIVE:
            raise UserError(str(error), BROKEN) from error
        lines = error.__cause__.lines if isinstance(error.__cause__, run.Failed) else []
        print(*lines, error, sep="\n", file=out, flush=True)
        return Found(UNTESTABLE, "does not build", str(error))
    if clause in ("", stubs.CLAUSE):
        compiled = _compiled(kernel.image)
        if clause or compiled.code == BAD:
            return compiled
    chosen = [f"--clause={clause}"] if clause else []
    answer = _ask(kernel.image, ["-p", "vm.first", *chosen], out)
    found = read(answer, clause)
    if found.code == BAD:
        found = _again(kernel.image, answer, found, out)
    return found._replace(detail=found.detail.replace(str(kernel.image), commit[:12]))


def _again(image: Path, answer: dict[str, Any], found: Found, out: IO[str]) -> Found:
    """See on further machines what spoke against a kernel, and what kind of wrong it is."""
    against = _against(answer, found.clauses)
    silent = {test["state"] for test in against.values()} == {"silent"}
    wider = [f"--clause={name}" for name in dict.fromkeys([*found.clauses, *TELLING])]
    again = _ask(image, wider if silent else list(against), out)
    seen = {_speaks_of(against[name]) for name in _against(again, found.clauses).keys() & against}
    if not seen:
        told = f"seen once and not again: {found.detail}"
        return Found(UNTESTABLE, verdict.INCONCLUSIVE, told)
    if silent and unpatched(again):
        return found._replace(word=NOT_PATCHED)
    left = [row for row in answer["clauses"] if row["id"] in seen]
    return found._replace(detail=left[0]["detail"], clauses=tuple(row["id"] for row in left))


def _speaks_of(test: dict[str, Any]) -> str:
    """The clause that a test speaks against, as :func:`vm.verdict.judge` counts it."""
    return verdict.EVERY_TIME if test["state"] == "deaf" else str(test["clause"])


def _against(answer: dict[str, Any], clauses: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The tests that speak against a kernel in these clauses."""
    against = {*AGAINST, "deaf"}
    tests = [test for test in answer["tests"] if test["state"] in against]
    return {test["test"]: test for test in tests if _speaks_of(test) in clauses}
