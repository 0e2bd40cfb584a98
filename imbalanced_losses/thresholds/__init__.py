"""Alert thresholds chosen on held-out scores, one for each class, with what they reach and bootstrap intervals.

A row is an alert if ``score >= threshold``, so of tied rows all or none are alerts. A threshold lies midway between two
adjacent distinct scores: a score that is computed again and rounded differently stays on its side. It is ``inf`` if
no row is an alert and ``-inf`` if all are. It has the dtype of the scores, so that comparing with it is exact.

These functions read values: they run in eager mode and outside ``torch.func.vmap``.
"""

from imbalanced_losses.thresholds._functions import (
    for_alert_budget,
    for_expected_cost,
    for_precision_floor,
    for_recall_floor,
)
from imbalanced_losses.thresholds._operating_point import OperatingPoint

__all__ = ["OperatingPoint", "for_alert_budget", "for_expected_cost", "for_precision_floor", "for_recall_floor"]
