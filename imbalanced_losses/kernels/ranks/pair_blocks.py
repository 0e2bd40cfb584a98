"""Sigmoids of some scores of each problem against some others, pair by pair in blocks of bounded size; CPU only.

Reads values: which scores take part decides what is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.kernels.packing import Packed

__all__ = ["PairBlocks"]

# Pairs of scores held at a time: 2 MB of float32, about a core's share of the cache.
CHUNK_PAIRS = 1 << 19
# Of one problem, to have blocks of its own; smaller problems share them.
OWN_BLOCK_PAIRS = 1 << 14


class _Block(NamedTuple):
    """Consecutive rows of one problem, or of several that share the block, and the columns that they use."""

    rows: slice
    problem: int | None
    width: int


@final
class PairBlocks:
    """The sigmoids ``sigma((t_j - s_i) / tau)`` of each score ``s_i`` against the columns of its problem.

    Parameters
    ----------
    rows : Packed
        The scores ``s``: P of them.
    own : Tensor [P]
    table : Tensor [R, W]
        The scores ``t``; -inf counts for nothing.
    widths : list of R ints
        How many columns of the table count.
    temperature : Tensor [R]
    skip_self : bool
        Whether the table holds the rows themselves, each of which does not count for itself.
    """

    def __init__(
        self,
        rows: Packed,
        own: Tensor,
        table: Tensor,
        widths: list[int],
        temperature: Tensor,
        *,
        skip_self: bool = False,
    ) -> None:
        self.rows, self.own, self.table, self.skip_self = rows, own, table, skip_self
        self.scale = temperature.double() * math.log(2)  # for powers of two
        self.scales = self.scale.tolist()
        self.blocks = list(_blocks(rows.counts, widths))
        self.kept: tuple[Tensor, Tensor] | None = None

    def sums(self) -> Tensor:
        """``[P]``: of the sigmoids. Keeps the pairs if there is one block."""
        sums = torch.zeros_like(self.own)
        for block, sigmoids, odds in self._evaluate_all():
            torch.sum(sigmoids, 1, out=sums[block.rows])
            self.kept = sigmoids, odds
        if len(self.blocks) != 1:
            self.kept = None
        return sums

    def sums_and_gradient(
        self, cotangents: Callable[[slice, Tensor], Tensor], *, differentiate: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums ``[P]``, and the gradient of ``(cotangents * sums).sum()`` times tau by ``own`` and ``table``.

        ``cotangents`` makes those of some rows from their sums.
        """
        sums, by_own, by_table = (
            torch.zeros_like(self.own),
            torch.zeros_like(self.own),
            self.table.new_zeros(self.table.shape),
        )
        for block, sigmoids, odds in self._evaluate_all():
            torch.sum(sigmoids, 1, out=sums[block.rows])
            if differentiate:
                pulls = cotangents(block.rows, sums[block.rows])
                self._add_gradient(block, odds.mul_(sigmoids).mul_(sigmoids), pulls, by_own, by_table)
        return sums, by_own, by_table

    def gradient(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """The same for ``cotangents [P]``; does not evaluate pairs that :meth:`sums` kept."""
        if self.kept is None:
            return self.sums_and_gradient(lambda rows, _: cotangents[rows])[1:]
        by_own, by_table = torch.zeros_like(self.own), self.table.new_zeros(self.table.shape)
        sigmoids, odds = self.kept
        self._add_gradient(self.blocks[0], odds.mul_(sigmoids).mul_(sigmoids), cotangents, by_own, by_table)
        return by_own, by_table

    def _add_gradient(self, block: _Block, slopes: Tensor, pulls: Tensor, by_own: Tensor, by_table: Tensor) -> None:
        if block.problem is not None:
            torch.mul(slopes.sum(1), pulls, out=by_own[block.rows]).neg_()
            by_table[block.problem, : block.width].addmv_(slopes.mT, pulls)
            return
        slopes.mul_(pulls[:, None])
        torch.sum(slopes, 1, out=by_own[block.rows]).neg_()
        # a matrix product takes three times as long
        by_table[:, : block.width].index_add_(0, self.rows.row[block.rows], slopes)

    def _evaluate_all(self) -> Iterator[tuple[_Block, Tensor, Tensor]]:
        """Blocks, the sigmoids ``[rows, width]`` and ``(1 - sigmoid) / sigmoid`` of each; the next overwrites them.

        The sigmoid's derivative is the latter times the square of the former, with all digits in both tails.
        """
        # written over and over: fresh memory costs more than what is computed in it
        size = max(((block.rows.stop - block.rows.start) * block.width for block in self.blocks), default=0)
        memory = self.own.new_empty(2, size)
        for block in self.blocks:
            shape = block.rows.stop - block.rows.start, block.width
            odds, sigmoids = memory[:, : shape[0] * shape[1]].view(2, *shape).unbind()
            yield block, *self._evaluate(block, odds, sigmoids)

    def _evaluate(self, block: _Block, odds: Tensor, sigmoids: Tensor) -> tuple[Tensor, Tensor]:
        limit = -math.log2(torch.finfo(self.own.dtype).tiny)
        own, table = self.own[block.rows, None], self.table[:, : block.width]
        if block.problem is not None:
            torch.sub(own, table[block.problem], out=odds).div_(self.scales[block.problem])
        else:
            problems = self.rows.row[block.rows]
            torch.index_select(table, 0, problems, out=odds)
            torch.sub(own, odds, out=odds).div_(self.scale.to(odds.dtype).index_select(0, problems)[:, None])
        if self.skip_self:
            odds.scatter_(1, self._own_columns(block), torch.inf)
        # what does not count counts for the smallest normal number; exp takes three times as long
        odds.clamp_(-limit, limit).exp2_()
        return torch.add(odds, 1, out=sigmoids).reciprocal_(), odds

    def _own_columns(self, block: _Block) -> Tensor:
        """Where each of the block's rows is in the table ``[rows, 1]``."""
        if len(self.rows.counts) == 1:
            return torch.arange(block.rows.start, block.rows.stop, device=self.own.device)[:, None]
        return self.rows.slot[block.rows, None]


def _blocks(counts: list[int], widths: list[int]) -> Iterator[_Block]:
    """Of ``counts`` rows and ``widths`` columns a problem. Large problems go alone, small ones share blocks."""
    alone_from = min(OWN_BLOCK_PAIRS, CHUNK_PAIRS)
    start = first = shared_width = 0  # rows of this problem; rows and columns of the block that is shared
    for problem, (n, width) in enumerate(zip(counts, widths, strict=True)):
        alone = n * width >= alone_from or n * width == 0 or len(counts) == 1
        if first < start and (alone or (start + n - first) * max(shared_width, width) > CHUNK_PAIRS):
            yield _Block(slice(first, start), None, shared_width)
            first, shared_width = start, 0
        if not alone:
            shared_width = max(shared_width, width)
        else:
            step = max(1, CHUNK_PAIRS // max(1, width))
            pieces = range(start, start + n if width else start, step)
            yield from (_Block(slice(k, min(k + step, start + n)), problem, width) for k in pieces)
            first = start + n
        start += n
    if first < start:
        yield _Block(slice(first, start), None, shared_width)
