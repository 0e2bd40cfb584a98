"""Batches with a memory for the tests of the retrieval losses, and references in NumPy float64, as plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalanced_losses import (
    QueueState,
    RecallAtKConfig,
    RetrievalAPConfig,
    init_queue,
    retrieval_ap,
    retrieval_recall_at_k,
)
from imbalanced_losses.queue import push

IGNORE = -100
SIZE = 5
Reference = Callable[..., np.ndarray[Any, Any]]


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x)) if x > 0 else np.exp(x) / (1 + np.exp(x))


def problems_of(embeddings: Any, labels: Any, past: Any, past_labels: Any, similarity: str) -> Any:
    """Yield, for each live row, its positives' and its negatives' similarities, and both together; None if ignored."""
    everything = [*zip(embeddings, labels, strict=True), *zip(past, past_labels, strict=True)]
    for q, (query, label) in enumerate(zip(embeddings, labels, strict=True)):
        if label == IGNORE:
            yield None
            continue
        positives, negatives = [], []
        for j, (key, key_label) in enumerate(everything):
            if j == q or key_label == IGNORE:
                continue
            score = float(np.dot(query, key))
            if similarity == "cosine":
                norms = np.linalg.norm(query) * np.linalg.norm(key)
                score = score / norms if norms > 0 else 0.0
            (positives if key_label == label else negatives).append(score)
        yield positives, negatives


def ap_of_query(positives: list[float], negatives: list[float], cfg: RetrievalAPConfig) -> float:
    tau, rho, delta = cfg.temperature, cfg.rho, cfg.delta
    total = 0.0
    for i, own in enumerate(positives):
        plus, minus = 1.0, 0.0
        for j, other in enumerate(positives):
            if j != i:
                plus += sigmoid((other - own) / tau) if cfg.surrogate == "sigmoid" else float(other >= own)
        for other in negatives:
            t = other - own
            if cfg.surrogate == "sigmoid" or t < 0:
                minus += sigmoid(t / tau)
            elif t <= delta:
                minus += sigmoid(t / tau) + 0.5
            else:
                minus += rho * (t - delta) + sigmoid(delta / tau) + 0.5
        total += 1 - plus / (plus + minus)
    loss = total / len(positives)
    pulled = sum(max(0.0, cfg.positive_target - s) for s in positives) / len(positives)
    pushed = sum(max(0.0, s - cfg.negative_target) for s in negatives) / max(1, len(negatives))
    weight = cfg.calibration_weight
    return (1 - weight) * loss + weight * (pulled + pushed)


def recall_of_query(positives: list[float], negatives: list[float], cfg: RecallAtKConfig) -> float:
    total = 0.0
    for k in cfg.k:
        for i, own in enumerate(positives):
            others = [s for j, s in enumerate(positives) if j != i] + negatives
            rank = 1 + sum(sigmoid((other - own) / cfg.temperature) for other in others)
            total += sigmoid((k - rank) / cfg.rank_temperature)
    return 1 - total / len(positives) / len(cfg.k)


@dataclass(frozen=True)
class Case:
    """A loss and its options."""

    name: str
    function: Any
    config: Any
    of_query: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def cfg(self, **changes: Any) -> Any:
        return self.config(**{"embedding_size": SIZE, "temperature": 0.05, **self.options, **changes})

    def call(self, embeddings: Tensor, labels: Tensor, state: QueueState | None = None, **options: Any) -> Tensor:
        """The loss; ``options`` are fields of the configuration, or arguments of the function."""
        fields = set(self.config.__dataclass_fields__)
        cfg = self.cfg(**{k: v for k, v in options.items() if k in fields})
        rest = {k: v for k, v in options.items() if k not in fields}
        state = init_queue(0, embeddings.shape[1]) if state is None else state
        loss: Tensor = self.function(embeddings, labels, state, cfg, **rest)[0]
        return loss

    def reference(
        self, embeddings: Tensor, labels: Tensor, state: QueueState, weight: Tensor | None = None, **changes: Any
    ) -> Tensor:
        """The losses of the queries, ``nan`` where there is no positive."""
        cfg = self.cfg(**changes)
        arrays = [x.detach().double().numpy() for x in (embeddings, state.logits)]
        problems = problems_of(arrays[0], labels.tolist(), arrays[1], state.targets.tolist(), cfg.similarity)
        losses = [np.nan if not p or not p[0] else self.of_query(*p, cfg) for p in problems]
        return torch.tensor(losses, dtype=torch.float64)


CASES = [
    Case("ap", retrieval_ap, RetrievalAPConfig, ap_of_query),
    Case("ap-dot", retrieval_ap, RetrievalAPConfig, ap_of_query, {"similarity": "dot"}),
    Case("sup", retrieval_ap, RetrievalAPConfig, ap_of_query, {"surrogate": "sup"}),
    Case("sup-dot", retrieval_ap, RetrievalAPConfig, ap_of_query, {"surrogate": "sup", "similarity": "dot"}),
    Case(
        "roadmap",
        retrieval_ap,
        RetrievalAPConfig,
        ap_of_query,
        {"surrogate": "sup", "calibration_weight": 0.5, "delta": 0.1, "rho": 7.0},
    ),
    Case("ap-calibrated", retrieval_ap, RetrievalAPConfig, ap_of_query, {"calibration_weight": 0.3}),
    Case("recall", retrieval_recall_at_k, RecallAtKConfig, recall_of_query),
    Case(
        "recall-dot",
        retrieval_recall_at_k,
        RecallAtKConfig,
        recall_of_query,
        {"similarity": "dot", "k": (1, 3), "rank_temperature": 0.4},
    ),
]
AP_CASES = CASES[:6]
RECALL_CASES = CASES[6:]


def batch(n: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64, n_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Rows of a few classes, one row of a class of its own, one ignored row; a label may be negative."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(-1, n_classes - 1, (n,), generator=generator)
    if n > 3:
        labels[1], labels[3] = 77, IGNORE
    return embeddings, labels


def memory(filled: int = 6, capacity: int = 8, seed: int = 1, dtype: torch.dtype = torch.float64) -> QueueState:
    """A memory with some slots that are not filled yet."""
    embeddings, labels = batch(filled, seed, dtype)
    labels = torch.where(labels == 77, 0, labels)
    flags = torch.ones(filled, dtype=torch.bool)
    return push(init_queue(capacity, SIZE, dtype=dtype), embeddings, labels, flags, torch.ones(filled, dtype=dtype))


def value_and_grad(case: Case, embeddings: Tensor, labels: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = case.call(leaf, labels, *args, **options)
    return loss.detach(), torch.autograd.grad(loss.nansum(), leaf)[0]
