"""One function for each goal: which set of alerts is best, and whether it is good enough."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from imbalanced_losses.settings import check_choice, check_fraction
from imbalanced_losses.thresholds._operating_point import OperatingPoint, Resampling, operating_point
from imbalanced_losses.thresholds._ranking import Costs, Curves, first, last, rank_rows

__all__ = ["for_alert_budget", "for_expected_cost", "for_precision_floor", "for_recall_floor"]

SLACK = 1e-12
"""Relative: what rounding may take from a share of a sum of weights. Far less than one row of a billion."""


def for_alert_budget(
    scores: Tensor,
    targets: Tensor,
    budget: float,
    budget_basis: Literal["population", "fpr"] = "population",
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    n_bootstrap: int = 0,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> OperatingPoint:
    r"""Lowest threshold whose alerts stay within a budget.

    .. math:: \theta = \min \Big\{ t : \sum_i w_i \, [s_i \ge t] \le b \sum_i w_i \Big\}

    over all rows (``"population"``) or over the negatives (``"fpr"``). Without weights the recall that it reaches is
    :func:`imbalanced_losses.metrics.coverage_at_budget`.

    Parameters
    ----------
    scores : Tensor [N, C] or [N] for one class, any floating dtype
        Held-out logits or probabilities, finite: only their order counts.
    targets : Tensor [N] or [N, 1], integer, or [N, C] in {0, 1} if ``multilabel``
        Labels in {0, 1} for one column of scores, else class ids, one-vs-rest: each class has its own threshold, and a
        row may be an alert of several classes.
    budget : float in [0, 1]
        50 basis points are 0.005. It is never exceeded: if the rows tied at a score do not fit, none of them is an
        alert. Rounding is forgiven: a budget of 0.29 of 100 rows is 29 rows.
    budget_basis : {"population", "fpr"}
        Alerts as a share of all rows, or false alerts as a share of the negatives.
    multilabel : bool
        Targets are ``[N, C]`` labels in {0, 1}.
    ignore_index : int
        Rows (multi-label: elements) with this target take no part.
    sample_weight : Tensor [N], or [N, 1] for one column of scores, optional
        Non-negative, finite. For how many rows of the population each stands: 10 for each negative if one of ten was
        kept. It weighs every count; in :mod:`imbalanced_losses.metrics` it weighs positives only. A row of weight 0
        takes no part.
    n_bootstrap : int
        Resamples for intervals; 0 for none, 1000 for a report. As many rows as take part are drawn with replacement,
        not stratified. The intervals of rates and costs are percentiles at the chosen threshold, shifted by the mean
        optimism: what a threshold chosen on a resample reaches there, minus what it reaches on the original rows
        (location-shifted interval: Noma et al., Statistics in Medicine 40, 2021). That of the threshold is of those
        chosen anew in each resample. A resample without positives has a recall of 0 and a threshold of ``inf``.
    confidence : float, strictly between 0 and 1
        Of the intervals, which assume independent rows.
    generator : torch.Generator, optional
        On the scores' device. Without it torch's global one is used.

    Returns
    -------
    OperatingPoint
        Not ``reached``, with a threshold of ``inf``, for a class without positives (for ``"fpr"`` also without
        negatives). Cost: O(C N log N), and O(C N) for each resample.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype, device or value does not fit, a score is not finite, or no row takes part.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> point = for_alert_budget(scores, targets, budget=0.5)  # two alerts: 0.9 and 0.8
    >>> point.threshold, point.recall.item(), point.precision.item()
    (tensor(0.6000), 0.5, 0.5)
    """
    budget = check_fraction("budget", budget)
    check_choice("budget_basis", budget_basis, ("population", "fpr"))

    def goal(curves: Curves) -> tuple[Tensor, Tensor]:
        paid = curves.alerts if budget_basis == "population" else curves.false_positives
        total = paid[..., -1:]
        within = curves.is_candidate & (paid <= total * (budget * (1 + SLACK)))
        is_known = total[..., 0] > 0
        return torch.where(is_known, last(within), 0), is_known

    resampling = Resampling(n_bootstrap, confidence, generator)
    return operating_point(rank_rows(scores, targets, multilabel, ignore_index, sample_weight), goal, resampling)


def for_recall_floor(
    scores: Tensor,
    targets: Tensor,
    min_recall: float,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    n_bootstrap: int = 0,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> OperatingPoint:
    r"""Highest threshold that finds a share of the positives: the fewest alerts for that recall.

    .. math:: \theta = \max \Big\{ t : \sum_{i \in P} w_i \, [s_i \ge t] \ge r \sum_{i \in P} w_i \Big\}

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight, n_bootstrap, confidence, generator
        As in :func:`for_alert_budget`.
    min_recall : float in [0, 1]
        Rounding is forgiven: 0.29 of 100 positives are 29.

    Returns
    -------
    OperatingPoint
        Not ``reached``, with a threshold of ``inf``, for a class without positives. Cost: as in
        :func:`for_alert_budget`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`for_alert_budget`.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> point = for_recall_floor(scores, targets, min_recall=0.75)  # it takes both positives
    >>> point.threshold, point.recall.item(), point.alert_rate.item()
    (tensor(0.2500), 1.0, 0.75)
    """
    min_recall = check_fraction("min_recall", min_recall)

    def goal(curves: Curves) -> tuple[Tensor, Tensor]:
        found = curves.true_positives
        enough = curves.is_candidate & (found >= found[..., -1:] * (min_recall * (1 - SLACK)))
        return first(enough), enough.any(-1)

    resampling = Resampling(n_bootstrap, confidence, generator)
    return operating_point(rank_rows(scores, targets, multilabel, ignore_index, sample_weight), goal, resampling)


def for_precision_floor(
    scores: Tensor,
    targets: Tensor,
    min_precision: float,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    n_bootstrap: int = 0,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> OperatingPoint:
    r"""Threshold of the highest recall at which a share of the alerts are positives.

    .. math:: \theta \in \arg\max_t \Big\{ \sum_{i \in P} w_i \, [s_i \ge t] :
        \frac{\sum_{i \in P} w_i \, [s_i \ge t]}{\sum_i w_i \, [s_i \ge t]} \ge p \Big\}

    and of those with the same recall the highest: the fewest alerts.

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight, n_bootstrap, confidence, generator
        As in :func:`for_alert_budget`.
    min_precision : float in [0, 1]
        Rounding is forgiven.

    Returns
    -------
    OperatingPoint
        Not ``reached`` where every threshold has a lower precision: the threshold is then that of the highest
        precision, and of several the one with the highest recall. Not ``reached``, with a threshold of ``inf``, for a
        class without positives. Cost: as in :func:`for_alert_budget`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`for_alert_budget`.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> point = for_precision_floor(scores, targets, min_precision=0.6)  # two of three alerts
    >>> point.threshold, point.recall.item(), point.reached
    (tensor(0.2500), 1.0, tensor(True))
    """
    min_precision = check_fraction("min_precision", min_precision)

    def goal(curves: Curves) -> tuple[Tensor, Tensor]:
        found, alerts = curves.true_positives, curves.alerts
        is_set = curves.is_candidate & (alerts > 0)
        enough = is_set & (found >= alerts * (min_precision * (1 - SLACK)))
        recall = torch.where(enough, found, -1)
        precision = torch.where(is_set, found / alerts, -1)
        most_found = first(recall == recall.amax(-1, keepdim=True))
        most_precise = last(precision == precision.amax(-1, keepdim=True))
        reached = enough.any(-1)
        return torch.where(reached, most_found, most_precise), reached

    resampling = Resampling(n_bootstrap, confidence, generator)
    return operating_point(rank_rows(scores, targets, multilabel, ignore_index, sample_weight), goal, resampling)


def for_expected_cost(
    scores: Tensor,
    targets: Tensor,
    *,
    cost_fn: float | Tensor,
    cost_fp: float | Tensor,
    cost_tp: float | Tensor = 0.0,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    n_bootstrap: int = 0,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> OperatingPoint:
    r"""Threshold of the lowest expected cost, and of several the highest.

    .. math:: \theta \in \arg\min_t \frac{1}{\sum_i w_i} \bigg( \sum_{i \in P} w_i \big( c^{\mathrm{FN}}_i [s_i < t]
        + c^{\mathrm{TP}}_i [s_i \ge t] \big) + \sum_{i \notin P} w_i \, c^{\mathrm{FP}}_i [s_i \ge t] \bigg)

    Parameters
    ----------
    scores, targets, multilabel, ignore_index, sample_weight, n_bootstrap, confidence, generator
        As in :func:`for_alert_budget`.
    cost_fn : float or Tensor [N] or [N, C]
        Cost of a missed positive, at least 0, of all rows or each: a missed fraud costs its amount. Of tensors only
        the values of positives are looked at.
    cost_fp : float or Tensor [N] or [N, C]
        Cost of a false alert, at least 0. Of tensors only the values of negatives are looked at.
    cost_tp : float or Tensor [N] or [N, C]
        Cost of an alert on a positive, at least 0, such as that of its review.

    Returns
    -------
    OperatingPoint
        With ``cost``, the mean per row. Not ``reached``, with a threshold of ``inf``, for a class without positives. A
        threshold of ``inf`` that is reached says that no set of alerts costs less than none. Cost: as in
        :func:`for_alert_budget`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`for_alert_budget`; also if a cost is negative or not finite.

    Examples
    --------
    >>> scores, targets = torch.tensor([0.9, 0.8, 0.4, 0.1]), torch.tensor([1, 0, 1, 0])
    >>> amount = torch.tensor([100.0, 80.0, 5.0, 20.0])
    >>> point = for_expected_cost(scores, targets, cost_fn=amount, cost_fp=10, cost_tp=10)
    >>> point.threshold, point.cost.item()  # one review, and one fraud of 5 missed: 15 for four rows
    (tensor(0.8500), 3.75)
    """

    def goal(curves: Curves) -> tuple[Tensor, Tensor]:
        assert curves.cost is not None  # costs were given
        cost = torch.where(curves.is_candidate, curves.cost, torch.inf)
        slack = SLACK * torch.where(curves.is_candidate, curves.cost, 0).amax(-1, keepdim=True)
        cheapest = cost <= cost.amin(-1, keepdim=True) + slack
        return first(cheapest), cheapest.any(-1)

    resampling = Resampling(n_bootstrap, confidence, generator)
    costs = Costs(cost_fn, cost_fp, cost_tp)
    return operating_point(rank_rows(scores, targets, multilabel, ignore_index, sample_weight, costs), goal, resampling)
