# SPDX-License-Identifier: GPL-2.0-only
"""Registrations that v1 refuses, and how."""

from __future__ import annotations

import errno
import os

from helpers.memcgs import Memcg, write

CLOSED = 1 << 14  # a number that no descriptor has


def refused(root: Memcg, other: Memcg, eventfd: int, case: str) -> int:
    """Try one registration that v1 refuses; the errno (memcg_write_event_control())."""
    control = os.open(root.file("memory.oom_control"), os.O_RDONLY)
    foreign = os.open(other.file("memory.oom_control"), os.O_RDONLY)
    limit = os.open(root.file("memory.limit_in_bytes"), os.O_RDONLY)
    usage = os.open(root.file("memory.usage_in_bytes"), os.O_RDONLY)
    pressure = os.open(root.file("memory.pressure_level"), os.O_RDONLY)
    null = os.open(os.devnull, os.O_RDONLY)
    line = {
        "garbage": "garbage",
        "only an eventfd": f"{eventfd}",
        "no number for the file": f"{eventfd} x",
        "more than a number for the file": f"{eventfd} {control}x",
        "a comma between": f"{eventfd},{control}",
        "a closed eventfd": f"{CLOSED} {control}",
        "a closed file": f"{eventfd} {CLOSED}",
        "no eventfd": f"{null} {control}",
        "a device": f"{eventfd} {null}",
        "a file without events": f"{eventfd} {limit}",
        "another memcg's file": f"{eventfd} {foreign}",
        "a threshold that is no number": f"{eventfd} {usage} x",
        "a pressure that is no level": f"{eventfd} {pressure} x",
        "root's file by another memcg": f"{eventfd} {control}",
    }[case]
    through = other if case == "root's file by another memcg" else root
    try:
        return write(through.file("cgroup.event_control"), line)
    finally:
        for fd in (control, foreign, limit, usage, pressure, null):
            os.close(fd)


REFUSALS = {
    "garbage": errno.EINVAL,
    "only an eventfd": errno.EINVAL,
    "no number for the file": errno.EINVAL,
    "more than a number for the file": errno.EINVAL,
    "a comma between": errno.EINVAL,
    "a closed eventfd": errno.EBADF,
    "a closed file": errno.EBADF,
    "no eventfd": errno.EINVAL,
    "a device": errno.EINVAL,
    "a file without events": errno.EINVAL,
    "another memcg's file": errno.EINVAL,
    "a threshold that is no number": errno.EINVAL,
    "a pressure that is no level": errno.EINVAL,
    "root's file by another memcg": errno.EINVAL,
}
