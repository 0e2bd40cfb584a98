r"""One minus the precision at each positive: what Smooth-AP sums.

Two evaluators: the pairs of the positives, block by block, where these are few (on the CPU, where counting them is
free); soft ranks otherwise. Each gives the gradient along with the value, while it has the pairs at hand.
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

__all__ = ["missed_precision"]

# Measured on 2 CPU cores, forward + backward in ms, by pairs / by ranks. Classes x rows, positives each: 10 x 200, 20:
# 0.7 / 1.6; 100 x 64, 5: 0.7 / 1.4; 10 x 4,096, 256: 22 / 24, 400: 32 / 24; 10 x 16,384, 256: 81 / 75; 100 x 2,048,
# 20: 6.4 / 32, 200: 64 / 90; 1 x 1,056, 105: 0.7 / 0.6; 1 x 1,500, 300: 1.5 / 3.4; 1 x 4,096, 20: 0.7 / 0.8,
# 128: 1.2 / 2.1; 1 x 16,384, 128: 6.9 / 12.6.
# One class of 95 % of the rows, the others share the rest: 10 x 2,048: 12 / 9.6; 100 x 4,096: 42 / 45.
FEW_POSITIVES = 250  # on average over the classes, if no class has many


def missed_precision(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weighted sum of ``1 - R^+ / R`` over the positives of each class, and the sum of their weights.

    .. math:: y_c = \sum_{i \in P_c} w_{ci} \frac{R_{ci}^-}{1 + R_{ci}^+ + R_{ci}^-}, \qquad
        R_{ci}^\pm = \sum_{j \neq i} n_{cj}^\pm\, \sigma\big((s_{cj} - s_{ci}) / \tau\big)

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Of use at positives; carries no gradient.
    temperature : Tensor []
        Above 0; carries no gradient.
    counts : Tensor [C, 2, M], optional
        What each positive and each negative counts for in a rank, 0 elsewhere; 1 if left out.

    Returns
    -------
    Tensor [C], Tensor [C], in the widest dtype
        The second carries no gradient.

    Notes
    -----
    Cost: O(C M log M) time, less where positives are few; O(C M) memory. Differentiable three times.
    """
    total, mass = _missed_precision(
        scores, positive, negative, weight, temperature.detach().expand(len(scores)), counts
    )
    return total, mass


def _kernel(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if may_read(scores) and counts is None:
        rows = pack(positive)
        if len(rows.place) * (scores.shape[1] + rows.width) <= FEW_POSITIVES * scores.numel():
            return _by_pairs(scores, rows, negative, weight, temperature, differentiate)
    return _by_ranks(scores, positive, negative, weight, temperature, counts, differentiate)


def _by_pairs(
    scores: Tensor, rows: Packed, negative: Tensor, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    own, weight = rows.gather(scores), rows.gather(weight)
    columns = pack(negative) if len(scores) == 1 else None  # of several classes most rows are negatives
    if columns is not None:
        table, widths = columns.gather(scores)[None], columns.counts
    else:
        table, widths = torch.where(negative, scores, -torch.inf), [scores.shape[1]] * len(scores)
    among = PairBlocks(rows, own, rows.table(own), rows.counts, temperature, skip_self=True)
    against = PairBlocks(rows, own, table, widths, temperature)
    rank = among.sums() + 1

    def cotangents(block: slice, above: Tensor) -> Tensor:
        return weight[block] * rank[block] / (rank[block] + above).square()

    above, by_own, by_table = against.sums_and_gradient(cotangents, differentiate=differentiate)
    wide = above.double()
    missed = wide / (wide + rank)  # 1 - R^+/R would lose a small loss
    total, mass = rows.sum_by_row(missed * weight), rows.sum_by_row(weight.double())
    if not differentiate:
        return total, mass, scores.new_empty(0)
    # less their mean, which the positives' cotangents exchange to no effect but rounding
    pulls = missed * weight / (wide + rank)
    size = rows.sum_by_row(torch.ones_like(pulls))
    mean = rows.sum_by_row(pulls) / size.clamp_min(1)
    by_own_too, by_others = among.gradient((rows.by_row(mean) - pulls).to(own.dtype))
    by_own += by_own_too + rows.untable(by_others)
    gradient = by_table if columns is None else columns.scatter(by_table[0])
    gradient.view(-1).index_copy_(0, rows.place, by_own)
    return total, mass, gradient.div_(temperature[:, None])


def _by_ranks(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    counts = _counts(scores, positive, negative, counts)
    weight = torch.where(positive, weight, 0)
    sums = PairSums(scores, temperature, positive)
    above = sums(counts, counts[:, :0], 0)[0]
    missed, cotangents = _missed_and_cotangents(above, weight)
    total, mass = (missed * weight).sum(-1), weight.sum(-1, dtype=missed.dtype)
    if not differentiate:
        return total, mass, scores.new_empty(0)
    # less the share along the positives' counts, which they exchange to no effect but rounding
    plus, pulls = counts[:, 0], cotangents[:, 0]
    norm = (plus * plus).sum(-1, keepdim=True)
    pulls -= plus * ((pulls * plus).sum(-1, keepdim=True) / (norm + (norm == 0)))
    return total, mass, sums.gradient(counts, cotangents)


def _counts(scores: Tensor, positive: Tensor, negative: Tensor, counts: Tensor | None) -> Tensor:
    return torch.stack([positive, negative], 1).to(scores.dtype) if counts is None else counts


def _missed_and_cotangents(above: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``R^- / R [C, M]`` of ``above [C, 2, M]``, and the gradient of its weighted sum by ``above``."""
    plus, minus = above.to(widest_dtype(above.device)).unbind(1)
    rank = plus + 1
    # 1 - R^+/R would lose a small loss; the gradient by R^- cancels where R^- is most of R, hence the wider dtype
    missed = minus / (rank + minus)
    scaled = weight / (rank + minus)
    return missed, torch.stack([-missed * scaled, rank / (rank + minus) * scaled], 1).to(above.dtype)


def _gradient(
    scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    counts = _counts(scores, positive, negative, counts)
    above, _ = pair_sums(scores, counts, counts[:, :0], temperature, positive, 0, "auto")
    _, cotangents = _missed_and_cotangents(above, torch.where(positive, weight, 0))
    above, weight_grads = pair_sums(scores, counts, cotangents, temperature, positive, 1, "auto")
    return (counts * weight_grads - cotangents * above).sum(1) / temperature[:, None]


_missed_precision = make_sum(
    "missed_precision",
    "Tensor positive, Tensor negative, Tensor weight, Tensor temperature, Tensor? counts",
    n_statistics=1,
    kernel=_kernel,
    gradient=_gradient,
)
