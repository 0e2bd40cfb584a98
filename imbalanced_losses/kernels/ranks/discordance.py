r"""Soft counts of discordant pairs, a negative above a positive: what the pairwise pAUC sums.

Two evaluators: the pairs themselves, block by block, where these are few (on the CPU, where counting them is free);
soft ranks otherwise. Each gives the gradient along with the value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.execution import may_read
from imbalanced_losses.kernels.operators import make_sum
from imbalanced_losses.kernels.packing import Packed, pack
from imbalanced_losses.kernels.ranks.pair_blocks import PairBlocks
from imbalanced_losses.kernels.ranks.pair_sums import PairSums, pair_sums
from imbalanced_losses.precision import widest_dtype

__all__ = ["discordant_pairs"]

# Measured on 2 CPU cores, one thread, forward + backward in ms, by pairs / by soft ranks. Problems x rows, pairs a row:
# 1 x 4,096, 150: 2.4 / 6.3; 1 x 16,384, 127: 5.7 / 14; 1 x 65,536, 49: 17 / 56, 99: 29 / 64, 199: 62 / 66; 10 x 2,048,
# 97: 12 / 18, 312: 29 / 21; 10 x 16,384, 63: 58 / 171, 127: 106 / 169, 255: 214 / 153; 100 x 2,048, 14: 20 / 37.
PAIRS_A_ROW = 160


def discordant_pairs(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weighted sum over the positives of each class of the soft count of negatives above it.

    .. math:: n_{ci} = \sum_{j \in N_c} n_{cj}\, \sigma\big((s_{cj} - s_{ci}) / \tau_c\big), \qquad
        y_c = \sum_{i \in P_c} w_{ci} n_{ci}

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Of use at positives; carries no gradient.
    temperature : Tensor [C]
        Above 0; carries no gradient.
    counts : Tensor [C, M], optional
        What each negative counts for, 0 elsewhere; 1 if left out.

    Returns
    -------
    Tensor [C], Tensor [C], Tensor [C], in the widest dtype
        ``y``, the same of squares ``n_i^2``, and the sum of the weights; the latter two carry no gradient.

    Notes
    -----
    Cost: O(C M log M) time, less where pairs are few; O(C M) memory. Differentiable three times.
    """
    total, squares, mass = _discordant_pairs(scores, positive, negative, weight, temperature.detach(), counts)
    return total, squares, mass


def _kernel(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    if may_read(scores) and counts is None:
        rows, columns = pack(positive), pack(negative)
        pairs = sum(n * width for n, width in zip(rows.counts, columns.counts, strict=True))
        if pairs <= PAIRS_A_ROW * scores.numel():
            return _by_pairs(scores, rows, columns, weight, temperature, differentiate)
    return _by_ranks(scores, positive, negative, weight, temperature, counts, differentiate)


def _by_pairs(
    scores: Tensor, rows: Packed, columns: Packed, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[Tensor, ...]:
    weight = rows.gather(weight).to(scores.dtype)
    table = columns.table(columns.gather(scores))
    pairs = PairBlocks(rows, rows.gather(scores), table, columns.counts, temperature)
    above, by_own, by_table = pairs.sums_and_gradient(lambda block, _: weight[block], differentiate=differentiate)
    wide, weight = above.double(), weight.double()
    statistics = (rows.sum_by_row(values) for values in (wide * weight, wide.square() * weight, weight))
    if not differentiate:
        return *statistics, scores.new_empty(0)
    gradient = columns.scatter(columns.untable(by_table))
    gradient.view(-1).index_copy_(0, rows.place, by_own)
    return *statistics, gradient.div_(temperature[:, None])


def _by_ranks(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    counts, weight = _channels(scores, positive, negative, weight, counts)
    sums = PairSums(scores, temperature, positive)
    above = sums(counts, counts[:, :0], 0)[0]
    wide, wide_weight = above[:, 0].to(widest_dtype(above.device)), weight[:, 0]
    weighted = wide * wide_weight
    statistics = weighted.sum(-1), (wide * weighted).sum(-1), wide_weight.sum(-1, dtype=wide.dtype)
    if not differentiate:
        return *statistics, scores.new_empty(0)
    return *statistics, sums.gradient(counts, weight)


def _channels(
    scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Counts ``[C, 1, M]`` and the positives' weights ``[C, 1, M]`` as the bilinear form takes them."""
    counts = (negative if counts is None else counts).to(scores.dtype)
    return counts[:, None], torch.where(positive, weight, 0).to(scores.dtype)[:, None]


def _gradient(
    scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    counts, cotangents = _channels(scores, positive, negative, weight, counts)
    above, weight_grads = pair_sums(scores, counts, cotangents, temperature, positive, 1, "auto")
    return (counts * weight_grads - cotangents * above).sum(1) / temperature[:, None]


_discordant_pairs = make_sum(
    "discordant_pairs",
    "Tensor positive, Tensor negative, Tensor weight, Tensor temperature, Tensor? counts",
    n_statistics=2,
    kernel=_kernel,
    gradient=_gradient,
)
