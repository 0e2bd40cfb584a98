"""What the processes count: the collectives that torch's dispatcher sees, which take place as ever."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.jobs import call_arguments
from tests.distributed.training import LOSSES, Recipe, to_scalar


class Traffic(TorchDispatchMode):
    """Names of the collectives and the bytes that this rank sends in each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            name, (_, sent) = func._schema.name, args[:2]  # results first, as torch's all-gather has them
            size = sum(leaf.nbytes for leaf in pytree.tree_leaves(sent) if isinstance(leaf, Tensor))
            self.seen.append((name, size))
        return func(*args, **(kwargs or {}))


def count(recipe: Recipe, extras: list[list[str]], **options: Any) -> tuple[list[tuple[str, int]], ...]:
    """What a forward and its backward send; ``extras`` are the optional arguments of each rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    loss_fn = recipe.make_loss(**options)
    logits, targets, optional = call_arguments(recipe)
    start, end = recipe.bounds(size)[rank : rank + 2]
    given = {name: optional[name][start:end] for name in extras[rank]}
    with Traffic() as forward:
        loss = to_scalar(loss_fn(logits[start:end].requires_grad_(), targets[start:end], **given))
    with Traffic() as backward:
        loss.backward()
    return forward.seen, backward.seen


def count_gather(counts: list[int], dtype: torch.dtype) -> list[tuple[str, int]]:
    from imbalanced_losses.distributed import all_gather_with_grad

    with Traffic() as traffic:
        all_gather_with_grad(torch.zeros(counts[dist.get_rank()], 3, dtype=dtype))
    return traffic.seen


def count_known(numbers: int) -> list[tuple[str, int]]:
    """Of torch's own collectives, so that a count of none means none."""
    own = torch.zeros(numbers)
    with Traffic() as traffic:
        dist.all_gather([torch.zeros(numbers) for _ in range(dist.get_world_size())], own)
        dist.all_reduce(own)
    return traffic.seen


__all__ = ["LOSSES", "Traffic", "count", "count_gather", "count_known"]
