"""What the processes count: the collectives that torch's dispatcher sees, which take place as ever."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from imbalanced_losses.distributed import all_gather_with_grad
from tests.distributed.jobs import call_arguments
from tests.distributed.training import Recipe, to_scalar


class Traffic(TorchDispatchMode):
    """Names of the collectives and the bytes that this rank sends in each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            tensors = [[leaf for leaf in pytree.tree_leaves(arg) if isinstance(leaf, Tensor)] for arg in args]
            *_, sent = filter(None, tensors)  # a gather names its results first
            self.seen.append((func._schema.name, sum(tensor.nbytes for tensor in sent)))
        return func(*args, **(kwargs or {}))


def count(
    recipe: Recipe, extras: list[list[str]], dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list[tuple[str, int]], ...]:
    """What a forward and its backward send; ``extras`` are the optional arguments of each rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    loss_fn = recipe.make_loss(**options)
    logits, targets, optional = call_arguments(recipe)
    start, end = recipe.bounds(size)[rank : rank + 2]
    given = {name: optional[name][start:end] for name in extras[rank]}
    with Traffic() as forward:
        loss = to_scalar(loss_fn(logits[start:end].to(dtype).requires_grad_(), targets[start:end], **given))
    with Traffic() as backward:
        loss.backward()
    return forward.seen, backward.seen


def count_gather(counts: list[int], dtype: torch.dtype) -> tuple[list[tuple[str, int]], ...]:
    """Of three columns."""
    own = torch.zeros(counts[dist.get_rank()], 3, dtype=dtype, requires_grad=True)
    with Traffic() as forward:
        everyones = all_gather_with_grad(own)
    with Traffic() as backward:
        everyones.sum().backward()
    return forward.seen, backward.seen


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _Total.backward(ctx, own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone()
        dist.all_reduce(total)
        return total


def count_known(numbers: int) -> tuple[list[tuple[str, int]], ...]:
    """Of collectives in forward and backward that are there: where these are seen, none is none."""
    own = torch.zeros(numbers, requires_grad=True)
    with Traffic() as forward:
        total = _Total.apply(own)
        dist.all_gather([torch.zeros(numbers) for _ in range(dist.get_world_size())], own.detach())
    with Traffic() as backward:
        total.sum().backward()
    return forward.seen, backward.seen
