# SPDX-License-Identifier: GPL-2.0-only
"""Machine profiles: what a test's ``profile`` marker asks of the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A kind of machine.

    :param free: MiB of memory that the tests find free; all of it if there is less.
    :param devices: further QEMU arguments.
    :param cmdline: further kernel parameters.
    :param memcg: whether the kernel must have a v1 memory controller there.
    """

    name: str
    free: int = 56
    devices: tuple[str, ...] = ()
    cmdline: str = ""
    memcg: bool = True


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default"),
        # No ballast: it would come to lie on one of the two nodes, and leave the other one empty.
        Profile("numa", free=1 << 10, cmdline="numa=fake=2"),
        Profile("nomemcg", cmdline="cgroup_disable=memory", memcg=False),
    )
}
