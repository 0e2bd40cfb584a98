r"""Soft counts of discordant pairs (a negative above a positive), which the pairwise pAUC averages.

There are two evaluators: blocks of pairs if the pairs are few (on the CPU, where counting them is free), else soft
ranks. Each computes value and gradient in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.dispatch import holds_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import make_mean
from imbalanced_losses.kernels.packing import Packed, pack, shares
from imbalanced_losses.kernels.ranks.pair_blocks import PairBlocks
from imbalanced_losses.kernels.ranks.pair_sums import PairSums, gradient_by_scores
from imbalanced_losses.kernels.ranks.sigmoid import wide_sigmoid
from imbalanced_losses.kernels.tuning import FEW_PAIRS, PAIRS_PER_ROW

__all__ = ["discordant_pairs"]


def discordant_pairs(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weighted mean over the positives of each class of the soft share of negatives above it.

    .. math:: q_{ci} = \sum_{j \in N_c} n_{cj} \sigma\big((s_{cj} - s_{ci}) / \tau_c\big) \Big/ \sum_{j \in N_c} n_{cj},
        \qquad y_c = \sum_{i \in P_c} w_{ci} q_{ci} \Big/ \sum_{i \in P_c} w_{ci}

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Read at positives only; carries no gradient.
    temperature : Tensor [C]
        Above 0; carries no gradient.
    counts : Tensor [C, M], optional
        What each negative adds to a count, 0 elsewhere; 1 if left out.

    Returns
    -------
    Tensor [C], Tensor [C], Tensor [C]
        ``y``, 0 where there is no weight or no negative; the mean of the squares ``q_i^2`` and the sum of the weights,
        which carry no gradient.

    Notes
    -----
    Cost: O(C M log M) time, less where pairs are few; O(C M) memory. Differentiable three times.
    """
    mean, squares, total_weight = _discordant_pairs(scores, positive, negative, weight, temperature.detach(), counts)
    return mean, squares, total_weight


def _kernel(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    if holds_values(scores) and counts is None:
        rows, columns = pack(positive), pack(negative)
        pairs = sum(n * width for n, width in zip(rows.counts, columns.counts, strict=True))
        if pairs <= PAIRS_PER_ROW * scores.numel():
            return _by_pairs(scores, rows, columns, weight, temperature, differentiate)
    return _by_ranks(scores, positive, negative, weight, temperature, counts, differentiate)


def _by_pairs(
    scores: Tensor, rows: Packed, columns: Packed, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[Tensor, ...]:
    if len(scores) == 1 and len(rows.place) * len(columns.place) <= FEW_PAIRS:
        return _by_few_pairs(scores, rows, columns, weight, temperature, differentiate)
    table, size = columns.table(columns.gather(scores)), columns.size()
    pairs = PairBlocks(rows, rows.gather(scores), table, columns.counts, temperature)
    share, total_weight = rows.shares(weight)
    share_of_pair = share / rows.by_row(size.clamp_min(1))
    cotangents = share_of_pair.to(scores.dtype)
    above = torch.zeros_like(cotangents)
    by_own, by_table = torch.zeros_like(cotangents), table.new_zeros(table.shape)
    for block, sigmoids, odds in pairs.evaluate(pairs.blocks):
        torch.sum(sigmoids, 1, out=above[block.rows])
        if differentiate:
            slopes = odds.mul_(sigmoids).mul_(sigmoids)
            pairs.add_gradient(block, slopes, [(slice(None), cotangents[block.rows])], by_own, by_table)
    weighted = above * share_of_pair
    mean = rows.sum_by_row(weighted).to(scores.dtype)
    squares = rows.sum_by_row(weighted * above) / size.clamp_min(1)
    if not differentiate:
        return mean, squares, total_weight, scores.new_empty(0)
    gradient = columns.scatter(columns.untable(by_table))
    gradient.view(-1).index_copy_(0, rows.place, by_own)
    return mean, squares, total_weight, gradient.div_(temperature[:, None])


def _by_few_pairs(
    scores: Tensor, rows: Packed, columns: Packed, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[Tensor, ...]:
    """A single small problem, where time goes into the number of operators."""
    share, total_weight = rows.shares(weight)
    size = len(columns.place)
    difference = columns.gather(scores) - rows.gather(scores).unsqueeze(1)
    pairs = wide_sigmoid(difference / temperature)
    above = pairs.sum(1).div_(max(1, size))
    weighted = above * share
    statistics = weighted.sum(0, keepdim=True).to(scores.dtype), (weighted @ above)[None], total_weight
    if not differentiate:
        return *statistics, scores.new_empty(0)
    slopes = (1 - pairs).mul_(pairs).mul_((share / (temperature * max(1, size))).unsqueeze(1))
    by_scores = torch.cat([slopes.sum(1).neg_(), slopes.sum(0)]).to(scores.dtype)
    gradient = torch.zeros_like(scores)
    gradient.view(-1).index_copy_(0, torch.cat([rows.place, columns.place]), by_scores)
    return *statistics, gradient


def _by_ranks(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    counts = _counts(scores, negative, counts)
    share, total_weight = shares(positive, weight)
    size = counts.sum(-1, dtype=accumulation_dtype(scores.device))[:, 0].clamp_min(1)
    share_of_pair = share / size[:, None]
    sums = PairSums(scores, temperature)
    above = sums(counts, counts[:, :0], 0)[0][:, 0]
    weighted = above * share_of_pair
    squares = (weighted * above).sum(-1) / size
    statistics = weighted.sum(-1).to(scores.dtype), squares, total_weight
    if not differentiate:
        return *statistics, scores.new_empty(0)
    return *statistics, sums.gradient(counts, share_of_pair.to(scores.dtype)[:, None])


def _counts(scores: Tensor, negative: Tensor, counts: Tensor | None) -> Tensor:
    """``[C, 1, M]``."""
    return (negative if counts is None else counts).to(scores.dtype)[:, None]


def _gradient(
    scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    counts = _counts(scores, negative, counts)
    share = shares(positive, weight)[0] / counts.sum(-1).clamp_min(1)
    cotangents = share.to(scores.dtype)[:, None]
    return gradient_by_scores(scores, counts, cotangents, temperature, positive)


_discordant_pairs = make_mean(
    "discordant_pairs",
    "Tensor positive, Tensor negative, Tensor weight, Tensor temperature, Tensor? counts",
    n_statistics=2,
    kernel=_kernel,
    gradient=_gradient,
)
