# SPDX-License-Identifier: GPL-2.0-only
"""What a machine lacks, told from its /proc files as recorded."""

from __future__ import annotations

import errno
import os

import pytest

from helpers import preflight

V1 = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
34 22 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
41 34 0:37 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:17 - cgroup cgroup \
rw,memory
42 34 0:38 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:18 - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
ELSEWHERE = "41 34 0:37 / /mnt/memory rw,relatime - cgroup oomtest rw,memory\n"
CONTAINER = "41 34 0:37 /docker/4f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
TOGETHER = "41 34 0:37 / /cg/cpu,memory rw - cgroup cgroup rw,cpu,memory\n"
NOT_CGROUP = "41 34 0:37 / /tmp/memory rw - tmpfs memory rw,memory\n"


@pytest.mark.parametrize(
    ("mountinfo", "found"),
    [
        (V1, "/sys/fs/cgroup/memory"),
        (V2 + ELSEWHERE, "/mnt/memory"),
        (V2, None),
        (CONTAINER, None),
        (CONTAINER + ELSEWHERE, "/mnt/memory"),
        (TOGETHER, None),
        (NOT_CGROUP, None),
        ("", None),
    ],
)
def test_find_mount(mountinfo: str, found: str | None) -> None:
    assert preflight.find_mount(mountinfo) == found


CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t80\t1\n"


@pytest.mark.parametrize(
    ("row", "cmdline", "trouble", "told"),
    [
        ("", "quiet", errno.EINVAL, "CONFIG_MEMCG=y"),
        ("memory\t0\t1\t0\n", "quiet", errno.EINVAL, "cgroup_disable=memory"),
        ("memory\t0\t1\t1\n", "cgroup_disable=memory", errno.EINVAL, "cgroup_disable=memory"),
        ("memory\t0\t80\t1\n", "quiet", errno.EBUSY, "systemd.unified_cgroup_hierarchy=0"),
        ("memory\t0\t80\t1\n", "quiet", errno.EINVAL, "CONFIG_MEMCG_V1=y"),
        ("memory\t0\t80\t1\n", "quiet", errno.EPERM, "Operation not permitted"),
    ],
)
def test_what_is_missing(row: str, cmdline: str, trouble: int, told: str) -> None:
    text = preflight._missing(CGROUPS + row, cmdline, trouble)
    assert told in text
    assert "\n" not in text


Sysctls = dict[str, str]


@pytest.fixture
def sysctls(monkeypatch: pytest.MonkeyPatch) -> Sysctls:
    """The machine's sysctls; like kernel.printk_devkmsg, none is taken without a newline."""
    values: Sysctls = {}

    def put(path: str, text: str) -> None:
        assert text.endswith("\n")
        values[path.removeprefix("/proc/sys/")] = text.strip()

    def text(path: str) -> str:
        try:
            return values[path.removeprefix("/proc/sys/")] + "\n"
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(preflight, "_text", text)
    monkeypatch.setattr(preflight, "put", put)
    return values


def test_sysctl_is_put_back(sysctls: Sysctls) -> None:
    sysctls["vm/x"] = "0"
    with pytest.raises(ZeroDivisionError), preflight.sysctl("vm/x", "1"):
        assert sysctls == {"vm/x": "1"}
        raise ZeroDivisionError
    assert sysctls == {"vm/x": "0"}


@pytest.mark.parametrize(("now", "during"), [("ratelimit", "on"), ("on", "on"), ("off", "off")])
def test_markers_in_the_log(sysctls: Sysctls, now: str, during: str) -> None:
    sysctls["kernel/printk_devkmsg"] = now
    with preflight.markers_in_the_log():
        assert sysctls == {"kernel/printk_devkmsg": during}
    assert sysctls == {"kernel/printk_devkmsg": now}


def test_markers_before_there_was_a_limit(sysctls: Sysctls) -> None:
    with preflight.markers_in_the_log():
        assert sysctls == {}


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(preflight.Unfit, match="needs root"), preflight.memory_controller():
        pytest.fail("it went on")
