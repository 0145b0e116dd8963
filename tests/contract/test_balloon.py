# SPDX-License-Identifier: GPL-2.0-only
"""N4 where the white-box module cannot be had: a virtio balloon that gives way in an OOM.

Its driver is an OOM notifier (drivers/virtio/virtio_balloon.c) and frees 1 MiB each time.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers import gate
from helpers.evidence import Inconclusive, Kmsg, kills, vmstat
from helpers.hogs import CHUNK, Child, populate
from helpers.judge import alive_on_root, stays_silent
from helpers.listeners import Listener
from helpers.memcgs import Memcg


@pytest.mark.clause("N4")
@pytest.mark.system_oom
@pytest.mark.profile("balloon")
def test_balloon_that_gave_way_keeps_root_silent(
    root: Memcg, listen: Callable[..., Listener]
) -> None:
    if not vmstat("balloon_inflate"):
        pytest.skip(
            "no virtio balloon or no driver, or it is not counted (CONFIG_VM_EVENT_COUNTERS)"
        )
    gate.require("exhausting the system's memory")
    listener = listen(root, "root")
    kmsg = Kmsg()
    before = vmstat("balloon_deflate")

    def body() -> None:
        while vmstat("balloon_deflate") == before:
            populate(CHUNK)

    status = Child(body, root).wait()
    if status != 0 or kills(kmsg.read()):
        raise Inconclusive(f"the balloon did not give way in time: the hog's status is {status}")
    kmsg.close()
    stays_silent(root, listener, after="a system OOM that a balloon has mended")
    alive_on_root(listener)
