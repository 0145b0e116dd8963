# SPDX-License-Identifier: GPL-2.0-only
"""I5: does a tree still build without memcg, without memcg v1, without NUMA?

A whole kernel for each would take minutes. Only the files that deal with OOMs are compiled, and a
symbol that they want from a file which such a kernel does not have is a link that would fail.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vm import cache, run, series
from vm.kconfig import configure, make
from vm.source import Say, Source, Tree, version
from vm.verdict import Answer

CONFIGS = Path(__file__).parent / "configs"
FILE = "variants.json"
OBJECTS = ("mm/oom_kill.o", "mm/page_alloc.o", "mm/vmscan.o", "drivers/tty/sysrq.o")


@dataclass(frozen=True)
class Variant:
    """A kernel configured without something.

    :ivar absent: the object files that it then does not have.
    :ivar also: what it has besides :data:`OBJECTS` and must be compiled as well.
    """

    name: str
    fragment: str
    absent: tuple[str, ...]
    also: tuple[str, ...] = ()
    first: series.Version = (0, 0)


VARIANTS = (
    Variant("without memcg", "no-memcg.config", ("mm/memcontrol.o", "mm/memcontrol-v1.o")),
    Variant(
        "without memcg v1",
        "no-memcg-v1.config",
        ("mm/memcontrol-v1.o",),
        ("mm/memcontrol.o",),
        (6, 11),
    ),
    Variant("without NUMA", "no-numa.config", ("mm/mempolicy.o",), ("mm/memcontrol.o",)),
)


def _symbols(objects: Path, name: str, which: str) -> set[str]:
    """Names in an object file; none if there is no such file.

    :param which: ``-u`` or ``--defined-only``.
    """
    command = ["nm", "-P", which, str(objects / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {line.split()[0] for line in done.stdout.splitlines() if line.strip()}


def complaint(source: Source, tree: Tree, whole: Path, variant: Variant, header: str = "") -> str:
    """What compiler or linker have to say, empty if they are content.

    :param tree: patched; use it under its source's lock.
    :param whole: where a kernel with everything in it was built from the tree.
    :param header: a header to put before all others, changed in a way that the tree's is not.
    :raises Failed: if there is no telling, since the variant cannot be configured.
    """
    configs = series.fragments(series.flavour("stock"), version(tree.path))
    fragment = CONFIGS / variant.fragment
    objects = cache.cache_dir() / "builds" / f"{source.name}-{fragment.stem}"
    configure(tree.path, objects, [*configs, fragment])
    run.watch(make(tree.path, objects, "prepare"))
    flags = [f"CFLAGS_oom_kill.o=-include {header}"] if header else []
    wanted = [*OBJECTS, *variant.also]
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
        except run.Failed as error:
            said[variant.name] = None
            say(f"{variant.name}: cannot be configured: {' '.join(error.lines[-1:])}")
    with cache.atomic(image.with_name(FILE)) as scratch:
        scratch.write_text(json.dumps(said))


def answers(image: Path) -> Iterator[Answer]:
    """What is known of an image's tree; nothing for an image that was not built here."""
    note = image.with_name(FILE)
    if not note.exists():
        return
    for name, told in json.loads(note.read_text()).items():
        if told is None:
            yield Answer(f"build {name}", "I5", "inconclusive", f"{name} cannot be configured")
        else:
            broken = f"{name} the tree does not build: {told}"
            yield Answer(f"build {name}", "I5", *(("failed", broken) if told else ("passed",)))
