"""Exact metrics: what each ranking loss tends to as its temperature goes to zero.

They take the losses' inputs, ties and all, and are pure torch functions of static shape: they run on any device, under
``torch.compile`` and ``torch.func.vmap``, and never wait for the device. They carry no gradient.

Each column ranks the rows. What softmax cross-entropy has trained ranks by probability, ``logits.double().softmax(1)``:
it leaves a constant of each row free, so that raw logits of a class do not compare across rows.
"""

from imbalanced_losses.metrics._at_recall import fpr_at_recall, precision_at_recall
from imbalanced_losses.metrics._functions import average_precision, coverage_at_budget, partial_auc, recall_at_quantile

__all__ = [
    "average_precision",
    "coverage_at_budget",
    "fpr_at_recall",
    "partial_auc",
    "precision_at_recall",
    "recall_at_quantile",
]
