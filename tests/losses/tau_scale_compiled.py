"""Compiles losses with ``tau_scale`` and compares them with eager mode, in a process that may die.

It adds these losses to the table of tests/compiled in its own process only. Arguments: the report, and names of cases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    pauc_at_budget,
    recall_at_quantile,
    smooth_ap,
)
from tests.compiled.matrix import LOSSES, THREADS, Case, Kind, Loss, Pool
from tests.compiled.worker import check_safely

SMOOTH_AP = (smooth_ap, SmoothAPConfig, SmoothAPLoss)
RECALL = (recall_at_quantile, RecallAtQuantileConfig, RecallAtQuantileLoss)
PAUC = (pauc_at_budget, PAUCAtBudgetConfig, PAUCAtBudgetLoss)

SCALED = {
    "smooth_ap_std": Loss(*SMOOTH_AP, {"temperature": 0.1, "tau_scale": "std"}),
    "smooth_ap_iqr": Loss(*SMOOTH_AP, {"temperature": 0.1, "tau_scale": "iqr"}),
    "recall_iqr": Loss(
        *RECALL, {"temperature": 0.1, "quantile": 0.1, "tau_scale": "iqr", "threshold_gradient": "implicit"}
    ),
    "pairwise_std": Loss(*PAUC, {"temperature": 0.1, "beta": 0.3, "tau_scale": "std", "surrogate": "pairwise"}),
}
CASES = {
    "smooth_ap_std": Case("smooth_ap_std", "function", Kind(3), Pool(32, 200), weighted=True),
    "smooth_ap_iqr": Case("smooth_ap_iqr", "module", Kind(2), Pool(16, 40), weighted=False),
    "recall_iqr": Case("recall_iqr", "ensemble", Kind(3, multilabel=True), Pool(16, 40), weighted=False),
    "pairwise_std": Case("pairwise_std", "function", Kind(10, multilabel=True), Pool(32, 200), weighted=False),
}


def main(report: str, *names: str) -> None:
    """Write one line of JSON per case and number of threads: the name, the number, and what is wrong."""
    LOSSES.update(SCALED)
    with Path(report).open("w", buffering=1) as lines:
        for name in names:
            for threads in THREADS:
                lines.write(json.dumps([name, threads, check_safely(CASES[name], threads)]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
