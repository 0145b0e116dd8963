# SPDX-License-Identifier: GPL-2.0-only
"""Many OOMs in a short time."""

from __future__ import annotations

import os
from collections.abc import Sequence

from helpers import gate
from helpers.evidence import Inconclusive, Kmsg, kills
from helpers.hogs import Child, exhaust
from helpers.memcgs import Memcg
from helpers.triggers import Proof


def burst(homes: Sequence[Memcg]) -> Proof:
    """Exhaust the system's memory by several hogs at once, until each of them was killed.

    :param homes: where the hogs live, one for each.
    :raises Forbidden: unless system OOMs are allowed.
    :raises Inconclusive: if a hog lives on, or the log does not name one that was killed.
    """
    gate.require("a burst of system OOMs")
    kmsg = Kmsg()
    hogs: list[Child] = []
    ready, go = os.pipe()

    def body() -> None:
        os.read(ready, 1)
        exhaust()

    try:
        hogs += (Child(body, home) for home in homes)
        os.write(go, bytes(len(homes)))
        for hog in hogs:
            if hog.wait() != -9:
                raise Inconclusive(f"a hog of a burst was not killed: status {hog.status}")
        wanted = {hog.pid for hog in hogs}
        if not kmsg.wait(lambda lines: wanted <= {kill.pid for kill in kills(lines)}, 5):
            raise Inconclusive("the kernel's log does not name every hog of a burst")
        return Proof(kills(kmsg.lines), list(kmsg.lines))
    finally:
        for hog in hogs:
            hog.kill()
        os.close(ready)
        os.close(go)
        kmsg.close()
