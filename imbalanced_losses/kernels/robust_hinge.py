r"""KL-DRO over negatives: for each positive the soft maximum of the hinge losses of its pairs, in near-linear time.

The hinge makes the exponential of a pair's loss piecewise exponential: with :math:`x_j = s_j / \lambda` and
:math:`a_i = (s_i - m) / \lambda`,

.. math:: \sum_j n_j \exp\big((m - s_i + s_j)_+ / \lambda\big) = \sum_{j: x_j \le a_i} n_j
    + e^{-a_i} \sum_{j: x_j > a_i} n_j e^{x_j}

so one sort and suffix sums give it for all positives, and prefix sums over the positives give the gradient. Scores are
taken relative to the highest negative. No exponent is then positive, every suffix contains a 1, and all sums are of
non-negative terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import in_blocks_of_rows, make_mean
from imbalanced_losses.kernels.ordering import argsort_rows
from imbalanced_losses.kernels.packing import shares
from imbalanced_losses.kernels.tuning import ROBUST_CHUNK

__all__ = ["robust_hinge"]

Argsort = Callable[[Tensor], Tensor]


def robust_hinge(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    scale: Tensor,
    temperature: Tensor,
    margin: Tensor,
    positive_temperature: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Weighted mean over the positives of each class of the soft maximum of their hinge losses.

    .. math:: y_{ci} = \lambda_c \log \frac{\sum_{j \in N_c} n_{cj} \exp(\ell_{cij} / \lambda_c)}{\sum_{j \in N_c}
        n_{cj}}, \qquad \ell_{cij} = \big(m_c - (s_{ci} - s_{cj}) / h_c\big)_+

    With a temperature :math:`\lambda'_c` over positives, the mean is :math:`\lambda'_c \log \operatorname{mean}_i
    \exp(y_{ci} / \lambda'_c)`.

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Of use at positives; carries no gradient.
    scale, temperature, margin : Tensor [C]
        :math:`h`, :math:`\lambda` and :math:`m`, above 0; carry no gradient.
    positive_temperature : Tensor [C], optional
        :math:`\lambda'`, above 0; carries no gradient.
    counts : Tensor [C, M], optional
        What each negative counts for, 0 elsewhere; 1 if left out.

    Returns
    -------
    Tensor [C], Tensor [C], Tensor [C], Tensor [C]
        The mean, 0 where there is no weight or no negative. Then, without gradient: the variance of the ``y_i``; the
        mean of ``exp(-KL_i)`` in proportion to ``y_i`` (1 if all are 0), with the divergence of the worst-case
        distribution of negatives from the empirical one; the sum of the weights.

    Notes
    -----
    Cost: O(C M log M) time, O(C M) memory. A pair with a loss of exactly 0 has a gradient of 0. Differentiable to any
    order, but with the kinks of the hinge left out.
    """
    constants = (value.detach() for value in (scale, temperature, margin))
    beyond = None if positive_temperature is None else positive_temperature.detach()
    mean, variance, share, total_weight = _robust_hinge(scores, positive, negative, weight, *constants, beyond, counts)
    return mean, variance, share, total_weight


def _kernel(scores: Tensor, *constants: Any) -> tuple[Tensor, ...]:
    """Return value, statistics and gradient; on the CPU computed a few classes at a time."""
    return in_blocks_of_rows(_with_gradient, ROBUST_CHUNK, scores, *constants)


def _with_gradient(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    scale: Tensor,
    temperature: Tensor,
    margin: Tensor,
    positive_temperature: Tensor | None,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    pairs = _Pairs.of(scores, negative, counts, scale, temperature, margin, argsort_rows)
    share, total_weight = pairs.shares(positive, weight)
    soft_maxima = pairs.soft_maxima()
    mean, tilted = _soft_mean(soft_maxima, share, positive_temperature)
    part = soft_maxima * share
    average = part.sum(-1, keepdim=True)
    variance = ((soft_maxima - average).square() * share).sum(-1)
    budget = ((pairs.budgets(soft_maxima) - 1) * part).sum(-1) / (average + (average == 0)).squeeze(-1) + 1
    statistics = mean.to(scores.dtype), variance, budget, total_weight
    return *statistics, pairs.gradient(tilted).to(scores.dtype) if differentiate else scores.new_empty(0)


def _gradient(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    scale: Tensor,
    temperature: Tensor,
    margin: Tensor,
    positive_temperature: Tensor | None,
    counts: Tensor | None,
) -> Tensor:
    pairs = _Pairs.of(scores, negative, counts, scale, temperature, margin, _argsort)
    share, _ = pairs.shares(positive, weight)
    tilted = share if positive_temperature is None else _soft_mean(pairs.soft_maxima(), share, positive_temperature)[1]
    return pairs.gradient(tilted).to(scores.dtype)


_robust_hinge = make_mean(
    "robust_hinge",
    "Tensor positive, Tensor negative, Tensor weight, Tensor scale, Tensor temperature, Tensor margin, "
    "Tensor? positive_temperature, Tensor? counts",
    n_statistics=3,
    kernel=_kernel,
    gradient=_gradient,
)


def _argsort(values: Tensor) -> Tensor:
    return values.detach().argsort(-1)


class _Pairs(NamedTuple):
    """Sorted rows ``[R, M]`` with what the pairs of each row, as a positive, sum up to; in the widest dtype.

    Attributes
    ----------
    order : Tensor [R, M], int64
        Indices of the sorted rows.
    exponent : Tensor [R, M]
        ``x_j``, at most 0.
    masses : Tensor [R, M]
        ``n_j exp(x_j)``, 0 at rows that are no negatives.
    reach : Tensor [R, M]
        ``max(-a_i, 0)``: 0 at rows that no negative comes near.
    first, n_before : Tensor [R, M], int64
        The first negative whose loss is above 0 with this row as a positive; the number of positives, with this row as
        a negative, of the pairs whose loss is above 0.
    above, below : Tensor [R, M]
        ``sum n_j e^x_j`` from ``first`` on, and ``sum n_j`` before it.
    excess : Tensor [R, M]
        ``sum n_j (e^(x_j - a_i) - 1)`` from ``first`` on; right where the reach is at most 1.
    total : Tensor [R, 1]
        ``sum n_j``; 1 if there is no negative.
    scale, temperature : Tensor [R, 1]
    """

    order: Tensor
    exponent: Tensor
    masses: Tensor
    reach: Tensor
    first: Tensor
    n_before: Tensor
    above: Tensor
    below: Tensor
    excess: Tensor
    total: Tensor
    scale: Tensor
    temperature: Tensor

    @classmethod
    def of(
        cls,
        scores: Tensor,
        negative: Tensor,
        counts: Tensor | None,
        scale: Tensor,
        temperature: Tensor,
        margin: Tensor,
        argsort: Argsort,
    ) -> _Pairs:
        wide = accumulation_dtype(scores.device)
        scale, temperature, margin = (value.to(wide).unsqueeze(-1) for value in (scale, temperature, margin))
        counts = torch.where(negative, 1 if counts is None else counts, 0).to(wide)
        order = argsort(scores)
        n = counts.gather(-1, order)
        s = scores.gather(-1, order).to(wide)
        highest = torch.where(n > 0, s.detach(), -torch.inf).amax(-1, keepdim=True)
        z = (s - torch.where(highest == -torch.inf, 0, highest)) / scale
        met = z - margin  # the negatives above it have a loss
        first = torch.searchsorted(z.detach(), met.detach(), right=True)
        n_before = torch.searchsorted(met.detach(), z.detach())
        exponent = (z / temperature).clamp_max(0)
        masses, reach = n * exponent.exp(), (-met / temperature).clamp_min(0)
        above = _at(_suffix_sums(masses), first)
        n_above = _at(_suffix_sums(n), first)
        lost = _at(_suffix_sums(n * exponent.expm1()), first)
        growth = reach.clamp_max(1).expm1()
        excess = growth * n_above + (1 + growth) * lost
        below = _at(_prefix_sums(n), first)
        total = n.sum(-1, keepdim=True)
        total = total + (total == 0)
        return cls(order, exponent, masses, reach, first, n_before, above, below, excess, total, scale, temperature)

    @property
    def worst(self) -> Tensor:
        """``[R, M]``: the sum over all negatives of ``n_j exp(loss / lambda)``, divided by ``exp(reach)``."""
        worst = self.below * (-self.reach).exp() + self.above
        return worst + (worst == 0)  # there is no negative

    def shares(self, positive: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The share ``[R, M]`` of each sorted row in the mean over positives, and the sums of weights ``[R]``."""
        share, total_weight = shares(positive, weight)
        has_negative = (self.above + self.below).amax(-1, keepdim=True) > 0
        return torch.where(has_negative, share.gather(-1, self.order), 0), total_weight

    def soft_maxima(self) -> Tensor:
        """``y [R, M]`` of each sorted row as a positive; the two forms are precise for large and small temperatures."""
        near = self.reach <= 1
        small = torch.where(near, self.excess, 0).clamp_min(0).div(self.total).log1p()
        return torch.where(near, small, self.reach + (self.worst / self.total).log()) * self.temperature

    def budgets(self, soft_maxima: Tensor) -> Tensor:
        """``exp(-KL) [R, M]`` of the worst-case distribution of each sorted row as a positive."""
        tilt = self.reach * self.above + _at(_suffix_sums(self.masses * self.exponent), self.first)
        return (soft_maxima / self.temperature - tilt / self.worst).clamp_max(0).exp()

    def gradient(self, cotangents: Tensor) -> Tensor:
        """``[R, M]`` in the order of the scores, of the sum of ``cotangents [R, M]`` times the soft maxima."""
        per_mass = cotangents / self.worst
        by_negatives = self.masses * _at(_prefix_sums(per_mass), self.n_before)
        gradient = (by_negatives - per_mass * self.above) / self.scale
        return torch.zeros_like(gradient).scatter(-1, self.order, gradient)


def _soft_mean(values: Tensor, share: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of ``values [R, M]``, or their soft maximum, ``[R]``; and its derivative ``[R, M]``."""
    if temperature is None:
        return (values * share).sum(-1), share
    temperature = temperature.to(values.dtype).unsqueeze(-1)
    highest = torch.where(share > 0, values.detach(), 0).amax(-1, keepdim=True)  # values are at least 0
    depth = torch.where(share > 0, values - highest, 0) / temperature
    tilted = share * depth.exp()
    total, missing = tilted.sum(-1, keepdim=True), (share * depth.expm1()).sum(-1, keepdim=True)
    safe = total + (total == 0)
    mean = highest + temperature * torch.where(missing > -0.5, missing.clamp_min(-0.5).log1p(), safe.log())
    return torch.where(total > 0, mean, 0).squeeze(-1), tilted / safe


def _prefix_sums(values: Tensor) -> Tensor:
    """Sums ``[R, M + 1]`` of the first 0, 1, ..., M of ``values [R, M]``."""
    return functional.pad(values.cumsum(-1), (1, 0))


def _suffix_sums(values: Tensor) -> Tensor:
    """Sums ``[R, M + 1]`` of ``values [R, M]`` from the position 0, 1, ..., M on, added up from the end."""
    return functional.pad(values.flip(-1).cumsum(-1).flip(-1), (0, 1))


def _at(sums: Tensor, places: Tensor) -> Tensor:
    return sums.gather(-1, places)
