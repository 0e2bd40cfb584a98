"""What the processes run for the tests of ways to train: FSDP, compilation, autocast, accumulation, groups, phases."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from imbalanced_losses import LossWarmupWrapper
from tests.distributed.jobs import call_arguments
from tests.distributed.training import STEPS, Recipe, make_model, to_scalar

Net = Callable[[nn.Module], nn.Module]


def run_steps(
    recipe: Recipe,
    wrap: Net,
    rank: int,
    size: int,
    *,
    loss_fn: nn.Module | None = None,
    before: Callable[[int], None] = lambda step: None,
    after: Callable[[nn.Module], None] = lambda net: None,
    autocast: bool = False,
    first_batch: int = 0,
) -> dict[str, Any]:
    """Five SGD steps; ``before`` sees the step's number, ``after`` the gradients."""
    model = make_model(recipe)
    net = wrap(model)
    loss_fn = recipe.make_loss() if loss_fn is None else loss_fn
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    start, end = recipe.bounds(size)[rank : rank + 2]
    losses = []
    for step in range(STEPS):
        features, targets, weight = recipe.batch(first_batch + step, size)
        before(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rows = {name: value[start:end] for name, value in weight.items()}
            loss = to_scalar(loss_fn(net(features[start:end]), targets[start:end], **rows))
        loss.backward()
        after(net)
        optimizer.step()
        losses.append(loss.detach())
    return {"parameters": whole_parameters(net), "losses": torch.stack(losses), "state": loss_fn.state_dict()}


def whole_parameters(net: nn.Module) -> Tensor:
    """Also of parameters that are shared out."""
    parts = [getattr(parameter, "full_tensor", lambda own=parameter: own)() for parameter in net.parameters()]
    return torch.cat([part.detach().flatten() for part in parts])


def alone(recipe: Recipe, **options: Any) -> dict[str, Any]:
    return run_steps(recipe, lambda model: model, 0, 1, **options)


def here(recipe: Recipe, wrap: Net = DistributedDataParallel, **options: Any) -> dict[str, Any]:
    return run_steps(recipe, wrap, dist.get_rank(), dist.get_world_size(), **options)


def train_with_autocast(recipe: Recipe) -> dict[str, Any]:
    return here(recipe, autocast=True)


def train_compiled(recipe: Recipe) -> dict[str, Any]:
    """The model is compiled, with what DDP does to it; the loss is not."""
    torch._dynamo.reset()
    return here(recipe, lambda model: torch.compile(DistributedDataParallel(model), backend="aot_eager"))  # type: ignore[return-value]


def train_with_fsdp(recipe: Recipe) -> dict[str, Any]:
    """Each layer and the whole model are units of their own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def shard(model: nn.Module) -> nn.Module:
        for unit in (*model, model):
            # still an average: gloo takes the one that FSDP asks for by default for a sum (torch 2.8, any loss)
            fully_shard(unit, mesh=mesh).set_force_sum_reduction_for_comms(True)
        return model

    return here(recipe, shard)


def train_with_sums(recipe: Recipe) -> dict[str, Any]:
    """No wrapper: the gradients of all ranks are added up."""

    def add_up(net: nn.Module) -> None:
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)

    loss_fn = recipe.make_loss(grad_reduction="sum")
    return here(recipe, lambda model: model, loss_fn=loss_fn, after=add_up)


class _WithLoss(nn.Module):
    """A model that holds its loss, as Lightning's do."""

    def __init__(self, model: nn.Module, loss_fn: nn.Module) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features)  # type: ignore[no-any-return]


def train_with_loss_inside(recipe: Recipe) -> dict[str, Any]:
    """DDP sends the first rank's buffers, and so the queue, before each forward."""
    loss_fn = recipe.make_loss()
    return here(recipe, lambda model: DistributedDataParallel(_WithLoss(model, loss_fn)), loss_fn=loss_fn)


@contextmanager
def two_groups() -> Iterator[tuple[int, dist.ProcessGroup]]:
    """Ranks 0 and 2 of three, and rank 1: the number of the own group, and the group."""
    groups = [dist.new_group([0, 2]), dist.new_group([1])]
    which = dist.get_rank() % 2
    yield which, groups[which]
    dist.barrier()
    for group in groups:
        if dist.get_rank(group) >= 0:
            dist.destroy_process_group(group)


def train_in_groups(recipe: Recipe) -> dict[str, Any]:
    """The two groups train at the same time, on other rows."""
    with two_groups() as (which, group):
        loss_fn = recipe.make_loss(group=group)
        wrap = lambda model: DistributedDataParallel(model, process_group=group)  # noqa: E731
        place = dist.get_rank(group), dist.get_world_size(group)
        result = run_steps(recipe, wrap, *place, loss_fn=loss_fn, first_batch=10 * which)
        twin = copy.deepcopy(loss_fn)
        return {**result, "twin shares": twin.group is loss_fn.group is group}


def accumulate(recipe: Recipe, micro_batches: int, distributed: bool = True) -> dict[str, Any]:
    """Steps of several micro-batches, of which only the last one's backward reduces the gradients."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    model = make_model(recipe)
    net = DistributedDataParallel(model) if distributed else model
    loss_fn, optimizer = recipe.make_loss(), torch.optim.SGD(model.parameters(), lr=0.1)
    start, end = recipe.bounds(size)[rank : rank + 2]
    losses = []
    for number in range(STEPS * micro_batches):
        features, targets, _ = recipe.batch(number, size)
        is_last = number % micro_batches == micro_batches - 1
        with nullcontext() if is_last or not distributed else net.no_sync():  # type: ignore[operator]
            loss = loss_fn(net(features[start:end]), targets[start:end]) / micro_batches
            loss.backward()
        losses.append(loss.detach())
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
    return {"parameters": whole_parameters(model), "losses": torch.stack(losses), "state": loss_fn.state_dict()}


def train_wrapped(recipe: Recipe, distributed: bool = True) -> dict[str, Any]:
    """A step of cross-entropy, two that blend and two of the main loss; the main loss's weights come back too."""
    wrapper = LossWarmupWrapper(
        nn.BCEWithLogitsLoss(), recipe.make_loss(), warmup_epochs=1, blend_epochs=2, temp_start=0.5, temp_end=0.1
    )
    weights = []

    def enter(step: int) -> None:
        wrapper.on_train_epoch_start(step)
        wrapper.on_train_batch_start(step)
        weights.append(wrapper.main_weight)

    result = (here if distributed else alone)(recipe, loss_fn=wrapper, before=enter)
    return {**result, "weights": torch.tensor(weights)}


def call(recipe: Recipe, **options: Any) -> list[dict[str, Any]]:
    """Of this rank's rows; what the ranks draw at random differs."""
    torch.manual_seed(dist.get_rank())
    return call_rows(recipe, dist.get_rank(), dist.get_world_size(), **options)


def call_rows(
    recipe: Recipe,
    rank: int,
    size: int,
    *,
    modes: Sequence[bool] = (True,),
    spoilt: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Outputs, gradient and state of a call in each mode (training or not); ``spoilt`` has an infinite logit at first.

    With ``max_pool_size`` the module warns at its first call, which is not what is tested here.
    """
    loss_fn = recipe.make_loss()
    loss_fn._warned_of_subsampling = True  # type: ignore[assignment]
    logits, targets, _ = call_arguments(recipe)
    start, end = recipe.bounds(size)[rank : rank + 2]
    found: list[dict[str, Any]] = []
    for training in modes:
        own = logits[start:end].clone()
        if rank == spoilt and not found:
            own[0, 0] = torch.inf
        outputs = loss_fn.train(training)(own.requires_grad_(), targets[start:end], **options)
        to_scalar(outputs[0] if isinstance(outputs, tuple) else outputs).backward()
        state = {name: value.clone() for name, value in loss_fn.state_dict().items()}
        found.append({"outputs": pytree.tree_map(torch.Tensor.detach, outputs), "grad": own.grad, "state": state})
    return found
