"""W processes with the retrieval losses are one process with the joined batch: loss, gradient, training, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from imbalanced_losses import RecallAtKLoss, RetrievalAPLoss
from tests.distributed.processes import Processes

GroupOf = Callable[[int], Processes]
HERE = "tests.distributed.test_retrieval"

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ap": lambda **options: RetrievalAPLoss(3, temperature=0.2, **options),
    "ap-one-column": lambda **options: RetrievalAPLoss(1, temperature=0.2, similarity="dot", **options),
    "roadmap": lambda **options: RetrievalAPLoss(
        3, temperature=0.2, surrogate="sup", calibration_weight=0.5, **options
    ),
    "recall": lambda **options: RecallAtKLoss(3, (1, 2), temperature=0.2, **options),
}
SHARDS = {"even": (6, 6, 6), "uneven": (2, 9, 7), "empty": (0, 11, 7)}
STEPS = 4


def rows_of(step: int, shards: str, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features, labels and weights of each rank; class ids as large as an int64, one row ignored."""
    generator = torch.Generator().manual_seed(step)
    n = sum(SHARDS[shards][:size])
    features = torch.randn(n, 5, generator=generator)
    labels = torch.randint(0, 4, (n,), generator=generator) * 2**40
    labels[-1], features[-1] = -100, 1e30
    weights = torch.rand(n, generator=generator)
    parts = SHARDS[shards][:size]
    return list(zip(features.split(parts), labels.split(parts), weights.split(parts), strict=True))


def train(loss: str, shards: str, size: int, reduction: str, rank: int | None) -> dict[str, Any]:
    """Some SGD steps; of the joined batch if ``rank`` is None. Only rank 0 gives weights in odd steps."""
    torch.manual_seed(0)
    loss_fn = LOSSES[loss](queue_size=20, reduction=reduction)
    model: nn.Module = nn.Linear(5, loss_fn.embedding_size)  # type: ignore[arg-type]
    model = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for step in range(STEPS):
        parts = rows_of(step, shards, size)
        own = parts if rank is None else [parts[rank]]
        features, labels, weights = (torch.cat(column) for column in zip(*own, strict=True))
        embeddings = model(torch.where(labels[:, None] == -100, 0, features))
        if rank is None and step % 2:  # ranks that give no weights count 1
            weights[len(parts[0][0]) :] = 1
        is_weighted = rank in (None, 0) or step % 2 == 0
        value = loss_fn(embeddings, labels, sample_weight=weights if is_weighted else None)
        optimizer.zero_grad()
        value.nansum().backward()
        optimizer.step()
        losses.append(value.detach().nansum())
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"losses": torch.stack(losses), "parameters": parameters, "state": dict(loss_fn.state_dict())}


def train_rank(loss: str, shards: str, size: int, reduction: str) -> dict[str, Any]:
    return train(loss, shards, size, reduction, dist.get_rank())


@pytest.mark.parametrize(("size", "shards"), [(2, "even"), (3, "uneven"), (3, "empty")])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_training_equals_that_of_one_process(
    processes: GroupOf, loss: str, reduction: str, size: int, shards: str
) -> None:
    options = {"loss": loss, "shards": shards, "size": size, "reduction": reduction}
    runs = processes(size).run(f"{HERE}:train_rank", **options)
    alone = train(**options, rank=None)  # type: ignore[arg-type]
    assert alone["losses"].min() > 0
    for run in runs:
        assert_close(run["losses"], alone["losses"], rtol=1e-4, atol=1e-5)
        assert_close(run["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
        for name, value in run["state"].items():
            assert torch.equal(value, runs[0]["state"][name])
            assert_close(value, alone["state"][name], rtol=1e-4, atol=1e-4)


def gradient_of_rank(loss: str) -> tuple[Tensor, Tensor]:
    rank, size = dist.get_rank(), dist.get_world_size()
    features, labels, _ = rows_of(0, "uneven", size)[rank]
    loss_fn = LOSSES[loss](grad_reduction="sum")
    embeddings = features[:, : loss_fn.embedding_size].clone().requires_grad_()  # type: ignore[misc]
    value = loss_fn(embeddings, labels)
    value.backward()
    assert embeddings.grad is not None
    return value.detach(), embeddings.grad


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_the_embeddings(processes: GroupOf, loss: str) -> None:
    """Each rank's part is that of the joined batch, as a query and as a key of the other ranks' queries."""
    results = processes(3).run(f"{HERE}:gradient_of_rank", loss=loss)
    parts = rows_of(0, "uneven", 3)
    loss_fn = LOSSES[loss]()
    features = torch.cat([part[0] for part in parts])[:, : loss_fn.embedding_size]  # type: ignore[misc]
    embeddings = features.clone().requires_grad_()
    value = loss_fn(embeddings, torch.cat([part[1] for part in parts]))
    value.backward()
    assert embeddings.grad is not None
    assert_close(torch.cat([gradient for _, gradient in results]), embeddings.grad, rtol=1e-4, atol=1e-6)
    for of_rank, _ in results:
        assert_close(of_rank, value.detach())


def fail_on_rank_1() -> str:
    loss_fn = LOSSES["ap"](queue_size=8)
    width = 2 if dist.get_rank() == 1 else 3
    try:
        loss_fn(torch.zeros(4, width), torch.zeros(4, dtype=torch.int64))
    except ValueError as error:
        return str(error)
    return ""


def test_bad_input_on_one_rank_raises_on_all(processes: GroupOf) -> None:
    for message in processes(2).run(f"{HERE}:fail_on_rank_1"):
        assert message == "rank 1: expected embeddings of shape [N, 3], got [4, 2]: use embedding_size=2"
