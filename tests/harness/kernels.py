# SPDX-License-Identifier: GPL-2.0-only
"""A kernel source tree of three files, and patches for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vm.source import Tree, find

MAKEFILE = "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\n"
OOM_KILL = """\
bool out_of_memory(struct oom_control *oc)
{
    constrained();
    select_bad_process(oc);
    return true;
}
"""
A_PORT = """\
--- a/mm/oom_kill.c
+++ b/mm/oom_kill.c
@@ -1,5 +1,6 @@
 bool out_of_memory(struct oom_control *oc)
 {
+    root_notify();
     constrained();
     select_bad_process(oc);
     return true;
"""
# Changes what A_PORT adds.
ON_TOP = A_PORT.replace("+    root_notify", "+    root_notify_all").replace(
    "     constrained();\n", "-    root_notify();\n     constrained();\n"
).replace("-1,5 +1,6", "-1,6 +1,6")  # fmt: skip
ANOTHER = """\
--- a/mm/oom_kill.c
+++ b/mm/oom_kill.c
@@ -1,6 +1,6 @@
 bool out_of_memory(struct oom_control *oc)
 {
     constrained();
-    select_bad_process(oc);
+    select_nobody(oc);
     return true;
 }
--- /dev/null
+++ b/mm/new.c
@@ -0,0 +1 @@
+int new;
"""
REMOVES = """\
--- a/README
+++ /dev/null
@@ -1 +0,0 @@
-read me
"""
BROKEN = A_PORT.replace("constrained", "unconstrained").replace("out_of_memory", "out_of_luck")


def sources(where: Path) -> Path:
    """Write the tree."""
    files = {"Makefile": MAKEFILE, "Kbuild": "", "mm/oom_kill.c": OOM_KILL, "README": "read me\n"}
    for name, text in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)
    return where


def tarball(where: Path) -> Path:
    """Write the tree as an archive."""
    sources(where / "linux-6.1")
    target = where / "linux-6.1.tar.xz"
    command = ["tar", "-C", str(where), "-cJf", str(target), "linux-6.1"]
    subprocess.run(command, check=True)
    return target


def quiet(line: str) -> None:
    """Take a progress line."""


def tree_of(where: Path, kind: str = "directory") -> Tree:
    """A prepared work tree of the sources, given as a directory or as a tarball."""
    given = sources(where / "given") if kind == "directory" else tarball(where)
    tree = Tree(find(str(given), quiet))
    tree.prepare(quiet)
    return tree
