# SPDX-License-Identifier: GPL-2.0-only
"""The safety gate: what can take a machine down asks here first.

A system OOM, a kill forced through sysrq and a panic end sessions and lose work. They happen in a
virtual machine made for it, or where somebody has said ``--allow-system-oom`` in so many words.
Every dangerous primitive calls :func:`require` itself, at the lowest level, so that a new test or
helper that forgets to ask cannot get past it.
"""

from __future__ import annotations

_permitted = False


class Forbidden(RuntimeError):
    """Something dangerous was tried without permission; always a bug in the suite."""


def permit(allowed: bool) -> None:
    """Open or close the gate; only conftest.py does, from the command line.

    :param allowed: whether ``--allow-system-oom`` was given.
    """
    global _permitted  # noqa: PLW0603  one process, one permission
    _permitted = allowed


def permitted() -> bool:
    """Whether the gate is open."""
    return _permitted


def require(what: str) -> None:
    """Pass only if the gate is open.

    :param what: names the danger for the message.
    :raises Forbidden: if it is closed.
    """
    if not _permitted:
        raise Forbidden(f"{what} needs --allow-system-oom, or a guest: ./oomtest run")
