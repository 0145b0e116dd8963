# SPDX-License-Identifier: GPL-2.0-only
"""Does mm/oom_kill.c still compile without memcg when a patch has changed the header?

The patched header is put before the tree's own by the compiler's ``-include``, so that the tree
stays as it is: nearly everything depends on that header, and would be built again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vm import cache, kconfig, run, series
from vm.errors import UserError
from vm.source import Say, Tree, find, version

HEADER = "include/linux/memcontrol.h"
OBJECT = "mm/oom_kill.o"
FRAGMENT = Path(__file__).parent / "configs" / "no-memcg.config"


def complaint(spec: str, patch: Path, say: Say) -> str:
    """What the compiler says, empty if it is content.

    :param spec: the source, as :func:`vm.source.find` takes it; the reference port goes on first.
    :param patch: changes the header, on top of that.
    :param say: takes progress lines.
    :raises UserError: if there is no such source, or the patch does not apply.
    """
    source = find(spec, say)
    tree = Tree(source)
    reference = series.flavour("reference")
    with cache.locked(f"build-{source.key}"), tempfile.TemporaryDirectory() as scratch:
        if not (tree.path / "Makefile").exists():
            tree.prepare(say)
        found = version(tree.path)
        tree.patch(series.ports(reference, found))
        header = Path(scratch, HEADER)
        header.parent.mkdir(parents=True)
        shutil.copy(tree.path / HEADER, header)
        objects = cache.cache_dir() / "builds" / f"{source.key}-no-memcg"
        say(f"compiling {OBJECT} without memcg")
        make = ["make", "-C", str(tree.path), f"O={objects}", f"-j{os.cpu_count()}"]
        try:
            run.watch(["patch", "-p1", "--batch", "-i", str(patch)], cwd=Path(scratch))
            kconfig.configure(tree.path, objects, [*series.fragments(reference, found), FRAGMENT])
            run.watch([*make, "prepare"])
        except run.Failed as error:
            raise UserError(f"{patch.name}: {error.lines[-1]}") from None
        try:
            run.watch([*make, f"CFLAGS_oom_kill.o=-include {header}", OBJECT])
        except run.Failed as error:
            told = [line for line in error.lines if "error:" in line] or error.lines
            return told[0].replace(f"{tree.path}/", "")
    return ""
