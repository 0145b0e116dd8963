# SPDX-License-Identifier: GPL-2.0-only
"""The kernels the project builds: data, no logic beyond looking a row up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vm.errors import UserError

HERE = Path(__file__).parent
Version = tuple[int, int]


@dataclass(frozen=True)
class Port:
    """A patch and the versions it is for: ``first <= version < until``."""

    patch: str
    first: Version
    until: Version

    @property
    def path(self) -> Path:
        return HERE / "patches" / self.patch


@dataclass(frozen=True)
class Flavour:
    """What is done to a series' source.

    :ivar ports: one is picked by version; empty for the unpatched kernel.
    :ivar fragments: config fragments on top of ``base.config``.
    """

    name: str
    ports: tuple[Port, ...] = ()
    fragments: tuple[str, ...] = ()


REFERENCE = (Port("reference-6.1.patch", (6, 1), (6, 2)),)

SERIES = ("6.1",)
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("stock"),
        Flavour("reference", REFERENCE),
    )
}


def flavour(name: str) -> Flavour:
    """The flavour of that name.

    :raises UserError: if there is none.
    """
    try:
        return FLAVOURS[name]
    except KeyError:
        raise UserError(f"no flavour {name}: there are {', '.join(FLAVOURS)}") from None


def ports(chosen: Flavour, version: Version) -> list[Path]:
    """The patches that make this flavour of a kernel of that version.

    :raises UserError: if the project has no port for it.
    """
    if not chosen.ports:
        return []
    fitting = [port.path for port in chosen.ports if port.first <= version < port.until]
    if not fitting:
        text = ".".join(map(str, version))
        raise UserError(
            f"no {chosen.name} port for Linux {text}: give yours with --patch FILE, "
            "or --patch none for a tree that has it"
        )
    return fitting[:1]
