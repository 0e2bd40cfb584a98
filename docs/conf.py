"""Settings of the documentation site. ``make docs`` builds it into build/docs, without network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

import imbalanced_losses

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "imbalanced-losses"
author = "the imbalanced-losses authors"
copyright = author
version = release = imbalanced_losses.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
    "public_names",
    "repository_pages",
]
exclude_patterns = ["_ext", "figures", "inventories"]

# Markdown as in the repository: dollar signs are mathematics, headings have the anchors of the hosting site.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# Notebooks run in the build, in this interpreter, and an error ends it. DOCS_NOTEBOOKS=off skips them.
nb_execution_mode = os.environ.get("DOCS_NOTEBOOKS", "force")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_kernel_rgx_aliases = {".*": "python3"}
nb_merge_streams = True

# The reference comes from the docstrings. The frameworks are not installed to build it.
autodoc_mock_imports = ["lightning", "transformers"]
autodoc_default_options = {
    "members": True,
    "inherited-members": "Callback,Exception,Module,TrainerCallback,tuple",  # up to these classes, without them
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
maximum_signature_line_length = 88

# Files, so that the build needs no network; _ext/write_inventories.py makes them.
intersphinx_mapping = {
    name: (url, str(DOCS / "inventories" / f"{name}.inv"))
    for name, url in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "sklearn": "https://scikit-learn.org/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
}

html_theme = "furo"
html_title = f"imbalanced-losses {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
templates_path: list[str] = []


def skip_settings(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leave out properties that repeat an argument of the constructor."""
    repeats = isinstance(member, property) and (member.__doc__ or "").startswith(("``config.", "The constructor's"))
    return True if repeats else None


def setup(app: Sphinx) -> None:
    """Connect, and read pages in parallel: the MathJax extension only copies files, but does not say so."""
    app.connect("autodoc-skip-member", skip_settings)
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
