"""The ranking losses as a reader of the spec would write them down: one class, one pool, numpy, float64, loops.

Written from the contract and not from the implementation; slow, and meant to be obvious.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import assume
from scipy.special import expit as sigmoid
from torch import Tensor

from imbalanced_losses import PerClass
from tests.strategies import IGNORE, Problem

COUNTS = ("band_neg_count", "grad_pos_count")


@dataclass(frozen=True)
class Pool:
    """The rows that count for one class, live rows first."""

    scores: np.ndarray
    positive: np.ndarray
    live: np.ndarray
    iid: np.ndarray
    weight: np.ndarray
    live_rows: list[int]  # where the live ones are in the batch

    @property
    def negative(self) -> np.ndarray:
        return ~self.positive

    def numerator(self, cfg: Any) -> np.ndarray:
        """Indices of the positives whose terms are averaged."""
        live_only = getattr(cfg, "pos_numerator", "pool") == "live"
        return np.flatnonzero(self.positive & (self.live if live_only else True))


@dataclass(frozen=True)
class Thresholds:
    """What moves no further once the scores have set it (or, under "implicit", what the scores move)."""

    knots: list[float] = field(default_factory=list)
    tau: float = 1.0
    band: np.ndarray | None = None  # bool, the band's negatives
    weight: np.ndarray | None = None  # of the positives, if not that of their rows
    found: float = 0.0  # weight of the positives at or above the threshold


def pool_of(problem: Problem, label: int) -> Pool:
    rows = []
    n, state = len(problem.logits), problem.state
    for i in range(n):
        iid = True if problem.iid_mask is None else bool(problem.iid_mask[i])
        weight = 1.0 if problem.sample_weight is None else float(problem.sample_weight[i])
        rows.append((problem.logits[i, label], problem.targets[i], True, iid, weight, i))
    for i in range(len(state.logits)):
        rows.append((state.logits[i, label], state.targets[i], False, bool(state.iid[i]), state.sample_weight[i], -1))

    kept = []
    for score, target, live, iid, weight, index in rows:
        own = int(target[label] if problem.multilabel else target)
        if own != IGNORE:
            binary = problem.multilabel or problem.num_classes == 1
            kept.append((float(score), own == (1 if binary else label), live, iid, float(weight), index))
    columns = list(zip(*kept, strict=True)) if kept else [()] * 6
    return Pool(
        scores=np.array(columns[0], dtype=float),
        positive=np.array(columns[1], dtype=bool),
        live=np.array(columns[2], dtype=bool),
        iid=np.array(columns[3], dtype=bool),
        weight=np.array(columns[4], dtype=float),
        live_rows=[index for index in columns[5] if index >= 0],
    )


def quantile(values: np.ndarray, level: float, cfg: Any) -> float:
    return float(torch.quantile(torch.from_numpy(values), level, interpolation=cfg.quantile_interpolation))


# --- one positive's term, per loss ------------------------------------------------------------------------------------


def smooth_ap_term(i: int, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    rank, rank_among_positives = 1.0, 1.0
    for j in range(len(scores)):
        if j != i:
            above = sigmoid((scores[j] - scores[i]) / at.tau)
            rank += above
            rank_among_positives += above * pool.positive[j]
    return rank_among_positives / rank


def recall_term(i: int, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    return float(sigmoid((scores[i] - at.knots[0]) / at.tau))


def pauc_term(i: int, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    if cfg.surrogate == "pairwise":
        band = np.flatnonzero(at.band)
        return float(np.mean([sigmoid((scores[i] - scores[j]) / at.tau) for j in band])) if len(band) else 1.0
    fprs = np.linspace(cfg.alpha, cfg.beta, cfg.n_knots)
    rates = [sigmoid((scores[i] - knot) / at.tau) for knot in at.knots]
    area = sum((fprs[k + 1] - fprs[k]) * (rates[k] + rates[k + 1]) / 2 for k in range(len(fprs) - 1))
    return float(area / (cfg.beta - cfg.alpha))


# --- thresholds and validity, per loss --------------------------------------------------------------------------------


def every_row(pool: Pool, cfg: Any) -> np.ndarray:
    return np.ones(len(pool.scores), dtype=bool)


def recall_rows(pool: Pool, cfg: Any) -> np.ndarray:
    return pool.negative if cfg.budget_basis == "fpr" else every_row(pool, cfg)


def pauc_rows(pool: Pool, cfg: Any) -> np.ndarray:
    return pool.iid & (pool.negative if cfg.budget_basis == "fpr" else True)


def smooth_ap_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    return Thresholds(tau=cfg.temperature * spread(pool.scores, cfg)) if pool.negative.any() else None


def recall_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    if not len(reference):
        return None
    tau = cfg.temperature * spread(pool.scores, cfg)
    return Thresholds([quantile(reference, 1 - cfg.quantile, cfg)], tau)


def spread(scores: np.ndarray, cfg: Any, band_width: float = 0.0) -> float:
    """The unit of the temperature; where it has no size the standard deviation, and where that has none, 1."""
    if cfg.tau_scale == "none":
        return 1.0
    interpolation = getattr(cfg, "quantile_interpolation", "linear")
    upper, lower = np.quantile(scores, [0.75, 0.25], method=interpolation)
    sizes = {"iqr": upper - lower, "band": band_width, "std": 0.0}
    return next((size for size in (sizes[cfg.tau_scale], (scores - scores[0]).std()) if size > 1e-12), 1.0)


def soft_fbeta_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    return Thresholds(tau=cfg.temperature * spread(pool.scores, cfg))


def at_recall_rows(pool: Pool, cfg: Any) -> np.ndarray:
    return pool.positive & (pool.weight > 0)


def at_recall_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    """The highest score of a positive that finds the share of the positives' weight."""
    if not pool.weight[pool.negative].sum() > 0:
        return None
    rows = np.flatnonzero(at_recall_rows(pool, cfg))
    total, reached = pool.weight[rows].sum(), []
    for i in rows:
        found = sum(pool.weight[k] for k in rows if pool.scores[k] >= pool.scores[i])
        if found >= (cfg.recall - 1e-12) * total:
            reached.append((float(pool.scores[i]), float(found)))
    threshold, found = max(reached)
    return Thresholds([threshold], cfg.temperature * spread(pool.scores, cfg), found=found)


def pauc_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    if not (pool.iid & pool.negative).any():
        return None
    fprs = [cfg.alpha, *np.linspace(cfg.alpha, cfg.beta, cfg.n_knots)[1:-1], cfg.beta]
    knots = [quantile(reference, 1 - fpr, cfg) for fpr in fprs]
    t_alpha, t_beta = knots[0], knots[-1]
    band = pool.negative & (t_beta <= pool.scores) & (pool.scores <= t_alpha)
    tau = cfg.temperature * spread(reference, cfg, t_alpha - t_beta)
    return Thresholds(knots, tau, band, below_the_floor(pool, cfg))


def below_the_floor(pool: Pool, cfg: Any) -> np.ndarray:
    """Weights without the highest positives' share ``min_tpr``; of equal scores each loses the same part."""
    left = np.zeros(len(pool.scores))
    rows = pool.numerator(cfg)
    left[rows] = pool.weight[rows]
    to_remove = cfg.min_tpr * left.sum()
    for score in sorted(set(pool.scores[rows]), reverse=True):
        group = (pool.scores == score) & (left > 0)
        removed = min(to_remove, left[group].sum())
        if removed > 0:
            left[group] *= 1 - removed / left[group].sum()
        to_remove -= removed
    return left


# --- losses -----------------------------------------------------------------------------------------------------------


def term_statistics(term: Callable[..., float], scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> np.ndarray:
    """Weighted mean and variance of the terms of the positives in the numerator."""
    rows = pool.numerator(cfg)
    terms = np.array([term(i, scores, pool, at, cfg) for i in rows])
    weight = (pool.weight if at.weight is None else at.weight)[rows]
    mean = (weight * terms).sum() / weight.sum()
    return np.array([mean, (weight * (terms - mean) ** 2).sum() / weight.sum()])


def one_minus_mean(term: Callable[..., float]) -> Callable[..., float]:
    """One minus the weighted mean of the positives' terms."""
    return lambda *arguments: 1 - term_statistics(term, *arguments)[0]


def soft_fbeta(scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    """Bénédict et al.: F-beta of soft true and false positives and false negatives."""
    true_positives = false_positives = false_negatives = 0.0
    for score, positive, weight in zip(scores, pool.positive, pool.weight, strict=True):
        soft = sigmoid((score + cfg.eta) / at.tau)
        true_positives += weight * soft * positive
        false_positives += weight * soft * (not positive)
        false_negatives += weight * sigmoid(-(score + cfg.eta) / at.tau) * positive
    squared = cfg.beta**2
    wrong = squared * false_negatives + false_positives
    return float(wrong / ((1 + squared) * true_positives + wrong))


def false_alerts(scores: np.ndarray, pool: Pool, at: Thresholds) -> float:
    """Weight of the negatives above the threshold, softly."""
    negatives = np.flatnonzero(pool.negative)
    return float(sum(pool.weight[j] * sigmoid((scores[j] - at.knots[0]) / at.tau) for j in negatives))


def precision_at_recall(scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    false = false_alerts(scores, pool, at)
    return false / (at.found + false)


def fpr_at_recall(scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    return false_alerts(scores, pool, at) / float(pool.weight[pool.negative].sum())


def at_recall_diagnostics(pool: Pool, at: Thresholds | None, cfg: Any) -> dict[str, float]:
    if at is None:
        return {"threshold": np.nan, "recall": np.nan}
    return {"threshold": at.knots[0], "recall": at.found / pool.weight[pool.positive].sum()}


def log_mean_exp(values: np.ndarray, weight: np.ndarray, temperature: float) -> float:
    """``temperature * log(weighted mean of exp(values / temperature))``."""
    if not values.any():
        return 0.0
    terms = weight / weight.sum() * np.exp((values - values.max()) / temperature)
    return float(values.max() + temperature * np.log(terms.sum()))


def hinges(i: int, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> np.ndarray:
    """Of positive ``i`` with each negative."""
    scale = at.tau / cfg.temperature
    return np.array([max(0.0, cfg.margin - (scores[i] - scores[j]) / scale) for j in np.flatnonzero(pool.negative)])


def dro_term(i: int, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    losses = hinges(i, scores, pool, at, cfg)
    return log_mean_exp(losses, np.ones(len(losses)), cfg.temperature)


def pauc(scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> float:
    """One minus the mean of the positives' shares of the area; with "dro" the mean of their worst cases, or its own."""
    if cfg.surrogate != "dro":
        return one_minus_mean(pauc_term)(scores, pool, at, cfg)
    if cfg.positive_temperature is None:
        return float(term_statistics(dro_term, scores, pool, at, cfg)[0])
    assert at.weight is not None
    rows = np.flatnonzero(at.weight > 0)
    own = np.array([dro_term(i, scores, pool, at, cfg) for i in rows])
    return log_mean_exp(own, at.weight[rows], cfg.positive_temperature)


def effective_beta(pool: Pool, at: Thresholds, cfg: Any) -> float:
    """Share of the negatives that the worst case rests on: ``exp(-KL)``, in proportion to the positives' losses."""
    assert at.weight is not None
    shares, parts = [], []
    for i in np.flatnonzero(at.weight > 0):
        losses = hinges(i, pool.scores, pool, at, cfg)
        tilted = np.exp((losses - losses.max()) / cfg.temperature)
        tilted /= tilted.sum()
        entropy = -sum(share * np.log(share) for share in tilted if share > 0)
        shares.append(np.exp(entropy) / len(losses))
        parts.append(at.weight[i] * dro_term(i, pool.scores, pool, at, cfg))
    return float(np.average(shares, weights=parts) if sum(parts) > 0 else 1.0)


def pauc_diagnostics(pool: Pool, at: Thresholds | None, cfg: Any) -> dict[str, float]:
    """``at`` is None for an invalid class."""
    found = dict.fromkeys(("t_alpha", "t_beta", "tau_eff", "pauc_var", "band_neg_count"), np.nan)
    if cfg.surrogate == "dro":
        found["effective_beta"] = np.nan if at is None else effective_beta(pool, at, cfg)
    if at is not None:
        term = dro_term if cfg.surrogate == "dro" else pauc_term
        variance = term_statistics(term, pool.scores, pool, at, cfg)[1]
        found |= {"t_alpha": at.knots[0], "t_beta": at.knots[-1], "tau_eff": at.tau, "pauc_var": variance}
        found["band_neg_count"] = float((at.band & pool.iid).sum())
    return {**found, "grad_pos_count": float((pool.positive & pool.live).sum())}


@dataclass(frozen=True)
class Reference:
    """One class of a ranking loss.

    ``thresholds(scores of rows(pool, cfg), pool, cfg)`` is what the step holds constant, or None if there are not the
    rows to compare with. ``loss(scores, pool, thresholds, cfg)`` is the loss of scores that may have moved since.
    """

    thresholds: Callable[[np.ndarray, Pool, Any], Thresholds | None]
    loss: Callable[[np.ndarray, Pool, Thresholds, Any], float]
    rows: Callable[[Pool, Any], np.ndarray] = every_row
    weighs_rows: bool = False
    """The rows of the threshold weigh what they weigh in the loss."""
    diagnostics: Callable[[Pool, Thresholds | None, Any], dict[str, float]] = lambda pool, at, cfg: {}

    def held(self, pool: Pool, cfg: Any) -> Thresholds | None:
        """None if the class is invalid."""
        if not pool.weight[pool.numerator(cfg)].sum() > 0:
            return None
        return self.thresholds(pool.scores[self.rows(pool, cfg)], pool, cfg)


SMOOTH_AP = Reference(smooth_ap_thresholds, one_minus_mean(smooth_ap_term))
RECALL = Reference(recall_thresholds, one_minus_mean(recall_term), recall_rows)
PAUC = Reference(pauc_thresholds, pauc, pauc_rows, diagnostics=pauc_diagnostics)
SOFT_FBETA = Reference(soft_fbeta_thresholds, soft_fbeta)
PRECISION_AT_RECALL, FPR_AT_RECALL = (
    Reference(at_recall_thresholds, loss, at_recall_rows, weighs_rows=True, diagnostics=at_recall_diagnostics)
    for loss in (precision_at_recall, fpr_at_recall)
)


def per_class(loss: Reference, problem: Problem, cfg: Any) -> PerClass:
    """What the library's per-class function should return."""
    pools = [pool_of(problem, label) for label in range(problem.num_classes)]
    rows = [_one_class(loss, pool, cfg) for pool in pools]
    return PerClass(
        loss=torch.tensor([row["loss"] for row in rows], dtype=torch.float64),
        valid=torch.tensor([not np.isnan(row["loss"]) for row in rows]),
        diagnostics={
            name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0] if name != "loss"
        },
    )


def _one_class(loss: Reference, pool: Pool, cfg: Any) -> dict[str, float]:
    at = loss.held(pool, cfg)
    value = np.nan if at is None else loss.loss(pool.scores, pool, at, cfg)
    return {"loss": value, **loss.diagnostics(pool, at, cfg)}


# --- gradients by finite differences ----------------------------------------------------------------------------------


def gradient(loss: Reference, problem: Problem, cfg: Any) -> Tensor:
    """Of the sum over valid classes, thresholds held: "stop"."""
    return _gradient(loss, problem, cfg, follow=lambda at, scores, pool: at)


def soft_quantile_gradient(loss: Reference, problem: Problem, cfg: Any) -> Tensor:
    """The same with every threshold solving ``sum_j sigma((s_j - t)/tau) = const`` for the moved scores."""

    def follow(at: Thresholds, scores: np.ndarray, pool: Pool) -> Thresholds:
        rows = loss.rows(pool, cfg)
        weight = pool.weight[rows] if loss.weighs_rows else np.ones(rows.sum())
        moved = [_solve(scores[rows], pool.scores[rows], weight, knot, at.tau) for knot in at.knots]
        return replace(at, knots=moved)

    return _gradient(loss, problem, cfg, follow)


def _gradient(
    loss: Reference, problem: Problem, cfg: Any, follow: Callable[[Thresholds, np.ndarray, Pool], Thresholds]
) -> Tensor:
    result = torch.zeros(problem.logits.shape, dtype=torch.float64)
    for label in range(problem.num_classes):
        pool = pool_of(problem, label)
        at = loss.held(pool, cfg)
        if at is None:
            continue
        step = 1e-4 * at.tau
        for i, row in enumerate(pool.live_rows):
            values = []
            for sign in (1, -1):
                scores = pool.scores.copy()
                scores[i] += sign * step
                values.append(loss.loss(scores, pool, follow(at, scores, pool), cfg))
            result[row, label] = (values[0] - values[1]) / (2 * step)
    return result


def _solve(scores: Sequence[float], before: np.ndarray, weight: np.ndarray, threshold: float, tau: float) -> float:
    """Bisection for the threshold at which the moved scores count as many rows above as the old ones did."""
    slopes = sigmoid((before - threshold) / tau)
    assume((weight * slopes * (1 - slopes)).sum() > 1e-4)  # too flat to bisect in float64
    count, low, high = (weight * slopes).sum(), threshold - tau, threshold + tau
    for _ in range(60):
        middle = (low + high) / 2
        above = (weight * sigmoid((np.asarray(scores) - middle) / tau)).sum()
        low, high = (middle, high) if above > count else (low, middle)
    return (low + high) / 2
