# SPDX-License-Identifier: GPL-2.0-only
"""Where a kernel's source comes from, and a work tree of it that patches can be put on and off.

A work tree keeps its files' time stamps unless their content changes, so that make rebuilds what
a different set of patches touches and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import apt, cache, git, run, series
from vm.apt import Say as Say
from vm.errors import INCONCLUSIVE, UserError

# No kernel up to 7.3 calls such a function from where out_of_memory() is or is called.
CALLERS = ("mm/oom_kill.c", "mm/page_alloc.c", "mm/vmscan.c")
NOTIFIES = re.compile(r"\b(mem_?c(?:group|g)\w*_notif\w*)\s*\(")
TOUCHED = re.compile(r"^(?:---|\+\+\+) (\S+)", re.MULTILINE)
REFUSED = re.compile(r"FAILED|can't find|previously applied")
# What is in a tree that was built in place.
BUILT = (".config", "include/config", "arch/x86/include/generated")
# What tar and rsync end with after they have said what is the matter.
SUMMARY = re.compile(
    r"not recoverable|previous (?:errors|failure)|Child returned status|^rsync error"
)


@dataclass(frozen=True)
class Source:
    """A kernel's source as it was given.

    :ivar name: names its content (a tarball) or its place (a directory), for the cache: sources of
        one name share a work tree and its objects.
    :ivar path: the tarball, the directory or the git repository.
    :ivar commit: of the repository; empty for the others.
    """

    name: str
    path: Path
    commit: str = ""

    @property
    def key(self) -> str:
        """Names the content, if that is fixed."""
        return f"{self.name}-{self.commit}" if self.commit else self.name

    @property
    def fixed(self) -> bool:
        """Whether the content cannot change under the same key."""
        return bool(self.commit) or self.path.is_file()


def expand(path: str) -> Path:
    """The path that a user named, whose home may be meant.

    :raises UserError: if it is the home of nobody.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user") from error


def find(spec: str, say: Say) -> Source:
    """Get hold of a source.

    :param spec: ``debian:SERIES``, a tarball, a directory, or ``DIR@REV`` for a revision of the
        git repository that the directory belongs to, whatever is checked out there.
    :param say: takes progress lines.
    :raises UserError: if there is no such source, or it cannot be downloaded.
    """
    if spec.startswith("debian:"):
        name = spec.removeprefix("debian:")
        version, tarball = apt.linux_source(name, series.SERIES.get(name, ()), say)
        return Source(f"debian-{name}-{version}", tarball)
    path = expand(spec).resolve()
    if not path.exists() and "@" in spec:
        directory, _, revision = spec.rpartition("@")
        path = git.top(expand(directory).resolve())
        return Source(f"git-{_digest(path)}", path, git.commit(path, revision))
    if path.is_dir():
        if not (path / "Kbuild").exists() or not (path / "mm" / "oom_kill.c").exists():
            raise UserError(f"{path} is not a kernel source tree (no mm/oom_kill.c)")
        return Source(f"dir-{_digest(path)}", path)
    if not path.is_file():
        raise UserError(
            f"no such kernel source: {spec} (a directory, DIR@REV, a tarball or debian:SERIES)"
        )
    with path.open("rb") as file:
        return Source(f"tar-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}", path)


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


class Tree:
    """A work tree in the cache. Use it under the lock of its source.

    :ivar path: what make is called on.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.home = cache.cache_dir() / "sources" / source.name
        self.path = self.home / "linux"
        self.pristine = self.home / "pristine"

    def prepare(self, say: Say) -> None:
        """Unpack the tarball, once, or take over what changed in the directory or the repository.

        :raises UserError: if it cannot be unpacked or copied.
        """
        source = self.source
        with cache.disk_full(self.home):
            if source.commit:
                say(f"checking out {source.commit[:12]} of {source.path}")
                git.check_out(source.path, source.commit, self.home, self.path, self._patched())
            elif not source.fixed:
                say(f"copying what changed in {source.path}")
                self._sync()
            elif not (self.path / "Makefile").exists():
                say(f"unpacking {source.path.name}")
                self._unpack()

    def _unpack(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            whole = Path(scratch, "whole")
            whole.mkdir()
            self._run(["tar", "-xf", str(self.source.path), "-C", str(whole)])
            tops = [top for top in (whole, *whole.iterdir()) if (top / "mm/oom_kill.c").exists()]
            if not tops:
                raise UserError(f"{self.source.path} holds no kernel source (no mm/oom_kill.c)")
            tops[0].rename(self.path)

    def _sync(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        # By content and without time stamps: a file that changed is newer than its object,
        # however old the user's copy claims to be.
        command = ["rsync", "-rlpc", "--delete", "--exclude=/.git"]
        command += [f"--exclude={name}" for name in ("*.o", "*.ko", "*.a", ".*.cmd", "/vmlinux")]
        command += [f"--exclude=/{name}" for name in self._patched()]
        self._run([*command, f"{self.source.path}/", f"{self.path}/"])
        if any((self.path / name).exists() for name in BUILT):
            # Kbuild builds nothing out of a tree that is not clean (outputmakefile in Makefile).
            self._run(["make", "-C", str(self.path), "ARCH=x86", "mrproper"])

    def _run(self, command: list[str]) -> None:
        try:
            run.watch(command)
        except FileNotFoundError:
            raise UserError(f"{command[0]} not found: install it") from None
        except run.Failed as error:
            told = [line for line in error.lines if line and not SUMMARY.search(line)]
            if "No space left" in " ".join(error.lines):
                raise OSError(28, "No space left on device") from None
            raise UserError(f"{self.source.path}: {told[0] if told else error}") from None

    def _patched(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.home / "patched").read_text().split()
        return []

    def _original(self, name: str) -> bytes | None:
        """A file as the source has it, None if it has no such file."""
        if self.source.commit:
            return git.content(self.source.path, self.source.commit, name)
        places = (self.pristine / name, self.path / name)
        for place in places if self.source.fixed else (self.source.path / name,):
            if place.is_file():
                return place.read_bytes()
            if place.with_name(place.name + ".absent").exists():
                return None
        return None

    def notifies(self) -> str:
        """With what the source as it is tells memcgs of an OOM, and where; empty if it does not."""
        for name in CALLERS:
            found = NOTIFIES.search((self._original(name) or b"").decode(errors="replace"))
            if found:
                return f"{found[1]}() in {name}"
        return ""

    def patch(self, patches: Sequence[Path]) -> None:
        """Bring the tree to the source plus these patches, whatever was on it before.

        :raises UserError: if a patch does not apply; the tree is then as it was.
        """
        wanted = self._patch_aside(patches)
        for name in self._patched():
            wanted.setdefault(name, self._original(name))
        # Written down first: whoever comes after an interruption puts all of these back.
        (self.home / "patched").write_text("\n".join(sorted(wanted)))
        for name, content in wanted.items():
            self._keep_original(name)
            self._write(name, content)
        left = [n for n in sorted(wanted) if wanted[n] != self._original(n)]
        (self.home / "patched").write_text("\n".join(left))

    def check(self, patches: Sequence[Path]) -> None:
        """See whether these patches apply to the source; the tree is left alone.

        :raises UserError: if one does not.
        """
        self._patch_aside(patches)

    def _patch_aside(self, patches: Sequence[Path]) -> dict[str, bytes | None]:
        """Apply the patches to copies of the files that they touch."""
        names: set[str] = set()
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            top = Path(scratch)
            for path in patches:
                touched = set(_touched(path))
                for name in sorted(touched - names):
                    content = self._original(name)
                    (top / name).parent.mkdir(parents=True, exist_ok=True)
                    if content is not None:
                        (top / name).write_bytes(content)
                names |= touched
                apply(path, top)
            return {n: (top / n).read_bytes() if (top / n).exists() else None for n in names}

    def _keep_original(self, name: str) -> None:
        kept = self.pristine / name
        absent = kept.with_name(kept.name + ".absent")
        if not self.source.path.is_file() or kept.exists() or absent.exists():
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        if (self.path / name).exists():
            shutil.copy2(self.path / name, kept)
        else:
            absent.touch()

    def _write(self, name: str, content: bytes | None) -> None:
        target = self.path / name
        if content is None:
            target.unlink(missing_ok=True)
        elif not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def check_readable(patches: Sequence[Path]) -> None:
    """See whether there are such patches, before anything takes minutes.

    :raises UserError: if one cannot be read, or names no file.
    """
    for path in patches:
        list(_touched(path))


def _touched(patch: Path) -> Iterator[str]:
    try:
        text = patch.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"cannot read patch {patch}: {error.strerror}") from None
    found = [name for name in TOUCHED.findall(text) if name != "/dev/null"]
    if not found:
        raise UserError(f"{patch} is not a patch: no file names in it")
    for whole in found:
        # Less its first part, as patch -p1 takes it: a/, linux.orig/, or whatever it is.
        name = whole.partition("/")[2] or whole
        if whole.startswith("/") or name.startswith("/") or ".." in Path(whole).parts:
            raise UserError(f"{patch} reaches outside of the source tree: {name}")
        yield name


def apply(patch: Path, top: Path) -> None:
    """Put a patch on the files below a directory.

    :raises UserError: if it does not apply, or is there already.
    """
    # With --batch alone, a patch that is there already would be taken off.
    command = ["patch", "-p1", "--batch", "--forward", "--no-backup-if-mismatch", "-r", "-", "-i"]
    try:
        run.watch([*command, str(patch.resolve())], cwd=top)
    except FileNotFoundError:
        raise UserError("patch not found: install it (Debian: apt install patch)") from None
    except run.Failed as error:
        told = [line for line in error.lines if REFUSED.search(line)]
        where = [line for line in error.lines if line.startswith("patching file")]
        why = "; ".join([*where[-1:], *told]) or " ".join(error.lines[-1:])
        raise UserError(f"{patch} does not apply: {why}", INCONCLUSIVE) from None


def version(tree: Path) -> tuple[int, int]:
    """VERSION and PATCHLEVEL of a tree's Makefile.

    :raises UserError: if it has none.
    """
    makefile = tree / "Makefile"
    text = makefile.read_text(errors="replace") if makefile.is_file() else ""
    found = dict(re.findall(r"^(VERSION|PATCHLEVEL) *= *(\d+)", text, re.MULTILINE))
    if len(found) < 2:
        raise UserError(f"{makefile} tells no kernel version")
    return int(found["VERSION"]), int(found["PATCHLEVEL"])
