# SPDX-License-Identifier: GPL-2.0-only
"""Boot once, then restore: machines that wait with the suite collected, from a cached snapshot.

Two layers. *base* waits with pytest imported and no suite; *suite* has collected it as well. A
kernel is booted only where its base is missing; a changed suite costs a restore of the base and a
new suite layer. Where nothing but some of the contract's tests have changed, that layer is made of
the last one, in which those are collected anew.

The guest's memory lies in a file. The machine that becomes a snapshot writes to it (``share=on``),
and QEMU leaves shared memory out of the migration stream (``x-ignore-shared``), so that saving
writes some 100 KiB. A restored machine maps the same file privately: what it does not touch it
never copies, and any number of machines share the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vm import cache, initramfs, mailbox, outcome, qemu
from vm.errors import INCONCLUSIVE, LostVM, UserError
from vm.kernel import Kernel
from vm.profiles import Profile
from vm.suite import Suite

BOOTS = 4
CLOCK_TOLERANCE = 0.15  # of the host's rate; between the two readings lie seconds
LEFT = 3600  # seconds after which nobody makes a layer any more; the boot timer allows minutes
KEEP = 112  # layers, the youngest: what eight kernels have in all profiles; some 90 MiB each


def scale(accel: str) -> float:
    """How much longer than on hardware a timer must be: everything is slower when emulated."""
    return 1.0 if accel == "kvm" else 4.0


def boot_limit(accel: str) -> float:
    """The boot timer, in seconds."""
    return 30 * scale(accel)


@dataclass(frozen=True)
class Snapshot:
    """A machine that stands still, on disk.

    :ivar directory: holds ``memory``, ``state`` and ``console`` (what the boot printed).
    """

    directory: Path
    spec: qemu.Spec

    def facts(self) -> dict[str, Any]:
        """What PID 1 said of the kernel when it booted."""
        facts: dict[str, Any] = json.loads((self.directory / "facts.json").read_text())
        return facts

    async def restore(self, own: Path | None = None) -> qemu.Machine:
        """Start a machine from here.

        :param own: a copy of the memory that the machine may write to, if it will be a snapshot
            itself; without it the machine gets private pages.
        :returns: a running guest.
        :raises LostVM: if the snapshot cannot be loaded.
        """
        state = os.open(self.directory / "state", os.O_RDONLY)
        try:
            memory = own or self.directory / "memory"
            machine = await qemu.Machine.start(
                self.spec, memory, share=own is not None, state=state
            )
            async with _or_killed(machine):
                await machine.restore(state)
        finally:
            os.close(state)
        return machine


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    """A directory beside ``near`` that is removed unless it was renamed away."""
    near.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".new-", dir=near.parent))
    try:
        with cache.disk_full(near):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def _or_killed(machine: qemu.Machine) -> AsyncIterator[None]:
    """A machine that outlives the block only if that ends well."""
    try:
        yield
    except BaseException:
        await machine.kill()
        raise


async def _save(machine: qemu.Machine, memory: Path, target: Path, facts: dict[str, Any]) -> None:
    """Write one layer; it appears whole or not at all. The machine stands still afterwards.

    :param memory: the machine's own memory file; copied, since the machine may go on.
    """
    with _scratch(target) as scratch:
        state = os.open(scratch / "state", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            await machine.save(state)
        finally:
            os.close(state)
        _copy_sparse(memory, scratch / "memory")
        (scratch / "console").write_text(machine.printed())
        (scratch / "facts.json").write_text(json.dumps(facts))
        scratch.rename(target)


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a guest's memory without the pages that it never touched."""
    done = subprocess.run(
        ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(errno.ENOSPC if "No space" in done.stderr else errno.EIO, done.stderr.strip())


def _reserve(memory: Path) -> None:
    """Have the disk hold all of a memory file: QEMU dies of SIGBUS where a page has no place."""
    with memory.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, qemu.MEMORY_MIB << 20)


async def _await(machine: qemu.Machine, event: str, limit: float) -> dict[str, Any]:
    """The guest's record of that name, within ``limit`` seconds.

    :raises LostVM: if the machine is gone, or its worker is.
    :raises TimeoutError: if it did not come.
    :raises UserError: if the suite could not be collected.
    """
    deadline = time.monotonic() + limit
    while True:
        record = await machine.record(max(0.01, deadline - time.monotonic()))
        if record["event"] == event:
            return record
        if record["event"] == "collect-error":
            last = str(record["text"]).strip().splitlines()[-1]
            raise UserError(f"{record['id']} cannot be collected in the guest: {last}")
        if record["event"] in {"fault", "worker-died"}:
            raise LostVM(f"the guest's worker failed: {record.get('text', record)}")


async def _boot(
    spec: qemu.Spec, kernel: str, memory: Path, memcg: bool
) -> tuple[qemu.Machine, dict[str, Any]]:
    """Boot until the worker waits for a suite, with a clock that can be relied on.

    On a busy host a kernel may take the TSC's frequency for a fraction of what it is
    (arch/x86/kernel/tsc.c): its time then runs several times too fast, and every wait in the guest
    is as much too short.

    :param memcg: whether the kernel must have memcg v1.
    :raises UserError: if the kernel does not get there, or has no memcg v1.
    """
    for _ in range(BOOTS):
        memory.unlink(missing_ok=True)
        machine, facts, rate = await _boot_once(spec, kernel, memory, memcg)
        if abs(rate - 1) < CLOCK_TOLERANCE:
            return machine, facts
        await machine.kill()
    raise UserError(
        f"{kernel}: the guest's clock runs {rate:.1f} times as fast as the host's, in each of "
        f"{BOOTS} boots: try again when the host is less busy",
        INCONCLUSIVE,
    )


async def _boot_once(
    spec: qemu.Spec, kernel: str, memory: Path, memcg: bool
) -> tuple[qemu.Machine, dict[str, Any], float]:
    """Boot and stand still; says too how fast the guest's clock ran, in terms of the host's."""
    _reserve(memory)
    machine = await qemu.Machine.start(spec, memory, share=True)
    try:
        facts = await _await(machine, "hello", boot_limit(spec.accel))
        began = time.monotonic()
        if facts["memcg"] and memcg:
            raise UserError(outcome.no_memcg(kernel, facts), INCONCLUSIVE)
        ready = await _await(machine, "ready", boot_limit(spec.accel))
        rate = (ready["clock"] - facts["clock"]) / (time.monotonic() - began)
        await machine.pause()
        facts["mailbox"] = mailbox.find(memory, bytes.fromhex(ready["tag"]), ready["pages"])
    except (LostVM, TimeoutError) as error:
        why = outcome.no_boot(kernel, machine.printed(), str(error))
        await machine.kill()
        raise UserError(why, INCONCLUSIVE) from error
    except BaseException:
        await machine.kill()
        raise
    return machine, facts, rate


async def prepare(
    kernel: Kernel, profile: Profile, accel: str, suite: Suite, say: Callable[[str], None]
) -> tuple[Snapshot, qemu.Machine | None]:
    """The snapshot that a kernel's tests start from, from the cache or made now.

    :param kernel: what to boot.
    :param profile: the machine.
    :param accel: ``kvm`` or ``tcg``.
    :param suite: the tests.
    :param say: takes progress lines.
    :returns: the snapshot and, if it was made now, the machine, standing still: as good as one
        that is restored.
    :raises UserError: if the kernel does not boot, has no memcg v1, the suite cannot be collected
        or the disk is full.
    """
    archive = initramfs.path()
    spec = qemu.Spec(
        kernel.image, archive, accel, profile.devices, profile.cmdline, profile.parallel
    )
    key = _digest(
        _file_digest(kernel.image), archive.name, qemu.version(), qemu.CMDLINE, spec.cmdline,
        *spec.hardware(), profile,
    )  # fmt: skip
    base = cache.cache_dir() / "snapshots" / f"{key}-base"
    target = base.with_name(f"{key}-{suite.key}")
    machine = None
    with cache.locked(f"snapshot-{key}"):
        if not cache.hold(target):
            with _scratch(base) as scratch:
                layers = Snapshot(base, spec), Snapshot(target, spec)
                machine = await _amend(*layers, suite, scratch / "memory") or await _make(
                    kernel, profile, *layers, suite, scratch, say
                )
            cache.hold(target)
            _prune(target.parent)
    os.utime(target)
    with contextlib.suppress(FileNotFoundError):
        os.utime(base)  # what the next suite may need again
    return Snapshot(target, spec), machine


def _last(base: Snapshot, suite: Suite) -> tuple[Snapshot, list[str]] | None:
    """The youngest suite layer that differs in some tests alone, and in which; none was amended."""
    near = base.directory.name.removesuffix("base")
    for directory in _youngest(base.directory.parent, f"{near}*"):
        layer = Snapshot(directory, base.spec)
        names = cache.hold(directory) and suite.changed(layer.facts().get("suite", {}))
        if names:
            return layer, names
    return None


async def _amend(
    base: Snapshot, target: Snapshot, suite: Suite, memory: Path
) -> qemu.Machine | None:
    """Make a suite layer of the last one, where that can be done."""
    last = _last(base, suite)
    if last is None:
        return None
    layer, names = last
    for used in (base.directory, layer.directory):
        with contextlib.suppress(FileNotFoundError):  # the base is not needed
            os.utime(used)
    _copy_sparse(layer.directory / "memory", memory)
    _reserve(memory)
    try:
        machine = await layer.restore(memory)
        async with _or_killed(machine):
            await machine.send(**suite.amendment(names))
            await _await(machine, "collected", boot_limit(base.spec.accel))
            facts = {name: fact for name, fact in layer.facts().items() if name != "suite"}
            await _save(machine, memory, target.directory, facts)
    except (LostVM, TimeoutError):
        return None
    return machine


async def _make(
    kernel: Kernel,
    profile: Profile,
    base: Snapshot,
    target: Snapshot,
    suite: Suite,
    scratch: Path,
    say: Callable[[str], None],
) -> qemu.Machine:
    memory = scratch / "memory"
    booted = cache.hold(base.directory)
    if booted:
        _copy_sparse(base.directory / "memory", memory)
        _reserve(memory)
        facts = base.facts()
        mailbox.put(memory, facts["mailbox"], suite.payload)
        machine = await base.restore(memory)
    else:
        say(f"booting {kernel.name} ({base.spec.accel})")
        machine, facts = await _boot(base.spec, kernel.name, memory, profile.memcg)
    try:
        async with _or_killed(machine):
            if not booted:
                await _save(machine, memory, base.directory, facts)
                mailbox.put(memory, facts["mailbox"], suite.payload)
                await machine.resume()
            say("collecting in the guest")
            await machine.send(**suite.command(), free=profile.free)
            await _await(machine, "collected", boot_limit(base.spec.accel))
            if profile.balloon:
                await machine.inflate(profile.balloon, 5 * scale(base.spec.accel))
            await _save(machine, memory, target.directory, {**facts, "suite": suite.digests})
    except (LostVM, TimeoutError) as error:
        reason = f"{kernel.name}: the suite cannot be collected in the guest: {error}"
        raise UserError(reason, INCONCLUSIVE) from error
    return machine


def _youngest(directory: Path, pattern: str) -> list[Path]:
    """The layers of that name, those that were used last first."""
    used: dict[Path, float] = {}
    for path in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # just forgotten by somebody else
            if (path / "state").exists():
                used[path] = path.stat().st_mtime
    return sorted(used, key=lambda path: used[path], reverse=True)


def _prune(directory: Path) -> None:
    """Forget the layers that were not used for longest, and what somebody who died left behind."""
    for left in directory.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - LEFT:
                shutil.rmtree(left, ignore_errors=True)
    for old in _youngest(directory, "*")[KEEP:]:
        cache.forget(old)
