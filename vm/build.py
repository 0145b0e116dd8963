# SPDX-License-Identifier: GPL-2.0-only
"""Build kernels: out of tree, incrementally, cached by content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from vm import cache, kmod, run, series, stubs
from vm.errors import INCONCLUSIVE, HostError, UserError
from vm.kconfig import configure, make, text
from vm.kernel import Kernel, inspect
from vm.source import Say, Source, Tree, check_readable, expand, find, version

NAME = re.compile(r"^(\d+\.\d+)/([a-z-]+)$")
STEP = re.compile(r"^  (?:CC|AS|LD|AR)\s+(?:\[M\]\s+)?(\S+)")
TELLING = re.compile(r"error:|undefined reference|not found|No rule to|No space left|not clean")
MISSING = re.compile(r"sh: (?:(?:line )?\d+: )?[\w.+-]+: (?:command )?not found")
# The same input gives the same image.
REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "oomtest",
    "KBUILD_BUILD_HOST": "oomtest",
    "KBUILD_BUILD_VERSION": "1",
}
SAY_EVERY = 5.0  # seconds between progress lines


def resolve(name: str, say: Say = lambda line: None) -> Kernel:
    """The kernel that a user named.

    :param name: the path of an image, or ``SERIES/FLAVOUR``, which is built if it is not cached.
    :param say: takes progress lines.
    :raises UserError: if there is no such image or it cannot be built.
    """
    if NAME.match(name) is None or Path(name).exists():
        return inspect(expand(name), name)
    source, flavour = named(name)
    return build_kernel(source, flavour=flavour, name=name, say=say)


def named(name: str) -> tuple[str, str]:
    """The source and the flavour that ``SERIES/FLAVOUR`` stands for.

    :raises UserError: if there is no such series or flavour.
    """
    match = NAME.match(name)
    if match is None:
        raise UserError(f"{name}: not SERIES/FLAVOUR, as in 6.1/reference")
    if match[1] not in series.SERIES:
        raise UserError(f"no series {match[1]}: there are {', '.join(series.SERIES)}")
    return f"debian:{match[1]}", series.flavour(match[2]).name


def build_kernel(
    spec: str,
    *,
    flavour: str | None = None,
    patches: Sequence[Path] = (),
    config: Path | None = None,
    name: str = "",
    variants: bool = True,
    say: Say = lambda line: None,
) -> Kernel:
    """Build a kernel, or find it built.

    :param spec: where the source is, as :func:`vm.source.find` takes it.
    :param flavour: a row of :data:`vm.series.FLAVOURS`, whose port goes on first. None stands for
        the reference, or for the bare source if the patches are a port of their own.
    :param patches: put on top, in this order.
    :param config: a user's ``.config``, which the fragments then go on top of; None for a kernel
        with nothing in it but what they ask for.
    :param name: how to call the kernel; its image's path if empty.
    :param variants: whether to see as well if the tree builds without memcg and the like.
    :param say: takes progress lines.
    :returns: the image, in the cache.
    :raises UserError: if the source is not there, has the patch already, a patch does not apply,
        an option is dropped, the compiler refuses or the disk is full.
    """
    check_readable(patches)
    if config is not None:
        text(config)
    if re.search(r"[\s:]", str(cache.cache_dir())):
        raise UserError(
            f"make does not build in {cache.cache_dir()}, for the blank or colon in its name: "
            "point OOMTEST_CACHE elsewhere"
        )
    source = find(spec, say)
    tree = Tree(source)
    if flavour is not None and source.fixed and (tree.path / "Makefile").exists():
        # No need to wait for whoever builds another kernel from this source.
        chosen = series.flavour(flavour)
        key, *_ = _plan(source, tree, chosen, patches, config)
        if _complete(key, variants):
            os.utime(_image(key).parent)
            return inspect(_image(key), name)
    with cache.locked(f"build-{source.name}"):
        tree.prepare(say)
        chosen = _choose(tree, flavour, patches, say)
        key, configs, patches = _plan(source, tree, chosen, patches, config)
        objects = cache.cache_dir() / "builds" / f"{source.name}-{digest(configs)}"
        if not source.fixed or not _complete(key, variants):
            tree.patch(patches)
            label = name or f"{'.'.join(map(str, version(tree.path)))}/{chosen.name}"
            with cache.disk_full(objects):
                _make(tree.path, objects, configs, label, say, config is not None)
                if not spec.startswith("debian:"):
                    _tell_off(objects, say)
                if not source.fixed:
                    key = digest([objects / "arch/x86/boot/bzImage"])
                _publish(objects, key)
                if variants:
                    others = stubs.VARIANTS if chosen.variants else ()
                    stubs.examine(source, tree, objects, _image(key), others, say)
        _link(objects, key)
        os.utime(_image(key).parent)
    return inspect(_image(key), name)


def _plan(
    source: Source,
    tree: Tree,
    chosen: series.Flavour,
    patches: Sequence[Path],
    config: Path | None,
) -> tuple[str, list[Path], list[Path]]:
    """The image's key, and the configurations and patches that go into it."""
    found = version(tree.path)
    configs = series.fragments(chosen, found)
    if config:
        configs = [config, *configs, *series.USERS]
    whole = [*series.ports(chosen, found), *patches]
    return _key(source, configs, whole), configs, whole


def _choose(tree: Tree, flavour: str | None, patches: Sequence[Path], say: Say) -> series.Flavour:
    """The flavour, if a user named none as well.

    :raises UserError: if it has a port, and so has the tree.
    """
    if flavour is None:
        flavour = "stock" if _is_port(tree, patches) else "reference"
        if patches:
            what = "instead of" if flavour == "stock" else "on top of"
            say(f"the patch goes {what} the project's port (--flavour says otherwise)")
        else:
            say("the project's port goes on (a tree that has its own: --patch none)")
    chosen = series.flavour(flavour)
    has = tree.notifies() if chosen.ports else ""
    if has:
        raise UserError(
            f"{tree.source.path} has the patch already ({has}): build it as it is with --patch none"
        )
    return chosen


def _is_port(tree: Tree, patches: Sequence[Path]) -> bool:
    """Whether patches bring a notification of their own, rather than change the project's port.

    They do if they apply to the bare source and add a line that notifies, outside of comments and
    documentation: what changes the project's port does not apply without it.
    """
    notifies = re.compile(r"^\+\s*[^\s*/#].*notif", re.MULTILINE | re.IGNORECASE)
    if not any(notifies.search(path.read_text(errors="replace")) for path in patches):
        return False
    try:
        tree.check(patches)
    except UserError:
        return False
    return True


def digest(files: Sequence[Path]) -> str:
    """What these files hold, in a few letters."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def _key(source: Source, fragments: Sequence[Path], patches: Sequence[Path]) -> str:
    inputs = f"{source.key}|{digest(fragments)}|{digest(patches)}"
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


def _complete(key: str, variants: bool) -> bool:
    """Whether an image is there with all that belongs to it."""
    image = _image(key)
    return image.exists() and (not variants or image.with_name(stubs.FILE).exists())


def _image(key: str) -> Path:
    return cache.cache_dir() / "images" / key / "bzImage"


def _make(
    tree: Path, objects: Path, configs: Sequence[Path], label: str, say: Say, users: bool = False
) -> None:
    began = last = time.monotonic()
    count = 0
    telling: list[str] = []

    def each(line: str) -> None:
        nonlocal last, count
        if TELLING.search(line):
            telling.append(line)
        step = STEP.match(line)
        if step:
            count += 1
            if time.monotonic() - last > SAY_EVERY:
                last = time.monotonic()
                say(f"building {label}: {count} objects, {last - began:.0f} s, {step[1]}")

    say(f"building {label} (about 4 minutes on 2 cores if nothing of it is cached)")
    try:
        configure(tree, objects, configs, users)
        run.watch(make(tree, objects, "bzImage", "modules"), each, env=REPRODUCIBLE)
    except FileNotFoundError:
        raise UserError(
            "make not found: install it (Debian: apt install build-essential)"
        ) from None
    except run.Failed as error:
        # The other jobs of make may have gone on long after the one that failed.
        why = _why([*error.lines, *telling])
        raise UserError(f"{label} does not build: {why}", INCONCLUSIVE) from error
    say(f"built {label} in {time.monotonic() - began:.0f} s")


def _tell_off(objects: Path, say: Say) -> None:
    """Say which options a port may hide behind that are off: the fragments know mainline's only."""
    config = (objects / ".config").read_text()
    found = re.findall(r"^# (CONFIG_\w*(?:MEMCG|OOM)\w*) is not set$", config, re.MULTILINE)
    if found:
        say(f"off in this kernel: {', '.join(found)} (--config FILE has them on)")


def _why(lines: Sequence[str]) -> str:
    """The line of a failed build that tells most."""
    if any("No space left" in line for line in lines):
        raise OSError(28, "No space left on device")
    killed = [line for line in lines if "Killed signal terminated program" in line]
    if killed:
        raise HostError(f"something on this host ended the compiler: {killed[0].strip()}")
    missing = [line for line in lines if MISSING.search(line)]
    if missing:
        raise HostError(f"a program is missing on this host: {missing[0].strip()}")
    told = [line for line in lines if line and "Entering directory" not in line]
    telling = [line for line in told if TELLING.search(line)]
    return (telling or told or ["no output"])[0].strip()


def _publish(objects: Path, key: str) -> None:
    """Copy what a run needs out of the build directory, whole or not at all."""
    target = _image(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    kmod.keep(objects, target)
    for name, place in (
        ("config", ".config"),
        ("System.map", "System.map"),
        ("bzImage", "arch/x86/boot/bzImage"),
    ):
        with cache.atomic(target.with_name(name)) as scratch:
            shutil.copyfile(objects / place, scratch)


def _link(objects: Path, key: str) -> None:
    """Leave word of where an image was built: modules are built against that."""
    link = _image(key).with_name("build")
    if not link.is_symlink():
        link.symlink_to(objects.resolve(), target_is_directory=True)
