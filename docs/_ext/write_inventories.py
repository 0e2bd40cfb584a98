"""Write the inventories of other projects' names that our pages link to: ``python docs/_ext/write_inventories.py``.

Each is a file in Sphinx's inventory format, version 2, with the few names that we use, so that the build needs no
network. Add a name to ``NAMES`` with its domain, its role and the page that documents it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "inventories"

TORCH_PAGES = {
    "torch.Generator": "generated/torch.Generator.html",
    "torch.Tensor": "tensors.html",
    "torch.compile": "generated/torch.compile.html",
    "torch.func.functional_call": "generated/torch.func.functional_call.html",
    "torch.func.grad": "generated/torch.func.grad.html",
    "torch.func.vmap": "generated/torch.func.vmap.html",
    "torch.nn.BCEWithLogitsLoss": "generated/torch.nn.BCEWithLogitsLoss.html",
    "torch.nn.CrossEntropyLoss": "generated/torch.nn.CrossEntropyLoss.html",
    "torch.nn.Module": "generated/torch.nn.Module.html",
    "torch.nn.functional.binary_cross_entropy_with_logits": (
        "generated/torch.nn.functional.binary_cross_entropy_with_logits.html"
    ),
    "torch.nn.functional.cross_entropy": "generated/torch.nn.functional.cross_entropy.html",
    "torch.nn.parallel.DistributedDataParallel": "generated/torch.nn.parallel.DistributedDataParallel.html",
    "torch.quantile": "generated/torch.quantile.html",
    "torch.sort": "generated/torch.sort.html",
}
SKLEARN_FUNCTIONS = (
    *("average_precision_score", "precision_recall_curve", "roc_auc_score", "roc_curve", "brier_score_loss"),
)
PYTHON_PAGES = {
    "TypeError": "library/exceptions.html",
    "ValueError": "library/exceptions.html",
    "bool": "library/functions.html",
    "dict": "library/stdtypes.html",
    "float": "library/functions.html",
    "int": "library/functions.html",
    "list": "library/stdtypes.html",
    "str": "library/stdtypes.html",
    "tuple": "library/stdtypes.html",
}
ROLES = {
    "torch.Generator": "class",
    "torch.Tensor": "class",
    "torch.nn.BCEWithLogitsLoss": "class",
    "torch.nn.CrossEntropyLoss": "class",
    "torch.nn.Module": "class",
    "torch.nn.parallel.DistributedDataParallel": "class",
    "TypeError": "exception",
    "ValueError": "exception",
    **dict.fromkeys(("bool", "dict", "float", "int", "list", "str", "tuple"), "class"),
}
NAMES = {
    "python": PYTHON_PAGES,
    "numpy": {"numpy.ndarray": "reference/generated/numpy.ndarray.html"},
    "sklearn": {
        f"sklearn.metrics.{name}": f"modules/generated/sklearn.metrics.{name}.html" for name in SKLEARN_FUNCTIONS
    },
    "torch": TORCH_PAGES,
}


def inventory(project: str, pages: dict[str, str]) -> bytes:
    """Return the bytes of an inventory."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = [f"{name} py:{ROLES.get(name, 'function')} 1 {page}#{name} -\n" for name, page in sorted(pages.items())]
    return head.encode() + zlib.compress("".join(lines).encode(), 9)


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for project, pages in NAMES.items():
        (FOLDER / f"{project}.inv").write_bytes(inventory(project, pages))


if __name__ == "__main__":
    main()
