"""Run the notebooks' scripts and write what comes out beside them, as ``.ipynb`` with text and pictures.

    python notebooks/render.py                                     # all of them, in this folder
    python notebooks/render.py --only 01_first_model --out FOLDER  # one of them, elsewhere, as the tests do

The kernel is this interpreter, whatever kernels the machine knows, and the outputs are all that a run adds to a script.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent


def render(script: Path) -> nbformat.NotebookNode:
    """Run a percent script as a notebook."""
    notebook: nbformat.NotebookNode = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # by default a random one, new in each run
    with tempfile.TemporaryDirectory() as folder:
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # what is left is the kernel of this interpreter
            transport="ipc",  # no port
            connection_file=str(Path(folder, "kernel.json")),
        )
        client = NotebookClient(notebook, km=kernel, timeout=600, record_timing=False)
        environment = {**os.environ, "IPYTHONDIR": folder}  # no start-up files of the user's
        client.execute(cwd=str(script.parent), env=environment, cleanup_kc=True)  # ends the kernel
    notebook.metadata.pop("language_info", None)  # the interpreter that happened to run it
    return notebook


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for the .ipynb files (default: beside the scripts)"
    )
    parser.add_argument("--only", default="[0-9]*", metavar="NAME", help="one notebook, without .py (default: all)")
    args = parser.parse_args()
    for script in sorted(HERE.glob(f"{args.only}.py")):
        path = args.out / f"{script.stem}.ipynb"
        nbformat.write(render(script), path)  # type: ignore[no-untyped-call]
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
