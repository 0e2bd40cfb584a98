"""Precision and false-positive rate at the threshold that reaches a recall."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.kernels.recall_threshold import check_recall, recall_threshold
from imbalanced_losses.metrics._functions import result
from imbalanced_losses.pool import Pool, pool_of_scores
from imbalanced_losses.reductions import mean_over_weight

__all__ = ["fpr_at_recall", "precision_at_recall"]


def precision_at_recall(
    scores: Tensor,
    targets: Tensor,
    recall: float = 0.8,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Precision at the highest threshold that reaches a recall, the limit of one minus that loss.

    .. math:: \theta = \max\Big\{s_i : \sum_{k \in P} w_k [s_k \ge s_i] \ge r \sum_{k \in P} w_k\Big\}, \qquad
        \mathrm{precision} = \frac{\sum_{i \in P} w_i [s_i \ge \theta]}{\sum_j w_j [s_j \ge \theta]}

    It is the point of scikit-learn's ``precision_recall_curve`` with the highest threshold among those of at least that
    recall; points of a higher recall may have a higher precision. Among negatives tied with the threshold the loss's
    limit counts each by half, this metric in full.

    Parameters
    ----------
    scores, targets, multilabel, ignore_index
        As in :func:`~imbalanced_losses.metrics.average_precision`.
    recall : float in (0, 1]
        Share of the positives to find. Rounding is forgiven.
    sample_weight : Tensor [N], or [N, 1] for one column of scores, optional
        Non-negative, finite. Weighs all rows, as in scikit-learn.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives, or with scores that are not finite. Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        As in :func:`~imbalanced_losses.metrics.average_precision`; also if ``recall`` is not in (0, 1].

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> precision_at_recall(scores, targets, recall=0.8)  # both positives are found with one false alert
    tensor(0.6667)
    """
    recall = check_recall("recall", recall)
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    return result(pool, precision_at_recall_of(pool, recall), multilabel)


def precision_at_recall_of(pool: Pool, recall: float) -> Tensor:
    """``[C]``."""
    found, false_alerts, _ = _alerts_at_recall(pool, recall)
    return mean_over_weight(found, found + false_alerts).to(pool.scores.dtype)


def fpr_at_recall(
    scores: Tensor,
    targets: Tensor,
    recall: float = 0.8,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""False-positive rate at the highest threshold that reaches a recall, the limit of that loss.

    It is the lowest false-positive rate of scikit-learn's ``roc_curve`` at a true-positive rate of at least ``recall``.
    The threshold and the treatment of ties are those of :func:`precision_at_recall`.

    Parameters
    ----------
    scores, targets, recall, multilabel, ignore_index, sample_weight
        As in :func:`precision_at_recall`.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives or without negatives, or with scores that are not finite.
        Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        As in :func:`precision_at_recall`.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> fpr_at_recall(scores, targets, recall=0.8)  # one of two negatives is above the second positive
    tensor(0.5000)
    """
    recall = check_recall("recall", recall)
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    return result(pool, fpr_at_recall_of(pool, recall), multilabel)


def fpr_at_recall_of(pool: Pool, recall: float) -> Tensor:
    """``[C]``, ``nan`` without negatives."""
    _, false_alerts, negative_weight = _alerts_at_recall(pool, recall)
    return (false_alerts / negative_weight).to(pool.scores.dtype)


def _alerts_at_recall(pool: Pool, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    """``[C]``: the weight of the positives and of the negatives at or above the threshold, and of all negatives."""
    threshold, found, _ = recall_threshold(pool.scores, pool.positive, pool.row_weight, recall)
    weight = torch.where(pool.negative, pool.row_weight, 0)
    false_alerts = torch.where(pool.scores >= threshold, weight, 0)
    return found, false_alerts.sum(-1, dtype=found.dtype), weight.sum(-1, dtype=found.dtype)
