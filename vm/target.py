# SPDX-License-Identifier: GPL-2.0-only
"""One kernel under test as the host has it: image, acceleration, suite, and its snapshots."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vm import accel, build, dispatch, kmod, qemu, snapshot, suite
from vm.dispatch import Dispatcher
from vm.profiles import PROFILES
from vm.snapshot import Snapshot

ROOT = Path(__file__).resolve().parent.parent


def split(name: str) -> tuple[str, int]:
    """A kernel's name and the number of the mistake it is to make, as in ``6.1/mutants#17``."""
    stem, _, number = name.rpartition("#")
    return (stem, int(number)) if stem and number.isdigit() else (name, 0)


def reported(name: str) -> str:
    """A kernel's name in reports: without a mistake's number if it makes none."""
    stem, number = split(name)
    return f"{stem}#{number}" if number else stem


def names(kernels: Iterable[str]) -> list[str]:
    """The kernels that were asked for, each once and in that order, by the names in reports."""
    return list(dict.fromkeys(map(reported, kernels)))


class Target:
    """A kernel, ready to run tests on.

    :param name: the image's path, or ``SERIES/FLAVOUR``.
    :param acceleration: ``auto``, ``kvm`` or ``tcg``.
    :param wanted: test files and directories to send along with the contract.
    :param dispatcher: whose machines are used.
    :param say: takes progress lines.
    :param builds: build directories of kernels that were not built here.
    :raises UserError: if there is no such kernel, it cannot be built or booted, or the suite
        cannot be collected on it.
    """

    def __init__(
        self,
        name: str,
        acceleration: str,
        wanted: Iterable[Path],
        dispatcher: Dispatcher,
        say: Callable[[str], None],
        builds: Sequence[Path] = (),
    ) -> None:
        self.kernel = build.resolve(name, say)
        self.accel = accel.choose(acceleration, self.kernel.image)
        self.factor = snapshot.scale(self.accel.name)
        self.suite = suite.pack(
            ROOT, wanted, dispatch.TEST * self.factor, kmod.payload(self.kernel, builds)
        )
        self._dispatcher = dispatcher
        self._say = say
        self._snapshots: dict[str, Snapshot] = {}
        self.mutant = 0
        self.facts = self.machine("default").facts()

    @property
    def name(self) -> str:
        """As the user called it."""
        return reported(f"{self.kernel.name}#{self.mutant}")

    def mutated(self, number: int) -> Target:
        """The same kernel and the same snapshots, making that mistake."""
        one = copy.copy(self)
        one.mutant = number
        return one

    def machine(self, profile: str) -> Snapshot:
        """The snapshot of that machine profile, made if it is not cached."""
        if profile not in self._snapshots:
            self._snapshots[profile] = self._dispatcher.prepare(
                self.kernel, PROFILES[profile], self.accel.name, self.suite, self._say
            )
        return self._snapshots[profile]

    def describe(self) -> dict[str, str]:
        """How it is run, for headers and reports."""
        return {
            "release": str(self.facts["release"]),
            "how": f"QEMU {qemu.version()}, {self.accel.name} ({self.accel.reason})",
            "machine": f"2 vCPUs, {qemu.MEMORY_MIB} MiB",
            "image": str(self.kernel.image),
        }

    def limit(self, seconds: float | None) -> float:
        """When the host gives up on a test.

        :param seconds: the test's own limit, from its ``timeout`` marker.
        """
        own = dispatch.TEST * self.factor if seconds is None else seconds
        return own + dispatch.GRACE * self.factor
