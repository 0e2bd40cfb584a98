r"""The highest threshold at which a share of the masked rows is found: a weighted order statistic.

The weights are multiplicities, so a row of weight 2 counts like two rows. A quantile of the rows would not do: its
position is a share of ``n - 1`` rows, so that it finds more of them than were asked for.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import holds_values, is_plain_eager
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import batch_of_rows, in_blocks_of_rows, in_graph, make_operator, rows_of_batch
from imbalanced_losses.kernels.ordering import argsort_rows
from imbalanced_losses.kernels.packing import pack
from imbalanced_losses.kernels.tuning import QUANTILE_CHUNK
from imbalanced_losses.settings import check_number

__all__ = ["check_recall", "recall_threshold"]

ROUNDINGS = 64  # of the share and the sums of weights: 0.55 of 100 rows are 55 rows


def check_recall(name: str, value: object) -> float:
    """Return a number above 0 and at most 1 as a float."""
    number = check_number(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"expected {name} above 0 and at most 1, got {number}: use the share of positives to find")
    return number


def recall_threshold(scores: Tensor, mask: Tensor, weight: Tensor, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Find the highest score that a share of the masked elements reaches, by weight.

    .. math:: \theta = \max \big\{ s_i : \textstyle\sum_j w_j [s_j \ge s_i] \ge r \sum_j w_j \big\}

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64, M >= 1
    mask : Tensor [R, M], bool
    weight : Tensor [R, M]
        Finite, at least 0.
    recall : float in (0, 1]
        The share r. Rounding is forgiven.

    Returns
    -------
    Tensor [R, 1], Tensor [R], Tensor [R]
        The threshold, 0 where the total weight is 0; the weight of the masked elements that reach it, ties included;
        their total weight. Detached; weights in the widest dtype. Cost: a pass over the elements, on the CPU a sort of
        the masked ones, elsewhere of all.
    """
    arguments = scores.detach(), mask, weight, recall
    return _kernel(*arguments) if is_plain_eager() else _opaque(*arguments)


def _kernel(scores: Tensor, mask: Tensor, weight: Tensor, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    """Find the thresholds, on the CPU a few rows at a time and of the masked elements alone."""
    if not holds_values(scores):
        return _thresholds(torch.where(mask, scores, -torch.inf), torch.where(mask, weight, 0), recall)
    threshold, reached, total = in_blocks_of_rows(_of_packed, QUANTILE_CHUNK, scores, mask, weight, recall)
    return threshold, reached, total


def _of_packed(scores: Tensor, mask: Tensor, weight: Tensor, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = pack(mask)
    if rows.width == 0:
        none = scores.new_zeros(len(scores), dtype=accumulation_dtype(scores.device))
        return scores.new_zeros(len(scores), 1), none, none.clone()
    weights = rows.table(rows.gather(weight)).clamp_min(0)  # 0 where the table is padded
    return _thresholds(rows.table(rows.gather(scores)), weights, recall)


def _thresholds(scores: Tensor, weight: Tensor, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`recall_threshold` of scores ``[R, W]`` that are -inf, and weights that are 0, where not masked."""
    wide = accumulation_dtype(scores.device)
    kept = torch.where(weight > 0, scores, -torch.inf)
    descending = argsort_rows(-kept)
    upto = weight.gather(-1, descending).to(wide).cumsum(-1)
    total = upto[:, -1:]
    needed = total * (recall * (1 - ROUNDINGS * torch.finfo(wide).eps))
    place = (upto < needed).sum(-1, keepdim=True).clamp_max(scores.shape[1] - 1)
    threshold = kept.gather(-1, descending.gather(-1, place)).masked_fill(total == 0, 0)
    found = torch.where(kept >= threshold, weight, 0).sum(-1, dtype=wide)
    return threshold, found, total[:, 0]


def _fake(scores: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = scores.new_empty(scores.shape[0], dtype=accumulation_dtype(scores.device))
    return scores.new_empty(scores.shape[0], 1), found, torch.empty_like(found)


_operator = make_operator(
    "recall_threshold(Tensor scores, Tensor mask, Tensor weight, float recall) -> (Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)


@final
class _RecallThreshold(torch.autograd.Function):
    """The operator with a vmap rule; there is nothing to differentiate."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return _operator(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return batch_of_rows(info.batch_size, _opaque(*rows_of_batch(info.batch_size, in_dims, arguments)))


@in_graph
def _opaque(*arguments: Any) -> Any:
    return _RecallThreshold.apply(*arguments)  # type: ignore[no-untyped-call]
