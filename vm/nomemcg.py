# SPDX-License-Identifier: GPL-2.0-only
"""Does a tree still build without memcg and the like, when a patch has changed the memcg header?

The changed header is put before the tree's own by the compiler, so that the tree stays as it is:
nearly everything depends on that header, and would be built again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from vm import build, cache, run, series, stubs
from vm.errors import UserError
from vm.kconfig import make
from vm.source import Say, Tree, apply, find, version

HEADER = "include/linux/memcontrol.h"


def complaint(kernel: str, patch: Path, say: Say) -> str:
    """What compiler or linker say, empty if they are content.

    :param kernel: ``SERIES/FLAVOUR``, whose patches go on first.
    :param patch: changes the header, on top of that.
    :param say: takes progress lines.
    :raises UserError: if there is no such kernel, or the patch does not apply.
    """
    whole = build.resolve(kernel, say).build
    spec, flavour = build.named(kernel)
    source = find(spec, say)
    tree = Tree(source)
    with cache.locked(f"build-{source.name}"), tempfile.TemporaryDirectory() as scratch:
        tree.prepare(say)
        found = version(tree.path)
        tree.patch(series.ports(series.flavour(flavour), found))
        header = Path(scratch, HEADER)
        header.parent.mkdir(parents=True)
        shutil.copy(tree.path / HEADER, header)
        try:
            apply(patch, Path(scratch))
            variants = [variant for variant in stubs.VARIANTS if variant.first <= found]
            if whole:
                # Another flavour may have been built there last, and lacks the function.
                names = {name for variant in variants for name in variant.absent}
                there = [name for name in sorted(names) if (whole / name).exists()]
                run.watch(make(tree.path, whole, *there))
            for variant in variants:
                say(f"compiling {variant.name}, with {patch.name}")
                told = stubs.complaint(source, tree, whole or tree.path, variant, str(header))
                if told:
                    return f"{variant.name}: {told}"
        except run.Failed as error:
            raise UserError(f"{patch.name}: {' '.join(error.lines[-1:])}") from None
    return ""
