# SPDX-License-Identifier: GPL-2.0-only
"""The matrix, mutant by clause: on the terminal, as a picture and as data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from vm import report

if TYPE_CHECKING:
    from vm.mutants import Outcome

# A cell: what it says, the sign on the terminal, and the colours of terminal and picture.
CELLS = {
    "killed by a clause that must": ("#", "green", "#2e9e4f"),
    "killed by another clause": ("o", "yellow", "#d9a520"),
    "wrongly rejected": ("X", "bold red", "#d03030"),
    "a clause that must, and did not": ("-", "red", "#f0b0b0"),
    "a clause that must, not asked": ("?", "dim", "#e0e0e0"),
    "kept": (".", "dim", "#eaf5ea"),
    "not asked": (" ", "dim", "#ffffff"),
}
STATES = {
    "killed": "green", "deviates": "green", "left alone": "green", "killed by another": "yellow",
    "not applicable": "dim",
    "survived": "bold red", "wrongly rejected": "bold red", "inconclusive": "bold red",
}  # fmt: skip
BOX, LEFT, TOP = 18, 300, 60  # pixels


def cells(outcome: Outcome) -> Iterator[str]:
    """A mutant's row: for each clause a key of :data:`CELLS`."""
    mutant = outcome.mutant
    for row in outcome.judgement.rows:
        named = row.clause.id in mutant.clauses and not outcome.reason
        if row.clause.id in outcome.by:
            written = row.clause.level == "as-written"
            wrongly = mutant.kind == "right" or (mutant.kind == "deviation" and not written)
            other = "wrongly rejected" if wrongly else "killed by another clause"
            yield "killed by a clause that must" if named else other
        elif row.state in {"kept", "deviates"}:
            yield "a clause that must, and did not" if named else "kept"
        else:
            yield "a clause that must, not asked" if named else "not asked"


def show(outcomes: Sequence[Outcome]) -> None:
    """Print it."""
    console = Console(highlight=False)
    ids = [row.clause.id for row in outcomes[0].judgement.rows]
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    for line in range(max(map(len, ids))):
        head = "".join(f"{name[line : line + 1]:1}" for name in ids)
        console.print(Text(f"{'':{width + 4}} {head}"), no_wrap=True)
    for outcome in outcomes:
        text = Text(f"{outcome.mutant.number:3} {outcome.mutant.name:{width}} ")
        for cell in cells(outcome):
            sign, style, _ = CELLS[cell]
            text.append(sign, style)
        text.append(f" {outcome.state}", STATES[outcome.state])
        text.append(f" {' '.join(outcome.by)}" if outcome.by else _why(outcome))
        console.print(text, no_wrap=True, crop=False, soft_wrap=True)
    console.print(Text(", ".join(f"{sign} {what}" for what, (sign, _, _) in CELLS.items())))
    count = Counter(outcome.state for outcome in outcomes)
    console.print(Text(f"{len(outcomes)} mutants: {_sum(count)}"))


def _sum(count: Counter[str]) -> str:
    return ", ".join(f"{count[state]} {state}" for state in STATES if count[state])


def _why(outcome: Outcome) -> str:
    """Why the clauses that must reject a mutant did not."""
    if outcome.reason:
        return f": {outcome.reason}"
    if outcome.state in {"inconclusive", "wrongly rejected"}:
        return f": {outcome.judgement.why}"
    rows = [row for row in outcome.judgement.rows if row.clause.id in outcome.mutant.clauses]
    told = [
        f"{row.clause.id} {row.state}" + (f" ({row.detail})" * bool(row.detail)) for row in rows
    ]
    return f": {'; '.join(told)}" if told else ""


def data(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """It as data; docs/MUTANTS.md describes the fields."""
    found = []
    for outcome in outcomes:
        mutant = outcome.mutant
        rows = outcome.judgement.rows
        found.append(
            {
                "number": mutant.number,
                "name": mutant.name,
                "mistake": mutant.mistake,
                "kind": mutant.kind,
                "clauses": mutant.clauses,
                "state": outcome.state,
                "rejected_by": outcome.by,
                "verdict": outcome.judgement.verdict,
                "why": outcome.reason or outcome.judgement.why,
                "rows": {row.clause.id: [row.state, row.detail] for row in rows},
            }
        )
    return {"format": 1, "mutants": found}


def write(
    outcomes: Sequence[Outcome], json_to: Path | None, svg_to: Path | None, html_to: Path | None
) -> None:
    """Write it into those files that were asked for."""
    found, picture = data(outcomes), svg(outcomes)
    for path, text in (
        (json_to, json.dumps(found, indent=1) + "\n"),
        (svg_to, picture),
        (html_to, report.matrix(found, picture)),
    ):
        if path is not None:
            report.publish(path, text)


def svg(outcomes: Sequence[Outcome]) -> str:
    """The picture."""
    ids = [row.clause.id for row in outcomes[0].judgement.rows]
    below = TOP + BOX * len(outcomes)
    width, height = LEFT + BOX * len(ids) + 160, below + 20 * (len(CELLS) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for n, name in enumerate(ids):
        at = f"{LEFT + BOX * n + 13} {TOP - 6}"
        parts.append(f'<text transform="translate({at}) rotate(-90)">{name}</text>')
    for n, outcome in enumerate(outcomes):
        parts += _line(outcome, TOP + BOX * n)
    for n, (what, (_, _, colour)) in enumerate(CELLS.items()):
        y = below + 20 * (n + 1)
        parts.append(_box(10, y - 12, colour, what))
        parts.append(f'<text x="34" y="{y}">{what}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(outcome: Outcome, y: int) -> Iterator[str]:
    mutant = outcome.mutant
    yield (
        f'<text x="10" y="{y + 13}">{mutant.number} {escape(mutant.name)}'
        f"<title>{escape(mutant.mistake)}</title></text>"
    )
    for n, (row, cell) in enumerate(zip(outcome.judgement.rows, cells(outcome), strict=True)):
        told = f"{row.clause.id}: {cell}" + (f": {row.detail}" if row.detail else "")
        yield _box(LEFT + BOX * n, y, CELLS[cell][2], told)
    end = LEFT + BOX * len(outcome.judgement.rows) + 8
    bad = "red" in STATES[outcome.state]
    colour = "#d03030" if bad else "#202020"
    yield f'<text x="{end}" y="{y + 13}" fill="{colour}">{outcome.state}</text>'


def _box(x: int, y: int, colour: str, told: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{BOX - 1}" height="{BOX - 1}" fill="{colour}" '
        f'stroke="#d8d8d8"><title>{escape(told)}</title></rect>'
    )
