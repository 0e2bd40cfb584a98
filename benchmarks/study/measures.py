"""What a trained model is judged by: one implementation for all contenders, from validation and test logits."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from imbalanced_losses.calibration import PlattScaling
from imbalanced_losses.metrics import average_precision, partial_auc, precision_at_recall
from study.loop import log_odds
from study.parts import EVERY_GROUP, Part
from study.problems import Problem

__all__ = [
    "LOWER_IS_BETTER",
    "MEASURES",
    "TARGET",
    "calibrated_error",
    "calibration_error",
    "hot_labels",
    "judge",
    "ranking_measures",
    "recall_at_budget",
    "savings",
]

MEASURES = {
    "ap": "average precision",
    "recall": "recall at the budget",
    "pauc": "partial AUC up to the budget",
    "precision": "precision at recall 0.8",
    "savings": "savings",
    "ece": "calibration error after Platt scaling",
}
LOWER_IS_BETTER = {"ece"}
TARGET = "ap"
RECALL = 0.8
CALIBRATION_BINS = 15


def judge(validation: Tensor, test: Tensor, sets: tuple[Part, Part], problem: Problem, link: str) -> dict[str, float]:
    """All measures of test logits ``[N, C]``; validation logits fit the calibration and choose the threshold."""
    scores = [log_odds(logits) if link == "softmax" else logits.double() for logits in (validation, test)]
    found = ranking_measures(scores[1], sets[1], problem)
    found["savings"] = savings(scores[0], scores[1], *sets) if problem.has_costs else torch.nan
    found["ece"] = calibrated_error(scores[0], scores[1], *sets, problem)
    return found


def ranking_measures(scores: Tensor, part: Part, problem: Problem) -> dict[str, float]:
    """Means over classes (macro), and over the groups of a thinned set."""
    n_groups = int(part.groups.max()) + 1
    if n_groups == 0:
        return _of_group(scores, part.targets, problem)
    kept = [(part.groups == EVERY_GROUP) | (part.groups == group) for group in range(n_groups)]
    by_group = [_of_group(scores[rows], part.targets[rows], problem) for rows in kept]
    return {name: sum(one[name] for one in by_group) / n_groups for name in by_group[0]}


def _of_group(scores: Tensor, targets: Tensor, problem: Problem) -> dict[str, float]:
    values = {
        "ap": average_precision(scores, targets),
        "recall": recall_at_budget(scores, hot_labels(targets, problem), problem.budget),
        "pauc": partial_auc(scores, targets, 0.0, problem.budget),
        "precision": precision_at_recall(scores, targets, RECALL),
    }
    return {name: float(value.mean()) for name, value in values.items()}


def hot_labels(targets: Tensor, problem: Problem) -> Tensor:
    """``[N, C]`` labels, one class against the rest."""
    return one_hot(targets, problem.n_classes) if problem.kind == "multiclass" else targets[:, None]


def recall_at_budget(scores: Tensor, labels: Tensor, budget: float) -> Tensor:
    """``[C]``: share of positives among the alerts, which are a share of all rows.

    Of equal scores at the threshold a random choice is alerted, in expectation: a constant model finds as many as
    chance, and not all, as with a threshold that it reaches everywhere.
    """
    n_alerts = max(1.0, round(budget * len(scores)))
    found = []
    for column, positive in zip(scores.T, labels.T.double(), strict=True):
        least = column.topk(int(n_alerts)).values[-1]
        above, equal = column > least, column == least
        share = (n_alerts - above.sum()) / equal.sum()
        found.append((positive[above].sum() + share * positive[equal].sum()) / positive.sum())
    return torch.stack(found)


def savings(validation: Tensor, test: Tensor, chosen_on: Part, judged_on: Part) -> float:
    """Share of the cost of the better of no alerts and all alerts that the model saves (Bahnsen et al., 2015).

    Costs are those of each row, of a false alert or of a missed positive, less what the right decision costs there. The
    threshold is the cheapest on validation.
    """
    threshold = cheapest_threshold(validation[:, 0], chosen_on)
    cost = _cost(test[:, 0] >= threshold, judged_on)
    alerts = torch.ones(len(test), dtype=torch.bool)
    return float(1 - cost / min(_cost(alerts, judged_on), _cost(~alerts, judged_on)))


def _cost(alert: Tensor, part: Part) -> Tensor:
    assert part.costs is not None
    false_alert, missed = part.costs.unbind(1)
    positive = part.targets == 1
    return torch.where(alert, false_alert * ~positive, missed * positive).sum()


def cheapest_threshold(scores: Tensor, part: Part) -> float:
    """Alert from this score up; ``inf``: never."""
    assert part.costs is not None
    false_alert, missed = part.costs.unbind(1)
    gain = torch.where(part.targets == 1, missed, -false_alert)  # of an alert
    values, level = torch.unique(scores, return_inverse=True)  # ascending; equal scores alert together
    by_level = torch.zeros(len(values), dtype=torch.float64).index_add(0, level, gain)
    total = by_level.flip(0).cumsum(0).flip(0)
    best = int(total.argmax())
    return float(values[best]) if total[best] > 0 else torch.inf


def calibrated_error(validation: Tensor, test: Tensor, fitted_on: Part, judged_on: Part, problem: Problem) -> float:
    """Calibration error on test after Platt scaling, one class against the rest, fitted on validation."""
    if not (validation.isfinite().all() and test.isfinite().all()):
        return torch.nan
    hot = [hot_labels(part.targets, problem) for part in (fitted_on, judged_on)]
    scaling = PlattScaling(problem.n_classes).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that separates perfectly stays as it is
        scaling.fit(validation, hot[0])
    return float(calibration_error(scaling(test).sigmoid(), hot[1]).mean())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """``[C]``: expected calibration error of ``[N, C]`` probabilities for labels {0, 1}, in bins of equal mass.

    Rows of equal probability count alike, each with the mean of their labels, so that their order does not matter.
    """
    errors = []
    for predicted, of_class in zip(probabilities.T, labels.T, strict=True):
        values, level, counts = predicted.unique(return_inverse=True, return_counts=True)
        shares = torch.zeros(len(values), dtype=torch.float64).index_add(0, level, of_class.double()) / counts
        gaps = (values.double() - shares).repeat_interleave(counts)
        errors.append(sum(part.sum().abs() for part in gaps.tensor_split(bins)) / len(gaps))
    return torch.stack(errors)
