"""Pages that are read both in the repository and on the site: their links work in both.

In the repository a page links to files: ``../CONTRIBUTING.md``. Some of these files are also pages of the site, whose
sources are empty files that name the original in ``PAGES``. This extension fills them and directs the links to them.
A link to a file that is no page of the site (a script, a folder of sources) becomes plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jupytext
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent

# page of the site -> the file of the repository that it shows
PAGES = {
    "project/benchmarks": "benchmarks/README.md",
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "tutorials/ensemble": "notebooks/01_first_model.py",
}
# links to these files lead to that page
ALIASES = {"README.md": "index", "notebooks/01_first_model.ipynb": "tutorials/ensemble"}
PAGE_OF = {**{file: page for page, file in PAGES.items()}, **ALIASES}

CODE = r"(?P<code>^```.*?^```$|^:::.*?^:::$|`[^`\n]+`)"
LINK = r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)"


def site_link(text: str, target: str, file: Path, page: str) -> str:
    """Return a Markdown link for the site; ``file`` has the link, ``page`` shows the file."""
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"\w+:", target):
        return f"[{text}]({target})"
    goal = (file.parent / path).resolve()
    linked = goal.relative_to(ROOT).as_posix()
    if linked in PAGE_OF:
        known = anchor and PAGE_OF[linked] in PAGES  # an alias has other headings
        goal, mark, anchor = DOCS / f"{PAGE_OF[linked]}.md", mark if known else "", anchor if known else ""
    elif not goal.is_relative_to(DOCS) or goal.is_dir() or goal.suffix == ".py":
        return text
    folder = (DOCS / page).parent
    return f"[{text}]({Path(os.path.relpath(goal, folder)).as_posix()}{mark}{anchor})"


def rewrite_links(source: str, file: Path, page: str) -> str:
    """Direct the links of a file to pages of the site, outside code."""

    def replace(match: re.Match[str]) -> str:
        return match["code"] or site_link(match["text"], match["target"], file, page)

    return re.sub(f"{CODE}|{LINK}", replace, source, flags=re.M | re.S)


def read_source(app: Sphinx, docname: str, content: list[str]) -> None:
    """Fill a page that shows a file of the repository, and rewrite the links of every page."""
    file = ROOT / PAGES[docname] if docname in PAGES else DOCS / f"{docname}.md"
    source = content[0]
    if docname in PAGES:
        app.env.note_dependency(str(file))
        source = file.read_text(encoding="utf-8")
        if file.suffix == ".py":
            source = jupytext.writes(jupytext.reads(source, fmt="py:percent"), fmt="md:myst")
    content[0] = rewrite_links(source, file, docname)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
