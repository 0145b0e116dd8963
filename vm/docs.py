# SPDX-License-Identifier: GPL-2.0-only
"""Make docs/CONTRACT.md from the clauses and the tests that carry them: ``python -m vm.docs``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from vm.verdict import clauses

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "tests" / "contract"
TARGET = ROOT / "docs" / "CONTRACT.md"
PREFACE = ROOT / "docs" / "contract-preface.md"


def _clause(node: ast.expr) -> str | None:
    """The id in ``pytest.mark.clause("ID")``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.clause":
        return str(ast.literal_eval(node.args[0]))
    return None


def _module_clause(tree: ast.Module) -> str | None:
    """The id in a module's ``pytestmark``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks = node.value.elts if isinstance(node.value, ast.List) else [node.value]
            return next(filter(None, map(_clause, marks)), None)
    return None


def carried() -> Iterator[tuple[str, str]]:
    """Every clause with a test that carries it, as ``file::function``, in the files' order."""
    for path in sorted(CONTRACT.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        shared = _module_clause(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                own = next(filter(None, map(_clause, node.decorator_list)), shared)
                if own:
                    yield own, f"{path.name}::{node.name}"


def text() -> str:
    """The whole document."""
    tests: dict[str, list[str]] = {}
    for held, name in carried():
        tests.setdefault(held, []).append(name)
    parts = [PREFACE.read_text().rstrip(), ""]
    for clause in clauses().values():
        core = ", core" if clause.core else ""
        parts += [f"### {clause.id} ({clause.level}{core})", "", clause.text, ""]
        parts += [f"Rests on: {clause.rests}", ""]
        parts += [f"- `{name}`" for name in tests.get(clause.id, ())] or [
            "Asked when a kernel is built: `vm/stubs.py`."
        ]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
