"""Held-out rows in descending order of score, and what each possible set of alerts finds: ``[C, M + 1]``.

Entry k of an axis of length M + 1 is the set of the k highest rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.label_values import check_weight_values
from imbalanced_losses.pool import Pool, pool_of_scores
from imbalanced_losses.reductions import mean_over_weight
from imbalanced_losses.settings import check_nonnegative
from imbalanced_losses.validation import check_element_weights

__all__ = ["Costs", "Curves", "Ranking", "first", "last", "rank_rows"]


class Costs(NamedTuple):
    """Of a false negative, a false positive and a true positive: numbers, or tensors ``[N]`` or ``[N, C]``."""

    false_negative: Tensor | float
    false_positive: Tensor | float
    true_positive: Tensor | float


class Curves(NamedTuple):
    """Weights ``[..., M + 1]`` of what the k highest rows contain, and the total cost of alerting on them."""

    true_positives: Tensor
    false_positives: Tensor
    cost: Tensor | None
    is_candidate: Tensor
    """Whether some threshold has these alerts: none that separates tied rows."""

    @property
    def alerts(self) -> Tensor:
        """Weight of all k rows."""
        return self.true_positives + self.false_positives

    def rates_at(self, index: Tensor) -> dict[str, Tensor]:
        """What the sets of alerts at ``index [..., K]`` reach, ``[..., K]``; a share of nothing is 0."""
        true, false = (values.gather(-1, index) for values in (self.true_positives, self.false_positives))
        positives, negatives = self.true_positives[..., -1:], self.false_positives[..., -1:]
        rates = {
            "recall": mean_over_weight(true, positives),
            "precision": mean_over_weight(true, true + false),
            "alert_rate": mean_over_weight(true + false, positives + negatives),
            "false_positive_rate": mean_over_weight(false, negatives),
        }
        if self.cost is not None:
            rates["cost"] = mean_over_weight(self.cost.gather(-1, index), positives + negatives)
        return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """M rows that count for some class, as C one-vs-rest problems, each in its own descending order.

    Attributes
    ----------
    positive_weight, negative_weight : Tensor [C, M]
        0 for rows of the other kind, and for rows that do not count, which come last.
    alert_cost, miss_cost : Tensor [C, M], optional
        What an alert on the row adds to the cost, and the cost without, times its weight.
    is_candidate : Tensor [C, M + 1], bool
        As in :class:`Curves`.
    thresholds : Tensor [C, M + 1], of the scores' dtype
        Where ``is_candidate``.
    is_column : bool
        Whether results are 0-dim.
    """

    positive_weight: Tensor
    negative_weight: Tensor
    alert_cost: Tensor | None
    miss_cost: Tensor | None
    is_candidate: Tensor
    thresholds: Tensor
    is_column: bool

    def curves(self, multiplicity: Tensor | None = None) -> Curves:
        """``[C, M + 1]``, or ``[C, B, M + 1]`` of B resamples, in which rank j counts ``multiplicity [B, M]`` times."""

        def counted(values: Tensor) -> Tensor:
            return values if multiplicity is None else values[:, None] * multiplicity

        def upto(values: Tensor) -> Tensor:
            return functional.pad(counted(values).cumsum(-1), (1, 0))

        cost = None
        if self.alert_cost is not None and self.miss_cost is not None:
            cost = counted(self.miss_cost).sum(-1, keepdim=True) + upto(self.alert_cost)
        candidates = self.is_candidate if multiplicity is None else self.is_candidate[:, None]
        return Curves(upto(self.positive_weight), upto(self.negative_weight), cost, candidates)


def rank_rows(
    scores: Tensor,
    targets: Tensor,
    multilabel: bool,
    ignore_index: int,
    sample_weight: Tensor | None,
    costs: Costs | None = None,
) -> Ranking:
    """Check the rows, and sort those that count: not ignored, and of a weight above 0."""
    is_score = isinstance(scores, Tensor) and scores.is_floating_point()
    wide = scores.to(accumulation_dtype(scores.device)) if is_score else scores
    pool = pool_of_scores(wide, targets, multilabel, ignore_index, sample_weight, check_values=True)
    counts = pool.valid & (pool.sample_weight > 0)
    rows = counts.any(0)
    if not rows.any():
        raise ValueError(f"expected at least one held-out row that counts, got {len(scores)} rows of which none does")
    _check_finite(pool.scores[counts])
    keys = torch.where(counts, pool.scores, -torch.inf)[:, rows]
    ordered, order = keys.sort(stable=True, dim=-1, descending=True)
    is_positive = pool.positive & counts
    weight = torch.where(counts, pool.sample_weight, 0)
    of_kinds = [torch.where(kind, weight, 0) for kind in (is_positive, counts ^ is_positive)]
    of_costs = () if costs is None else _weighted_costs(costs, pool, *of_kinds)
    positive, negative, *alert_and_miss = (values[:, rows].gather(-1, order) for values in (*of_kinds, *of_costs))
    alert_cost, miss_cost = alert_and_miss or (None, None)
    above = functional.pad(ordered, (1, 0), value=torch.inf)
    below = functional.pad(ordered, (0, 1), value=-torch.inf)
    return Ranking(
        positive_weight=positive,
        negative_weight=negative,
        alert_cost=alert_cost,
        miss_cost=miss_cost,
        is_candidate=above != below,
        thresholds=_midway(above, below, scores.dtype),
        is_column=len(order) == 1 and not multilabel,
    )


def first(mask: Tensor) -> Tensor:
    """Index of the first True along the last axis, of which there is one."""
    return mask.to(torch.uint8).argmax(-1)


def last(mask: Tensor) -> Tensor:
    """Index of the last True along the last axis, of which there is one."""
    return mask.shape[-1] - 1 - first(mask.flip(-1))


def _check_finite(scores: Tensor) -> None:
    finite = scores.isfinite()
    if not finite.all():
        wrong = scores[~finite]
        raise ValueError(f"expected finite scores, got {len(wrong)} that are not, such as {wrong[0].item()}")


def _weighted_costs(costs: Costs, pool: Pool, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """``[C, N]``: what an alert on each row adds to the cost, and the cost without; given the weights of both kinds."""
    kinds = {"cost_fn": positive > 0, "cost_fp": negative > 0, "cost_tp": positive > 0}
    missed, false_alert, found = (
        _cost_of_rows(name, cost, pool, kind) for (name, kind), cost in zip(kinds.items(), costs, strict=True)
    )
    return positive * (found - missed) + negative * false_alert, positive * missed


def _cost_of_rows(name: str, cost: Tensor | float, pool: Pool, applies: Tensor) -> Tensor:
    """``[C, N]``, 0 where the cost does not apply: values there are not looked at."""
    if not isinstance(cost, Tensor) or cost.dim() == 0:
        return applies.to(pool.scores.dtype) * check_nonnegative(name, cost)
    columns = check_element_weights(name, cost, pool.scores.mT).to(pool.scores.dtype)
    values = (columns[:, None] if columns.dim() == 1 else columns).mT.expand_as(applies)
    check_weight_values(values[applies], name)
    return torch.where(applies, values, 0)


def _midway(above: Tensor, below: Tensor, dtype: torch.dtype) -> Tensor:
    """Thresholds ``[C, M + 1]`` in ``(below, above]``, in the middle as far as ``dtype`` has numbers there."""
    middle = (above / 2 + below / 2).to(dtype)
    above, below = above.to(dtype), below.to(dtype)
    middle = torch.where((below < middle) & (middle < above), middle, above)
    return torch.where((below == -torch.inf) & (above != torch.inf), below, middle)
