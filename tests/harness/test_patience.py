# SPDX-License-Identifier: GPL-2.0-only
"""Waiting on a machine that stands still at times."""

from __future__ import annotations

import itertools

import pytest

from helpers import patience


@pytest.mark.parametrize(
    ("seconds", "took", "times"),
    [
        (0.0, [0.0], 1),
        (2.0, [patience.SLICE], 5),
        (2.0, [0.01], 200),
        (2.0, [100.0, patience.SLICE], 5),  # stands still by turns
    ],
)
def test_a_slice_counts_for_no_more_than_it_was_to_take(
    monkeypatch: pytest.MonkeyPatch, seconds: float, took: list[float], times: int
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    taken, asked = itertools.cycle(took), list[float]()
    for moment in patience.slices(seconds):
        asked.append(moment)
        now += next(taken)
    assert abs(len(asked) - times) <= 1  # a sum of floats
    assert all(0 <= moment <= patience.SLICE for moment in asked)
