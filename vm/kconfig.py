# SPDX-License-Identifier: GPL-2.0-only
"""Configure a kernel from fragments, and call its makefiles."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from vm import run
from vm.errors import INCONCLUSIVE, UserError


def text(path: Path) -> str:
    """A configuration as it was given, ``/proc/config.gz`` included.

    :raises UserError: if it cannot be read, is none, or is another architecture's.
    """
    try:
        data = path.read_bytes()
        plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the kernel configuration {path}: {told}") from None
    found = plain.decode(errors="replace")
    if not re.search(r"^(?:# )?CONFIG_\w+[= ]", found, re.MULTILINE):
        raise UserError(f"{path} is no kernel configuration: no CONFIG_ option in it")
    of = re.search(r"^# Linux/(\S+) ", found, re.MULTILINE)
    if of and of[1] not in {"x86", "x86_64", "i386"}:
        raise UserError(f"{path} is a configuration for {of[1]}: give one for x86")
    return found


def configure(tree: Path, objects: Path, configs: Sequence[Path], users: bool = False) -> None:
    """Write ``.config``, if that is to change: what make builds anew depends on it.

    What comes out depends on these files and the tree alone, not on what was built there before.

    :param configs: the fragments; everything is off but what they ask for.
    :param users: whether the first one is a whole configuration instead, which the others change.
    :raises UserError: if an option that a fragment asks for does not survive.
    """
    texts = [text(path) for path in configs]
    wanted, found = objects / "wanted.config", objects / "new.config"
    objects.mkdir(parents=True, exist_ok=True)
    # Of an option that is set twice the later line counts (scripts/kconfig/confdata.c).
    for path in (wanted, found):
        path.write_text("".join(texts))
    target = "olddefconfig" if users else "allnoconfig"
    command = make(tree, objects, target, f"KCONFIG_CONFIG={found.name}")
    run.watch(command, env={} if users else {"KCONFIG_ALLCONFIG": str(wanted)})
    lost = dropped("".join(texts[users:]), found.read_text())
    if lost:
        raise UserError(f"this kernel's Kconfig drops {', '.join(lost)}", INCONCLUSIVE)
    config = objects / ".config"
    if not config.exists() or config.read_bytes() != found.read_bytes():
        found.replace(config)


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
    """The command that makes these targets out of tree, on all cores.

    What a kernel developer may have in the environment for other builds does not count.
    """
    own = [f"O={objects}", "ARCH=x86", "CROSS_COMPILE=", "KCONFIG_CONFIG=.config"]
    return ["make", "-C", str(tree), f"-j{os.cpu_count()}", *own, *targets]
