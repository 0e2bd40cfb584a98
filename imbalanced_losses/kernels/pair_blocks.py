"""Sigmoids of pairs of scores, some rows of each class against some others, in blocks across the classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.kernels.pairs import CHUNK_PAIRS

__all__ = ["PairBlocks", "pad_classes"]


class PairBlocks(NamedTuple):
    """Scores ``own [P]`` of ``classes [P]`` against those of their class in ``table [C, W]``; -inf is below any.

    The rows of a class follow each other. ``scale``, ``[]`` or ``[C]``, is what differences are divided by, for powers
    of 2. ``skipped [P]``: a column that does not count. ``widths [C]``: how much of the table counts; then the classes
    follow each other by width, widest first, and a block is as wide as its first row.
    """

    own: Tensor
    classes: Tensor
    table: Tensor
    scale: Tensor
    skipped: Tensor | None = None
    widths: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, the sigmoids ``[rows, width]`` of their pairs, ``(1 - sigmoid) / sigmoid``; the next overwrites them.

        The sigmoid's derivative is the latter times the square of the former, with all digits in both tails.
        """
        widest = self.table.shape[1]
        # written over and over: fresh memory costs more than what is computed in it
        memory = self.own.new_empty(2, min(len(self.own) * widest, max(CHUNK_PAIRS, widest)))
        start = 0
        while start < len(self.own):
            width = widest if self.widths is None else int(self.widths[self.classes[start]])
            rows = slice(start, min(start + max(1, CHUNK_PAIRS // max(1, width)), len(self.own)))
            odds, sigmoids = memory[:, : (rows.stop - start) * width].view(2, rows.stop - start, width).unbind()
            yield rows, *self._evaluate(rows, odds, sigmoids)
            start = rows.stop

    def _evaluate(self, rows: slice, odds: Tensor, sigmoids: Tensor) -> tuple[Tensor, Tensor]:
        limit = -math.log2(torch.finfo(self.own.dtype).tiny)
        table = self.table[:, : odds.shape[1]]
        if len(table) > 1:
            table = torch.index_select(table, 0, self.classes[rows], out=odds)
        scale = self.scale.index_select(0, self.classes[rows])[:, None] if self.scale.ndim else self.scale
        torch.sub(self.own[rows, None], table, out=odds).div_(scale)
        if self.skipped is not None:
            odds.scatter_(1, self.skipped[rows, None], torch.inf)
        # what does not count counts for the smallest normal number; exp takes three times as long
        odds.clamp_(-limit, limit).exp2_()
        return torch.add(odds, 1, out=sigmoids).reciprocal_(), odds

    def sums(self) -> Tensor:
        """``[P]``: of the sigmoids."""
        sums = torch.empty_like(self.own)
        for rows, sigmoids, _ in self.blocks():
            torch.sum(sigmoids, 1, out=sums[rows])
        return sums

    def sums_and_slopes(self) -> tuple[Tensor, Tensor]:
        """The same and the derivatives of the sigmoids ``[P, W]``. Of pairs that fit a block."""
        for _, sigmoids, odds in self.blocks():
            return sigmoids.sum(1), odds.mul_(sigmoids).mul_(sigmoids)
        return torch.zeros_like(self.own), self.table[:0]

    def pull(self, rows: slice, sigmoids: Tensor, odds: Tensor, pulls: Tensor, out: tuple[Tensor, Tensor]) -> None:
        """Add the gradient of ``(pulls * sums[rows]).sum()``, times the temperature, by ``own`` and by ``table``."""
        by_own, by_table = out
        slopes = odds.mul_(sigmoids).mul_(sigmoids).mul_(pulls[:, None])
        by_own[rows].sub_(slopes.sum(1))
        # a matrix product takes three times as long
        by_table[:, : slopes.shape[1]].index_add_(0, self.classes[rows], slopes)

    def pull_all(self, pulls: Tensor, slopes: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradient of ``(pulls * sums).sum()``, times the temperature, by ``own`` and by ``table``.

        ``slopes``: what :meth:`sums_and_slopes` gave; else they are computed anew.
        """
        if slopes is not None:  # out of place: there may be a batch of pulls
            slopes = slopes * pulls[:, None]
            return -slopes.sum(1), torch.zeros_like(self.table).index_add(0, self.classes, slopes)
        out = torch.zeros_like(self.own), torch.zeros_like(self.table)
        for rows, sigmoids, odds in self.blocks():
            self.pull(rows, sigmoids, odds, pulls[rows], out)
        return out


def pad_classes(values: Tensor, classes: Tensor, counts: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """A row ``[C, W]`` for each class, filled up with -inf, of ``values [P]``; the column ``[P]`` that each is in.

    Class by class, ``counts [C]`` each, ``width`` at most.
    """
    slot = torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts).index_select(0, classes)
    table = values.new_full((len(counts), width), -torch.inf)
    table[classes, slot] = values
    return table, slot
