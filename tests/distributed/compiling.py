"""What the processes compile."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters

from imbalanced_losses.distributed import all_gather_with_grad
from tests.distributed.training import Recipe, make_model, to_scalar


def what_broke(reason: str) -> str:
    """The function that the compiler was told to leave alone, else torch's words."""
    disabled = re.search(r"`<function (\w+) at \w+>` since it was wrapped with `torch.compiler.disable`", reason)
    return disabled[1] if disabled else reason


def own_rows(recipe: Recipe) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Features, targets and weights of this rank, a different number on each."""
    features, targets, weight = recipe.batch(0, dist.get_world_size())
    start, end = recipe.bounds(dist.get_world_size())[dist.get_rank() :][:2]
    return features[start:end], targets[start:end], {name: value[start:end] for name, value in weight.items()}


def take_two_steps(recipe: Recipe, transform: Callable[[Any], Any], **options: Any) -> dict[str, Any]:
    """Loss and gradient of two calls of model and loss as one function, and the state after them."""
    model, loss_fn = make_model(recipe), recipe.make_loss(**options)

    def whole(features: Tensor, targets: Tensor, weight: dict[str, Tensor]) -> Tensor:
        return to_scalar(loss_fn(model(features), targets, **weight))

    call, found = transform(whole), []
    for _ in range(2):
        model.zero_grad()
        loss = call(*own_rows(recipe))
        loss.backward()
        found += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
    return {"found": found, "state": loss_fn.state_dict()}


def compile_step(recipe: Recipe, fullgraph: bool, **options: Any) -> dict[str, Any]:
    """Eager and compiled, the reasons of the graph breaks and the number of graphs."""
    torch._dynamo.reset()
    counters.clear()
    eager = take_two_steps(recipe, lambda whole: whole, **options)
    compiled = take_two_steps(
        recipe, lambda whole: torch.compile(whole, backend="aot_eager", fullgraph=fullgraph), **options
    )
    return {
        "eager": eager,
        "compiled": compiled,
        "breaks": sorted(map(what_broke, counters["graph_break"])),
        "graphs": counters["stats"]["unique_graphs"],
    }


def compile_gather() -> dict[str, Any]:
    torch._dynamo.reset()
    counters.clear()
    rows = torch.full((dist.get_rank() + 1, 2), float(dist.get_rank()), requires_grad=True)
    result = torch.compile(lambda own: all_gather_with_grad(own * 2) ** 2, backend="aot_eager")(rows)
    result.sum().backward()
    return {"rows": result.detach(), "grad": rows.grad, "breaks": sorted(map(what_broke, counters["graph_break"]))}
