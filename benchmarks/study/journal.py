"""The finished runs, on disk at once, so that a stopped study goes on where it was."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import imbalanced_losses

__all__ = ["Journal", "digest"]

Result = dict[str, Any]
OF_WORKERS = ("train", "loop", "losses", "trees", "ensembles", "libauc_parts", "retrieval")
OF_DRIVER = ("tables", "tasks", "parts", "problems", "measures", "unseen_classes", "driver")


class Journal:
    """A line with the digest of the code, and then one of JSON for each finished run.

    A journal that is not resumed is kept beside the new one. One of other code cannot be resumed. Runs that failed are
    made again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        # a line without an end was cut off with the run that wrote it
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if resume and path.exists() else []
        code = {"code": digest()}
        head, *kept = [json.loads(line) for line in lines if line.endswith("\n")] or [code]
        if head != code:
            raise SystemExit(f"the code has changed since {path} was begun: start anew, without --resume")
        if path.exists() and not resume:
            path.replace(path.with_suffix(".old"))
        kept = [run for run in kept if "skipped" not in run["result"]]
        self.runs: dict[str, Result] = {run["key"]: run["result"] for run in kept}
        path.write_text("".join(json.dumps(line) + "\n" for line in (head, *kept)), encoding="utf-8")

    def add(self, key: str, result: Result) -> None:
        """Keep a result, on disk before anything else happens."""
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
        self.runs[key] = result


def digest() -> str:
    """What a result hangs on besides its key: the package, and the study's data, training and measures."""
    package, folder = Path(imbalanced_losses.__file__).parent, Path(__file__).parent
    files = [
        *sorted(package.rglob("*.py")),
        *(folder / f"{name}.py" for name in (*OF_WORKERS, *OF_DRIVER)),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
