"""Every example that a reader can see runs, in doctests and on the pages; the pages' links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import imbalanced_losses

ROOT = Path(__file__).parents[1]
GENERATED = {"benchmarks.md", "distributed.md", "study.md"}  # from numbers, without code
NOTEBOOKS = ROOT / "docs" / "tutorials"  # run by the build of the site
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not page.is_relative_to(NOTEBOOKS)]
GUIDES = [page for page in DOCS if page.relative_to(ROOT / "docs").as_posix() not in GENERATED]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *DOCS,
    *sorted(NOTEBOOKS.glob("*.md")),
]
MARKDOWN = r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>\w*)\n(?P<code>.*?)^```$"
LINK = r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)"
SUBMODULES = pkgutil.walk_packages(imbalanced_losses.__path__, "imbalanced_losses.")
MODULES = ["imbalanced_losses", *(module.name for module in SUBMODULES)]


def path_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks() -> dict[str, str]:
    """Each Python block by page, heading and line, moved to its line in the page so that a traceback points there."""
    code: dict[str, str] = {}
    for page in [ROOT / "README.md", *GUIDES]:
        text = page.read_text(encoding="utf-8")
        heading = ""
        for match in re.finditer(MARKDOWN, text, re.M | re.S):
            if match["heading"]:
                heading = match["heading"]
            elif match["language"] == "python":
                line = text.count("\n", 0, match.start("code"))
                code[f"{path_of(page)}, {heading}, line {line + 1}"] = "\n" * line + match["code"]
    return code


CODE = code_blocks()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the project's hosting makes them."""
    found: set[str] = set()
    for match in re.finditer(MARKDOWN, page.read_text(encoding="utf-8"), re.M | re.S):
        if match["heading"]:
            words = re.sub(r"[^\w\- ]", "", match["heading"].lower()).replace(" ", "-")
            twins = (f"{words}-{number}" for number in range(1, 1000))
            found.add(words if words not in found else next(twin for twin in twins if twin not in found))
    return found


def broken_links(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for match in re.finditer(LINK, prose):
        path, _, anchor = match["target"].partition("#")
        if re.match(r"\w+:", path):  # another site
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(match["target"])
    return broken


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_doctests_are_found() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 20


@pytest.mark.parametrize("block", CODE)
def test_code_block_runs_on_its_own(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / block.split(",", 1)[0]
    module = types.ModuleType("code_block")  # a compiler looks for a block's globals in its module
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(CODE[block], str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=path_of)
def test_code_blocks_are_found(page: Path) -> None:
    count = page.read_text(encoding="utf-8").count("```python\n")
    assert len([block for block in CODE if block.startswith(f"{path_of(page)},")]) == count


def test_readme_shows_both_forms() -> None:
    assert sum(block.startswith("README.md,") for block in CODE) >= 2


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_resolve(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A *first* heading\n[1](#a-first-heading) [2](https://example.org/x#y) [3](page.md#a-first-heading)\n"
        "`[4](code)`\n```python\n# not a heading\nrows[0](none)\n```\n"
        "[5](missing.md) [6](#not-a-heading) ![7](missing.png) [8](page.md#second)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["missing.md", "#not-a-heading", "missing.png", "page.md#second"]


@pytest.mark.parametrize("guide", [page for page in GUIDES if page.parent.name == "docs"], ids=path_of)
def test_readme_links_every_guide(guide: Path) -> None:
    pages = (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    assert any(f"({path_of(guide)}" in page.read_text(encoding="utf-8") for page in pages)


def test_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.M) == [imbalanced_losses.__version__]
