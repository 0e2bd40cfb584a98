"""The elementwise losses as their papers write them down: NumPy, float64, element by element.

Each takes logits, targets and a configuration, and gives the loss of every target, 0 where it is ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit as sigmoid

LEAST_PRIOR = 1e-12


def log_sigmoid(z: float) -> float:
    return -float(np.logaddexp(0, -z))


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - np.logaddexp.reduce(row)


def over_rows(row_loss: Any, z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    """Of a softmax loss ``row_loss(logits [C], class id)``; classes are axis 1."""
    rows = np.moveaxis(z, 1, -1).reshape(-1, z.shape[1])
    losses = [0.0 if y == cfg.ignore_index else row_loss(row, y) for row, y in zip(rows, targets.flat, strict=True)]
    return np.array(losses).reshape(targets.shape)


def over_elements(element_loss: Any, z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    """Of a loss ``element_loss(logit, label in [0, 1], index)``."""
    losses = np.zeros(z.shape)
    for index in np.ndindex(*z.shape):
        if targets[index] != cfg.ignore_index:
            losses[index] = element_loss(z[index], targets[index], index)
    return losses


# --- focal losses: Lin et al., eq. 5; for soft labels Li et al., Generalized Focal Loss -------------------------------


def sigmoid_focal(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    def loss(score: float, y: float, index: Any) -> float:
        missed = sigmoid(-score) if y == 1 else abs(y - sigmoid(score))
        alpha_t = 1.0 if cfg.alpha == -1 else cfg.alpha * y + (1 - cfg.alpha) * (1 - y)
        cross_entropy = -y * log_sigmoid(score) - (1 - y) * log_sigmoid(-score)
        return float(alpha_t * missed**cfg.gamma * cross_entropy)

    return over_elements(loss, z, targets, cfg)


def softmax_focal(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    def loss(row: np.ndarray, y: int) -> float:
        log_p, smoothing = log_softmax(row), cfg.label_smoothing
        alpha = np.ones(len(row)) if cfg.alpha is None else np.array(cfg.alpha)
        missed = np.exp(np.delete(log_p, y)).sum()
        one_hot = (1 - smoothing) * (np.arange(len(row)) == y) + smoothing / len(row)
        return float(-(missed**cfg.gamma) * (one_hot * alpha * log_p).sum())

    return over_rows(loss, z, targets, cfg)


# --- logit adjustment -------------------------------------------------------------------------------------------------


def logit_adjusted(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    return (logit_adjusted_binary if targets.shape == z.shape else logit_adjusted_softmax)(z, targets, cfg)


def logit_adjusted_softmax(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    """Kini et al., the multi-class VS loss without class weights."""
    counts = np.maximum(np.array(cfg.priors), LEAST_PRIOR)
    pi, delta = counts / counts.sum(), (counts / counts.max()) ** cfg.gamma

    def loss(row: np.ndarray, y: int) -> float:
        log_p = log_softmax(delta * row + cfg.tau * np.log(pi))
        return float(-(1 - cfg.label_smoothing) * log_p[y] - cfg.label_smoothing * log_p.mean())

    return over_rows(loss, z, targets, cfg)


def logit_adjusted_binary(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    """Kini et al., the binary VS loss ``log(1 + exp(iota_y) exp(-Delta_y y s))`` with y in {-1, 1}."""
    pairs = [cfg.priors] if len(cfg.priors) == 2 else [(1 - share, share) for share in cfg.priors]

    def loss(score: float, label: float, index: Any) -> float:
        pair = np.maximum(pairs[index[1] if len(index) > 1 else 0], LEAST_PRIOR)
        delta = (pair / pair.max()) ** cfg.gamma
        log_odds = cfg.tau * np.log(pair[1] / pair[0])
        exponents = [-y * (delta[(y + 1) // 2] * score + log_odds) for y in (1, -1)]
        return float(label * np.logaddexp(0, exponents[0]) + (1 - label) * np.logaddexp(0, exponents[1]))

    return over_elements(loss, z, targets, cfg)


# --- the asymmetric loss: Ben-Baruch et al., eq. 4 to 7 ---------------------------------------------------------------


def asymmetric(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    def loss(score: float, y: float, index: Any) -> float:
        log_p, log_q = log_sigmoid(score), log_sigmoid(-score)
        of_positive = np.exp(log_q) ** cfg.gamma_pos * log_p
        shifted = max(np.exp(log_p) - cfg.margin, 0.0)
        log_rest = log_q if cfg.margin == 0 else 0.0
        if cfg.margin > 0 and shifted > 0:
            log_rest = np.log(np.exp(log_q) + cfg.margin)
        return float(-y * of_positive - (1 - y) * shifted**cfg.gamma_neg * log_rest)

    return over_elements(loss, z, targets, cfg)


# --- label-distribution-aware margins: Cao et al., section 3 ----------------------------------------------------------


def ldam_margins(cfg: Any) -> list[float]:
    """C / n^(1/4), with the C that makes the largest one max_margin; the largest where there is no example."""
    raw = [count**-0.25 if count > 0 else 0.0 for count in cfg.counts]
    constant = cfg.max_margin / max(raw)
    return [constant * margin if margin > 0 else cfg.max_margin for margin in raw]


def ldam(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    return (ldam_binary if targets.shape == z.shape else ldam_softmax)(z, targets, cfg)


def ldam_softmax(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    def loss(row: np.ndarray, y: int) -> float:
        moved = row - ldam_margins(cfg)[y] * (np.arange(len(row)) == y)
        weight = 1.0 if cfg.class_weights is None else cfg.class_weights[y]
        return float(-weight * log_softmax(cfg.scale * moved)[y])

    return over_rows(loss, z, targets, cfg)


def ldam_binary(z: np.ndarray, targets: np.ndarray, cfg: Any) -> np.ndarray:
    """The two-class loss of the logits (0, z); a label between 0 and 1 mixes margins and weights."""
    of_zero, of_one = ldam_margins(cfg)
    weights = cfg.class_weights or (1.0, 1.0)

    def loss(score: float, y: float, index: Any) -> float:
        moved = cfg.scale * (score + (1 - y) * of_zero - y * of_one)
        cross_entropy = -y * log_sigmoid(moved) - (1 - y) * log_sigmoid(-moved)
        return float(((1 - y) * weights[0] + y * weights[1]) * cross_entropy)

    return over_elements(loss, z, targets, cfg)
