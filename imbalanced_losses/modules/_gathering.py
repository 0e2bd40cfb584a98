"""Gathering in the module shells: replace a rank's batch or sum by that of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imbalanced_losses.distributed import (
    GradReduction,
    Ranks,
    all_gather_header,
    dtype_name,
    dtype_number,
    gather_columns,
    header_device,
    require_equal_on_ranks,
    to_report,
    with_local_gradient,
)
from imbalanced_losses.losses._ranking import RankingConfig
from imbalanced_losses.pool import check_queue
from imbalanced_losses.queue import QueueState
from imbalanced_losses.reductions import Elements, mean_over_weight, sum_elements
from imbalanced_losses.rows import Rows

__all__ = ["EmbeddingTask", "gather_rows", "keep_own_elements", "reduce_over_ranks", "sum_over_ranks"]


@dataclass(frozen=True)
class EmbeddingTask:
    """What :func:`gather_rows` takes in place of a configuration for rows of embeddings with class ids."""

    num_classes: int
    ignore_index: int
    multilabel: bool = False
    max_pool_size: None = None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(
    ranks: Ranks,
    inputs: Tensor,
    parse: Callable[[], Rows],
    cfg: RankingConfig | EmbeddingTask,
    queue: QueueState,
    update_queue: bool,
    *,
    has_flags: bool,
    has_weights: bool,
) -> tuple[Rows, torch.Generator | None]:
    """Concatenate the ranks' rows in two collectives, whatever optional arguments each rank was given.

    The first exchanges sizes and errors. The second exchanges the rows: logits, targets, and flags and weights if any
    rank has them. The returned generator samples the pool (``max_pool_size``) the same way on all ranks.
    """
    error: Exception | None = None
    rows, facts, device = None, [0] * (5 + len(_SETTINGS)), header_device(inputs, ranks)
    try:
        rows = parse()
        check_queue(queue, rows, cfg)
        facts = _describe(rows, cfg, queue, update_queue, has_flags, has_weights)
    except Exception as caught:
        error = to_report(caught)
    everyones, _ = all_gather_header(ranks, "a ranking loss", device, facts, error)
    assert rows is not None  # else every rank has raised
    counts, dtypes, flagged, weighted, seeds, *settings = map(list, zip(*everyones, strict=True))
    require_equal_on_ranks("the logits' dtype", [dtype_name(number) for number in dtypes])
    for what, of_ranks in zip(_SETTINGS, settings, strict=True):
        require_equal_on_ranks(what, of_ranks)
    columns = {"logits": rows.logits, "targets": _encode(rows, cfg)}
    if any(flagged):
        columns["iid"] = rows.iid
    if any(weighted):
        columns["sample_weight"] = rows.sample_weight
    gathered = dict(zip(columns, gather_columns(ranks, list(columns.values()), counts), strict=True))
    generator = None if cfg.max_pool_size is None else torch.Generator(device).manual_seed(seeds[0])
    return _decode(gathered, rows, cfg), generator


# What all ranks must agree on.
_SETTINGS = ("num_classes", "multilabel", "queue_size", "ignore_index", "whether the queue is updated")


def _describe(
    rows: Rows,
    cfg: RankingConfig | EmbeddingTask,
    queue: QueueState,
    update_queue: bool,
    has_flags: bool,
    has_weights: bool,
) -> list[int]:
    # all ranks use the seed of rank 0, so that they sample the same rows
    seed = 0 if cfg.max_pool_size is None else int(torch.randint(2**62, ()))
    settings = (cfg.num_classes, cfg.multilabel, len(queue.targets), cfg.ignore_index, update_queue)
    return [len(rows.logits), dtype_number(rows.logits.dtype), has_flags, has_weights, seed, *settings]


def _has_class_ids(cfg: RankingConfig | EmbeddingTask) -> bool:
    return isinstance(cfg, EmbeddingTask) or (cfg.num_classes > 1 and not cfg.multilabel)


def _encode(rows: Rows, cfg: RankingConfig | EmbeddingTask) -> Tensor:
    """Return the targets to send. Binary and multi-label ones take a byte: 0, 1, or 2 for any other value."""
    if _has_class_ids(cfg):
        # a row whose weight is not finite counts, with the class id 0
        return torch.where(rows.valid, 1, rows.targets) if cfg.ignore_index == 0 else rows.targets
    counts = rows.valid & (rows.targets.clamp(0, 1) == rows.targets)
    return torch.where(counts, rows.targets, 2).to(torch.uint8)


def _decode(gathered: dict[str, Tensor], own: Rows, cfg: RankingConfig | EmbeddingTask) -> Rows:
    """Return the rows of all ranks; flags and weights are ones if no rank has any."""
    targets = gathered["targets"]
    if _has_class_ids(cfg):
        valid = targets != cfg.ignore_index
    else:
        valid, targets = targets != 2, torch.where(targets == 2, cfg.ignore_index, targets.long())
    n = len(targets)
    return Rows(
        logits=gathered["logits"],
        targets=targets,
        iid=gathered["iid"] if "iid" in gathered else own.iid.new_ones(n),
        sample_weight=gathered["sample_weight"] if "sample_weight" in gathered else own.sample_weight.new_ones(n),
        valid=valid,
    )


def reduce_over_ranks(
    ranks: Ranks,
    grad_reduction: GradReduction,
    inputs: Tensor,
    elements: Callable[[], Elements],
    *,
    mean: bool,
    single_label: bool,
    updates: bool = False,
) -> Tensor:
    """Return the mean or sum of all ranks' ``elements()``, in one collective of two numbers per rank.

    All ranks must have the same number of columns, unless ``inputs [N, A, ...]`` are not ``single_label`` (a column is
    not a class): A may then be the number of anchors, which differs between images.
    """
    error: Exception | None = None
    device = header_device(inputs, ranks)
    own, total_weight = torch.zeros(2, device=device)
    try:
        own, total_weight = sum_elements(*elements())
    except Exception as caught:
        error = to_report(caught)
    n_columns = inputs.shape[1] if error is None and (single_label or inputs.dim() == 2) else 0
    total, total_weight = _add_up(ranks, n_columns, error, own, total_weight, updates)
    if mean:
        return with_local_gradient(
            mean_over_weight(own, total_weight), mean_over_weight(total, total_weight), ranks, grad_reduction
        )
    return with_local_gradient(own, total, ranks, grad_reduction)


def keep_own_elements(ranks: Ranks, inputs: Tensor, loss: Callable[[], Tensor], *, updates: bool) -> Tensor:
    """Return this rank's ``loss()`` per element, or raise if any rank failed: one collective."""
    error: Exception | None = None
    own = torch.zeros((), device=header_device(inputs, ranks))
    try:
        own = loss()
    except Exception as caught:
        error = to_report(caught)
    _add_up(ranks, 0, error, own.new_zeros(()), own.new_zeros(()), updates)
    return own


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_over_ranks(ranks: Ranks, numbers: Tensor) -> Tensor:
    """Return the sum of all ranks' integers ``[K]``: one collective, which all ranks must call."""
    return gather_columns(ranks, [numbers.unsqueeze(0)], [1] * ranks.size)[0].sum(0)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _add_up(
    ranks: Ranks, n_columns: int, error: Exception | None, own: Tensor, total_weight: Tensor, updates: bool
) -> Tensor:
    """Return the two sums over all ranks, ``[2]``, in this rank's dtype."""
    facts, totals = all_gather_header(
        ranks,
        "an elementwise loss",
        own.device,
        [dtype_number(own.dtype), n_columns, updates],
        error,
        torch.stack([own.detach().double(), total_weight.double()]),
    )
    require_equal_on_ranks("the loss's dtype", [dtype_name(number) for number, _, _ in facts])
    require_equal_on_ranks("the number of columns", [number for _, number, _ in facts])
    require_equal_on_ranks("whether class counts are updated", [bool(flag) for _, _, flag in facts])
    return totals.sum(0).to(own.dtype)
