"""Precision at a recall: the share of positives among the alerts at the threshold that finds a share of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from imbalanced_losses.losses._at_recall import AtRecallConfig, describe_at_recall, measure_at_recall
from imbalanced_losses.losses._ranking import PerClass, evaluate, mark_invalid, reduced
from imbalanced_losses.metrics._at_recall import precision_at_recall_of
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState

__all__ = ["PrecisionAtRecallConfig", "precision_at_recall", "precision_at_recall_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionAtRecallConfig(AtRecallConfig):
    """Configuration of :func:`precision_at_recall`.

    Parameters
    ----------
    recall : float
        The share of the positives to find, above 0 and at most 1.
    threshold_gradient : {"implicit", "stop"}
        ``"implicit"``: the threshold follows the scores of the positives, which get their gradient through it.
        ``"stop"``: the same value with a constant threshold. Only negatives get a gradient then.
    num_classes, temperature, reduction, ignore_index, max_pool_size, multilabel, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPConfig`.
    """


def precision_at_recall(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: PrecisionAtRecallConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""Precision-at-recall loss, one minus the soft precision at the threshold that reaches a fixed recall.

    For the positives :math:`P` and negatives :math:`N` of a class and the highest threshold that finds the share
    :math:`r` of the positives,

    .. math::
        \theta = \max\Big\{s_i : \sum_{k \in P} w_k [s_k \ge s_i] \ge r \sum_{k \in P} w_k\Big\}, \qquad
        \mathrm{TP} = \sum_{i \in P} w_i [s_i \ge \theta], \qquad
        \mathrm{FP} = \sum_{j \in N} w_j\, \sigma\big((s_j - \theta)/\tau\big), \qquad
        \ell = 1 - \frac{\mathrm{TP}}{\mathrm{TP} + \mathrm{FP}}

    The threshold fixes the recall, so TP is a constant; a soft count would take the positive at the threshold by half
    at every temperature. As :math:`\tau \to 0` the loss is one minus the precision at the threshold (a negative exactly
    at it counts by half).

    With ``threshold_gradient="implicit"`` the threshold moves with the scores of the positives as the soft quantile
    :math:`\sum_{i \in P} w_i \sigma((s_i - \theta)/\tau) = \text{const}` does. Without a queue the gradient then sums
    to zero over the rows. That gradient is not the derivative of the returned value, and its own derivative is not
    defined. A class is valid if it has a positive and a negative of positive weight.

    Parameters
    ----------
    logits, targets, queue_state, temperature, iid_mask, update_queue, generator
        As in :func:`~imbalanced_losses.smooth_ap`.
    cfg : PrecisionAtRecallConfig
    sample_weight : Tensor [N], or [N, 1] for one column of logits, optional
        Non-negative, finite. Weighs every row, positive or negative, as in scikit-learn: a row of weight 2 counts like
        two rows, a row of weight 0 like none.

    Returns
    -------
    loss : Tensor [] or [C]
        In [0, 1] per class; 0 if no class is valid. Not finite if a valid live logit is not.
    new_state : QueueState

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit.

    Notes
    -----
    Cost: O(C M) time and memory for a pool of M rows, and a sort of the positives (on accelerators of all rows).

    References
    ----------
    Kumar, Narasimhan, Cotter. Implicit Rate-Constrained Optimization of Non-decomposable Objectives. ICML 2021
    (precision at a fixed recall; the threshold as an implicit function of the scores).

    Examples
    --------
    >>> from imbalanced_losses import PrecisionAtRecallConfig, init_queue, precision_at_recall
    >>> logits, targets = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, 0])
    >>> cfg = PrecisionAtRecallConfig(num_classes=1, recall=0.8)
    >>> loss, state = precision_at_recall(logits, targets, init_queue(0, 1), cfg)
    >>> round(loss.item(), 4)  # both positives are found with one false alert
    0.3333
    """
    step = evaluate(
        measure_precision_at_recall,
        PrecisionAtRecallConfig,
        logits,
        targets,
        queue_state,
        cfg,
        temperature=temperature,
        iid_mask=iid_mask,
        sample_weight=sample_weight,
        update_queue=update_queue,
        generator=generator,
    )
    return reduced(step.result, cfg), step.queue


def precision_at_recall_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: PrecisionAtRecallConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[PerClass, QueueState]:
    """:func:`precision_at_recall` before its reduction: the loss and validity of each class, and diagnostics.

    ``diagnostics`` holds detached ``[C]`` tensors, ``nan`` at invalid classes: ``threshold``, and ``recall``, the
    weighted share of the positives that reach it.
    """
    step = evaluate(
        partial(measure_precision_at_recall, diagnose=True),
        PrecisionAtRecallConfig,
        logits,
        targets,
        queue_state,
        cfg,
        temperature=temperature,
        iid_mask=iid_mask,
        sample_weight=sample_weight,
        update_queue=update_queue,
        generator=generator,
    )
    return mark_invalid(step.result), step.queue


def measure_precision_at_recall(pool: Pool, cfg: PrecisionAtRecallConfig, diagnose: bool = False) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    at = measure_at_recall(pool, cfg)
    limits = torch.finfo(at.soft_fpr.dtype)
    odds = torch.where(at.valid, at.found / at.negative_weight, 1).clamp(limits.tiny, limits.max).to(at.soft_fpr.dtype)
    loss = at.soft_fpr / (at.soft_fpr + odds)  # FP / (TP + FP), both divided by the weight of the negatives
    return PerClass(loss=loss, valid=at.valid, diagnostics=at.diagnostics() if diagnose else {})


def exact_precision_at_recall(pool: Pool, cfg: PrecisionAtRecallConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Precision ``[C]`` at the threshold, the limit of one minus the loss; and the diagnostics."""
    return precision_at_recall_of(pool, cfg.recall), describe_at_recall(pool, cfg)
