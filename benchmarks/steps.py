"""The calls that are measured: forward and backward of a loss on made-up inputs.

``imbalanced_losses`` is whatever the interpreter running this file has installed: ours, or the package we compare with,
whose import name is the same. No module of this folder that a worker imports may therefore import anything else of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], object]

# the argument that takes class counts
COUNTS = {"LogitAdjustedLoss": "priors", "LDAMLoss": "counts"}
# the functions behind the modules, of ours
PURE = {
    "SmoothAPLoss": ("smooth_ap", "SmoothAPConfig"),
    "RecallAtQuantileLoss": ("recall_at_quantile", "RecallAtQuantileConfig"),
    "PrecisionAtRecallLoss": ("precision_at_recall", "PrecisionAtRecallConfig"),
    "FPRAtRecallLoss": ("fpr_at_recall", "FPRAtRecallConfig"),
    "PAUCAtBudgetLoss": ("pauc_at_budget", "PAUCAtBudgetConfig"),
}


def build(work: dict[str, Any], device: str) -> Call:
    """The call to measure."""
    if work["states"]:
        return ensemble_step(work, device)
    logits, targets = (focal_inputs if work["shape"] else ranking_inputs)(work, device)
    if work["series"] == "sort":
        scores = (logits.flatten() if work["shape"] else logits.T).contiguous()
        return lambda: torch.sort(scores)
    loss_fn = loss_with_queue(work, device, logits[work["batch"] :], targets[work["batch"] :])
    called: Callable[..., Tensor] = torch.compile(loss_fn, fullgraph=True) if work["compiled"] else loss_fn
    return training_step(called, logits, targets, work["batch"] or len(logits))


def loss_with_queue(work: dict[str, Any], device: str, past: Tensor, past_targets: Tensor) -> Callable[..., Tensor]:
    """The loss, ours, the peer's or the plain formula; its queue, if it has one, holds the given rows."""
    if work["series"] == "plain":
        return plain_retrieval(work, past, past_targets) if work["embedding_size"] else plain_formula(work, device)
    loss_fn = loss_module(work, device)
    if work["embedding_size"]:  # a step of all rows of a large memory takes too long
        loss_fn.get_buffer("queue_logits").copy_(past)
        loss_fn.get_buffer("queue_targets").copy_(past_targets)
    elif work["queue"]:
        with torch.no_grad():
            loss_fn(past, past_targets)
    return loss_fn


def labels(rows: int, classes: int, rate: float, generator: torch.Generator) -> Tensor:
    """Int64 ``[rows]``: exact counts in random order, so that a measurement does not hang on the luck of a draw.

    Every class but class 0 has ``min(rate, 1 / classes)`` of the rows; one class is binary, with labels {0, 1}.
    """
    positives = max(1, int(rows * min(rate, 1 / classes)))
    ids = torch.arange(1, max(classes, 2)).repeat_interleave(positives)
    return torch.cat([ids, torch.zeros(rows - len(ids), dtype=torch.int64)])[torch.randperm(rows, generator=generator)]


def ranking_inputs(work: dict[str, Any], device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits ``[M, C]``, a standard deviation higher where the row is positive, and targets ``[M]``.

    Embeddings ``[M, D]`` have a higher entry in the column of their class.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, classes = work["batch"] + work["queue"], work["classes"]
    columns = work["embedding_size"] or classes
    targets = labels(rows, classes, work["rate"], generator)
    logits = torch.randn(rows, columns, generator=generator)
    hot = targets.unsqueeze(1) if classes == 1 else nn.functional.one_hot(targets, columns)
    return logits.add_(hot).to(device), targets.to(device)


def focal_inputs(work: dict[str, Any], device: str) -> tuple[Tensor, Tensor]:
    """Logits ``[N]`` or ``[N, C, ...]`` of the given shape, and targets for them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(work["shape"], generator=generator)
    if work["loss"] in ("SigmoidFocalLoss", "AsymmetricLoss"):
        targets = (torch.rand(work["shape"], generator=generator) < work["rate"]).float()
    else:
        n, classes, *spatial = work["shape"]
        targets = torch.randint(classes, (n, *spatial), generator=generator)
    return logits.to(device), targets.to(device)


def loss_module(work: dict[str, Any], device: str) -> nn.Module:
    """The loss at its defaults but for the options asked for."""
    import imbalanced_losses

    width = "embedding_size" if work["embedding_size"] else "num_classes"
    columns = work["embedding_size"] or work["classes"]
    sizes = {} if work["shape"] else {width: columns, "queue_size": work["queue"]}
    counts = {COUNTS[work["loss"]]: class_counts(work)} if work["loss"] in COUNTS else {}
    module: nn.Module = getattr(imbalanced_losses, work["loss"])(**sizes, **counts, **work["options"])
    return module.to(device)


def class_counts(work: dict[str, Any]) -> Tensor:
    """Made-up class counts ``[C]``, halved from class to class."""
    return 2.0 ** torch.arange(work["shape"][1], 0, -1)


def plain_formula(work: dict[str, Any], device: str) -> Callable[..., Tensor]:
    """The elementwise loss at its defaults as one would write it in a training script."""
    kind = work["loss"]
    if kind in COUNTS:
        counts = class_counts(work).to(device)
        log_priors, margins = (counts / counts.sum()).log(), 0.5 * (counts.min() / counts) ** 0.25
    cross_entropy, binary = nn.functional.cross_entropy, nn.functional.binary_cross_entropy_with_logits

    def formula(z: Tensor, y: Tensor) -> Tensor:
        if kind == "SigmoidFocalLoss":
            p, each = z.sigmoid(), binary(z, y, reduction="none")
            return ((0.25 * y + 0.75 * (1 - y)) * (1 - p * y - (1 - p) * (1 - y)) ** 2 * each).mean()
        if kind == "SoftmaxFocalLoss":
            each = cross_entropy(z, y, reduction="none")
            return ((1 - (-each).exp()) ** 2 * each).mean()
        if kind == "AsymmetricLoss":
            p = z.sigmoid()
            shifted = (p - 0.05).clamp(min=0)
            of_ones, of_zeros = (1 - p) * p.clamp(min=1e-8).log(), shifted**4 * (1 - shifted).log()
            return -(y * of_ones + (1 - y) * of_zeros).mean()
        if kind == "LogitAdjustedLoss":
            return cross_entropy(z + log_priors, y)
        return cross_entropy(30 * (z - nn.functional.one_hot(y, z.shape[1]) * margins), y)

    return formula


def plain_retrieval(work: dict[str, Any], memory: Tensor, memory_labels: Tensor) -> Callable[..., Tensor]:
    """The retrieval loss at its defaults as one would write it in a training script, with all pairs of keys in a block.

    Every row must have a positive.
    """
    is_ap, size = work["loss"] == "RetrievalAPLoss", len(memory)

    def formula(x: Tensor, y: Tensor) -> Tensor:
        nonlocal memory, memory_labels
        keys, key_labels = torch.cat([x, memory]), torch.cat([y, memory_labels])
        scores = nn.functional.normalize(x) @ nn.functional.normalize(keys).T
        is_other = ~torch.eye(*scores.shape, dtype=torch.bool, device=x.device)
        positive = (y[:, None] == key_labels) & is_other
        above = ((scores[:, None] - scores[:, :, None]) / 0.01).sigmoid() * is_other[:, None]  # [N, M, M]
        ranks = above.sum(-1) + 0.5  # a key's comparison with itself is the other half
        if is_ap:
            found = ((above * positive[:, None]).sum(-1) + 0.5) / ranks
        else:
            found = torch.stack([(k - ranks).sigmoid() for k in (1, 2, 4, 8, 16)]).mean(0)
        memory, memory_labels = torch.cat([memory, x.detach()])[-size:], torch.cat([memory_labels, y])[-size:]
        return 1 - ((found * positive).sum(-1) / positive.sum(-1)).mean()

    return formula


def training_step(loss_fn: Callable[..., Tensor], logits: Tensor, targets: Tensor, batch: int) -> Call:
    """Forward and backward on the next batch.

    The batches take turns, so that a queue of the remaining rows and the batch are always the same pool.
    """
    leaves = [rows.clone().requires_grad_() for rows in torch.split(logits, batch)]
    turns = itertools.cycle(zip(leaves, torch.split(targets, batch), strict=True))

    def step() -> object:
        leaf, target = next(turns)
        return torch.autograd.grad(loss_fn(leaf, target), leaf)

    return step


def ensemble_step(work: dict[str, Any], device: str) -> Call:
    """A gradient for each of several states, by the pure functions: a loop of eager steps, or one mapped call."""
    import imbalanced_losses as ours

    name, config = PURE[work["loss"]]
    function, cfg = getattr(ours, name), getattr(ours, config)(num_classes=work["classes"], **work["options"])

    def loss_fn(logits: Tensor, targets: Tensor, queue: Any) -> tuple[Tensor, Any]:
        return function(logits, targets, queue, cfg)  # type: ignore[no-any-return]

    batch, empty = work["batch"], ours.init_queue(work["queue"], work["classes"], device=device)
    pools = [ranking_inputs(work, device, seed) for seed in range(work["states"])]
    queues = [loss_fn(logits[batch:], targets[batch:], empty)[1] for logits, targets in pools]
    if work["series"] == "loop":
        return looped_step(loss_fn, pools, queues, batch)
    mapped = torch.func.vmap(torch.func.grad(loss_fn, has_aux=True))
    called = torch.compile(mapped, fullgraph=True) if work["compiled"] else mapped
    return mapped_step(called, pools, ours.stack_states(queues), batch)


def looped_step(
    loss_fn: Callable[..., tuple[Tensor, Any]], pools: list[tuple[Tensor, Tensor]], queues: list[Any], batch: int
) -> Call:
    """An eager step for each state, one after the other."""

    def with_queue(queue: Any) -> Callable[..., Tensor]:
        def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
            nonlocal queue
            loss, queue = loss_fn(logits, targets, queue)
            return loss

        return loss_of

    steps = [training_step(with_queue(queue), *pool, batch) for queue, pool in zip(queues, pools, strict=True)]
    return lambda: [step() for step in steps]


def mapped_step(
    mapped: Callable[..., tuple[Tensor, Any]], pools: list[tuple[Tensor, Tensor]], queue: Any, batch: int
) -> Call:
    """All states' steps in one call; ``queue`` has the states along its first axis."""
    logits, targets = map(torch.stack, zip(*pools, strict=True))
    turns = itertools.cycle(zip(torch.split(logits, batch, 1), torch.split(targets, batch, 1), strict=True))

    def step() -> object:
        nonlocal queue
        gradients, queue = mapped(*next(turns), queue)
        return gradients

    return step
