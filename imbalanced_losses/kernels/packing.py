"""Packing of the set elements of a mask (on the CPU, because it reads the mask), and their shares in a mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.dtypes import accumulation_dtype

__all__ = ["Packed", "Unpacked", "pack", "shares"]


class Packed(NamedTuple):
    """The P set elements of a mask ``[R, M]``, row by row.

    ``place [P]`` is the index in the flat mask. ``row [P]`` and ``slot [P]`` are indices in a table ``[R, W]`` that
    holds each row's elements from the left. ``counts`` are the numbers of elements per row.
    """

    place: Tensor
    row: Tensor
    slot: Tensor
    counts: list[int]
    shape: tuple[int, int]

    @property
    def width(self) -> int:
        """The width W of the table."""
        return max(self.counts, default=0)

    def size(self) -> Tensor:
        """``counts`` as float64 ``[R]``."""
        return torch.tensor(self.counts, dtype=torch.float64, device=self.place.device)

    def gather(self, values: Tensor) -> Tensor:
        """Return the set elements ``[P]`` of ``values [R, M]``."""
        if values.stride(0) == 0:  # one row for all problems
            return values[0].index_select(0, self.place if len(values) == 1 else self.place % self.shape[1])
        return values.flatten().index_select(0, self.place)

    def scatter(self, values: Tensor) -> Tensor:
        """Return ``[R, M]`` with ``values [P]`` at the set elements; 0 elsewhere."""
        out = values.new_zeros(self.shape)
        out.view(-1).index_copy_(0, self.place, values)
        return out

    def table(self, values: Tensor) -> Tensor:
        """Return the table ``[R, W]`` of ``values [P]``, padded with -inf."""
        if len(self.counts) == 1:
            return values[None]
        table = values.new_full((len(self.counts), self.width), -torch.inf)
        table[self.row, self.slot] = values
        return table

    def untable(self, table: Tensor) -> Tensor:
        """Return the elements ``[P]`` of ``table [R, W]``."""
        return table[0] if len(table) == 1 else table[self.row, self.slot]

    def shares(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return each element's share ``[P]`` in its row's mean with ``weight [R, M]``, and the sums of weights."""
        weight = self.gather(weight).double()
        total_weight = self.sum_by_row(weight)
        if len(self.counts) == 1:
            return weight / (float(total_weight) or 1.0), total_weight
        return weight / self.by_row(total_weight + (total_weight == 0)), total_weight

    def centred(self, values: Tensor, row: int | None = None, part: slice = slice(None)) -> Tensor:
        """Subtract each row's mean from ``values`` of the elements in ``part``; given ``row``, all are of that row."""
        if row is not None or len(self.counts) == 1:
            return values - values.mean()
        rows = self.row[part]
        total, count = values.new_zeros(2, len(self.counts)).index_add_(
            1, rows, torch.stack([values, torch.ones_like(values)])
        )
        mean: Tensor = total / count.clamp_min(1)
        return values - mean.index_select(0, rows)

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Return the sums ``[R, ...]`` of ``values [P, ...]``."""
        if len(self.counts) == 1:
            return values.sum(0, keepdim=True)
        return values.new_zeros(len(self.counts), *values.shape[1:]).index_add_(0, self.row, values)

    def by_row(self, values: Tensor) -> Tensor:
        """Repeat ``values [..., R]`` for the elements: ``[..., P]``, or ``[..., 1]`` if there is one row."""
        return values if len(self.counts) == 1 else values.index_select(-1, self.row)


class Unpacked(NamedTuple):
    """The interface of :class:`Packed` without packing, for devices on which a mask should not be read."""

    mask: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """Return ``values [R, M]`` as they are."""
        return values

    def scatter(self, values: Tensor) -> Tensor:
        """Return ``values [R, M]`` as they are; they are 0 where the mask is not set."""
        return values

    def shares(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return each element's share ``[R, M]`` in its row's mean with ``weight [R, M]``, and the sums of weights."""
        return shares(self.mask, weight)

    def sum_by_row(self, values: Tensor) -> Tensor:
        """Return the sums ``[R]`` of ``values [R, M]``."""
        return values.sum(-1)

    def by_row(self, values: Tensor) -> Tensor:
        """Return ``values [..., R]`` as ``[..., R, 1]``."""
        return values[..., None]


def shares(mask: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return each set element's share in a mean with ``weight`` (0 at the others), and the sums of weights ``[R]``."""
    weight = torch.where(mask, weight, 0)
    total_weight = weight.sum(-1, dtype=accumulation_dtype(weight.device))
    return weight / total_weight.clamp_min(torch.finfo(total_weight.dtype).tiny)[:, None], total_weight


def pack(mask: Tensor) -> Packed:
    """Find the set elements of ``mask [R, M]``."""
    shape = mask.shape[0], mask.shape[1]
    if shape[0] == 1:
        place = mask[0].nonzero()[:, 0]
        return Packed(place, place, place, [len(place)], shape)
    row, column = mask.nonzero().unbind(1)
    counts = mask.sum(1)
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts).index_select(0, row)
    return Packed(column.add(row, alpha=shape[1]), row, slot, counts.tolist(), shape)
