"""What the processes run for the tests of gathers, refusals and interrupted runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imbalanced_losses import LossWarmupWrapper, RetrievalAPLoss, SmoothAPLoss
from imbalanced_losses.distributed import all_gather_no_grad, all_gather_with_grad
from tests.distributed.training import LOSSES, Recipe


def rows_of(rank: int, count: int, dtype: torch.dtype, shape: tuple[int, ...] = (3,)) -> Tensor:
    """``count`` rows that tell their rank and place."""
    place = torch.arange(count).reshape(count, *(1 for _ in shape)) + torch.zeros(shape)
    return (place + 10 * rank).to(dtype)


def gather(counts: list[int], dtype: torch.dtype, shape: tuple[int, ...] = (3,)) -> Tensor:
    return all_gather_no_grad(rows_of(dist.get_rank(), counts[dist.get_rank()], dtype, shape))


def gather_with_grad(counts: list[int]) -> tuple[Tensor, Tensor | None]:
    """The gradient of a use of the result that differs from rank to rank."""
    rank = dist.get_rank()
    own = rows_of(rank, counts[rank], torch.float32).requires_grad_()
    everyones = all_gather_with_grad(own)
    weights = torch.arange(1.0, len(everyones) + 1)[:, None] * (rank + 1)
    (everyones * weights).sum().backward()
    return everyones.detach(), own.grad


def gather_in_group(members: list[int], counts: list[int]) -> Tensor | str:
    group = dist.new_group(members)
    try:
        return all_gather_no_grad(rows_of(dist.get_rank(), counts[dist.get_rank()], torch.int64), group)
    except RuntimeError as error:
        return str(error)
    finally:
        dist.barrier()


def gather_different(tensors: list[Any]) -> str:
    try:
        all_gather_with_grad(tensors[dist.get_rank()])
    except (TypeError, ValueError) as error:
        return repr(error)
    return "no error"


def call_different(loss: str, calls: list[dict[str, Any]], options: list[dict[str, Any]]) -> tuple[str, float, bool]:
    """The error of one call with arguments that differ between ranks, its seconds, whether the state stayed."""
    rank = dist.get_rank()
    settings = dict(options[rank])
    training = not settings.pop("eval", False)
    loss_fn: nn.Module = LOSSES[loss][1](**settings).train(training)
    before = {name: value.clone() for name, value in loss_fn.state_dict().items()}
    start = time.perf_counter()
    try:
        loss_fn(**calls[rank])
        message = "no error"
    except (TypeError, ValueError, RuntimeError) as error:
        message = repr(error)
    seconds = time.perf_counter() - start
    return message, seconds, all(torch.equal(value, before[name]) for name, value in loss_fn.state_dict().items())


def change_in_place(recipe: Recipe) -> tuple[float, float]:
    """The loss, and half of it by a change in place that keeps the gradient."""
    rank, size = dist.get_rank(), dist.get_world_size()
    start, end = recipe.bounds(size)[rank : rank + 2]
    logits, targets, _ = call_arguments(recipe)
    loss_fn = recipe.make_loss()
    own = logits[start:end].requires_grad_()
    whole = loss_fn(own, targets[start:end])
    (gradient,) = torch.autograd.grad(whole, own)
    loss_fn.load_state_dict(recipe.make_loss().state_dict())
    loss = loss_fn(own, targets[start:end])
    loss /= 2
    torch.testing.assert_close(torch.autograd.grad(loss, own)[0] * 2, gradient)
    return whole.item(), loss.item()


def checkpoint_call(recipe: Recipe, use_reentrant: bool) -> tuple[Tensor, Tensor]:
    """Gradients of a call, in a checkpoint and not."""
    rank, size = dist.get_rank(), dist.get_world_size()
    start, end = recipe.bounds(size)[rank : rank + 2]
    logits, targets, _ = call_arguments(recipe)
    loss_fn, own = recipe.make_loss(), logits[start:end].requires_grad_()

    def loss_of(rows: Tensor) -> Tensor:
        return loss_fn(2 * rows, targets[start:end])  # type: ignore[no-any-return]

    gradients = []
    for loss in (loss_of(own), checkpoint(loss_of, own, use_reentrant=use_reentrant)):
        own.grad = None
        loss.backward()
        assert own.grad is not None
        gradients.append(own.grad)
    return gradients[0], gradients[1]


def call_under_autocast(recipe: Recipe) -> tuple[float, float]:
    """The loss of float16 logits, beside and inside autocast to bfloat16."""
    rank, size = dist.get_rank(), dist.get_world_size()
    start, end = recipe.bounds(size)[rank : rank + 2]
    logits, targets, _ = call_arguments(recipe)
    own = logits[start:end].half().requires_grad_()
    outside = recipe.make_loss()(own, targets[start:end])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = recipe.make_loss()(own, targets[start:end])
    return outside.item(), inside.item()


def gather_columns_of_tables(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows that are columns of a table: a transposed one, and a strided one whose stride stays where it has one row."""
    count = counts[dist.get_rank()]
    table = rows_of(dist.get_rank(), count, torch.float32, (5,))
    column = table.T.contiguous().T[:, 3:4]
    return all_gather_no_grad(column), all_gather_no_grad(table[:, 3])


def call_with_infinite_weight() -> tuple[float, float]:
    """The losses of rows of which an ignored one has an infinite weight, where the ignored class id is 0."""
    rank = dist.get_rank()
    logits, targets = torch.linspace(-1, 1, 24).view(8, 3), torch.tensor([0, 1, 2, 1, 2, 1, 2, 1])
    weight = torch.ones(8)
    weight[0] = torch.inf
    own, losses = slice(4 * rank, 4 * rank + 4), []
    for loss_fn in (
        SmoothAPLoss(3, ignore_index=0, validate_targets=False),
        RetrievalAPLoss(3, ignore_index=0, validate_targets=False),
    ):
        losses.append(loss_fn(logits[own], targets[own], sample_weight=weight[own]).item())
    return losses[0], losses[1]


def call_unlike(losses: list[str]) -> str:
    """A loss of its own on each rank."""
    recipe = Recipe(losses[dist.get_rank()])
    logits, targets, _ = call_arguments(recipe)
    try:
        recipe.make_loss()(logits, targets)
    except ValueError as error:
        return str(error)
    return "no error"


def call_with(recipe: Recipe, extras: list[list[str]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, gradient by the own rows and state after a call with only some of the optional arguments."""
    rank, size = dist.get_rank(), dist.get_world_size()
    return call_shard(recipe, rank, size, extras[rank])


def call_shard(
    recipe: Recipe, rank: int, size: int, extras: list[str], given: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    start, end = recipe.bounds(size)[rank : rank + 2]
    logits, targets, optional = call_arguments(recipe)
    optional = optional if given is None else given
    own = logits[start:end].requires_grad_()
    loss_fn = recipe.make_loss()
    loss = loss_fn(own, targets[start:end], **{name: optional[name][start:end] for name in extras})
    loss.backward()
    assert own.grad is not None
    return loss.detach(), own.grad, loss_fn.state_dict()


def call_arguments(recipe: Recipe) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    features, targets, _ = recipe.batch(0, 2)
    logits = features[:, : LOSSES[recipe.loss][0]].contiguous()
    generator = torch.Generator().manual_seed(7)
    iid_mask = torch.rand(len(logits), generator=generator) < 0.7
    return logits, targets, {"iid_mask": iid_mask, "sample_weight": torch.rand(len(logits), generator=generator) + 0.5}


def settings(make: Callable[..., nn.Module] = SmoothAPLoss) -> dict[str, Any]:
    """The losses of one call with each setting of ``gather_distributed``, of the loss or of the wrapper around it."""
    rank = dist.get_rank()
    logits, targets, _ = call_arguments(Recipe("smooth_ap"))
    own = slice(12 * rank, 12 * (rank + 1))
    found: dict[str, Any] = {}
    for setting in (None, True, False):
        found[f"loss {setting}"] = make(1, temperature=0.3, gather_distributed=setting)(
            logits[own], targets[own]
        ).item()
        wrapper = LossWarmupWrapper(
            nn.BCEWithLogitsLoss(),
            make(1, gather_distributed=False),
            temp_start=0.3,
            temp_end=0.3,
            gather_distributed=setting,
        )
        wrapper.on_train_epoch_start(0)
        wrapper.on_train_batch_start(0)
        found[f"wrapper {setting}"] = wrapper(logits[own], targets[own]).item()
    return found
