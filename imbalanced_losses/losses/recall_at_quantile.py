"""Recall at a quantile: the share of positives above the score that a fixed share of all rows exceeds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from imbalanced_losses.kernels.missed_recall import missed_recall
from imbalanced_losses.kernels.quantile import INTERPOLATIONS, Interpolation, masked_quantile
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, evaluate, mark_invalid, reduced
from imbalanced_losses.metrics._functions import share_of_positives
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState
from imbalanced_losses.settings import check_choice, check_fields, check_open_fraction
from imbalanced_losses.spread import describe_temperature, scaled_temperature

__all__ = ["RecallAtQuantileConfig", "recall_at_quantile", "recall_at_quantile_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecallAtQuantileConfig(RankingConfig):
    """Configuration of :func:`recall_at_quantile`.

    Parameters
    ----------
    quantile : float
        Alert budget, strictly between 0 and 1: the share of rows above the threshold, by ``budget_basis``.
    quantile_interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        Of the threshold and the interquartile range, as in ``torch.quantile``. ``"higher"`` keeps the alerts within the
        budget.
    threshold_gradient : {"stop", "implicit"}
        ``"stop"``: the threshold is a constant of the step. ``"implicit"``: the same value, and a gradient that follows
        the scores, so that raising all of them gains nothing.
    budget_basis : {"population", "fpr"}
        The budget is a share of all rows, or of the negatives: recall at a false-positive rate.
    num_classes, temperature, reduction, ignore_index, max_pool_size, multilabel, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPConfig`.
    """

    quantile: float = 0.005
    quantile_interpolation: Interpolation = "higher"
    threshold_gradient: Literal["stop", "implicit"] = "stop"
    budget_basis: Literal["population", "fpr"] = "population"

    def __post_init__(self) -> None:
        RankingConfig.__post_init__(self)
        check_fields(
            self,
            quantile=partial(check_open_fraction, remedy="use the share of rows that may be alerts, such as 0.005"),
            quantile_interpolation=partial(check_choice, choices=INTERPOLATIONS),
            threshold_gradient=partial(check_choice, choices=("stop", "implicit")),
            budget_basis=partial(check_choice, choices=("population", "fpr")),
        )


def recall_at_quantile(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: RecallAtQuantileConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""Recall-at-quantile loss, one minus a soft recall at a fixed alert budget.

    For the positives :math:`P` of a class and the threshold of the pool's scores (of its negatives' scores with
    ``budget_basis="fpr"``),

    .. math::
        \theta = \operatorname{quantile}(s, 1 - q), \qquad
        \ell = 1 - \frac{\sum_{i \in P} w_i\, \sigma\big((s_i - \theta)/\tau\big)}{\sum_{i \in P} w_i}

    As :math:`\tau \to 0` this is one minus the recall at the threshold (a positive exactly at it counts by half). With
    ``threshold_gradient="implicit"`` the threshold moves with the scores as the soft quantile
    :math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}` does; without a queue the gradient then sums to zero over
    the rows. That gradient is not the derivative of the returned value, and its own derivative is not defined. A class
    is valid if it has a positive with positive weight and, with ``budget_basis="fpr"``, a negative. :math:`\tau` is
    that of :func:`~imbalanced_losses.smooth_ap`.

    Parameters
    ----------
    logits, targets, queue_state, temperature, iid_mask, sample_weight, update_queue, generator
        As in :func:`~imbalanced_losses.smooth_ap`.
    cfg : RecallAtQuantileConfig

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
    Cost: O(C M) time for a quantile of a few percent, else one sort of the pool, O(C M log M); O(C M) memory.

    References
    ----------
    Eban, Schain, Mackey, Gordon, Rifkin, Elidan. Scalable Learning of Non-Decomposable Objectives. AISTATS 2017
    (recall and precision at a threshold as training objectives); the detached batch quantile is this library's choice.

    Examples
    --------
    >>> from imbalanced_losses import RecallAtQuantileConfig, init_queue, recall_at_quantile
    >>> logits, targets = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 0, 1])
    >>> cfg = RecallAtQuantileConfig(num_classes=1, quantile=0.5, quantile_interpolation="linear")
    >>> loss, state = recall_at_quantile(logits, targets, init_queue(0, 1), cfg)
    >>> round(loss.item(), 4)  # one of two positives lies above the median
    0.5
    """
    step = evaluate(
        measure_recall_at_quantile,
        RecallAtQuantileConfig,
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


def recall_at_quantile_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: RecallAtQuantileConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[PerClass, QueueState]:
    """:func:`recall_at_quantile` before its reduction: the loss and validity of each class."""
    step = evaluate(
        measure_recall_at_quantile,
        RecallAtQuantileConfig,
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


def measure_recall_at_quantile(pool: Pool, cfg: RecallAtQuantileConfig) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    reference, positive = reference_rows(pool, cfg), pool.positive
    if cfg.budget_basis == "fpr":  # a class without negatives has no threshold
        positive = positive & reference.any(-1, keepdim=True)
    missed, _, total_weight = missed_recall(
        pool.scores,
        alert_threshold(pool, cfg),
        positive,
        pool.row_weight,
        scaled_temperature(pool, cfg.tau_scale, cfg.quantile_interpolation).expand(len(pool.scores)),
        reference if cfg.threshold_gradient == "implicit" else None,
        pool.row_count,
    )
    return PerClass(loss=missed, valid=total_weight > 0, diagnostics={})


def reference_rows(pool: Pool, cfg: RecallAtQuantileConfig) -> Tensor:
    """Bool ``[C, M]``: the rows whose quantile the threshold is."""
    return pool.negative if cfg.budget_basis == "fpr" else pool.valid


def alert_threshold(pool: Pool, cfg: RecallAtQuantileConfig) -> Tensor:
    """``theta [C, 1]``, without gradient."""
    reference, levels = reference_rows(pool, cfg), (1 - cfg.quantile,)
    return masked_quantile(pool.scores, reference, levels, cfg.quantile_interpolation, pool.row_count)


def exact_recall_at_quantile(pool: Pool, cfg: RecallAtQuantileConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Recall ``[C]`` at the threshold, the limit of one minus the loss; threshold and temperature."""
    threshold = alert_threshold(pool, cfg)
    details = {"threshold": threshold[:, 0], **describe_temperature(pool, cfg.tau_scale, cfg.quantile_interpolation)}
    return share_of_positives(pool, pool.scores >= threshold), details
