"""Reproducers of bugs in the C++ code that torch's default compiler generates: ``python upstream.py scatter_tile``.

Prints ``right``, or what is wrong. ``scatter_tile`` writes past the end of a buffer, so its process may die instead.
test_upstream.py runs each reproducer in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor


def scatter_tile() -> str:
    """A parallel scatter-add in a two-dimensional tile writes to column ``j + 2 k`` instead of ``j + k``.

    ``k`` is the position within the tile. On one thread the generated code needs no atomic addition and is right.
    """

    def add_by_owner(x: Tensor, y: Tensor, owner: Tensor) -> Tensor:
        return x.new_zeros(64, 3).index_add(1, owner, x.mT + y)

    x, y, owner = torch.randn(64, 64), torch.randn(64, 64), torch.randint(0, 3, (64,))
    expected, found = add_by_owner(x, y, owner), torch.compile(add_by_owner)(x, y, owner)
    error = (found - expected).abs().max()
    return "" if error < 1e-4 else f"off by {error:.3g} where the largest is {expected.abs().max():.3g}"


def loop_split() -> str:
    """A loop over 1,056 elements is split into 8 times 128: the last 32 elements are never written."""

    def cut_off_whole_rows(x: Tensor, y: Tensor) -> Tensor:
        return (x + y[:, None]).reshape(-1)[:1056] * 2

    x, y = torch.randn(9, 128), torch.randn(9)
    differs = cut_off_whole_rows(x, y) != torch.compile(cut_off_whole_rows)(x, y)
    places = differs.nonzero().flatten().tolist()
    return f"elements {places[0]} to {places[-1]} differ" if places else ""


REPRODUCERS: dict[str, Callable[[], str]] = {"scatter_tile": scatter_tile, "loop_split": loop_split}


def main(name: str) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    torch._inductor.config.fx_graph_cache = False
    print(REPRODUCERS[name]() or "right", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
