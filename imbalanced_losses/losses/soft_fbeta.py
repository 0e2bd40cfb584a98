"""Soft F-beta: the F-beta score of the decisions at a fixed threshold, with soft counts over the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import with_nonfinite
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, evaluate, mark_invalid, reduced
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState
from imbalanced_losses.settings import check_fields, check_finite_number, check_normal_number
from imbalanced_losses.spread import describe_temperature, scaled_temperature

__all__ = ["SoftFBetaConfig", "soft_fbeta", "soft_fbeta_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftFBetaConfig(RankingConfig):
    """Configuration of :func:`soft_fbeta`.

    Parameters
    ----------
    beta : float
        Above 0. Weight of recall against precision: 1 is F1, 2 counts missed positives four times.
    eta : float
        Finite. Offset of the sigmoid: scores above ``-eta`` are alerts.
    temperature : float
        Above 0. Of the sigmoid; one over the slope in the paper, where it is called beta.
    num_classes, reduction, ignore_index, max_pool_size, multilabel, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPConfig`. ``eta`` is in units of the scores at every ``tau_scale``.
    """

    beta: float = 1.0
    eta: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        RankingConfig.__post_init__(self)
        check_fields(self, beta=check_normal_number, eta=check_finite_number)
        if abs(self.eta) > torch.finfo(torch.float32).max:
            raise ValueError(f"expected eta to be finite in float32, got {self.eta}")


def soft_fbeta(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: SoftFBetaConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""Soft F-beta loss (sigmoidF1), one minus the F-beta score of soft decisions.

    For the positives :math:`P` and negatives :math:`N` of a class in the pool, with weights :math:`w`,

    .. math::
        S_i = \sigma\big((s_i + \eta)/\tau\big), \qquad
        \mathrm{TP} = \sum_{i \in P} w_i S_i, \quad
        \mathrm{FP} = \sum_{i \in N} w_i S_i, \quad
        \mathrm{FN} = \sum_{i \in P} w_i (1 - S_i), \\
        \ell = 1 - \frac{(1 + \beta^2)\, \mathrm{TP}}{(1 + \beta^2)\, \mathrm{TP} + \beta^2\, \mathrm{FN} + \mathrm{FP}}

    As :math:`\tau \to 0` this is one minus the F-beta score of the decisions :math:`s_i > -\eta` (a score exactly there
    counts by half). The queue makes the counts those of many batches. A class is valid if it has a positive with
    positive weight: without one, TP is 0, the F-beta score is 0 (or undefined) whatever the scores are, and there is
    nothing to learn from it.

    Parameters
    ----------
    logits, targets, queue_state, temperature, update_queue, generator
        As in :func:`~imbalanced_losses.smooth_ap`.
    cfg : SoftFBetaConfig
    iid_mask : Tensor [N], or [N, 1] for one class, bool, optional
        Stored with the rows; this loss does not look at it.
    sample_weight : Tensor [N], or [N, 1] for one class, optional
        Non-negative, finite. Weighs positives and negatives, as in scikit-learn's ``fbeta_score``.

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
    Cost: O(C M) time and memory for a pool of M rows. The sums are taken in float64, where the device has it.

    References
    ----------
    Bénédict, Koops, Odijk, de Rijke. sigmoidF1: A Smooth F1 Score Surrogate Loss for Multilabel Classification. TMLR
    2022, arXiv 2108.10566: the soft counts and the F1 score made of them.

    Examples
    --------
    >>> from imbalanced_losses import SoftFBetaConfig, init_queue, soft_fbeta
    >>> logits, targets = torch.tensor([3.0, 1.0, -1.0, -2.0]), torch.tensor([1, 0, 0, 1])
    >>> cfg = SoftFBetaConfig(num_classes=1, temperature=0.01)
    >>> loss, state = soft_fbeta(logits, targets, init_queue(0, 1), cfg)
    >>> round(loss.item(), 4)  # one true positive, one false, one missed: F1 is 1/2
    0.5
    """
    step = evaluate(
        measure_soft_fbeta,
        SoftFBetaConfig,
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


def soft_fbeta_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: SoftFBetaConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[PerClass, QueueState]:
    """:func:`soft_fbeta` before its reduction: the loss and validity of each class."""
    step = evaluate(
        measure_soft_fbeta,
        SoftFBetaConfig,
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


def measure_soft_fbeta(pool: Pool, cfg: SoftFBetaConfig) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    tau = scaled_temperature(pool, cfg.tau_scale).expand(len(pool.scores))
    x = _distance(pool, cfg) / tau[:, None]
    error = torch.where(pool.positive, -x, x).sigmoid()  # 1 - S at positives, with full precision near 0
    loss, valid = _one_minus_fbeta(pool, error, cfg.beta)
    return PerClass(loss=with_nonfinite(loss.to(pool.scores.dtype), pool.scores), valid=valid, diagnostics={})


def exact_soft_fbeta(pool: Pool, cfg: SoftFBetaConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """F-beta ``[C]`` of the decisions ``s > -eta``, the limit of one minus the loss."""
    is_alert = _distance(pool, cfg) > 0
    loss, _ = _one_minus_fbeta(pool, (is_alert ^ pool.positive).to(accumulation_dtype(is_alert.device)), cfg.beta)
    return 1 - loss.to(pool.scores.dtype), describe_temperature(pool, cfg.tau_scale)


def _distance(pool: Pool, cfg: SoftFBetaConfig) -> Tensor:
    """``s + eta [C, M]``; wide, so that the sigmoid's derivative does not vanish where a positive is missed most."""
    return pool.scores.to(accumulation_dtype(pool.scores.device)) + cfg.eta


def _one_minus_fbeta(pool: Pool, error: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """One minus F-beta ``[C]``, 0 where invalid, and validity; ``error [C, M]`` is how wrong each decision is.

    With A = TP + FN the loss is ``(beta^2 FN + FP) / (beta^2 A + (A - FN) + FP)``. It is precise near 0, and
    the denominator is at least ``beta^2 A``.
    """
    weight = pool.row_weight.to(error.dtype)
    of_positives = torch.where(pool.positive, weight, 0)
    missed, total = (of_positives * error).sum(-1), of_positives.sum(-1)
    false = (torch.where(pool.negative, weight, 0) * error).sum(-1)
    valid = total > 0
    denominator = torch.where(valid, beta**2 * total + (total - missed) + false, 1)
    return torch.where(valid, (beta**2 * missed + false) / denominator, 0), valid
