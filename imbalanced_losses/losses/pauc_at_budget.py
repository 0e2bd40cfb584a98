"""Partial AUC at a budget: the area under the ROC curve between two small false-positive rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from imbalanced_losses.kernels.missed_recall import missed_recall
from imbalanced_losses.kernels.quantile import INTERPOLATIONS, Interpolation
from imbalanced_losses.kernels.ranks import discordant_pairs
from imbalanced_losses.kernels.robust_hinge import robust_hinge
from imbalanced_losses.losses._budget import (
    Budget,
    measure_budget,
    negatives_in_band,
    numerator_rows,
    numerator_weight,
    reference_population,
)
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, evaluate, mark_invalid, reduced
from imbalanced_losses.metrics._functions import partial_auc_of
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import QueueState
from imbalanced_losses.settings import (
    check_choice,
    check_fields,
    check_fraction,
    check_integer,
    check_normal_number,
    optional,
)
from imbalanced_losses.spread import TAU_SCALES

__all__ = ["PAUCAtBudgetConfig", "pauc_at_budget", "pauc_at_budget_per_class"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PAUCAtBudgetConfig(RankingConfig):
    """Configuration of :func:`pauc_at_budget`.

    Parameters
    ----------
    alpha, beta : float
        The band of false-positive rates (or shares of the population), ``0 <= alpha < beta <= 1``.
    surrogate : {"trapezoid", "pairwise", "dro"}
        ``"trapezoid"``: soft true-positive rates at the band's thresholds; gradient through positives only.
        ``"pairwise"``: soft comparisons of each positive with each negative in the band; gradient through both.
        ``"dro"``: the hinge losses of each positive's pairs, in their worst-case mean (KL-DRO); gradient through both.
        ``temperature`` takes the place of ``beta``, and ``alpha`` must be 0.
    n_knots : int
        Thresholds of the trapezoid, at least 2.
    tau_scale : {"none", "std", "iqr", "band"}
        What the temperature is a multiple of: 1; the reference's standard deviation or interquartile range; or the
        width of the band in scores.
    pos_numerator : {"pool", "live"}
        Whether queued positives count in the numerator.
    budget_basis : {"fpr", "population"}
        The reference: iid negatives, or all iid rows.
    temperature : float
        Above 0, in units of the scale.
    quantile_interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        Of thresholds and interquartile range, as in ``torch.quantile``.
    threshold_gradient : {"stop", "implicit"}
        Whether the trapezoid's thresholds follow the scores; the scale never does.
    margin : float
        Of the hinge of ``"dro"``, above 0, in units of the scale.
    positive_temperature : float, optional
        Of ``"dro"``: above 0, weights the positives by their worst case, too (two-way KL-DRO). ``None``: their mean.
    min_tpr : float
        In [0, 1). Two-way partial AUC: only the area above this true-positive rate counts, so the highest positives,
        up to this share of the weight, are left out.
    num_classes, reduction, ignore_index, max_pool_size, multilabel
        As in :class:`~imbalanced_losses.SmoothAPConfig`.
    """

    temperature: float = 0.1
    alpha: float = 0.0
    beta: float = 0.005
    surrogate: Literal["trapezoid", "pairwise", "dro"] = "trapezoid"
    n_knots: int = 2
    tau_scale: Literal["none", "std", "iqr", "band"] = "iqr"  # type: ignore[assignment]
    pos_numerator: Literal["pool", "live"] = "pool"
    budget_basis: Literal["fpr", "population"] = "fpr"
    quantile_interpolation: Interpolation = "higher"
    threshold_gradient: Literal["stop", "implicit"] = "stop"
    margin: float = 1.0
    positive_temperature: float | None = None
    min_tpr: float = 0.0

    _tau_scales: ClassVar[tuple[str, ...]] = (*TAU_SCALES, "band")

    def __post_init__(self) -> None:
        RankingConfig.__post_init__(self)
        check_fields(
            self,
            alpha=check_fraction,
            beta=check_fraction,
            surrogate=partial(check_choice, choices=("trapezoid", "pairwise", "dro")),
            n_knots=partial(check_integer, minimum=2),
            pos_numerator=partial(check_choice, choices=("pool", "live")),
            budget_basis=partial(check_choice, choices=("fpr", "population")),
            quantile_interpolation=partial(check_choice, choices=INTERPOLATIONS),
            threshold_gradient=partial(check_choice, choices=("stop", "implicit")),
            margin=check_normal_number,
            positive_temperature=optional(check_normal_number),
            min_tpr=check_fraction,
        )
        if not self.alpha < self.beta:
            raise ValueError(f"expected alpha < beta, got alpha={self.alpha} and beta={self.beta}")
        if self.min_tpr == 1:
            raise ValueError("expected min_tpr below 1, got 1.0: it leaves no positives")
        if self.surrogate == "dro" and self.alpha > 0:
            remedy = "KL-DRO weighs the highest negatives most, take another surrogate for a band that leaves them out"
            raise ValueError(f"expected alpha=0 with surrogate='dro', got alpha={self.alpha}: {remedy}")
        if self.surrogate != "dro" and self.positive_temperature is not None:
            remedy = "take min_tpr, or surrogate='dro'"
            raise ValueError(
                f"expected positive_temperature=None with surrogate={self.surrogate!r}, "
                f"got {self.positive_temperature}: {remedy}"
            )


def pauc_at_budget(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: PAUCAtBudgetConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, QueueState]:
    r"""Partial-AUC loss, one minus the soft, standardised area under the ROC curve on a band of budgets.

    With the thresholds :math:`t_f = \operatorname{quantile}(\text{ref}, 1 - f)` of the detached reference population
    and :math:`\tau = \text{temperature} \cdot \text{scale}`,

    .. math::
        \text{trapezoid:}\quad & \ell = 1 - \textstyle\sum_k c_k \operatorname{mean}_{i \in P}
            \sigma\big((s_i - t_{f_k})/\tau\big), \quad f_k \text{ uniform on } [\alpha, \beta] \\
        \text{pairwise:}\quad & \ell = 1 - \operatorname{mean}_{i \in P,\, j \in B}
            \sigma\big((s_i - s_j)/\tau\big), \quad B = \{j \text{ negative}: t_\beta \le s_j \le t_\alpha\} \\
        \text{dro:}\quad & \ell = \operatorname{mean}_{i \in P} y_i, \quad y_i = \lambda \log
            \operatorname{mean}_{j \in N} \exp\big((m - (s_i - s_j) / \text{scale})_+ / \lambda\big), \quad
            \lambda = \text{temperature}

    or, with a ``positive_temperature`` :math:`\lambda'`, :math:`\ell = \lambda' \log \operatorname{mean}_i
    \exp(y_i / \lambda')`. :math:`N` are all negatives of the pool, :math:`c_k` the normalised trapezoid weights; means
    over positives are weighted by ``sample_weight``. With ``min_tpr`` the positives :math:`P` are those below the
    highest ones of that share of the weight; a positive at the cut counts in part. The scale is the reference's
    interquartile range or standard deviation, or the width of the band, ``cfg.tau_scale``; where that is at most 1e-12
    the standard deviation of the reference, and where that is, too, 1. A class is invalid if the
    numerator has no positives (or no weight of them), or if there are no iid negatives. If the pairwise band has no
    negatives, the loss and its gradient are 0, and the class is valid; ``band_neg_count`` is then 0.

    ``"dro"`` has no budget: the smaller :math:`\lambda`, the fewer of the highest negatives count
    (:func:`pauc_at_budget_per_class` says how many). For every share :math:`f`, :math:`\ell + \lambda \log(1/f)` is an
    upper bound of the mean hinge loss over the highest share :math:`f` of the negatives.

    Parameters
    ----------
    logits, targets, queue_state, sample_weight, update_queue, generator
        As in :func:`~imbalanced_losses.smooth_ap`.
    cfg : PAUCAtBudgetConfig
    temperature : float or Tensor [], optional
        Overrides ``cfg.temperature``, in units of the scale.
    iid_mask : Tensor [N], or [N, 1] for one class, bool, optional
        False for rows not drawn from the deployment distribution, such as oversampled or mined ones: they never shape
        the reference, its thresholds and its scale. Default: all True.

    Returns
    -------
    loss : Tensor [] or [C]
        In [0, 1] per class (``"dro"``: at least 0); 0 if no class is valid. Not finite if a valid live logit is not.
    new_state : QueueState

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit.

    Notes
    -----
    Cost: O(C M log M) time and O(C M) memory for a pool of M rows; the trapezoid takes O(K C M) of both with K knots
    (``n_knots``), less on the CPU, where it looks at the positives alone unless ``threshold_gradient="implicit"``.
    Shifting all scores changes nothing, nor does scaling them positively, unless ``tau_scale="none"`` or
    all scores of the reference are equal.

    References
    ----------
    Narasimhan, Agarwal. A Structural SVM Based Approach for Optimizing Partial AUC. ICML 2013, eq. 2-3 (partial AUC on
    [alpha, beta]). Zhu, Li, Wang, Wu, Yang. When AUC meets DRO. ICML 2022 (pairwise surrogates over the top negatives,
    KL-DRO for one-way and two-way partial AUC, with the hinge among the decreasing pair losses that they allow).

    Examples
    --------
    >>> from imbalanced_losses import PAUCAtBudgetConfig, init_queue, pauc_at_budget
    >>> logits, targets = torch.tensor([3.5, -1.0, 3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 1, 0, 0, 0, 0])
    >>> cfg = PAUCAtBudgetConfig(num_classes=1, beta=0.5, surrogate="pairwise", temperature=1e-3)
    >>> loss, state = pauc_at_budget(logits, targets, init_queue(0, 1), cfg)
    >>> round(loss.item(), 4)  # one positive beats the whole band, the other nothing
    0.5
    """
    step = evaluate(
        measure_pauc_at_budget,
        PAUCAtBudgetConfig,
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


def pauc_at_budget_per_class(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: PAUCAtBudgetConfig,
    *,
    temperature: Tensor | float | None = None,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
    diagnose: bool = True,
) -> tuple[PerClass, QueueState]:
    """:func:`pauc_at_budget` before its reduction, with diagnostics.

    ``diagnostics`` holds detached ``[C]`` tensors: the thresholds ``t_alpha`` and ``t_beta``, the temperature in score
    units ``tau_eff``, and ``pauc_var``, the population variance over positives of each one's own partial AUC (these
    four are ``nan`` where the class is invalid); ``band_neg_count``, the iid negatives in the band, and
    ``grad_pos_count``, the live positives (with ``max_pool_size`` both count kept rows). ``surrogate="dro"`` adds
    ``effective_beta``, the share of the negatives that its worst case rests on, ``exp(-KL)`` in the mean over positives
    in proportion to their loss; ``pauc_var`` is then the variance of the ``y_i``. With ``diagnose=False`` it
    stays empty, which saves a fifth of a small step.
    """
    step = evaluate(
        partial(measure_pauc_at_budget, diagnose=diagnose),
        PAUCAtBudgetConfig,
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


_Measured = tuple[Tensor, Tensor, Callable[[], dict[str, Tensor]]]
"""The loss ``[C]``, the total weight of its positives, and a function for its own diagnostics."""


def measure_pauc_at_budget(pool: Pool, cfg: PAUCAtBudgetConfig, diagnose: bool = False) -> PerClass:
    """The loss of a pool, 0 at invalid classes."""
    budget = measure_budget(pool, cfg)
    numerator = numerator_rows(pool, cfg) & budget.measurable[:, None]
    weight = numerator_weight(pool, cfg, numerator)
    measure = _measure_dro if cfg.surrogate == "dro" else _measure_misses
    loss, total_weight, describe = measure(pool, cfg, numerator, weight, budget)
    valid = total_weight > 0
    diagnostics = _diagnose(pool, budget, describe(), valid) if diagnose else {}
    return PerClass(loss=loss, valid=valid, diagnostics=diagnostics)


def _measure_misses(
    pool: Pool, cfg: PAUCAtBudgetConfig, numerator: Tensor, weight: Tensor, budget: Budget
) -> _Measured:
    """The trapezoid and the pairwise surrogate."""
    if cfg.surrogate == "pairwise":
        band = negatives_in_band(pool, budget)
        counts = None if pool.inclusion_weight is None else pool.count(band)
        loss, squares, total_weight = discordant_pairs(pool.scores, numerator, band, weight, budget.tau, counts)
    else:
        reference = budget.reference if cfg.threshold_gradient == "implicit" else None
        loss, squares, total_weight = missed_recall(
            pool.scores, budget.thresholds, numerator, weight, budget.tau, reference, pool.row_count
        )

    def describe() -> dict[str, Tensor]:
        variance = (squares - loss.detach().to(squares.dtype).square()).clamp_min(0)
        return {"pauc_var": variance.to(loss.dtype)}

    return loss, total_weight, describe


def _measure_dro(pool: Pool, cfg: PAUCAtBudgetConfig, numerator: Tensor, weight: Tensor, budget: Budget) -> _Measured:
    def per_class(value: float) -> Tensor:
        return budget.scale.new_full(budget.scale.shape, value)

    loss, variance, effective_beta, total_weight = robust_hinge(
        pool.scores,
        numerator,
        pool.negative,
        weight,
        budget.scale.clamp_max(torch.finfo(budget.scale.dtype).max),
        pool.temperature.expand_as(budget.scale),
        per_class(cfg.margin),
        None if cfg.positive_temperature is None else per_class(cfg.positive_temperature),
        pool.row_count,
    )
    own = {"pauc_var": variance.to(loss.dtype), "effective_beta": effective_beta.to(loss.dtype)}
    return loss, total_weight, lambda: own


def exact_pauc_at_budget(pool: Pool, cfg: PAUCAtBudgetConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Partial AUC ``[C]``, the limit of one minus the loss; and the diagnostics of the band."""
    reference, weight = reference_population(pool, cfg), numerator_rows(pool, cfg) * pool.row_weight
    exact = partial_auc_of(pool.scores, reference, weight, cfg.alpha, cfg.beta, cfg.min_tpr)
    return exact, measure_pauc_at_budget(pool, cfg, diagnose=True).diagnostics


def _diagnose(pool: Pool, budget: Budget, own: dict[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
    measures = {
        "t_alpha": budget.thresholds[:, 0],
        "t_beta": budget.thresholds[:, -1],
        "tau_eff": budget.tau,
        **own,
    }
    return {name: torch.where(valid, value, torch.nan) for name, value in measures.items()} | {
        "band_neg_count": (negatives_in_band(pool, budget) & pool.iid).sum(-1),
        "grad_pos_count": (pool.positive & pool.live).sum(-1),
    }
