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
    :param balloon: MiB of what is free that a balloon takes, to give it back when there is an OOM.
    :param parallel: whether its CPUs run at the same time when they are emulated, not by turns.
    """

    name: str
    free: int = 44
    devices: tuple[str, ...] = ()
    cmdline: str = ""
    memcg: bool = True
    balloon: int = 0
    parallel: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default"),
        # No ballast: it would come to lie on one of the two nodes, and leave the other one empty.
        Profile("numa", free=1 << 10, cmdline="numa=fake=2"),
        Profile("roomy", free=1 << 10),  # some 30 KiB a memcg: thousands of them need it
        # A disk of each machine's own, of zeros at first.
        Profile(
            "swap",
            devices=(
                "-drive",
                "if=none,id=swap,driver=null-co,size=32M,read-zeroes=on,snapshot=on",
                "-device",
                "virtio-blk-pci,drive=swap",
            ),
        ),
        Profile(
            "balloon",
            devices=("-device", "virtio-balloon-pci,deflate-on-oom=on"),
            balloon=16,
        ),
        Profile("nomemcg", cmdline="cgroup_disable=memory", memcg=False),
        Profile("parallel", parallel=True),
        # What is used after it was freed is seen to be, where SLUB_DEBUG is set: eventfds, and the
        # entries of the lists that they are on. Since 6.18 it would else be as it was for long.
        Profile("poisoned", cmdline="slub_debug=P,kmalloc-32,kmalloc-64"),
        Profile("v2", cmdline="cgroup_no_v1=memory", memcg=False),
    )
}
