"""Order statistics of masked rows.

``torch.quantile`` takes no mask, no half dtypes and no more than 2^24 elements; these functions do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import holds_values, is_plain_eager
from imbalanced_losses.dtypes import accumulation_dtype, compute_dtype
from imbalanced_losses.kernels.operators import in_blocks_of_rows, in_graph, make_operator, rows_of_batch
from imbalanced_losses.kernels.ordering import argsort_rows, sorts_by_integers
from imbalanced_losses.kernels.tuning import LARGE_SHARE, OPAQUE_FROM, QUANTILE_CHUNK, SMALL_ROW

__all__ = ["INTERPOLATIONS", "Interpolation", "masked_quantile"]

Interpolation = Literal["linear", "lower", "higher", "nearest", "midpoint"]
INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")
ROUNDINGS = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}
ROUNDINGS_OF_NUMBERS: dict[str, Callable[[float], int]] = {"lower": math.floor, "higher": math.ceil, "nearest": round}


def masked_quantile(
    values: Tensor,
    mask: Tensor,
    levels: tuple[float, ...],
    interpolation: Interpolation,
    counts: Tensor | None = None,
) -> Tensor:
    """Compute quantiles of each row's masked elements, as ``torch.quantile`` defines them.

    Parameters
    ----------
    values : Tensor [R, M], floating point, M >= 1
    mask : Tensor [R, M], bool
    levels : tuple of K floats in [0, 1]
    interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        How to interpolate at position ``level * (n - 1)`` of the n masked elements in ascending order.
    counts : Tensor [R, M], optional
        Multiplicity of each element, at least 1; n is their sum.

    Returns
    -------
    Tensor [R, K]
        Detached; 0 in rows whose mask is empty. Cost: O(R M) for levels in the upper tail, else one sort for any number
        of levels.
    """
    arguments = values.detach(), mask, levels, interpolation, counts
    if is_plain_eager():
        return _kernel(*arguments)
    return _opaque(*arguments) if values.numel() >= OPAQUE_FROM else _quantiles_by_static_shapes(*arguments)


def _kernel(
    values: Tensor, mask: Tensor, levels: Sequence[float], interpolation: Interpolation, counts: Tensor | None
) -> Tensor:
    """Compute the quantiles, on the CPU a few rows at a time: temporaries are several times as large as the values."""

    def quantiles(*arguments: Any) -> tuple[Tensor]:
        return (_quantiles(*arguments),)

    return in_blocks_of_rows(quantiles, QUANTILE_CHUNK, values, mask, levels, interpolation, counts)[0]


def _fake(values: Tensor, mask: Tensor, levels: Sequence[float], *_: Any) -> Tensor:
    return values.new_empty(values.shape[0], len(levels))


_operator = make_operator(
    "masked_quantile(Tensor values, Tensor mask, float[] levels, str interpolation, Tensor? counts) -> Tensor",
    _kernel,
    _fake,
)


@final
class _Quantile(torch.autograd.Function):
    """The operator with a vmap rule; there is nothing to differentiate."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _operator(*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        dims = (*in_dims[:2], None, None, in_dims[4])  # for the levels torch passes a tuple of dims
        quantiles = _opaque(*rows_of_batch(info.batch_size, dims, arguments))
        return quantiles.reshape(info.batch_size, -1, quantiles.shape[-1]), 0


@in_graph
def _opaque(*arguments: Any) -> Tensor:
    return _Quantile.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _quantiles(
    values: Tensor, mask: Tensor, levels: Sequence[float], interpolation: Interpolation, counts: Tensor | None
) -> Tensor:
    if counts is None and holds_values(values):
        wide = values.to(compute_dtype(values))
        return _quantiles_of_read_counts(wide, mask, levels, interpolation).to(values.dtype)
    return _quantiles_by_static_shapes(values, mask, levels, interpolation, counts)


def _quantiles_by_static_shapes(
    values: Tensor, mask: Tensor, levels: Sequence[float], interpolation: Interpolation, counts: Tensor | None
) -> Tensor:
    """Compute the quantiles without reading values: on accelerators, or for few values, fused by a compiler."""
    if counts is not None:
        return _counted_quantile(values, mask * counts, levels, interpolation)
    count = mask.sum(-1, keepdim=True, dtype=accumulation_dtype(values.device))
    kept = torch.where(mask, values.to(compute_dtype(values)), -torch.inf)
    descending = _largest(kept, min(levels))
    last = (count - 1).clamp_min(0)
    position = last * levels[0] if len(levels) == 1 else torch.cat([last * level for level in levels], -1)

    def element(position: Tensor) -> Tensor:
        return descending.gather(-1, (last - position).long())

    quantiles = _interpolate(element, position, interpolation)
    return quantiles.masked_fill(count == 0, 0).to(values.dtype)


def _quantiles_of_read_counts(
    values: Tensor, mask: Tensor, levels: Sequence[float], interpolation: Interpolation
) -> Tensor:
    """Compute the quantiles on the CPU. Reading counts is free there, so only the elements needed are found."""
    if len(values) == 1:
        kept = values.masked_select(mask)[None]
        elements = _Elements(kept, None, [kept.shape[1]])
    else:
        elements = _Elements(values, mask, mask.sum(-1).tolist())
    is_small = len(levels) > 1 and len(values) == 1 and elements.counts[0] <= SMALL_ROW
    elements.sort_all = is_small or (min(levels) < 1 - LARGE_SHARE and sorts_by_integers(elements.values))
    if max(elements.counts, default=0) == 0:
        return values.new_zeros(len(values), len(levels))
    positions = [[level * max(n - 1, 0) for level in levels] for n in elements.counts]
    rounding = ROUNDINGS_OF_NUMBERS.get(interpolation)
    if rounding is not None:
        quantiles = elements.at([list(map(rounding, row)) for row in positions])
    else:
        below, above = (elements.at([list(map(f, row)) for row in positions]) for f in (math.floor, math.ceil))
        fraction = [[0.5 if interpolation == "midpoint" else position % 1 for position in row] for row in positions]
        quantiles = torch.lerp(below, above, below.new_tensor(fraction))
    return quantiles if min(elements.counts) > 0 else torch.where(mask.any(1, keepdim=True), quantiles, 0)


class _Elements:
    """The masked elements of each row by their place in ascending order, found by sort, top-k or selection."""

    def __init__(self, values: Tensor, mask: Tensor | None, counts: list[int]) -> None:
        self.values, self.mask, self.counts, self.sort_all = values, mask, counts, False
        self.filled: dict[float, Tensor] = {}

    def at(self, places: list[list[int]]) -> Tensor:
        """Return the elements ``[R, K]`` of each row at its places."""
        if self.sort_all:
            return self._ascending.gather(1, torch.tensor(places, device=self.values.device))
        columns = [self._column(list(column)) for column in zip(*places, strict=True)]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def _column(self, places: list[int]) -> Tensor:
        """Return the element ``[R, 1]`` of each row at its place."""
        from_top = [max(n - 1, 0) - place for n, place in zip(self.counts, places, strict=True)]
        if max(from_top) < LARGE_SHARE * self.values.shape[1]:
            largest = self._filled(-torch.inf).topk(max(from_top) + 1).values
            if len(from_top) == 1:
                return largest[:, from_top[0], None]
            return largest.gather(1, torch.tensor(from_top, device=largest.device)[:, None])
        rows = self._filled(torch.inf).unbind()
        return torch.stack([row.kthvalue(place + 1).values for row, place in zip(rows, places, strict=True)])[:, None]

    def _filled(self, fill: float) -> Tensor:
        if self.mask is None:
            return self.values
        if fill not in self.filled:
            self.filled[fill] = torch.where(self.mask, self.values, fill)
        return self.filled[fill]

    @functools.cached_property
    def _ascending(self) -> Tensor:
        kept = self._filled(torch.inf)
        return kept.gather(1, argsort_rows(kept)) if sorts_by_integers(kept) else kept.sort(-1).values


def _counted_quantile(values: Tensor, counts: Tensor, levels: Sequence[float], interpolation: Interpolation) -> Tensor:
    """:func:`masked_quantile` of rows in which each element occurs ``counts [R, M]`` times; 0 masks it."""
    kept = torch.where(counts > 0, values.to(compute_dtype(values)), torch.inf)
    ascending = argsort_rows(kept)
    upto = counts.gather(-1, ascending).to(accumulation_dtype(values.device)).cumsum(-1)
    total = upto[:, -1:]
    position = torch.cat([(total - 1).clamp_min(0) * level for level in levels], -1)

    def element(position: Tensor) -> Tensor:
        place = (upto[:, None] <= position[..., None]).sum(-1)
        return kept.gather(-1, ascending.gather(-1, place.clamp_max(upto.shape[1] - 1)))

    quantiles = _interpolate(element, position, interpolation)
    return torch.where(total > 0, quantiles, 0).to(values.dtype)


def _largest(values: Tensor, level: float) -> Tensor:
    """Sort each row in descending order, as far down as its quantile at ``level``; masked elements are -inf.

    At most ``ceil((1 - level) * (n - 1))`` of n <= M elements are above the quantile, so M gives a static bound.
    """
    size = values.shape[1]
    needed = min(size, math.ceil((1 - level) * (size - 1)) + 2)  # one for the element itself, one for rounding
    return values.topk(needed, -1).values


def _interpolate(element: Callable[[Tensor], Tensor], position: Tensor, interpolation: Interpolation) -> Tensor:
    """Return the elements at the positions, rounded or interpolated."""
    rounding = ROUNDINGS.get(interpolation)
    if rounding is not None:
        return element(rounding(position))
    whole = position.floor()
    below, above = element(whole), element(position.ceil())
    fraction = torch.full_like(below, 0.5) if interpolation == "midpoint" else (position - whole).to(below.dtype)
    return torch.lerp(below, above, fraction)
