"""Smooth-AP: average precision with every comparison of two scores replaced by a sigmoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from imbalanced_losses.kernels.ranks import missed_precision
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, evaluate, mark_invalid, reduced
from imbalanced_losses.metrics._functions import average_precision_of
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState
from imbalanced_losses.spread import describe_temperature, scaled_temperature

__all__ = ["SmoothAPConfig", "smooth_ap", "smooth_ap_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothAPConfig(RankingConfig):
    """Configuration of :func:`smooth_ap`.

    Parameters
    ----------
    num_classes : int
        Columns of the logits; 1 is a binary problem with labels {0, 1}.
    temperature : float
        Above 0, in units of ``tau_scale``. Small is close to the exact metric, large gives gradients to more pairs.
    reduction : {"mean", "sum", "none"}
        Over the valid classes; ``"none"`` gives ``[C]`` with ``nan`` at each invalid class.
    ignore_index : int
        Rows (multi-label: elements) with this target take no part and get zero gradient.
    max_pool_size : int, optional
        Estimate the loss of larger pools from a sample of this many rows; there is seldom a reason.
    multilabel : bool
        Targets are ``[N, C]`` labels in {0, 1}.
    tau_scale : {"none", "std", "iqr"}
        What the temperature is a multiple of: 1, or the detached standard deviation or interquartile range (quartiles
        interpolated linearly) of the class's scores in the pool. With a spread, scaling all scores changes nothing.
    """


def smooth_ap(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: SmoothAPConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""Smooth-AP loss, one minus a differentiable average precision over the live batch and the queue.

    For the positives :math:`P` of a class,

    .. math::
        R_i = 1 + \sum_{j \neq i} \sigma\big((s_j - s_i)/\tau\big), \qquad
        R_i^+ = 1 + \sum_{j \in P, j \neq i} \sigma\big((s_j - s_i)/\tau\big), \qquad
        \ell = 1 - \frac{\sum_{i \in P} w_i R_i^+ / R_i}{\sum_{i \in P} w_i}

    As :math:`\tau \to 0` without ties this is one minus the average precision of the pool. A class is valid if it has a
    positive, a negative and a positive weight on some positive. :math:`\tau` is ``temperature`` times the spread of the
    class's scores over the live and queued rows that are not ignored, ``cfg.tau_scale``, which is a constant of the
    step. An interquartile range of 0 is replaced by the standard deviation, and a standard deviation of 0 by 1.

    Parameters
    ----------
    logits : Tensor [N, C] or [N] for one class, any floating dtype
        Raw scores. Arithmetic runs in float32 (float64 for float64 logits), also under autocast.
    targets : Tensor [N] or [N, 1], integer, or [N, C] in {0, 1} if ``cfg.multilabel``
        Binary labels may also be bool or float.
    queue_state : QueueState
        From :func:`~imbalanced_losses.init_queue`; size 0 means no queue. Its rows carry no gradient.
    cfg : SmoothAPConfig
    temperature : float or Tensor [], optional
        Overrides ``cfg.temperature``, in the same unit. As a tensor it costs no compilation when it changes. It carries
        no gradient.
    iid_mask : Tensor [N], or [N, 1] for one class, bool, optional
        Stored with the rows; Smooth-AP itself does not look at it.
    sample_weight : Tensor [N], or [N, 1] for one class, optional
        Non-negative, finite. Weighs the terms of the positives; ranks stay counts.
    update_queue : bool
        Whether the live rows enter the new state.
    generator : torch.Generator, optional
        Draws the rows that ``cfg.max_pool_size`` keeps; without one torch's global generator does. ``vmap`` then wants
        its ``randomness``, and ``torch.compile`` takes the global generator only.

    Returns
    -------
    loss : Tensor [] or [C]
        In [0, 1] per class; 0 if no class is valid. Not finite if a valid live logit is not.
    new_state : QueueState

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of labels and weights are checked by the module shell.

    Notes
    -----
    Cost: O(C M log M) time and O(C M) memory for a pool of M rows, see :mod:`imbalanced_losses.kernels.ranks`.

    References
    ----------
    Brown, Xie, Kalogeiton, Zisserman. Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval. ECCV 2020,
    eq. 6-7.

    Examples
    --------
    >>> from imbalanced_losses import SmoothAPConfig, init_queue, smooth_ap
    >>> logits, targets = torch.tensor([2.0, 1.0, -1.0, 0.0]), torch.tensor([1, 0, 0, 1])
    >>> loss, state = smooth_ap(logits, targets, init_queue(8, 1), SmoothAPConfig(num_classes=1))
    >>> round(loss.item(), 4)  # the positives have ranks 1 and 3: AP = (1/1 + 2/3) / 2
    0.1667
    """
    step = evaluate(
        measure_smooth_ap,
        SmoothAPConfig,
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


def smooth_ap_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: SmoothAPConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[PerClass, QueueState]:
    """:func:`smooth_ap` before its reduction: the loss and validity of each class."""
    step = evaluate(
        measure_smooth_ap,
        SmoothAPConfig,
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


def measure_smooth_ap(pool: Pool, cfg: SmoothAPConfig) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    negative = pool.negative
    positive = pool.positive & negative.any(-1, keepdim=True)
    tau = scaled_temperature(pool, cfg.tau_scale)
    missed, total_weight = missed_precision(
        pool.scores, positive, negative, pool.row_weight, tau, pool.rank_weights(negative)
    )
    return PerClass(loss=missed, valid=total_weight > 0, diagnostics={})


def exact_smooth_ap(pool: Pool, cfg: SmoothAPConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Average precision ``[C]``, the limit of one minus the loss; and the temperature."""
    return average_precision_of(pool), describe_temperature(pool, cfg.tau_scale)
