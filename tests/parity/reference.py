"""The three ranking losses as a reader of the spec would write them down: one class, one pool, numpy, float64, loops.

Written from the contract and not from the implementation; slow, and meant to be obvious.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


TERMS: dict[str, Callable[..., float]] = {"smooth_ap": smooth_ap_term, "recall": recall_term, "pauc": pauc_term}


# --- thresholds and validity, per loss --------------------------------------------------------------------------------


def reference_rows(loss: str, pool: Pool, cfg: Any) -> np.ndarray:
    """Bool: the rows whose scores make the thresholds."""
    if loss == "recall":
        return pool.negative if cfg.budget_basis == "fpr" else np.ones(len(pool.scores), dtype=bool)
    return pool.iid & (pool.negative if cfg.budget_basis == "fpr" else True)


def thresholds(loss: str, pool: Pool, cfg: Any) -> Thresholds | None:
    """None if the class is invalid for want of rows to compare with."""
    if loss == "smooth_ap":
        return Thresholds(tau=cfg.temperature * spread(pool.scores, cfg)) if pool.negative.any() else None
    reference = pool.scores[reference_rows(loss, pool, cfg)]
    if loss == "recall":
        if not len(reference):
            return None
        tau = cfg.temperature * spread(reference, cfg)
        return Thresholds([quantile(reference, 1 - cfg.quantile, cfg)], tau)
    return pauc_thresholds(reference, pool, cfg)


def spread(scores: np.ndarray, cfg: Any, band_width: float = 0.0) -> float:
    """The unit of the temperature; where it has no size the standard deviation, and where that has none, 1."""
    if cfg.tau_scale == "none":
        return 1.0
    interpolation = getattr(cfg, "quantile_interpolation", "linear")
    upper, lower = np.quantile(scores, [0.75, 0.25], method=interpolation)
    sizes = {"iqr": upper - lower, "band": band_width, "std": 0.0}
    return next((size for size in (sizes[cfg.tau_scale], (scores - scores[0]).std()) if size > 1e-12), 1.0)


def pauc_thresholds(reference: np.ndarray, pool: Pool, cfg: Any) -> Thresholds | None:
    if not (pool.iid & pool.negative).any():
        return None
    fprs = [cfg.alpha, *np.linspace(cfg.alpha, cfg.beta, cfg.n_knots)[1:-1], cfg.beta]
    knots = [quantile(reference, 1 - fpr, cfg) for fpr in fprs]
    t_alpha, t_beta = knots[0], knots[-1]
    band = pool.negative & (t_beta <= pool.scores) & (pool.scores <= t_alpha)
    return Thresholds(knots, cfg.temperature * spread(reference, cfg, t_alpha - t_beta), band)


# --- losses -----------------------------------------------------------------------------------------------------------


def loss_at(loss: str, scores: np.ndarray, pool: Pool, at: Thresholds, cfg: Any) -> tuple[float, float]:
    """Loss, and the variance of its positives' terms, of ``scores`` under given thresholds."""
    rows = pool.numerator(cfg)
    terms = np.array([TERMS[loss](i, scores, pool, at, cfg) for i in rows])
    weight = pool.weight[rows]
    mean = (weight * terms).sum() / weight.sum()
    return 1 - mean, (weight * (terms - mean) ** 2).sum() / weight.sum()


def per_class(loss: str, problem: Problem, cfg: Any) -> PerClass:
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


def _one_class(loss: str, pool: Pool, cfg: Any) -> dict[str, float]:
    at = thresholds(loss, pool, cfg)
    valid = at is not None and pool.weight[pool.numerator(cfg)].sum() > 0
    value, variance = loss_at(loss, pool.scores, pool, at, cfg) if valid else (np.nan, np.nan)
    if loss != "pauc":
        return {"loss": value}
    shown = {"t_alpha": at.knots[0], "t_beta": at.knots[-1], "tau_eff": at.tau} if valid else {}
    return {
        "loss": value,
        "t_alpha": shown.get("t_alpha", np.nan),
        "t_beta": shown.get("t_beta", np.nan),
        "tau_eff": shown.get("tau_eff", np.nan),
        "pauc_var": variance,
        "band_neg_count": float((at.band & pool.iid).sum()) if valid else np.nan,
        "grad_pos_count": float((pool.positive & pool.live).sum()),
    }


# --- gradients by finite differences ----------------------------------------------------------------------------------


def gradient(loss: str, problem: Problem, cfg: Any) -> Tensor:
    """Of the sum over valid classes, thresholds held: "stop"."""
    return _gradient(loss, problem, cfg, follow=lambda at, scores, pool: at)


def soft_quantile_gradient(loss: str, problem: Problem, cfg: Any) -> Tensor:
    """The same with every threshold solving ``sum_j sigma((s_j - t)/tau) = const`` for the moved scores."""

    def follow(at: Thresholds, scores: np.ndarray, pool: Pool) -> Thresholds:
        rows = reference_rows(loss, pool, cfg)
        moved = [_solve(scores[rows], pool.scores[rows], knot, at.tau) for knot in at.knots]
        return Thresholds(moved, at.tau, at.band)

    return _gradient(loss, problem, cfg, follow)


def _gradient(
    loss: str, problem: Problem, cfg: Any, follow: Callable[[Thresholds, np.ndarray, Pool], Thresholds]
) -> Tensor:
    result = torch.zeros(problem.logits.shape, dtype=torch.float64)
    for label in range(problem.num_classes):
        pool = pool_of(problem, label)
        at = thresholds(loss, pool, cfg)
        if at is None or not pool.weight[pool.numerator(cfg)].sum() > 0:
            continue
        step = 1e-4 * at.tau
        for i, row in enumerate(pool.live_rows):
            values = []
            for sign in (1, -1):
                scores = pool.scores.copy()
                scores[i] += sign * step
                values.append(loss_at(loss, scores, pool, follow(at, scores, pool), cfg)[0])
            result[row, label] = (values[0] - values[1]) / (2 * step)
    return result


def _solve(scores: Sequence[float], before: np.ndarray, threshold: float, tau: float) -> float:
    """Bisection for the threshold at which the moved scores count as many rows above as the old ones did."""
    slopes = sigmoid((before - threshold) / tau)
    assume((slopes * (1 - slopes)).sum() > 1e-4)  # too flat to bisect in float64
    count, low, high = slopes.sum(), threshold - tau, threshold + tau
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid((np.asarray(scores) - middle) / tau).sum() > count else (low, middle)
    return (low + high) / 2
