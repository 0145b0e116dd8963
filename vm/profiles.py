# SPDX-License-Identifier: GPL-2.0-only
"""Machine profiles: what a test's ``profile`` marker asks of the machine it runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A kind of machine.

    :param free: MiB of memory that the tests find free.
    :param devices: further QEMU arguments.
    :param cmdline: further kernel parameters.
    """

    name: str
    free: int = 56
    devices: tuple[str, ...] = ()
    cmdline: str = ""


PROFILES = {profile.name: profile for profile in (Profile("default"),)}
