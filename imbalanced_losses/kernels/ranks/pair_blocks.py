"""Sigmoids of pairs of scores, in blocks of bounded size; CPU only.

It reads masks, and evaluates only the pairs that they select.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.kernels.packing import Packed
from imbalanced_losses.kernels.tuning import CHUNK_PAIRS, OWN_BLOCK_PAIRS

__all__ = ["Block", "PairBlocks"]


class Block(NamedTuple):
    """Consecutive rows of one problem, or of several that share the block, and the number of columns they use."""

    rows: slice
    problems: slice
    width: int
    is_whole: bool
    """Whether the block contains all rows of its problems."""

    @property
    def problem(self) -> int | None:
        """The problem, or None if there are several."""
        return self.problems.start if self.problems.stop - self.problems.start == 1 else None


@final
class PairBlocks:
    """The sigmoids ``sigma((t_j - s_i) / tau)`` of each score ``s_i`` against the columns ``t`` of its problem.

    Parameters
    ----------
    rows : Packed
        P scores ``s``.
    own : Tensor [P]
        The scores.
    table : Tensor [R, W]
        The columns ``t``; -inf does not count.
    widths : list of R ints
        Number of columns that each problem uses.
    temperature : Tensor [R]
    skip_self : bool
        Whether the table starts with the rows themselves, so that each row must not be compared with itself.
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
        self.scale = temperature.to(torch.float64) * math.log(2)  # for powers of two
        self.scales: list[float] = self.scale.tolist()
        self.blocks = list(_blocks(rows.counts, widths))

    def evaluate(self, blocks: list[Block]) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """Yield each block with its sigmoids ``[rows, width]`` and odds ``(1 - sigmoid) / sigmoid``.

        The next block overwrites both. ``odds * sigmoid ** 2`` is the sigmoid's derivative, with full precision in both
        tails.
        """
        # the memory is reused: allocating it for each block takes longer than the computation
        size = max(((block.rows.stop - block.rows.start) * block.width for block in blocks), default=0)
        memory = self.own.new_empty(2, size)
        for block in blocks:
            shape = block.rows.stop - block.rows.start, block.width
            odds, sigmoids = memory[:, : shape[0] * shape[1]].view(2, *shape).unbind()
            yield block, self._evaluate(block, odds, sigmoids), odds

    def _evaluate(self, block: Block, odds: Tensor, sigmoids: Tensor) -> Tensor:
        limit = -math.log2(torch.finfo(self.own.dtype).tiny)
        own, table = self.own[block.rows, None], self.table[:, : block.width]
        if block.problem is not None:
            torch.sub(own, table[block.problem], out=odds).div_(self.scales[block.problem])
        else:
            problems = self.rows.row[block.rows]
            torch.index_select(table, 0, problems, out=odds)
            torch.sub(own, odds, out=odds).div_(self.scale.to(odds.dtype).index_select(0, problems)[:, None])
        if self.skip_self:
            self._skip_self(block, odds)
        # the sigmoid of a column of -inf is the smallest normal number, not 0; exp takes three times as long as exp2
        odds.clamp_(-limit, limit).exp2_()
        return torch.add(odds, 1, out=sigmoids).reciprocal_()

    def _skip_self(self, block: Block, odds: Tensor) -> None:
        if len(self.rows.counts) == 1:
            odds.diagonal(block.rows.start).fill_(torch.inf)
        else:
            odds.scatter_(1, self.rows.slot[block.rows, None], torch.inf)

    def add_gradient(
        self, block: Block, slopes: Tensor, parts: Sequence[tuple[slice, Tensor]], by_own: Tensor, by_table: Tensor
    ) -> None:
        """Add the gradient of ``(cotangents [rows] * sums of the sigmoids).sum()``, times tau; overwrites ``slopes``.

        ``parts`` are disjoint ranges of columns, with the cotangents of the sums over each. ``slopes [rows, width]``
        are the sigmoids' derivatives. The gradient of the rows is added to ``by_own [P]``, that of the table to
        ``by_table [R, W]``.
        """
        own, table = by_own[block.rows], by_table[block.problems, : block.width]
        if block.problem is not None:
            for columns, cotangents in parts:
                slopes_of_part = slopes[:, columns]
                own.addcmul_(slopes_of_part.sum(1), cotangents, value=-1)
                table[0, columns].addmv_(slopes_of_part.mT, cotangents)
            return
        for columns, cotangents in parts:
            slopes[:, columns].mul_(cotangents[:, None])
        own.sub_(slopes.sum(1))
        # a matrix product takes three times as long, and index_add_ fifteen times if one side is not contiguous
        sums = slopes.new_zeros(table.shape)
        table.add_(sums.index_add_(0, self.rows.row[block.rows] - block.problems.start, slopes))


def _blocks(counts: list[int], widths: list[int]) -> Iterator[Block]:
    """Yield blocks, given rows (``counts``) and columns (``widths``) per problem. Small problems share blocks."""
    alone_from = min(OWN_BLOCK_PAIRS, CHUNK_PAIRS)
    # the first row of this problem; the first row and problem, and the width, of the shared block
    start = first = first_problem = shared_width = 0
    for problem, (n, width) in enumerate(zip(counts, widths, strict=True)):
        alone = n * width >= alone_from or n * width == 0 or len(counts) == 1
        if first < start and (alone or (start + n - first) * max(shared_width, width) > CHUNK_PAIRS):
            yield Block(slice(first, start), slice(first_problem, problem), shared_width, is_whole=True)
            first, first_problem, shared_width = start, problem, 0
        if not alone:
            shared_width = max(shared_width, width)
        else:
            step = max(1, CHUNK_PAIRS // max(1, width))
            pieces = range(start, start + n if width else start, step)
            for piece in pieces:
                rows, problems = slice(piece, min(piece + step, start + n)), slice(problem, problem + 1)
                yield Block(rows, problems, width, is_whole=len(pieces) == 1)
            first, first_problem = start + n, problem + 1
        start += n
    if first < start:
        yield Block(slice(first, start), slice(first_problem, len(counts)), shared_width, is_whole=True)
