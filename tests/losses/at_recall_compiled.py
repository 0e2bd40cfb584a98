"""Compile the losses at a fixed recall, and recall at a false-positive rate, and compare them with eager mode.

Run as a script with the path of the report and the name of a case: a line of JSON, what is wrong, for each number of
threads. Wrong code may end the process; tests/losses/test_at_recall_transforms.py starts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from imbalanced_losses import (
    FPRAtRecallConfig,
    FPRAtRecallLoss,
    PrecisionAtRecallConfig,
    PrecisionAtRecallLoss,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    fpr_at_recall,
    precision_at_recall,
    recall_at_quantile,
)
from tests.compiled.matrix import LOSSES, THREADS, Case, Kind, Loss, Pool
from tests.compiled.worker import check_safely

OWN = {
    "precision_at_recall": Loss(
        precision_at_recall, PrecisionAtRecallConfig, PrecisionAtRecallLoss, {"temperature": 0.1}
    ),
    "fpr_at_recall": Loss(
        fpr_at_recall, FPRAtRecallConfig, FPRAtRecallLoss, {"temperature": 0.1, "threshold_gradient": "stop"}
    ),
    "recall_at_fpr": Loss(
        recall_at_quantile,
        RecallAtQuantileConfig,
        RecallAtQuantileLoss,
        {"temperature": 0.1, "quantile": 0.1, "budget_basis": "fpr", "threshold_gradient": "implicit"},
    ),
}
_CASES = [
    Case("precision_at_recall", "function", Kind(3), Pool(16, 40), weighted=True),
    Case("precision_at_recall", "module", Kind(1), Pool(32, 1024), weighted=False),
    Case("precision_at_recall", "ensemble", Kind(3, multilabel=True), Pool(32, 200), weighted=True),
    Case("fpr_at_recall", "function", Kind(10), Pool(2_000), weighted=False),
    Case("recall_at_fpr", "function", Kind(3, multilabel=True), Pool(16, 40), weighted=True),
]
CASES = {str(case): case for case in _CASES}


def main(report: str, name: str) -> None:
    LOSSES.update(OWN)
    with Path(report).open("w", buffering=1) as lines:
        for threads in THREADS:
            lines.write(json.dumps(check_safely(CASES[name], threads)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
