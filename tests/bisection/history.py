# SPDX-License-Identifier: GPL-2.0-only
"""A git repository with a kernel's source, a port and what was committed on top of it.

Nothing is checked out, neither here nor by what is tested: the commits are made in the index.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PORT = Path(__file__).parents[2] / "vm" / "patches" / "reference-5.10.patch"
WHO = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
# Level 0 takes no less time, and four times the space.
CHEAP = ("-c", "core.compression=1", "-c", "pack.compression=1", "-c", "gc.auto=0")

OOM, MEMCG = "mm/oom_kill.c", "mm/memcontrol.c"
DOC = "Documentation/admin-guide/cgroup-v1/memory.rst"


@dataclass(frozen=True)
class Commit:
    """A change of one file.

    :ivar old: what is there, once.
    :ivar is_: ``harmless``, ``does not build``, ``does not boot``, or the clause that it breaks;
        what does not build or boot does not until it is mended.
    """

    subject: str
    path: str
    old: str
    new: str
    is_: str = "harmless"


COMMITS = (
    Commit(
        "mm/oom_kill: is_memcg_oom() is no question of limits alone", OOM,
        "static inline bool is_memcg_oom(",
        "/* A memcg's limit was hit, its own or that of one above. */\n"
        "static inline bool is_memcg_oom(",
    ),
    Commit(
        "Documentation: soft limits are set up", DOC,
        "Soft limits can be setup by using", "Soft limits can be set up by using",
    ),
    Commit(
        "mm/oom_kill: a helper for the OOMs of the whole system", OOM,
        "	if (!is_memcg_oom(oc) && !is_sysrq_oom(oc))\n		mem_cgroup_notify",
        "	if (is_system_oom(oc))\n		mem_cgroup_notify",
        "N3",
    ),
    Commit(
        "mm/memcontrol: no line of its own for a loop's variable", MEMCG,
        "	struct mem_cgroup *iter;\n\n	for_each_mem_cgroup_tree(iter, memcg)\n"
        "		mem_cgroup_oom_notify_cb(iter);",
        "	struct mem_cgroup *below;\n\n	for_each_mem_cgroup_tree(below, memcg)\n"
        "		mem_cgroup_oom_notify_cb(below);",
    ),
    Commit(
        "mm/oom_kill: spell a question with fewer marks", OOM,
        "/* Found nothing?!?! */", "/* Found nothing? */",
    ),
    Commit(
        "mm/memcontrol: one more word on thresholds", MEMCG,
        "/* To be sure that nobody uses thresholds */\n	synchronize_rcu();\n\nunlock:\n"
        "	mutex_unlock(&memcg->thresholds_lock);\n\n	return ret;",
        "/* To be sure that nobody uses the old thresholds */\n	synchronize_rcu();\n\nunlock:\n"
        "	mutex_unlock(&memcg->thresholds_lock);\n\n	return ret;",
    ),
    Commit(
        "mm/memcontrol: tell how many listeners were woken", MEMCG,
        "	spin_unlock(&memcg_oom_lock);\n	return 0;\n}\n\nstatic void mem_cgroup_oom_notify(",
        "	spin_unlock(&memcg_oom_lock);\n	return woken;\n}\n\nstatic void mem_cgroup_oom_notify(",
        "does not build",
    ),
    Commit(
        "mm/oom_kill: comment what the reaper is", OOM,
        "static int __init oom_init(void)",
        "/* Without an MMU there is nothing to reap. */\nstatic int __init oom_init(void)",
    ),
    Commit(
        "mm/memcontrol: nobody asks how many listeners were woken", MEMCG,
        "	return woken;\n", "	return 0;\n",
    ),
    Commit(
        "mm/memcontrol: root needs no walk to be notified", MEMCG,
        "	if (root_mem_cgroup)\n		mem_cgroup_oom_notify_cb(root_mem_cgroup);",
        "	struct mem_cgroup_eventfd_list *ev;\n\n"
        "	ev = list_first_entry_or_null(&root_mem_cgroup->oom_notify,\n"
        "				      struct mem_cgroup_eventfd_list, list);\n"
        "	if (ev)\n		eventfd_signal(ev->eventfd, 1);",
        "P3",
    ),
    Commit(
        "mm/oom_kill: make sure of the reaper", OOM,
        '	oom_reaper_th = kthread_run(oom_reaper, NULL, "oom_reaper");\n',
        '	oom_reaper_th = kthread_run(oom_reaper, NULL, "oom_reaper");\n'
        "	BUG_ON(oom_reaper_th);\n",
        "does not boot",
    ),
    Commit(
        "Documentation: how long soft limits take", DOC,
        "Soft limits take effect over a long period of time", "Soft limits take a while to act",
    ),
    Commit(
        "mm/oom_kill: a reaper that was started is no error", OOM,
        "	BUG_ON(oom_reaper_th);\n", "	BUG_ON(IS_ERR(oom_reaper_th));\n",
    ),
    Commit(
        "mm/oom_kill: a memcg OOM is told by its constraint", OOM,
        "	return !is_memcg_oom(oc);\n", "	return oc->constraint != CONSTRAINT_MEMCG;\n",
        "N2",
    ),
    Commit(
        "mm/oom_kill: two blanks less", OOM,
        'oom_kill_process(oc, !is_memcg_oom(oc) ? "Out of memory" :\n				 "Memory',
        'oom_kill_process(oc, !is_memcg_oom(oc) ? "Out of memory" :\n				"Memory',
    ),
    Commit(
        "mm/memcontrol: say where an event's list is guarded", MEMCG,
        "static int mem_cgroup_oom_notify_cb(",
        "/* memcg_oom_lock guards the list. */\nstatic int mem_cgroup_oom_notify_cb(",
    ),
)  # fmt: skip
HELPER = (
    "static inline bool is_system_oom(struct oom_control *oc)\n{\n"
    "	return !is_memcg_oom(oc);\n}\n\n"
)


class Repository:
    """A repository of which nothing is checked out.

    :ivar commits: the ids, the commit with the port first and then those of :data:`COMMITS`.
    """

    def __init__(self, where: Path, tarball: Path) -> None:
        self.path = where
        subprocess.run(["git", "init", "-q", str(where)], check=True)
        with subprocess.Popen(
            ["git", "-C", str(where), *CHEAP, "fast-import", "--quiet", "--depth=0"],
            stdin=subprocess.PIPE,
        ) as importing:
            assert importing.stdin is not None
            for chunk in _stream(tarball):
                importing.stdin.write(chunk)
        assert importing.returncode == 0
        self.git("symbolic-ref", "HEAD", "refs/heads/made")
        self.git("read-tree", "HEAD")
        self.git("apply", "--cached", str(PORT))
        self.commits = [self._commit("memcg: notify root of system OOMs")]
        for commit in COMMITS:
            text = self._replaced(commit.path, commit.old, commit.new)
            if commit.is_ == "N3":
                before = "/* return true if the task is not adequate"
                assert text.count(before) == 1
                text = text.replace(before, HELPER + before)
            self._stage(commit.path, text)
            self.commits.append(self._commit(commit.subject))

    def git(self, *arguments: str, given: str | None = None) -> str:
        """What git prints."""
        command = ["git", "-C", str(self.path), *WHO, *CHEAP, *arguments]
        done = subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def number(self, is_: str) -> int:
        """Which of the commits is like that, the one with the port being number 0."""
        (found,) = (n for n, commit in enumerate(COMMITS, 1) if commit.is_ == is_)
        return found

    def _replaced(self, path: str, old: str, new: str) -> str:
        text = self.git("show", f":{path}")
        assert text.count(old) == 1, f"{path} has {text.count(old)} times: {old}"
        return text.replace(old, new)

    def _stage(self, path: str, text: str) -> None:
        blob = self.git("hash-object", "-w", "--stdin", given=text).strip()
        self.git("update-index", "--cacheinfo", f"100644,{blob},{path}")

    def _commit(self, subject: str) -> str:
        tree = self.git("write-tree").strip()
        made = self.git("commit-tree", "-p", "HEAD", "-m", subject, tree).strip()
        self.git("update-ref", "HEAD", made)
        return made


def _stream(tarball: Path) -> Iterator[bytes]:
    """A tarball's content as a commit, for git fast-import."""
    yield b"commit refs/heads/made\ncommitter nobody <nobody@example.org> 0 +0000\n"
    yield b"data 6\nsource\n"
    with subprocess.Popen(["xz", "-dc", "-T0", str(tarball)], stdout=subprocess.PIPE) as xz:
        assert xz.stdout is not None
        with tarfile.open(fileobj=xz.stdout, mode="r|") as archive:
            for member in archive:
                content = _content(archive, member)
                if content is None:
                    continue
                mode = 0o120000 if member.issym() else 0o100755 if member.mode & 1 else 0o100644
                name = os.fsencode(member.name.partition("/")[2])
                yield b"M %o inline %s\ndata %d\n%s\n" % (mode, name, len(content), content)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    if member.issym():
        return member.linkname.encode()
    file: IO[bytes] | None = archive.extractfile(member) if member.isfile() else None
    return file.read() if file else None
