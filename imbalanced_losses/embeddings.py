"""Embeddings as queries and keys: checks, similarities, and the ranking problems that the retrieval losses solve.

Every row of the batch is a query. Its keys are the other rows of the batch and a memory of past embeddings, which is a
queue with the embedding size as its number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, final

import torch
from torch import Tensor
from torch.autograd import Function

from imbalanced_losses.dispatch import is_traced, may_branch_on_values, without_autocast
from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.queue import QueueState
from imbalanced_losses.rows import Rows, parse_weights, with_finite_weights
from imbalanced_losses.validation import check_temperature, check_tensor

__all__ = [
    "SIMILARITIES",
    "RetrievalProblems",
    "RetrievalTask",
    "Similarity",
    "check_memory",
    "join_memory",
    "parse_embeddings",
    "similarities",
    "take_labelled",
]

Similarity = Literal["cosine", "dot"]
SIMILARITIES = ("cosine", "dot")


class RetrievalTask(Protocol):
    """The part of a configuration that describes embeddings and labels."""

    @property
    def embedding_size(self) -> int:
        """Number of columns of the embeddings."""

    @property
    def similarity(self) -> Similarity:
        """How a query is compared with a key."""

    @property
    def ignore_index(self) -> int:
        """The label that marks an ignored row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalProblems:
    """One ranking problem per query: N queries, M keys. The keys are the batch (N), then the memory.

    An empty batch is replaced by one ignored row, so that neither N nor M is ever 0.

    Attributes
    ----------
    scores : Tensor [N, M], float32 or float64
        Similarities; 0 where the query or the key is ignored. Only live rows carry gradient.
    positive, negative : Tensor [N, M], bool
        Keys with and without the query's label. The query itself and ignored rows are neither.
    weight : Tensor [N]
        Weights of the queries.
    temperature : Tensor []
    n_live : int
        Rows of the batch.
    """

    scores: Tensor
    positive: Tensor
    negative: Tensor
    weight: Tensor
    temperature: Tensor
    n_live: int


def parse_embeddings(
    embeddings: Tensor,
    labels: Tensor,
    task: RetrievalTask,
    sample_weight: Tensor | None = None,
    *,
    check_values: bool = False,
) -> Rows:
    """Check the arguments of a retrieval loss. ``check_values`` also checks the weights' values, if they can be read.

    The embeddings are the ``logits`` of the result.
    """
    _check_embeddings(embeddings, task.embedding_size)
    targets = _check_labels(labels, embeddings)
    weight = parse_weights(sample_weight, embeddings, check_values=check_values)
    iid = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    rows = Rows(embeddings, targets, iid, weight, targets != task.ignore_index)
    return rows if sample_weight is None else with_finite_weights(rows)


def take_labelled(embeddings: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Check embeddings ``[N, D]`` of any size D, and return them (0 where ignored), labels and a mask of valid rows."""
    _check_embeddings(embeddings, None)
    targets = _check_labels(labels, embeddings)
    valid = targets != ignore_index
    rows = embeddings.detach().to(compute_dtype(embeddings))
    return torch.where(valid[:, None], rows, 0), targets, valid


def _check_embeddings(embeddings: Tensor, size: int | None) -> None:
    check_tensor("embeddings", embeddings)
    if not embeddings.is_floating_point():
        raise TypeError(f"expected floating-point embeddings, got {embeddings.dtype}: use embeddings.float()")
    if embeddings.dim() != 2 or embeddings.shape[1] == 0 or (size is not None and embeddings.shape[1] != size):
        shape = "[N, D] with D of at least 1" if size is None else f"[N, {size}]"
        remedy = ""
        if size is not None and embeddings.dim() == 2:
            remedy = f": use embedding_size={embeddings.shape[1]}"
        elif embeddings.dim() > 2:
            remedy = ": flatten all but the first axis, embeddings.flatten(1)"
        raise ValueError(f"expected embeddings of shape {shape}, got {list(embeddings.shape)}{remedy}")


def _check_labels(labels: Tensor, embeddings: Tensor) -> Tensor:
    check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"expected integer class ids as labels, got {labels.dtype}: use labels.long()")
    rows = labels.squeeze(-1) if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if list(rows.shape) != [len(embeddings)]:
        raise ValueError(f"expected labels of shape {[len(embeddings)]}, got {list(labels.shape)}")
    if labels.device != embeddings.device:
        remedy = f"use labels.to({str(embeddings.device)!r})"
        raise ValueError(f"expected labels on {embeddings.device} like the embeddings, got {labels.device}: {remedy}")
    return rows.long()


def check_memory(state: QueueState, live: Rows, task: RetrievalTask) -> None:
    """Check that the live rows can be pushed to the memory."""
    remedy = f"use init_queue(queue_size, {task.embedding_size})"
    if not isinstance(state, QueueState):
        raise TypeError(f"expected queue_state to be a QueueState, got {type(state).__name__}: {remedy}")
    if state.logits.shape[1] != task.embedding_size or state.targets.dim() != 1:
        shapes = f"logits {list(state.logits.shape)} and targets {list(state.targets.shape)}"
        raise ValueError(
            f"expected a single-label queue of {task.embedding_size} columns, got one with {shapes}: {remedy}"
        )
    if state.logits.device != live.logits.device:
        device = live.logits.device
        raise ValueError(
            f"expected a queue on {device} like the embeddings, got {state.logits.device}: "
            "use loss_fn.to(device) or init_queue(..., device=...)"
        )


def join_memory(live: Rows, queue: QueueState, task: RetrievalTask, temperature: Tensor | float) -> RetrievalProblems:
    """Compare each live row with the batch and the memory."""
    n_live, dtype = len(live.logits), compute_dtype(live.logits)
    if n_live == 0:  # one ignored row, joined so that the loss stays connected to the graph
        dummy = Rows(*(rows.new_zeros(1, *rows.shape[1:]) for rows in live))
        with without_autocast(live.logits.device):  # it does not join two half types
            live = Rows(*(torch.cat(pair) for pair in zip(live, dummy, strict=True)))
    # replaced before the product: its gradient would be 0 * nan
    queries = live.logits.to(dtype)
    if not (may_branch_on_values(live.valid) and live.valid.all()):
        queries = torch.where(live.valid[:, None], queries, 0)
    past = torch.where(queue.valid[:, None], queue.logits.detach().to(dtype), 0)
    labels, valid = torch.cat([live.targets, queue.targets]), torch.cat([live.valid, queue.valid])
    scores = similarities(queries, torch.cat([queries, past]), task.similarity)
    n, m = scores.shape
    device = scores.device
    is_self = torch.arange(n, device=device)[:, None] == torch.arange(m, device=device)
    counts = live.valid[:, None] & valid & ~is_self
    same = live.targets[:, None] == labels
    return RetrievalProblems(
        scores=scores,
        positive=counts & same,
        negative=counts & ~same,
        weight=live.sample_weight,
        temperature=check_temperature(temperature, scores),
        n_live=n_live,
    )


def similarities(queries: Tensor, keys: Tensor, kind: Similarity) -> Tensor:
    """Return the similarities ``[N, M]`` of ``queries [N, D]`` and ``keys [M, D]``, in their dtype, also in autocast.

    The cosine of an embedding of zeros is 0, and its gradient is that of the dot product.
    """
    if kind == "cosine":
        queries, keys = _unit(queries), _unit(keys)
    return _product(queries, keys)


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ columns.mT`` in full precision; in eager mode so are its derivatives, wherever they are taken."""
    device = rows.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):  # meta has none
        return rows @ columns.mT
    if is_traced():  # Dynamo traces no Function with a jvp; the compiled backward runs in autocast's dtype
        return _multiply(rows, columns)
    return cast(Tensor, _Product.apply(rows, columns))  # type: ignore[no-untyped-call]


def _multiply(rows: Tensor, columns: Tensor) -> Tensor:
    with without_autocast(rows.device):
        return rows @ columns.mT


@final
class _Product(Function):
    """The product where autocast is on."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, columns: Tensor) -> Tensor:
        return _multiply(rows, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = ctx.saved_tensors
        return _product(gradient, columns.mT), _product(gradient.mT, rows.mT)

    @staticmethod
    def jvp(ctx: Any, rows_tangent: Tensor, columns_tangent: Tensor) -> Tensor:
        rows, columns = ctx.saved_tensors
        return _product(rows_tangent, columns) + _product(rows, columns_tangent)


def _unit(rows: Tensor) -> Tensor:
    """Divide each row by its norm; a row of zeros stays as it is."""
    # the largest entry becomes 1 first, so that no square overflows and the sum of squares is at least 1
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scaled = rows / torch.where(largest == 0, 1, largest)
    return scaled * (scaled * scaled).sum(-1, keepdim=True).clamp_min(1).rsqrt()
