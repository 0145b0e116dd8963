# SPDX-License-Identifier: GPL-2.0-only
"""The verdicts as a page of HTML that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def html(data: dict[str, Any]) -> str:
    """Render what ``--json`` writes.

    :param data: as :meth:`vm.results.Results.data` gives it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html").render(kernels=data["kernels"])
