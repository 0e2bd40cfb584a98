"""The build fails if a public name has no entry in the reference, or if an entry would be garbled."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import mock
from sphinx.util import logging

PUBLIC_MODULES = (
    "imbalanced_losses",
    "imbalanced_losses.calibration",
    "imbalanced_losses.distributed",
    "imbalanced_losses.integrations.lightning",
    "imbalanced_losses.integrations.transformers",
    "imbalanced_losses.metrics",
    "imbalanced_losses.plots",
    "imbalanced_losses.retrieval_metrics",
    "imbalanced_losses.schedule",
    "imbalanced_losses.testing",
    "imbalanced_losses.thresholds",
)
LOGGER = logging.getLogger(__name__)


def public_objects() -> dict[int, list[str]]:
    """Return the full names of every public object; submodules count by the names in them."""
    names: dict[int, list[str]] = {}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value) and name != "__version__":
                names.setdefault(id(value), []).append(f"{module_name}.{name}")
    return names


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn about each public object without an entry; the build treats warnings as errors."""
    documented = env.domains["py"].data["objects"]  # type: ignore[attr-defined]
    with mock(app.config.autodoc_mock_imports):
        objects = public_objects()
    for names in objects.values():
        if not any(name in documented for name in names):
            LOGGER.warning("%s has no entry in the reference: add it to a page in docs/reference", " or ".join(names))


def check_attribute(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Warn about a property whose first line napoleon would split at a colon into a type and a description."""
    words = re.sub(r":\w+:`[^`]*`|``[^`]*``", "", lines[0]) if lines else ""
    if what in ("property", "attribute") and ": " in words:
        LOGGER.warning("%s: expected no colon in the first line, got %r: write it as a sentence", name, lines[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the checks."""
    app.connect("env-check-consistency", check_reference)
    app.connect("autodoc-process-docstring", check_attribute, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
