# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong on the host, told to a user in one line."""

from __future__ import annotations

USAGE = 2
INCONCLUSIVE = 125
INTERRUPTED = 130


class UserError(Exception):
    """Something a user can mend: the message says what is wrong and how to mend it.

    :param message: one line, without a trailing newline.
    :param exit_code: what the process exits with: 2 for wrong usage, 125 when no verdict on the
        kernel is possible (``git bisect run`` then skips the commit).
    """

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class HostError(UserError):
    """The host is at fault: no verdict on the kernel, and no reason to skip a commit either."""

    def __init__(self, message: str) -> None:
        super().__init__(message, INCONCLUSIVE)


class LostVM(Exception):
    """The virtual machine is gone or no longer answers; :mod:`vm.outcome` says why."""
