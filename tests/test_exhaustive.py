"""The table of what ``make test`` leaves out names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.exhaustive import KEPT


@pytest.mark.parametrize(("file", "test"), [(file, test) for file, tests in KEPT.items() for test in tests])
def test_the_table_names_a_test_with_parameters(file: str, test: str) -> None:
    source = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {test}\((?!\))", source, re.MULTILINE)
