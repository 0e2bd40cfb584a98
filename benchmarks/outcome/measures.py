"""What a trained model is judged by: one implementation for all contenders, from logits.

The ranking measures are ``imbalanced_losses.metrics``; tests set them against scikit-learn.
"""

from __future__ import annotations

import torch
from study.loop import log_odds
from torch import Tensor
from torch.nn.functional import one_hot

from imbalanced_losses.metrics import average_precision, coverage_at_budget, partial_auc, recall_at_quantile
from outcome.tasks import EVERY_GROUP, Split, Task

__all__ = ["MEASURES", "calibration_error", "measure"]

MEASURES = {
    "ap": "average precision",
    "recall": "recall at the budget",
    "pauc": "partial AUC up to the budget",
    "coverage": "coverage at 50 bps",
    "ece": "calibration error",
}
BINS = 15
COVERAGE_BUDGET = 0.005


def measure(logits: Tensor, split: Split, task: Task, link: str) -> dict[str, float]:
    """All measures of logits ``[N, C]``: means over classes (macro) and over the split's groups.

    With the link ``"softmax"`` rows rank by the log odds of a class against the others: its raw logit says nothing
    across rows, as cross-entropy leaves a constant of each row free, and its probability rounds to one at the top.
    """
    n_groups = int(split.groups.max()) + 1
    if n_groups == 0:
        return _measure(logits, split.targets, task, link)
    parts = [(split.groups == EVERY_GROUP) | (split.groups == group) for group in range(n_groups)]
    by_group = [_measure(logits[part], split.targets[part], task, link) for part in parts]
    return {name: sum(one[name] for one in by_group) / n_groups for name in MEASURES}


def _measure(logits: Tensor, targets: Tensor, task: Task, link: str) -> dict[str, float]:
    multilabel = task.kind == "multilabel"
    scores = log_odds(logits) if link == "softmax" else logits
    hot = one_hot(targets, task.n_classes) if task.kind == "multiclass" else targets.view(len(targets), -1)
    values = {
        "ap": average_precision(scores, targets, multilabel=multilabel),
        "recall": recall_at_quantile(scores, targets, task.budget, multilabel=multilabel),
        "pauc": partial_auc(scores, targets, 0.0, task.budget, multilabel=multilabel),
        "coverage": coverage(scores, targets, multilabel=multilabel),
        "ece": calibration_error(scores.sigmoid(), hot),
    }
    return {name: float(value.mean()) for name, value in values.items()}


def coverage(logits: Tensor, targets: Tensor, *, multilabel: bool) -> Tensor:
    """``[C]`` or ``[]``: share of the positives in the top 50 basis points; not a number if those are no whole row."""
    found = coverage_at_budget(logits, targets, COVERAGE_BUDGET, multilabel=multilabel)
    return found if len(logits) * COVERAGE_BUDGET >= 1 else torch.full_like(found, torch.nan)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """``[C]``: expected calibration error of ``[N, C]`` probabilities for labels {0, 1}, in bins of equal mass.

    Rows of equal probability count alike, each with the mean of their labels, so that their order does not matter.
    """
    errors = []
    for predicted, of_class in zip(probabilities.T, labels.T, strict=True):
        values, level, counts = predicted.unique(return_inverse=True, return_counts=True)
        shares = torch.zeros(len(values), dtype=torch.float64).index_add(0, level, of_class.double()) / counts
        gaps = (values.double() - shares).repeat_interleave(counts)
        errors.append(sum(part.sum().abs() for part in gaps.tensor_split(bins)) / len(gaps))
    return torch.stack(errors)
