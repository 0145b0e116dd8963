# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts, and the matrix of mutants, as pages of HTML that stand alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


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
