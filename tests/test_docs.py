"""Every example that a reader can see runs: doctests of all modules, Python blocks of the README and of the guide."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import imbalanced_losses

README = Path(__file__).parents[1] / "README.md"
GUIDE = README.parent / "docs" / "adding_a_loss.md"
SUBMODULES = pkgutil.walk_packages(imbalanced_losses.__path__, "imbalanced_losses.")
MODULES = ["imbalanced_losses", *(module.name for module in SUBMODULES)]


def code_of(page: Path) -> dict[str, str]:
    """Each Python block by heading and line, moved to its line in the page so that a traceback points there."""
    text = page.read_text(encoding="utf-8")
    code: dict[str, str] = {}
    heading = ""
    for match in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<code>.*?)^```$", text, re.M | re.S):
        if match["heading"]:
            heading = match["heading"]
        elif match["language"] == "python":
            line = text.count("\n", 0, match.start("code"))
            code[f"{heading}, line {line + 1}"] = "\n" * line + match["code"]
    return code


README_CODE = code_of(README)
GUIDE_CODE = code_of(GUIDE)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_doctests_are_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 20


@pytest.mark.parametrize("block", README_CODE)
def test_readme_block_runs_on_its_own(block: str) -> None:
    exec(compile(README_CODE[block], str(README), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("block", GUIDE_CODE)
def test_guide_block_runs_on_its_own(block: str) -> None:
    exec(compile(GUIDE_CODE[block], str(GUIDE), "exec"), {"__name__": "__main__"})


def test_readme_blocks_are_found() -> None:
    assert len(README_CODE) == README.read_text(encoding="utf-8").count("\n```python\n") >= 4
