# SPDX-License-Identifier: GPL-2.0-only
"""Tests that end their machine on purpose: what the console of the dead one says of the clause.

Their marker is ``dies(panic=, armed=, shows=, lacking=, otherwise=)``, the first three regular
expressions: the panic that must come, the last thing that the test itself had printed, and what
must stand after that if the clause is kept; ``lacking`` is the outcome if it does not, which
``otherwise`` says in a sentence.
"""

from __future__ import annotations

import re

import pytest

from vm.outcome import Crash


def verdict(wish: pytest.Mark | None, crash: Crash, console: str) -> Crash | None:
    """What is left of a crash to be held against the kernel.

    :param wish: the test's ``dies`` marker, if it has one.
    :param console: all that the machine printed.
    :returns: None if it died as it should have and showed what it should have shown.
    """
    if wish is None or crash.kind != "panic" or not re.search(wish.kwargs["panic"], crash.reason):
        return crash
    armed = re.search(wish.kwargs["armed"], console)
    if armed is None:
        return Crash("inconclusive", "the machine died without having told what came before")
    if re.search(wish.kwargs["shows"], console[armed.end() :]):
        return None
    return Crash(wish.kwargs["lacking"], wish.kwargs["otherwise"])
