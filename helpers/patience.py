# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for what may take long on a machine that is slow, and for ever on a wrong kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator

SLICE = 0.4


def slices(seconds: float) -> Iterator[float]:
    """Yield how long to wait next, in seconds, until ``seconds`` have been waited; at least once.

    Time during which the machine stands still (the host is busy, a VM does not get its turn)
    hardly counts: what is waited for has not had it either.
    """
    left = seconds
    while True:
        began = time.monotonic()
        yield max(0.0, min(left, SLICE))
        left -= min(time.monotonic() - began, SLICE)
        if left <= 0:
            return
