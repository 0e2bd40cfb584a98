"""Average precision, recall at a quantile, partial AUC and coverage at a budget."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.quantile import INTERPOLATIONS, Interpolation, masked_quantile
from imbalanced_losses.pool import Pool, pool_of_scores
from imbalanced_losses.reductions import weighted_mean
from imbalanced_losses.settings import check_choice, check_fraction, check_number

__all__ = ["average_precision", "coverage_at_budget", "partial_auc", "recall_at_quantile"]


def average_precision(
    scores: Tensor,
    targets: Tensor,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Average precision, the limit of one minus the Smooth-AP loss.

    For the positives :math:`P` of a class, with :math:`n(s)` the rows that score at least :math:`s` and :math:`n^+(s)`
    the positives among them,

    .. math:: \mathrm{AP} = \frac{\sum_{i \in P} w_i \, n^+(s_i) / n(s_i)}{\sum_{i \in P} w_i}

    which is scikit-learn's ``average_precision_score``. Among tied rows the loss's limit counts each row by half, this
    metric in full.

    Parameters
    ----------
    scores : Tensor [N, C] or [N] for one class, any floating dtype
        Logits or probabilities: only their order counts.
    targets : Tensor [N] or [N, 1], integer, or [N, C] in {0, 1} if ``multilabel``
        Labels in {0, 1} for one column of scores, else class ids, one-vs-rest.
    multilabel : bool
        Targets are ``[N, C]`` labels in {0, 1}.
    ignore_index : int
        Rows (multi-label: elements) with this target take no part.
    sample_weight : Tensor [N], or [N, 1] for one column of scores, optional
        Non-negative, finite. Weighs the terms of the positives; ranks stay counts.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives, or with scores that are not finite. Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of labels and weights are checked in
        eager mode on the CPU only.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> average_precision(scores, targets)  # the positives have ranks 1 and 3: (1/1 + 2/3) / 2
    tensor(0.8333)
    """
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    return result(pool, average_precision_of(pool), multilabel)


def average_precision_of(pool: Pool) -> Tensor:
    """``[C]``."""
    groups = _ascending(pool.scores)
    positives, rows = (_count_at_or_above(mask, *groups) for mask in (pool.positive, pool.valid))
    precision = positives.to(pool.scores.dtype) / rows.clamp_min(1)
    return weighted_mean(precision, pool.positive_weight)


def recall_at_quantile(
    scores: Tensor,
    targets: Tensor,
    quantile: float = 0.005,
    interpolation: Interpolation = "higher",
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    budget_basis: Literal["population", "fpr"] = "population",
) -> Tensor:
    r"""Recall at the threshold that the top ``quantile`` of the rows reach, the limit of one minus that loss.

    .. math:: \theta = \mathrm{quantile}(s, 1 - q), \qquad
        \mathrm{recall} = \frac{\sum_{i \in P} w_i \, [s_i \ge \theta]}{\sum_{i \in P} w_i}

    The loss's limit counts a positive exactly at the threshold by half, this metric in full. With the default
    interpolation the alerts are :math:`\lfloor q (n - 1) \rfloor + 1` of n rows, and those tied with the last of them,
    which can exceed the share ``quantile``; :func:`coverage_at_budget` never exceeds its budget.

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight
        As in :func:`average_precision`.
    quantile : float in [0, 1]
        Share of the rows above the threshold.
    interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        Of the threshold between two scores, as in ``torch.quantile``.
    budget_basis : {"population", "fpr"}
        The share is one of all rows, of any class, or of the negatives.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives (for ``"fpr"`` also without negatives), or with scores that are
        not finite. Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        As in :func:`average_precision`; also if one of the settings is not one of the above.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1, 0.0]), torch.tensor([1, 0, 1, 0, 0])
    >>> recall_at_quantile(scores, targets, quantile=0.25)  # the threshold is 0.8
    tensor(0.5000)
    """
    quantile = check_fraction("quantile", quantile)
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    check_choice("budget_basis", budget_basis, ("population", "fpr"))
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    reference = pool.valid if budget_basis == "population" else pool.negative
    threshold = masked_quantile(pool.scores, reference, (1 - quantile,), interpolation)
    recall = torch.where(reference.any(-1), share_of_positives(pool, pool.scores >= threshold), torch.nan)
    return result(pool, recall, multilabel)


def partial_auc(
    scores: Tensor,
    targets: Tensor,
    alpha: float = 0.0,
    beta: float = 0.005,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    min_tpr: float = 0.0,
) -> Tensor:
    r"""Normalised area under the ROC curve between two false positive rates, the limit of one minus the pAUC loss.

    .. math:: \mathrm{pAUC} = \frac{1}{\beta - \alpha} \int_\alpha^\beta \mathrm{TPR}(f) \, \mathrm{d}f

    The curve is piecewise linear through the points of scikit-learn's ``roc_curve``; tied scores are a diagonal. The
    area is the mean true positive rate in the band: 1 is perfect and ``(alpha + beta) / 2`` is chance, unlike in
    McClish's standardisation, which scikit-learn applies in ``roc_auc_score(max_fpr=...)``.

    With a floor :math:`a` on the true positive rate it is the two-way partial AUC, the share of the region
    :math:`[\alpha, \beta] \times [a, 1]` below the curve (Yang et al., ICML 2021; Zhu et al., ICML 2022),

    .. math:: \frac{1}{(\beta - \alpha)(1 - a)} \int_\alpha^\beta \big(\mathrm{TPR}(f) - a\big)_+ \, \mathrm{d}f

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight
        As in :func:`average_precision`. Weights enter the true positive rate only.
    alpha, beta : float
        False positive rates, ``0 <= alpha < beta <= 1``.
    min_tpr : float in [0, 1)
        Floor on the true positive rate.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives or without negatives, or with scores that are not finite.
        Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        As in :func:`average_precision`; also if the band is empty or leaves [0, 1], or ``min_tpr`` leaves [0, 1).

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> partial_auc(scores, targets, beta=0.5)  # the first negative comes after one of the two positives
    tensor(0.5000)
    """
    alpha, beta = check_number("alpha", alpha), check_number("beta", beta)
    if not 0 <= alpha < beta <= 1:
        raise ValueError(f"expected 0 <= alpha < beta <= 1, got alpha={alpha} and beta={beta}")
    if (min_tpr := check_fraction("min_tpr", min_tpr)) == 1:
        raise ValueError("expected min_tpr below 1, got 1.0: it leaves no area")
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    area = partial_auc_of(pool.scores, pool.negative, pool.positive_weight, alpha, beta, min_tpr)
    return result(pool, area, multilabel)


def partial_auc_of(
    scores: Tensor, reference: Tensor, weight: Tensor, alpha: float, beta: float, min_tpr: float = 0.0
) -> Tensor:
    """``[C]``: mean share of ``weight [C, M]`` found over the shares alpha to beta of ``reference [C, M]`` alerted.

    Of that share, what exceeds ``min_tpr``, standardised to [0, 1].
    """
    order, first = _ascending(-scores)
    start, end = _curve(reference, order, first, scores.dtype)
    found_at_start, found = _curve(weight, order, first, scores.dtype)
    width = end - start
    slope = (found - found_at_start) / torch.where(width > 0, width, 1)
    left, right = start.clamp(alpha, beta), end.clamp(alpha, beta)
    if min_tpr == 0:
        height = found_at_start + slope * ((left + right) / 2 - start)
    else:
        height = _mean_above(*(found_at_start + slope * (side - start) - min_tpr for side in (left, right)))
    is_last = functional.pad(first[..., 1:] != first[..., :-1], (0, 1), value=True)
    area = torch.where(is_last, (right - left) * height, 0).sum(-1) / ((beta - alpha) * (1 - min_tpr))
    # the clamp takes off what rounding adds to a perfect curve
    return torch.where(reference.any(-1), area.clamp(0, 1), torch.nan)


def _mean_above(start: Tensor, end: Tensor) -> Tensor:
    """The mean of the positive part of a line from ``start`` up to ``end``."""
    low, high = start.clamp_min(0), end.clamp_min(0)
    rise = end - start
    share = torch.where(rise > 0, (high - low) / torch.where(rise > 0, rise, 1), 1)  # of the line that is above 0
    return (low + high) / 2 * share


def coverage_at_budget(
    scores: Tensor,
    targets: Tensor,
    budget: float = 0.005,
    budget_basis: Literal["population", "fpr"] = "population",
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Share of the positives that the largest set of alerts within a budget captures.

    .. math:: \mathrm{coverage} = \frac{\sum_{i \in P} w_i \, [n(s_i) \le b \, n]}{\sum_{i \in P} w_i}

    with :math:`n(s)` the rows (``"population"``) or negatives (``"fpr"``) that score at least :math:`s`, out of
    :math:`n`. A set of alerts is all rows above some threshold: of tied rows all or none are in it.

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight
        As in :func:`average_precision`.
    budget : float in [0, 1]
        50 basis points are 0.005. Rounding is forgiven: a budget of 0.29 of 100 rows is 29 rows.
    budget_basis : {"population", "fpr"}
        Alerts as a share of all rows, or false alerts as a share of the negatives.

    Returns
    -------
    Tensor [] for one column of scores, [C] for more of them or if ``multilabel``
        In [0, 1]; ``nan`` for a class without positives (for ``"fpr"`` also without negatives), or with scores that are
        not finite. Cost: O(C N log N).

    Raises
    ------
    ValueError, TypeError
        As in :func:`average_precision`; also if ``budget`` or ``budget_basis`` is not one of the above.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> coverage_at_budget(scores, targets, budget=0.5)  # two alerts: 0.9 and 0.8
    tensor(0.5000)
    """
    budget = check_fraction("budget", budget)
    check_choice("budget_basis", budget_basis, ("population", "fpr"))
    pool = pool_of_scores(scores, targets, multilabel, ignore_index, sample_weight)
    paid = pool.valid if budget_basis == "population" else pool.negative
    total = paid.sum(-1, keepdim=True)
    within = _count_at_or_above(paid, *_ascending(pool.scores)) <= _allowed(total, budget)
    covered = share_of_positives(pool, within)
    return result(pool, torch.where(total[:, 0] > 0, covered, torch.nan), multilabel)


def result(pool: Pool, metric: Tensor, multilabel: bool) -> Tensor:
    """Put ``nan`` where there is nothing to find or a score is not finite; one class is 0-dim."""
    finite_or_nan = metric + (pool.scores - pool.scores).sum(-1)  # not times 0, which a compiler takes for 0
    metric = torch.where((pool.positive_weight > 0).any(-1), finite_or_nan, torch.nan)
    return metric if multilabel or metric.shape[0] > 1 else metric[0]


def share_of_positives(pool: Pool, chosen: Tensor) -> Tensor:
    """``[C]``: of ``chosen [C, M]``, by weight."""
    return weighted_mean(chosen.to(pool.scores.dtype), pool.positive_weight)


def _allowed(total: Tensor, budget: float) -> Tensor:
    """The largest whole number within a budget of ``total``, up to the rounding of budget and product."""
    dtype = accumulation_dtype(total.device)
    return (total.to(dtype) * (budget * (1 + 4 * torch.finfo(dtype).eps))).floor().long()


def _count_at_or_above(counted: Tensor, order: Tensor, first: Tensor) -> Tensor:
    """For each row the number of ``counted [C, M]`` rows that score at least as much."""
    sorted_counted = counted.gather(-1, order).long()
    below = (sorted_counted.cumsum(-1) - sorted_counted).gather(-1, first)
    at_or_above = sorted_counted.sum(-1, keepdim=True) - below
    return torch.zeros_like(at_or_above).scatter(-1, order, at_or_above)


def _ascending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sort; returns the order, and for each sorted position the first position of its group of ties."""
    ascending, order = scores.sort(-1)
    positions = torch.arange(scores.shape[-1], device=scores.device)
    is_first = functional.pad(ascending[..., 1:] != ascending[..., :-1], (1, 0), value=True)
    return order, torch.where(is_first, positions, 0).cummax(-1).values


def _curve(counted: Tensor, order: Tensor, first: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Share of ``counted [C, M]`` before each sorted position's group of ties, and up to the position itself."""
    wide = accumulation_dtype(counted.device)
    sorted_counted = counted.gather(-1, order)
    sorted_counted = sorted_counted.to(wide) if counted.is_floating_point() else sorted_counted.long()
    upto = sorted_counted.cumsum(-1)
    before = (upto - sorted_counted).gather(-1, first)
    total = upto[..., -1:].to(wide)
    total = total + (total == 0)
    return (before / total).to(dtype), (upto / total).to(dtype)
