r"""One minus the precision at each positive, which Smooth-AP averages.

There are two evaluators: blocks of pairs if the positives are few (on the CPU, where counting them is free), else
soft ranks. Each computes value and gradient in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.dispatch import holds_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import make_mean
from imbalanced_losses.kernels.packing import Packed, pack, shares
from imbalanced_losses.kernels.ranks.pair_blocks import PairBlocks
from imbalanced_losses.kernels.ranks.pair_sums import PairSums, gradient_by_scores, pair_sums
from imbalanced_losses.kernels.tuning import FEW_POSITIVES, OVERHEAD_ROWS

__all__ = ["missed_precision"]


def missed_precision(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weighted mean of ``1 - R^+ / R`` over the positives of each class, and the sum of their weights.

    .. math:: y_c = \sum_{i \in P_c} w_{ci} \frac{R_{ci}^-}{1 + R_{ci}^+ + R_{ci}^-} \Big/ \sum_{i \in P_c} w_{ci},
        \qquad R_{ci}^\pm = \sum_{j \neq i} n_{cj}^\pm\, \sigma\big((s_{cj} - s_{ci}) / \tau\big)

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Read at positives only; carries no gradient.
    temperature : Tensor [] or [C]
        Above 0; carries no gradient.
    counts : Tensor [C, 2, M], optional
        What each positive and each negative adds to a rank, 0 elsewhere; 1 if left out.

    Returns
    -------
    Tensor [C], Tensor [C]
        ``y``, 0 where there is no weight, and the sum of the weights, which carries no gradient.

    Notes
    -----
    Cost: O(C M log M) time, less where positives are few; O(C M) memory. Differentiable three times.
    """
    constants = positive, negative, weight, temperature.detach().expand(len(scores)), counts
    mean, total_weight = _missed_precision(scores, *constants)
    return mean, total_weight


def _kernel(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if holds_values(scores) and counts is None:
        rows = pack(positive)
        pairs = len(rows.place) * (scores.shape[1] + rows.width)
        if pairs <= FEW_POSITIVES * (scores.numel() + OVERHEAD_ROWS):
            return _by_pairs(scores, rows, negative, weight, temperature, differentiate)
    return _by_ranks(scores, positive, negative, weight, temperature, counts, differentiate)


def _by_pairs(
    scores: Tensor, rows: Packed, negative: Tensor, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Each positive against the other positives, which come first in the table, and against the negatives."""
    own, n = rows.gather(scores), rows.width
    columns = pack(negative) if len(scores) == 1 else None  # of several classes most rows are negatives
    others = torch.where(negative, scores, -torch.inf) if columns is None else columns.gather(scores)[None]
    table = torch.cat([rows.table(own), others], 1)
    pairs = PairBlocks(rows, own, table, [table.shape[1]] * len(table), temperature, skip_self=True)
    share, total_weight = rows.shares(weight)
    missed, by_plus = torch.zeros_like(share), torch.zeros_like(share)  # R^-/R, and the derivative of its mean by R^+
    by_own, by_table = torch.zeros_like(own), table.new_zeros(table.shape)
    for block, sigmoids, odds in pairs.evaluate(pairs.blocks):
        part = block.rows
        minus = sigmoids[:, n:].sum(1).double()
        total = sigmoids[:, :n].sum(1).double().add_(1).add_(minus)
        torch.div(minus, total, out=missed[part])  # 1 - R^+/R would lose a small loss
        if differentiate:
            slopes = odds.mul_(sigmoids).mul_(sigmoids)
            scaled = share[part] / total
            of_block = torch.mul(missed[part], scaled, out=by_plus[part]).neg_()
            parts = [(slice(n, None), (scaled + of_block).to(own.dtype))]
            if block.is_whole:  # less a mean that positives exchange to no effect but rounding
                parts.append((slice(n), rows.centred(of_block, block.problem, part).to(own.dtype)))
            pairs.add_gradient(block, slopes, parts, by_own, by_table)
    mean = rows.sum_by_row(missed * share).to(own.dtype)
    if not differentiate:
        return mean, total_weight, scores.new_empty(0)
    if divided := [block._replace(width=n) for block in pairs.blocks if not block.is_whole]:
        among = rows.centred(by_plus).to(own.dtype)
        for block, sigmoids, odds in pairs.evaluate(divided):
            slopes = odds.mul_(sigmoids).mul_(sigmoids)
            pairs.add_gradient(block, slopes, [(slice(None), among[block.rows])], by_own, by_table)
    by_own += rows.untable(by_table[:, :n])
    gradient = by_table[:, n:].contiguous() if columns is None else columns.scatter(by_table[0, n:])
    gradient.view(-1).index_copy_(0, rows.place, by_own)
    return mean, total_weight, gradient.div_(temperature[:, None])


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
    share, total_weight = shares(positive, weight)
    sums = PairSums(scores, temperature)
    missed, cotangents = _missed_and_cotangents(sums(counts, counts[:, :0], 0)[0], share)
    mean = (missed * share).sum(-1).to(scores.dtype)
    if not differentiate:
        return mean, total_weight, scores.new_empty(0)
    # less the share along the positives' counts, which they exchange to no effect but rounding
    plus, of_positives = counts[:, 0], cotangents[:, 0]
    norm = (plus * plus).sum(-1, keepdim=True)
    along = (of_positives * plus).sum(-1, keepdim=True) / norm.clamp_min(1)
    of_positives.addcmul_(plus, along, value=-1)
    return mean, total_weight, sums.gradient(counts, cotangents)


def _counts(scores: Tensor, positive: Tensor, negative: Tensor, counts: Tensor | None) -> Tensor:
    return torch.stack([positive, negative], 1).to(scores.dtype) if counts is None else counts


def _missed_and_cotangents(above: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """``R^- / R [C, M]`` of ``above [C, 2, M]``, and the gradient of its mean by ``above``."""
    plus, minus = above.to(accumulation_dtype(above.device)).unbind(1)
    rank = plus + 1
    # 1 - R^+/R would lose a small loss; the gradient by R^- cancels where R^- is most of R, hence the wider dtype
    total = rank + minus
    missed, scaled = minus / total, share / total
    return missed, torch.stack([-missed * scaled, rank / total * scaled], 1).to(above.dtype)


def _gradient(
    scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    counts = _counts(scores, positive, negative, counts)
    above, _ = pair_sums(scores, counts, counts[:, :0], temperature, positive, 0, "auto")
    _, cotangents = _missed_and_cotangents(above, shares(positive, weight)[0])
    return gradient_by_scores(scores, counts, cotangents, temperature, positive)


_missed_precision = make_mean(
    "missed_precision",
    "Tensor positive, Tensor negative, Tensor weight, Tensor temperature, Tensor? counts",
    n_statistics=1,
    kernel=_kernel,
    gradient=_gradient,
)
