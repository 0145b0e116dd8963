# SPDX-License-Identifier: GPL-2.0-only
"""Debian's ``linux-source`` packages: this machine's release has some, a private apt the others.

The private apt has its own lists, cache and sources in the project's cache. From the machine it
takes the mirror, what it takes to reach it, and the keyring; the machine's own apt stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vm import cache, run
from vm.errors import UserError

Say = Callable[[str], None]
KEYRING = "debian-archive-keyring"
KEYRINGS = Path("/usr/share/keyrings")
LISTS = Path("/var/lib/apt/lists")
FRESH = 7 * 24 * 3600.0  # seconds until the private lists are fetched again
# A user's pins and hooks are left out, and an old release that nobody renews is let in. The user
# that apt downloads as by default cannot look into root's cache.
CONFIG = """\
Dir::State "{home}";
Dir::State::lists "{home}/lists";
Dir::State::status "{home}/status";
Dir::Cache "{home}/cache";
Dir::Etc::sourcelist "{home}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
APT::Sandbox::User "root";
"""


@dataclass(frozen=True)
class Apt:
    """One apt: the machine's, or with a configuration of its own.

    :ivar env: variables that select it.
    """

    env: dict[str, str] = field(default_factory=dict)

    def output(self, *command: str) -> str:
        """What a command prints; nothing if it is not installed."""
        with contextlib.suppress(FileNotFoundError):
            env = {**os.environ, "LC_ALL": "C", **self.env}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
            return done.stdout
        return ""

    def candidate(self, package: str) -> str:
        """The version that would be installed, empty if there is none."""
        found = re.search(r"Candidate: (\S+)", self.output("apt-cache", "policy", package))
        return found[1] if found and found[1] != "(none)" else ""

    def extract(self, package: str, version: str, inside: Path, target: Path) -> None:
        """Download a package and take one file out of it.

        :param inside: the file's path once installed.
        :raises UserError: if it cannot be downloaded or has no such file.
        """
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            here = Path(directory)
            try:
                command = ["apt-get", "-q", "download", f"{package}={version}"]
                run.watch(command, cwd=here, env=self.env)
                (deb,) = here.glob("*.deb")
                run.watch(["dpkg-deb", "-x", str(deb), str(here / "root")])
            except (run.Failed, FileNotFoundError) as error:
                why = error.lines[-1:] if isinstance(error, run.Failed) else [error]
                raise UserError(f"cannot download {package}: {why[0] if why else error}") from None
            shutil.move(here / "root" / inside.relative_to("/"), target)


def linux_source(series: str, suites: Sequence[str], say: Say) -> tuple[str, Path]:
    """The ``linux-source`` package of a series, installed or downloaded.

    :param suites: where else to look if the machine's own release does not have it.
    :returns: the package's version and the tarball.
    :raises UserError: if it is nowhere, cannot be downloaded, or is not signed as it must be.
    """
    package = f"linux-source-{series}"
    installed = Path(f"/usr/src/{package}.tar.xz")
    kept = cache.cache_dir() / "sources" / "debian"
    status = Apt().output("dpkg-query", "-W", "-f", "${Status} ${Version}", package)
    if installed.exists() and status.startswith("install ok installed"):
        return status.split()[-1], installed
    with cache.locked(f"source-{series}"):
        try:
            apt, version = _find(package, suites, say)
        except UserError as error:
            older = sorted(kept.glob(f"{package}_*.tar.xz"), key=lambda path: path.stat().st_mtime)
            if not older:
                raise UserError(f"{error}, or give --source DIR or a tarball") from None
            return older[-1].name.removesuffix(".tar.xz").rpartition("_")[2], older[-1]
        tarball = kept / f"{package}_{version}.tar.xz"
        if not tarball.exists():
            say(f"downloading {package} {version}")
            with cache.atomic(tarball) as scratch:
                apt.extract(package, version, installed, scratch)
    return version, tarball


def _find(package: str, suites: Sequence[str], say: Say) -> tuple[Apt, str]:
    """The apt that has a package, and in which version.

    :raises UserError: if none has it.
    """
    note = cache.cache_dir() / "apt" / package / "machine"
    # Asking takes seconds where apt keeps no cache of its own.
    lists = str(LISTS.stat().st_mtime_ns) if LISTS.exists() else ""
    known, _, version = note.read_text().partition(" ") if note.exists() else ("", "", "")
    if known != lists or not lists:
        version = Apt().candidate(package)
        with cache.atomic(note) as scratch:
            scratch.write_text(f"{lists} {version}")
    if version:
        return Apt(), version
    if not suites:
        raise UserError(f"apt knows no {package}: run apt-get update as root")
    return _private(package, suites, say)


def _private(package: str, suites: Sequence[str], say: Say) -> tuple[Apt, str]:
    """An apt of our own with a package of these suites, and the package's version.

    The lists are fetched again once they are older than :data:`FRESH`.

    :raises UserError: if the mirror does not have it, or a signature cannot be verified.
    """
    home = cache.cache_dir() / "apt" / package
    config = home / "apt.conf"
    apt = Apt({"APT_CONFIG": str(config)})
    stamp = home / "updated"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH:
        return apt, stamp.read_text()
    for directory in (home / "lists" / "partial", home / "cache" / "archives" / "partial"):
        directory.mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    reach = re.findall(r"^Acquire::.*$", Apt().output("apt-config", "dump"), re.MULTILINE)
    config.write_text("\n".join([*reach, CONFIG.format(home=home)]))
    say(f"asking the Debian mirror for {', '.join(suites)}")
    keyring = _machines_keyring()
    trouble = _update(apt, home, suites, keyring)
    if "NO_PUBKEY" in trouble:
        trouble = _update(apt, home, suites, _newer_keyring(home, say))
    version = apt.candidate(package)
    if not version:
        raise UserError(
            f"no {package} in {', '.join(suites)}: {trouble[3:].rstrip('.') or 'not there'}"
        )
    stamp.write_text(version)
    return apt, version


def _update(apt: Apt, home: Path, suites: Sequence[str], keyring: Path) -> str:
    """Fetch the lists; what apt has to say if it does not get all of them."""
    (home / "sources.list").write_text(sources(suites, mirrors(), keyring))
    lines: list[str] = []
    with contextlib.suppress(run.Failed):
        run.watch(["apt-get", "-q", "update"], lines.append, env=apt.env)
    return next((line for line in lines if line.startswith(("E: ", "W: "))), "")


def mirrors() -> dict[str, str]:
    """Where this machine gets Debian from: the archives' labels and their addresses.

    :raises UserError: if its apt has no Debian archive.
    """
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    rows = [
        line.split("|")
        for line in Apt().output("apt-get", "indextargets", "--format", form).splitlines()
    ]
    found = {label: uri for origin, label, uri in rows if origin == "Debian"}
    if "Debian" not in found:
        raise UserError("this machine's apt has no lists of a Debian mirror: run apt-get update")
    return found


def sources(suites: Sequence[str], archives: dict[str, str], keyring: Path) -> str:
    """A sources.list.

    :param archives: as :func:`mirrors` gives it; what it lacks is left out.
    :param keyring: that the suites must be signed by.
    """
    lines = []
    for suite in suites:
        label = "Debian-Security" if suite.endswith("-security") else "Debian"
        if label in archives:
            lines.append(f"deb [signed-by={keyring}] {archives[label]} {suite} main\n")
    return "".join(lines)


def _machines_keyring() -> Path:
    """The Debian archive's keys as this machine has them.

    :raises UserError: if it has none.
    """
    for suffix in (".gpg", ".pgp"):
        if (path := KEYRINGS / f"{KEYRING}{suffix}").exists():
            return path
    raise UserError(f"no keys of the Debian archive here: install {KEYRING}")


def _newer_keyring(home: Path, say: Say) -> Path:
    """The keys as the newest package has them that this machine's own apt trusts.

    :raises UserError: if it cannot be had.
    """
    version = Apt().candidate(KEYRING)
    if not version:
        raise UserError(f"the suites' keys are too new for this machine, and apt has no {KEYRING}")
    say(f"downloading {KEYRING} {version}: the installed one lacks a key")
    target = home / f"{KEYRING}.gpg"
    Apt().extract(KEYRING, version, KEYRINGS / _machines_keyring().name, target)
    return target
