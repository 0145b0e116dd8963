# SPDX-License-Identifier: GPL-2.0-only
"""Which tests have rejected the mutants, so that the next run over them begins with those."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from vm import cache

NAMED = "-named"  # ends the name of a file that is left where a clause has rejected that must


class Known:
    """Which test has rejected a mutant the last time, kept from one run to the next.

    :param during: what a run finds, and begins with: all its workers must have the same order.
    """

    def __init__(self, during: Path) -> None:
        self.kept, self.during = cache.cache_dir() / "rejected-by.json", during

    def lay_out(self) -> None:
        """Have a run begin with what is known."""
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(self.kept, self.during / self.kept.name)

    def read(self) -> dict[str, str]:
        """What a run has begun with: tests by the number of a mutant."""
        try:
            found: dict[str, str] = json.loads((self.during / self.kept.name).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def keep(self) -> None:
        """Add what the run has found to what is known."""
        found = {file.name.removesuffix(NAMED): file for file in self.during.glob(f"*{NAMED}")}
        known = self.read() | {number: file.read_text() for number, file in found.items()}
        with cache.atomic(self.kept) as scratch:
            scratch.write_text(json.dumps(known, indent=1))
