"""The site's extensions: links lead to pages, a public name without an entry is reported, inventories are read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sphinx.util.inventory import InventoryFile

DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS / "_ext"))

import public_names  # noqa: E402
import repository_pages  # noqa: E402
import write_inventories  # noqa: E402


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[a](schedule.md#preview)", "[a](schedule.md#preview)"),  # as it was
        ("[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("[a](#here)", "[a](#here)"),
        ("[a](../CONTRIBUTING.md#style)", "[a](project/contributing.md#style)"),  # a file that is a page
        ("[a](../README.md#functional-use)", "[a](index.md)"),  # a page with other headings
        ("[a](../notebooks/01_first_model.ipynb)", "[a](tutorials/ensemble.md)"),
        ("[a](../examples)", "a"),  # a folder that is no page
        ("[a](figures/draw.py)", "a"),
        ("![a](figures/queue.svg)", "![a](figures/queue.svg)"),
        ("`[a](../examples)`", "`[a](../examples)`"),  # code
        ("```python\n[a](../examples)\n```", "```python\n[a](../examples)\n```"),
    ],
)
def test_links(link: str, expected: str) -> None:
    assert repository_pages.rewrite_links(link, DOCS / "losses.md", "losses") == expected


def test_links_of_a_shown_file() -> None:
    """A file of the repository's root is a page in a folder of the site."""
    file = repository_pages.ROOT / "CONTRIBUTING.md"
    rewritten = repository_pages.rewrite_links("[a](docs/losses.md) [b](CHANGELOG.md)", file, "project/contributing")
    assert rewritten == "[a](../losses.md) [b](changelog.md)"


def warnings_of(documented: set[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(public_names.LOGGER, "warning", lambda text, *args: said.append(text % args))
    app: Any = SimpleNamespace(config=SimpleNamespace(autodoc_mock_imports=["lightning", "transformers"]))
    env: Any = SimpleNamespace(domains={"py": SimpleNamespace(data={"objects": documented})})
    public_names.check_reference(app, env)
    return said


def test_a_missing_entry_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with public_names.mock(["lightning", "transformers"]):
        names = {name for names in public_names.public_objects().values() for name in names}
    assert {"imbalanced_losses.smooth_ap", "imbalanced_losses.thresholds.for_alert_budget"} <= names
    assert warnings_of(names, monkeypatch) == []
    (said,) = warnings_of(names - {"imbalanced_losses.smooth_ap"}, monkeypatch)
    assert said.startswith("imbalanced_losses.smooth_ap has no entry")


def test_an_object_with_two_names_needs_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    with public_names.mock(["lightning", "transformers"]):
        names = {name for names in public_names.public_objects().values() for name in names}
    assert warnings_of(names - {"imbalanced_losses.ScheduleConfig"}, monkeypatch) == []


@pytest.mark.parametrize(
    ("line", "is_reported"),
    [("Bool: labels that count.", True), ("Of :attr:`~a.b`, ``{0: 1}``.", False), ("Labels that count.", False)],
)
def test_a_property_with_a_colon_is_reported(line: str, is_reported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(public_names.LOGGER, "warning", lambda text, *args: said.append(text % args))
    app: Any = None
    public_names.check_attribute(app, "property", "package.name", None, None, [line, "", "More: text."])
    assert bool(said) == is_reported


@pytest.mark.parametrize("project", write_inventories.NAMES)
def test_inventories(project: str) -> None:
    """The committed files are those that the script writes, and Sphinx reads them."""
    data = (DOCS / "inventories" / f"{project}.inv").read_bytes()
    assert data == write_inventories.inventory(project, write_inventories.NAMES[project])
    inventory = InventoryFile.loads(data, uri="https://example.org")
    found = {name for names in inventory.data.values() for name in names}
    assert found == set(write_inventories.NAMES[project])
