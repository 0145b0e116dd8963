# SPDX-License-Identifier: GPL-2.0-only
"""Reports in files: where they may be put, and pages of HTML that stand alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2

from vm import cache
from vm.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"


def check_target(target: Path) -> None:
    """See that a report can be put there, before there is one.

    :raises UserError: if it cannot.
    """
    if target.is_dir():
        raise UserError(f"{target} is a directory: name a file in it for the report")
    above = next(path for path in target.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"no report can be written to {target}: {above} is not writable")


def publish(target: Path, text: str) -> None:
    """Put a report where a user wants it.

    A file is there whole or not at all; what is no file, like a pipe or a terminal, stays that.

    :raises HostError: if the disk is full.
    """
    if target.is_relative_to("/dev") or (target.exists() and not target.is_file()):
        with target.open("a") as stream:
            stream.write(text)
        return
    with cache.atomic(target.resolve()) as scratch:
        scratch.write_text(text)
        scratch.chmod(0o644)


def html(data: dict[str, Any]) -> str:
    """Render what ``--json`` writes.

    :param data: as :meth:`vm.results.Results.data` gives it.
    """
    return _render("report.html", kernels=data["kernels"])


def matrix(data: dict[str, Any], picture: str) -> str:
    """Render what ``mutants --json`` writes.

    :param data: as :func:`vm.matrix.data` gives it.
    :param picture: the matrix, as SVG.
    """
    return _render("mutants.html", mutants=data["mutants"], picture=picture)


def _render(template: str, **context: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**context)
