# SPDX-License-Identifier: GPL-2.0-only
"""Configure a kernel from fragments, and call its makefiles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vm import run
from vm.errors import INCONCLUSIVE, UserError


def configure(tree: Path, objects: Path, configs: Sequence[Path], users: bool = False) -> None:
    """Write ``.config``.

    :param configs: the fragments; everything is off but what they ask for.
    :param users: whether the first one is a whole configuration instead, which the others change.
    :raises UserError: if an option that a fragment asks for does not survive.
    """
    texts = [path.read_text() for path in configs]
    wanted, asked = "".join(texts), "".join(texts[users:])
    objects.mkdir(parents=True, exist_ok=True)
    whole = objects / "wanted.config"
    config = objects / ".config"
    if whole.exists() and config.exists() and whole.read_text() == wanted:
        # Left alone, so that make does not take the configuration for a new one.
        run.watch(make(tree, objects, "olddefconfig"))
    elif users:
        whole.write_text(wanted)
        # Of an option that is set twice the later line counts (scripts/kconfig/confdata.c).
        config.write_text(wanted)
        run.watch(make(tree, objects, "olddefconfig"))
    else:
        whole.write_text(wanted)
        env = {"KCONFIG_ALLCONFIG": str(whole)}
        run.watch(make(tree, objects, "allnoconfig"), env=env)
    lost = dropped(asked, config.read_text())
    if lost:
        whole.unlink()
        raise UserError(f"this kernel's Kconfig drops {', '.join(lost)}", INCONCLUSIVE)


def dropped(wanted: str, config: str) -> list[str]:
    """The options that a fragment asks for and a ``.config`` does not have so.

    :param wanted: the fragments' text; later lines override earlier ones, and a line that ends in
        ``# if known`` counts only where the kernel knows the option.
    """
    asked: dict[str, str] = {}
    for line in wanted.splitlines():
        match = re.match(r"(CONFIG_\w+)=(\S+)(\s+# if known)?", line)
        if match:
            asked[match[1]] = match[2]
            known = re.search(rf"^(?:# )?{match[1]}[= ]", config, re.MULTILINE)
            if match[3] and not known:
                del asked[match[1]]
    has = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", config, re.MULTILINE))
    return [f"{name}={value}" for name, value in asked.items() if has.get(name, "n") != value]


def make(tree: Path, objects: Path, *targets: str) -> list[str]:
    """The command that makes these targets out of tree, on all cores."""
    return ["make", "-C", str(tree), f"O={objects}", f"-j{os.cpu_count()}", *targets]
