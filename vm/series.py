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
class Options:
    """A config fragment and the versions it is for: ``first <= version < until``."""

    fragment: str
    first: Version
    until: Version


@dataclass(frozen=True)
class Flavour:
    """What is done to a series' source.

    :ivar ports: patches, in order; of each row of ports one is picked by version. Empty for the
        unpatched kernel.
    :ivar fragments: config fragments on top of ``base.config``.
    :ivar variants: whether it must build without memcg and the like, too (:mod:`vm.stubs`).
    """

    name: str
    ports: tuple[tuple[Port, ...], ...] = ()
    fragments: tuple[str, ...] = ()
    variants: bool = True


FOREVER: Version = (99, 0)
REFERENCE = (
    Port("reference-5.10.patch", (5, 10), (6, 11)),
    # The v1 code in a file and under an option of its own.
    Port("reference-6.11.patch", (6, 11), FOREVER),
)
# On top of the reference: every mistake of mutants.toml, none of them made by default.
MUTANTS = (Port("mutants.patch", (5, 10), FOREVER),)
MUTANTS_MEMCG = (
    Port("mutants-memcg-5.10.patch", (5, 10), (6, 11)),
    Port("mutants-memcg-6.11.patch", (6, 11), FOREVER),
)
OPTIONS = (
    Options("base.config", (0, 0), FOREVER),
    Options("5.10.config", (0, 0), (6, 1)),
    Options("6.2.config", (6, 2), FOREVER),
)

# The suites of the Debian archive that have a series' source, for machines whose own have not.
SERIES = {
    "5.10": ("bullseye", "bullseye-security"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("trixie", "trixie-security"),
    "7.3": ("trixie-backports", "forky", "sid", "experimental"),
}
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("stock"),
        Flavour("reference", (REFERENCE,)),
        Flavour("debug", (REFERENCE,), ("debug.config",)),
        Flavour("kasan", (REFERENCE,), ("kasan.config",)),
        Flavour("mutants", (REFERENCE, MUTANTS, MUTANTS_MEMCG), variants=False),
    )
}


# On top of a user's own configuration and the fragments.
USERS = (HERE / "configs" / "users.config",)


def flavour(name: str) -> Flavour:
    """The flavour of that name.

    :raises UserError: if there is none.
    """
    try:
        return FLAVOURS[name]
    except KeyError:
        raise UserError(f"no flavour {name}: there are {', '.join(FLAVOURS)}") from None


def fragments(chosen: Flavour, version: Version) -> list[Path]:
    """The config fragments for this flavour of a kernel of that version, later ones on top."""
    fitting = [row.fragment for row in OPTIONS if row.first <= version < row.until]
    return [HERE / "configs" / name for name in (*fitting, *chosen.fragments)]


def ports(chosen: Flavour, version: Version) -> list[Path]:
    """The patches that make this flavour of a kernel of that version.

    :raises UserError: if the project has no port for it.
    """
    picked = []
    for row in chosen.ports:
        fitting = [port.path for port in row if port.first <= version < port.until]
        if not fitting:
            text = ".".join(map(str, version))
            raise UserError(
                f"no {chosen.name} port for Linux {text}: give yours with --patch FILE, "
                "or --patch none for a tree that has it"
            )
        picked.append(fitting[0])
    return picked
