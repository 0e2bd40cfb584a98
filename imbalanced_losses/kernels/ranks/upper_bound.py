r"""One minus the precision at each positive, with an upper bound of the negatives' ranks: what SupAP averages.

A negative ``t = s_j - s_i`` above a positive counts

.. math:: H^-(t) = \sigma(t/\tau) \;(t < 0), \quad \sigma(t/\tau) + 1/2 \;(0 \le t \le \delta), \quad
    \rho\,(t - \delta) + \sigma(\delta/\tau) + 1/2 \;(t > \delta)

which is at least 1 from ``t = 0`` on. Positives count by the step function, which has no gradient. Unlike sums of
sigmoids, these sums are not sums of exponentials, so each positive is compared with every key, in blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.dispatch import holds_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import make_mean
from imbalanced_losses.kernels.packing import pack
from imbalanced_losses.kernels.tuning import CHUNK_PAIRS, CHUNK_PAIRS_ELSEWHERE

__all__ = ["bounded_missed_precision"]


def bounded_missed_precision(
    scores: Tensor, positive: Tensor, negative: Tensor, temperature: Tensor, rho: float, delta: float
) -> tuple[Tensor, Tensor]:
    r"""Mean of ``1 - R^+ / R`` over the positives of each problem, and their number.

    .. math:: y_r = \frac{1}{|P_r|} \sum_{i \in P_r} \frac{R_{ri}^-}{R_{ri}^+ + R_{ri}^-}, \qquad
        R_{ri}^+ = \sum_{j \in P_r} [s_{rj} \ge s_{ri}], \qquad R_{ri}^- = \sum_{j \in N_r} H^-(s_{rj} - s_{ri})

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64
        A score that is not finite makes its problem ``nan``.
    positive, negative : Tensor [R, M], bool
        Disjoint.
    temperature : Tensor []
        Above 0; carries no gradient.
    rho, delta : float
        Slope of the linear part, and where it starts.

    Returns
    -------
    Tensor [R], Tensor [R]
        ``y``, 0 where there is no positive, and the number of positives, which carries no gradient.

    Notes
    -----
    Cost: O(P M) time for P positives of all problems on the CPU, O(R M^2) on other devices; O(R M) memory.
    """
    n = len(scores)
    shape = scores.new_full((n,), rho), scores.new_full((n,), delta)
    mean, count = _bounded_missed_precision(scores, positive, negative, temperature.detach().expand(n), *shape)
    return mean, count


def _bound(t: Tensor, temperature: Tensor, rho: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """``H^-`` and its derivative; the parameters broadcast to ``t``."""
    # below -80 a sigmoid is 0 in float32 but for subnormal numbers, which are slow
    sigmoid = (t.clamp_max(delta) / temperature).clamp_min(-80).sigmoid()
    excess = t - delta
    value = sigmoid + torch.where(t >= 0, 0.5, 0.0) + rho * excess.clamp_min(0)
    return value, torch.where(excess > 0, rho, sigmoid * (1 - sigmoid) / temperature)


def _kernel(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: Tensor,
    rho: Tensor,
    delta: Tensor,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if holds_values(scores):
        return _packed(scores, positive, negative, temperature, rho, delta, differentiate)
    share, count = _shares(scores, positive)
    value, gradient = _columns(scores, positive, negative, temperature, rho, delta, share)
    return value, count, gradient if differentiate else scores.new_empty(0)


def _packed(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: Tensor,
    rho: Tensor,
    delta: Tensor,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The positives only, some of them at a time, against all keys."""
    rows = pack(positive)
    problem = torch.div(rows.place, scores.shape[1], rounding_mode="floor")
    own, share = scores.flatten().index_select(0, rows.place), (1 / rows.size().clamp_min(1)).to(scores.dtype)
    missed, by_own = torch.zeros_like(own), torch.zeros_like(own)
    by_key = torch.zeros_like(scores)
    size = max(1, CHUNK_PAIRS // scores.shape[1])
    for start in range(0, len(own), size):
        part = slice(start, start + size)
        of = problem[part]
        t = scores.index_select(0, of) - own[part, None]
        counts, slopes = _bound(t, temperature[of, None], rho[of, None], delta[of, None])
        minus, plus = _ranks(t, counts, positive.index_select(0, of), negative.index_select(0, of))
        missed[part] = minus / (plus + minus)
        if differentiate:
            by_minus = share[of] * plus / (plus + minus).square()
            slopes = torch.where(negative.index_select(0, of), slopes, 0) * by_minus[:, None]
            by_key.index_add_(0, of, slopes)
            by_own[part] = slopes.sum(-1)
    value = scores.new_zeros(len(scores)).index_add_(0, problem, missed) * share
    if not differentiate:
        return value, rows.size(), scores.new_empty(0)
    by_key.view(-1).index_add_(0, rows.place, by_own, alpha=-1)
    return value, rows.size(), by_key


def _columns(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: Tensor,
    rho: Tensor,
    delta: Tensor,
    share: Tensor,
) -> tuple[Tensor, Tensor]:
    """Each key in the place of a positive, some of them at a time: static shapes, differentiable."""
    parameters = [values[:, None, None] for values in (temperature, rho, delta)]
    r, m = scores.shape
    size = max(1, CHUNK_PAIRS_ELSEWHERE // max(1, r * m))
    value, by_key, by_own = torch.zeros_like(scores[:, 0]), torch.zeros_like(scores), []
    for start in range(0, m, size):
        part = slice(start, start + size)
        t = scores[:, None, :] - scores[:, part, None]
        counts, slopes = _bound(t, *parameters)
        minus, plus = _ranks(t, counts, positive[:, None], negative[:, None])
        total = plus.clamp_min(1) + minus
        value = value + (share[:, part] * minus / total).sum(-1)
        by_minus = share[:, part] * plus / total.square()
        slopes = torch.where(negative[:, None], slopes, 0) * by_minus[..., None]
        by_key = by_key + slopes.sum(1)
        by_own.append(slopes.sum(-1))
    return value, by_key - torch.cat(by_own, 1)


def _ranks(t: Tensor, counts: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """``R^-`` and ``R^+`` of differences ``t [..., M]``; a positive counts itself, at 0."""
    minus = torch.where(negative, counts, 0).sum(-1, dtype=accumulation_dtype(t.device)).to(t.dtype)
    return minus, (positive & (t >= 0)).sum(-1).to(t.dtype)


def _shares(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    count = positive.sum(-1, dtype=accumulation_dtype(scores.device))
    return positive / count.clamp_min(1).to(scores.dtype)[:, None], count


def _gradient(
    scores: Tensor, positive: Tensor, negative: Tensor, temperature: Tensor, rho: Tensor, delta: Tensor
) -> Tensor:
    return _columns(scores, positive, negative, temperature, rho, delta, _shares(scores, positive)[0])[1]


_bounded_missed_precision = make_mean(
    "bounded_missed_precision",
    "Tensor positive, Tensor negative, Tensor temperature, Tensor rho, Tensor delta",
    n_statistics=1,
    kernel=_kernel,
    gradient=_gradient,
)
