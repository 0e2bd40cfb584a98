"""Retrieval of unseen classes: the embedding, the losses and their training; runs in any of the environments.

Every loss takes embeddings ``[B, D]`` and class ids ``[B]``, and compares cosines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from study.loop import Limits, train
from study.losses import Job

__all__ = ["EMBEDDING", "balanced_batch", "fit_retrieval", "make_retrieval_loss", "mean_average_precision"]

EMBEDDING, HIDDEN = 32, 128
CLASSES_IN_BATCH, ROWS_OF_CLASS = 8, 16
Data = dict[str, Tensor]


class Triplet(nn.Module):
    """Triplet loss with the hardest positive and negative of each row in the batch (Hermans et al., 2017)."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows."""
        cosines, same = _cosines(embeddings), labels[:, None] == labels
        itself = torch.eye(len(labels), dtype=torch.bool)
        nearest = cosines.masked_fill(same, -torch.inf).amax(1)
        farthest = cosines.masked_fill(~same | itself, torch.inf).amin(1)
        return (nearest - farthest + self.margin).clamp_min(0).mean()


class NormalisedSoftmax(nn.Module):
    """Cross-entropy of cosines with a learned direction for each class (Zhai, Wu. BMVC 2019)."""

    def __init__(self, n_classes: int, temperature: float) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(n_classes, EMBEDDING))
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows."""
        cosines = functional.normalize(embeddings, dim=1) @ functional.normalize(self.directions, dim=1).T
        return functional.cross_entropy(cosines / self.temperature, labels)


class SupervisedContrastive(nn.Module):
    """Mean log share of each positive among all other rows (Khosla et al., NeurIPS 2020, L_out)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean over the rows that have a positive."""
        itself = torch.eye(len(labels), dtype=torch.bool)
        logits = (_cosines(embeddings) / self.temperature).masked_fill(itself, -torch.inf)
        positive = (labels[:, None] == labels) & ~itself
        shares = logits.log_softmax(1).masked_fill(~positive, 0)
        counts = positive.sum(1)
        return -(shares.sum(1)[counts > 0] / counts[counts > 0]).mean()


def _cosines(embeddings: Tensor) -> Tensor:
    normed = functional.normalize(embeddings, dim=1)
    return normed @ normed.T


def make_retrieval_loss(job: Job, n_classes: int) -> nn.Module:
    """The contender's loss; ``peer`` is pytorch-metric-learning's."""
    name, options = job["contender"]["loss"], dict(job["contender"]["options"])
    options |= {key: value for key, value in job["setting"].items() if key != "lr"}
    own: dict[str, Any] = {"Triplet": Triplet, "SupervisedContrastive": SupervisedContrastive}
    if name in own:
        made: nn.Module = own[name](**options)
    elif name == "NormalisedSoftmax":
        made = NormalisedSoftmax(n_classes, **options)
    elif job["contender"]["series"] == "peer":
        from pytorch_metric_learning import losses

        made = getattr(losses, name)(**options)
    else:
        import imbalanced_losses

        made = getattr(imbalanced_losses, name)(embedding_size=EMBEDDING, validate_targets=False, **options)
    return made


def balanced_batch(targets: Tensor, generator: torch.Generator) -> Tensor:
    """Row numbers: 16 of each of 8 random classes (fewer where there are fewer), class by class."""
    classes = targets.unique()  # type: ignore[no-untyped-call]
    picked = classes[torch.randperm(len(classes), generator=generator)[:CLASSES_IN_BATCH]]
    rows = []
    for one in picked:
        of_class = (targets == one).nonzero()[:, 0]
        rows.append(of_class[torch.randperm(len(of_class), generator=generator)[:ROWS_OF_CLASS]])
    return torch.cat(rows)


def mean_average_precision(embeddings: Tensor, labels: Tensor) -> float:
    """Each row queries all others by cosine; for early stopping, as the environments share no package that has it."""
    if not embeddings.isfinite().all():
        return float("nan")
    order = _cosines(embeddings).fill_diagonal_(-torch.inf).argsort(1, descending=True)[:, :-1]
    hit = (labels[order] == labels[:, None]).double()
    precision = hit.cumsum(1) / torch.arange(1.0, hit.shape[1] + 1, dtype=torch.float64)
    counts = hit.sum(1)
    return float(((precision * hit).sum(1)[counts > 0] / counts[counts > 0]).mean())


def fit_retrieval(data: Data, job: Job) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Embeddings of the test classes by the best model on the validation classes, and what it took."""
    torch.manual_seed(job["seed"])
    features, targets = data["train_features"], data["train_targets"]
    model = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, EMBEDDING))
    loss_fn = make_retrieval_loss(job, int(targets.max()) + 1)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], lr=job["setting"]["lr"], fused=True)
    generator = torch.Generator().manual_seed(job["seed"])

    def step(rows: Tensor) -> None:
        loss = loss_fn(model(features[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def watch(one: nn.Module) -> float:
        with torch.no_grad():
            return mean_average_precision(one(data["validation_features"]), data["validation_targets"])

    rows = (balanced_batch(targets, generator) for _ in iter(int, 1))
    answer = train(model, step, rows, len(features), watch, Limits(**job["limits"]))
    with torch.no_grad():
        return {"test": model(data["test_features"])}, answer
