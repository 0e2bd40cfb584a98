"""What the tests of KL-DRO and of the two-way partial AUC share: problems, and NumPy references written as loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalanced_losses import PAUCAtBudgetConfig, QueueState, init_queue, pauc_at_budget
from imbalanced_losses.queue import push

IGNORE = -100
KINDS = {"binary": (1, False), "multiclass": (3, False), "multilabel": (3, True)}


@dataclass(frozen=True)
class Problem:
    """Live rows and the queue that they meet."""

    logits: Tensor
    targets: Tensor
    state: QueueState
    iid_mask: Tensor
    sample_weight: Tensor
    num_classes: int
    multilabel: bool

    def config(self, **options: Any) -> PAUCAtBudgetConfig:
        settings: dict[str, Any] = {"surrogate": "dro", "num_classes": self.num_classes, "multilabel": self.multilabel}
        return PAUCAtBudgetConfig(**{**settings, **options})

    @property
    def extras(self) -> dict[str, Tensor]:
        return {"iid_mask": self.iid_mask, "sample_weight": self.sample_weight}

    def loss(self, logits: Tensor, cfg: PAUCAtBudgetConfig) -> Tensor:
        return pauc_at_budget(logits, self.targets, self.state, cfg, **self.extras)[0]


def make_problem(
    kind: str = "binary", n: int = 24, queue: int = 16, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Problem:
    """Every class has live positives and live negatives; one row is ignored, and a fifth are not iid."""
    generator = torch.Generator().manual_seed(seed)
    num_classes, multilabel = KINDS[kind]
    filled = 3 * queue // 4
    m = n + filled
    targets = torch.arange(m) % max(3, num_classes)
    if multilabel:
        targets = ((torch.arange(m)[:, None] + torch.arange(num_classes)) % 4 == 0).long()
        targets[7, 0] = IGNORE
    elif num_classes == 1:
        targets = (targets == 1).long()
    targets[5] = IGNORE
    logits = torch.randn(m, num_classes, generator=generator, dtype=torch.float64).to(dtype)
    iid = torch.arange(m) % 5 != 4
    weight = 0.5 + torch.rand(m, generator=generator, dtype=torch.float64).to(dtype)
    state = init_queue(queue, num_classes, multilabel=multilabel, dtype=dtype)
    state = push(state, logits[n:], targets[n:], iid[n:], weight[n:])
    return Problem(logits[:n], targets[:n], state, iid[:n], weight[:n], num_classes, multilabel)


@dataclass(frozen=True)
class Rows:
    """The rows that count for one class, as NumPy."""

    scores: np.ndarray
    positive: np.ndarray
    iid: np.ndarray
    weight: np.ndarray


def rows_of(problem: Problem, label: int) -> Rows:
    state, kept = problem.state, []
    sources = [
        (problem.logits, problem.targets, problem.iid_mask, problem.sample_weight),
        (state.logits, state.targets, state.iid, state.sample_weight),
    ]
    for logits, targets, iid, weight in sources:
        for i in range(len(logits)):
            own = int(targets[i, label] if problem.multilabel else targets[i])
            if own != IGNORE:
                binary = problem.multilabel or problem.num_classes == 1
                kept.append((float(logits[i, label]), own == (1 if binary else label), bool(iid[i]), float(weight[i])))
    scores, positive, flags, weights = map(np.array, zip(*kept, strict=True))
    return Rows(scores, positive, flags, weights)


def quantile(values: np.ndarray, level: float, cfg: PAUCAtBudgetConfig) -> float:
    return float(torch.quantile(torch.from_numpy(values), level, interpolation=cfg.quantile_interpolation))


def scale_of(rows: Rows, cfg: PAUCAtBudgetConfig) -> float:
    """The interquartile range of the reference."""
    reference = rows.scores[rows.iid & (~rows.positive if cfg.budget_basis == "fpr" else True)]
    return quantile(reference, 0.75, cfg) - quantile(reference, 0.25, cfg)


def log_mean_exp(values: list[float], weights: list[float], temperature: float) -> float:
    """``temperature * log(weighted mean of exp(values / temperature))``."""
    top, total = max(values), sum(weights)
    terms = [w / total * np.exp((v - top) / temperature) for v, w in zip(values, weights, strict=True)]
    return float(top + temperature * np.log(sum(terms)))


def hinges(i: int, rows: Rows, scale: float, margin: float) -> list[float]:
    """The hinge loss of positive ``i`` with each negative."""
    negatives = np.flatnonzero(~rows.positive)
    return [max(0.0, margin - (rows.scores[i] - rows.scores[j]) / scale) for j in negatives]


def trimmed(rows: Rows, min_tpr: float) -> np.ndarray:
    """The weights of the positives below the floor: from the top, groups of equal scores lose weight in equal parts."""
    left = np.where(rows.positive, rows.weight, 0.0)
    to_remove = min_tpr * left.sum()
    for score in sorted(set(rows.scores[rows.positive]), reverse=True):
        group = rows.positive & (rows.scores == score)
        removed = min(to_remove, left[group].sum())
        if removed > 0:
            left[group] *= 1 - removed / left[group].sum()
        to_remove -= removed
    return left


def dro_reference(rows: Rows, cfg: PAUCAtBudgetConfig, scale: float | None = None) -> float:
    """KL-DRO over negatives; over positives, too, if there is a ``positive_temperature``."""
    scale = scale_of(rows, cfg) if scale is None else scale
    weight = trimmed(rows, cfg.min_tpr)
    own, shares = [], []
    for i in np.flatnonzero(weight > 0):
        losses = hinges(i, rows, scale, cfg.margin)
        own.append(log_mean_exp(losses, [1.0] * len(losses), cfg.temperature))
        shares.append(float(weight[i]))
    if cfg.positive_temperature is not None:
        return log_mean_exp(own, shares, cfg.positive_temperature)
    return sum(w * y for w, y in zip(shares, own, strict=True)) / sum(shares)
