# SPDX-License-Identifier: GPL-2.0-only
"""Which functions can take a machine down, read off their source.

A function is dangerous itself if it asks the safety gate or names a file that needs asking; it
reaches danger if it refers to one that does, however far away. What a name stands for is looked up
in the function's own module, so that renaming an import does not hide anything.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from helpers import gate

# Writing to these ends a session, or has the kernel end it.
DEADLY = ("sysrq", "panic_on_oom", "vm/panic", "kernel/panic")


def unwrapped(thing: Any) -> Any:
    """The function behind a fixture, a decorated generator or a bound method."""
    inner = getattr(thing, "_get_wrapped_function", None)  # pytest's fixtures
    return inspect.unwrap(inner() if inner else thing)


@functools.cache
def tree(thing: Any) -> ast.AST:
    """The syntax tree of a function or a class."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def deadly(node: ast.AST) -> bool:
    """Whether a node is a string that names a file which ends a session; prose is none."""
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"\S*/\S*", node.value) is not None
        and any(word in node.value for word in DEADLY)
    )


def asks(node: ast.AST) -> bool:
    """Whether a statement is a call of ``gate.require``."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "gate.require"
    )


def _referred(thing: Any) -> Iterator[Any]:
    """What the names in a function's or a class's source stand for."""
    space = vars(inspect.getmodule(thing))
    for node in ast.walk(tree(thing)):
        if isinstance(node, ast.Name):
            yield space.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            base = space.get(node.value.id)
            if isinstance(base, ModuleType | type):
                yield getattr(base, node.attr, None)
    if isinstance(thing, FunctionType):
        fixtures = vars(importlib.import_module("conftest")) | space
        for name in inspect.signature(thing).parameters:
            if hasattr(fixtures.get(name), "_get_wrapped_function"):
                yield fixtures[name]


def reaches(thing: Any, seen: set[Any] | None = None) -> bool:
    """Whether a function or class can take a machine down."""
    seen = set() if seen is None else seen
    thing = unwrapped(thing)
    if thing in seen:
        return False
    seen.add(thing)
    if thing is gate.require:
        return True
    if any(map(deadly, ast.walk(tree(thing)))):
        return True
    ours = (o for o in _referred(thing) if callable(o) and _is_ours(unwrapped(o)))
    return any(reaches(other, seen) for other in ours)


def _is_ours(thing: Any) -> bool:
    module = getattr(thing, "__module__", None) or ""
    return isinstance(thing, FunctionType | type) and module.partition(".")[0] in {
        "helpers",
        "tests",
        "conftest",
    }


def public(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A module's own public functions and classes."""
    for name, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == module.__name__
        if own and not name.startswith("_") and isinstance(thing, FunctionType | type):
            yield name, thing
