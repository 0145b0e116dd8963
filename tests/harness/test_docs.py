# SPDX-License-Identifier: GPL-2.0-only
"""The documents say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vm import cli, docs, verdict

DOCUMENTS = sorted([*docs.ROOT.glob("*.md"), *docs.ROOT.glob("docs/*.md")])


def test_contract_is_what_clauses_and_tests_make_of_it() -> None:
    assert docs.TARGET.read_text() == docs.text(), "run python -m vm.docs"


def test_every_clause_is_asked() -> None:
    asked = {clause for clause, _ in docs.carried()} | {"I5"}  # I5: when a kernel is built
    assert asked == set(verdict.clauses())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_verbs_and_places_exist(path: Path) -> None:
    text = path.read_text()
    verbs = next(a for a in cli.parser()._actions if a.dest == "verb").choices
    assert verbs is not None
    for verb in re.findall(r"\./oomtest ([a-z][a-z-]+)", text):
        assert verb in verbs, f"no verb {verb}"
    for place in re.findall(r"`((?:vm|tests|helpers|docs)/[\w/.-]+)`", text):
        assert any(docs.ROOT.glob(place.replace("...", "*"))), f"no {place}"
