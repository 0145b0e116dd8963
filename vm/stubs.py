# SPDX-License-Identifier: GPL-2.0-only
"""I5: does a tree still build without memcg, without memcg v1, without NUMA, without swap?

A whole kernel for each would take minutes. Only the files that deal with OOMs are compiled, and a
symbol that they want from a file which such a kernel does not have is a link that would fail, as is
one that two of them define. A kernel of one node, or without swap, has all that matters to OOMs,
and must call it.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vm import cache, run, series
from vm.errors import HostError, UserError
from vm.kconfig import configure, make
from vm.source import Say, Source, Tree, version
from vm.verdict import Answer

CONFIGS = Path(__file__).parent / "configs"
CLAUSE = "I5"
FILE = "variants.json"
OBJECTS = ("mm/oom_kill.o", "mm/page_alloc.o", "mm/vmscan.o", "drivers/tty/sysrq.o")


@dataclass(frozen=True)
class Variant:
    """A kernel configured without something.

    :ivar absent: the object files that it then does not have.
    :ivar also: what it has besides :data:`OBJECTS` and must be compiled as well, where the source
        has it.
    :ivar same: what must need of :data:`MEMCG` all that it needs in the whole kernel, and find it.
    """

    name: str
    fragment: str
    absent: tuple[str, ...]
    also: tuple[str, ...] = ()
    first: series.Version = (0, 0)
    same: tuple[str, ...] = ()


MEMCG = ("mm/memcontrol.o", "mm/memcontrol-v1.o")  # the latter since 6.11
VARIANTS = (
    Variant("without memcg", "no-memcg.config", MEMCG),
    Variant(
        "without memcg v1",
        "no-memcg-v1.config",
        ("mm/memcontrol-v1.o",),
        ("mm/memcontrol.o",),
        (6, 11),
    ),
    Variant(
        "without NUMA",
        "no-numa.config",
        ("mm/mempolicy.o",),
        MEMCG,
        same=("mm/oom_kill.o", "mm/page_alloc.o"),
    ),
    Variant(
        "without swap",
        "no-swap.config",
        ("mm/swapfile.o",),
        MEMCG,
        same=("mm/oom_kill.o", "mm/page_alloc.o"),
    ),
)


def _symbols(objects: Path, name: str, which: str) -> set[str]:
    """Names in an object file; none if there is no such file.

    :param which: ``-u``, or ``--defined-only`` for those that others may use and not define.
    """
    command = ["nm", "-P", "-g", which, str(objects / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    words = [line.split() for line in done.stdout.splitlines() if line.strip()]
    return {word[0] for word in words if word[1] not in "vVwW"}


def _defined(objects: Path, names: Iterable[str]) -> set[str]:
    return set().union(*(_symbols(objects, name, "--defined-only") for name in names))


def complaint(source: Source, tree: Tree, whole: Path, variant: Variant, header: str = "") -> str:
    """What compiler or linker have to say, empty if they are content.

    :param tree: patched; use it under its source's lock.
    :param whole: where a kernel with everything in it was built from the tree.
    :param header: a header to put before all others, changed in a way that the tree's is not.
    :raises Failed: if there is no telling, since the variant cannot be configured.
    :raises UserError: as well, where the kernel's Kconfig does not let it.
    """
    configs = series.fragments(series.flavour("stock"), version(tree.path))
    fragment = CONFIGS / variant.fragment
    objects = cache.cache_dir() / "builds" / f"{source.name}-{fragment.stem}"
    configure(tree.path, objects, [*configs, fragment])
    run.watch(make(tree.path, objects, "prepare"))
    flags = [f"CFLAGS_oom_kill.o=-include {header}"] if header else []
    there = [name for name in variant.also if (tree.path / name).with_suffix(".c").exists()]
    wanted = [*OBJECTS, *there]
    try:
        run.watch(make(tree.path, objects, *flags, *wanted))
    except run.Failed as error:
        told = [line for line in error.lines if "error:" in line] or error.lines
        return told[0].replace(f"{tree.path}/", "")
    for name in wanted:
        for absent in variant.absent:
            missing = _symbols(objects, name, "-u") & _symbols(whole, absent, "--defined-only")
            if missing:
                return f"{name}: undefined reference to {min(missing)}, which {absent} would have"
    for one, other in itertools.combinations(wanted, 2):
        twice = _symbols(objects, one, "--defined-only") & _symbols(
            objects, other, "--defined-only"
        )
        if twice:
            return f"{other}: multiple definition of {min(twice)}, which {one} has, too"
    for name in variant.same:
        needed = _symbols(whole, name, "-u") & _defined(whole, MEMCG)
        lost = needed - _symbols(objects, name, "-u")
        if lost:
            return f"{name}: no longer refers to {min(lost)}, which is there"
        lost = needed - _defined(objects, MEMCG)
        if lost:
            return f"{name}: undefined reference to {min(lost)}, which memcg no longer has"
    return ""


def examine(
    source: Source, tree: Tree, whole: Path, image: Path, variants: Iterable[Variant], say: Say
) -> None:
    """Try variants and leave a note beside the image for :func:`answers`."""
    said: dict[str, str | None] = {}
    for variant in variants:
        if version(tree.path) < variant.first:
            continue
        say(f"compiling {variant.name}")
        try:
            said[variant.name] = complaint(source, tree, whole, variant)
        except HostError:
            raise
        except (run.Failed, UserError) as error:
            said[variant.name] = None
            why = " ".join(error.lines[-1:]) if isinstance(error, run.Failed) else str(error)
            say(f"{variant.name}: cannot be configured: {why}")
    with cache.atomic(image.with_name(FILE)) as scratch:
        scratch.write_text(json.dumps(said))


def answers(image: Path) -> Iterator[Answer]:
    """What is known of an image's tree; nothing for an image that was not built here."""
    note = image.with_name(FILE)
    if not note.exists():
        return
    for name, told in json.loads(note.read_text()).items():
        if told is None:
            yield Answer(f"build {name}", CLAUSE, "inconclusive", f"{name} cannot be configured")
        else:
            broken = f"{name} the tree does not build: {told}"
            yield Answer(f"build {name}", CLAUSE, *(("failed", broken) if told else ("passed",)))
