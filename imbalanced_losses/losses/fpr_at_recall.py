"""False-positive rate at a recall: the share of negatives above the threshold that finds a share of the positives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from imbalanced_losses.losses._at_recall import AtRecallConfig, describe_at_recall, measure_at_recall
from imbalanced_losses.losses._ranking import PerClass, evaluate, mark_invalid, reduced
from imbalanced_losses.metrics._at_recall import fpr_at_recall_of
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState

__all__ = ["FPRAtRecallConfig", "fpr_at_recall", "fpr_at_recall_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FPRAtRecallConfig(AtRecallConfig):
    """Configuration of :func:`fpr_at_recall`.

    Parameters
    ----------
    recall, threshold_gradient
        As in :class:`~imbalanced_losses.PrecisionAtRecallConfig`.
    num_classes, temperature, reduction, ignore_index, max_pool_size, multilabel, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPConfig`.
    """


def fpr_at_recall(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: FPRAtRecallConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""False-positive-rate loss: the soft share of negatives above the threshold that reaches a fixed recall.

    For the positives :math:`P` and negatives :math:`N` of a class and the highest threshold that finds the share
    :math:`r` of the positives,

    .. math::
        \theta = \max\Big\{s_i : \sum_{k \in P} w_k [s_k \ge s_i] \ge r \sum_{k \in P} w_k\Big\}, \qquad
        \ell = \frac{\sum_{j \in N} w_j\, \sigma\big((s_j - \theta)/\tau\big)}{\sum_{j \in N} w_j}

    As :math:`\tau \to 0` this is the false-positive rate at the threshold (a negative exactly at it counts by half).
    The gradient of the threshold, and which classes are valid, are as in
    :func:`~imbalanced_losses.precision_at_recall`, an increasing function of this loss whose slope is largest where few
    false positives are left.

    Parameters
    ----------
    logits, targets, queue_state, temperature, iid_mask, sample_weight, update_queue, generator
        As in :func:`~imbalanced_losses.precision_at_recall`.
    cfg : FPRAtRecallConfig

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
    (a rate at a fixed other rate; the threshold as an implicit function of the scores).

    Examples
    --------
    >>> from imbalanced_losses import FPRAtRecallConfig, fpr_at_recall, init_queue
    >>> logits, targets = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, 0])
    >>> cfg = FPRAtRecallConfig(num_classes=1, recall=0.8)
    >>> loss, state = fpr_at_recall(logits, targets, init_queue(0, 1), cfg)
    >>> round(loss.item(), 4)  # one of two negatives is above the second positive
    0.5
    """
    step = evaluate(
        measure_fpr_at_recall,
        FPRAtRecallConfig,
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


def fpr_at_recall_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: FPRAtRecallConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[PerClass, QueueState]:
    """:func:`fpr_at_recall` before its reduction: the loss and validity of each class, and diagnostics.

    ``diagnostics`` holds detached ``[C]`` tensors, ``nan`` at invalid classes: ``threshold``, and ``recall``, the
    weighted share of the positives that reach it.
    """
    step = evaluate(
        partial(measure_fpr_at_recall, diagnose=True),
        FPRAtRecallConfig,
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


def measure_fpr_at_recall(pool: Pool, cfg: FPRAtRecallConfig, diagnose: bool = False) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    at = measure_at_recall(pool, cfg)
    return PerClass(loss=at.soft_fpr, valid=at.valid, diagnostics=at.diagnostics() if diagnose else {})


def exact_fpr_at_recall(pool: Pool, cfg: FPRAtRecallConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """One minus the false-positive rate ``[C]`` at the threshold, the limit of one minus the loss; and diagnostics."""
    return 1 - fpr_at_recall_of(pool, cfg.recall), describe_at_recall(pool, cfg)
