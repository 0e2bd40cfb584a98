"""The numbers of the figures, computed with the library: each function returns named tensors, from a fixed seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses import (
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    init_queue,
    metrics,
    smooth_ap,
)
from imbalanced_losses.kernels.ranks.exponential_sums import SINGLE, sorted_sums

__all__ = ["COMPUTED", "Numbers"]

Numbers = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
DOCS = Path(__file__).resolve().parents[1]


def gradient(loss_fn: Loss, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient of a loss by the scores ``[N]``."""
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(loss_fn(scores[:, None], targets), scores)[0]


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits ``[N, 1]``."""
    return functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())


def where_losses_push() -> Numbers:
    """Minus the gradient at each row, in shares of the largest one."""
    random = torch.Generator().manual_seed(1)
    targets = (torch.arange(200) < 10).long()
    scores = torch.randn(200, generator=random) - 3 + 2 * targets
    losses: dict[str, Loss] = {
        "cross-entropy": bce,
        "Smooth-AP": SmoothAPLoss(num_classes=1, queue_size=0, temperature=0.5),
        "recall at 5 %": RecallAtQuantileLoss(
            num_classes=1, queue_size=0, quantile=0.05, temperature=0.5, threshold_gradient="implicit"
        ),
        "partial AUC up to 10 %": PAUCAtBudgetLoss(
            num_classes=1, queue_size=0, surrogate="pairwise", beta=0.1, temperature=0.5
        ),
    }
    pushes = {name: -gradient(loss_fn, scores, targets) for name, loss_fn in losses.items()}
    return {"scores": scores, "targets": targets, **{name: push / push.abs().max() for name, push in pushes.items()}}


def smooth_ap_steps() -> Numbers:
    """The loss as one positive climbs past five negatives, and its slope, by temperature."""
    others = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    position = torch.linspace(-3.5, 3.5, 281).double()
    numbers = {"position": position, "exact": 1 - 1 / (1 + (others[None] > position[:, None]).sum(1).double())}
    for temperature in (0.03, 0.2, 1.0):
        loss_fn = SmoothAPLoss(num_classes=1, queue_size=0, temperature=temperature)
        x = position.clone().requires_grad_()
        losses = [loss_fn(torch.cat([p[None], others.double()])[:, None], torch.tensor([1, 0, 0, 0, 0, 0])) for p in x]
        slope = torch.autograd.grad(torch.stack(losses).sum(), x)[0]
        numbers |= {f"loss {temperature}": torch.stack(losses).detach(), f"slope {temperature}": slope}
    return numbers


def rows_with_gradient() -> Numbers:
    """By temperature: how many rows share the gradient, and the gap to the exact metric.

    The number of rows is ``(sum |g|)^2 / sum g^2``: k rows with equal gradients count as k.
    """
    random = torch.Generator().manual_seed(0)
    targets = (torch.rand(2000, generator=random) < 0.02).long()
    scores = torch.randn(2000, generator=random) + 2 * targets
    exact = 1 - metrics.average_precision(scores, targets)
    temperatures = torch.logspace(-3, 1, 25)
    rows, gaps = [], []
    for temperature in temperatures.tolist():
        loss_fn = SmoothAPLoss(num_classes=1, queue_size=0, temperature=temperature)
        size = gradient(loss_fn, scores, targets).abs().double()
        rows.append(size.sum() ** 2 / size.square().sum())
        gaps.append(loss_fn(scores[:, None], targets) - exact)
    return {"temperature": temperatures, "rows": torch.stack(rows), "gap": torch.stack(gaps)}


def training_rows(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features ``[N, 8]`` and labels ``[N]`` with 5 % positives, most of which lie in a ring."""
    random = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n_rows, generator=random) < 0.05).long()
    features = torch.randn(n_rows, 8, generator=random)
    ring = functional.normalize(features[:, :2]) * 3 + 0.5 * features[:, 2:4]
    features[:, :2] = torch.where(targets[:, None] == 1, ring, features[:, :2])
    return features, targets


def small_model(seed: int) -> torch.nn.Module:
    """One hidden layer."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))


def threshold_drift() -> Numbers:
    """Mean score and recall over training with a detached threshold, and with one that follows the scores."""
    features, targets = training_rows(300 * 64, seed=3)
    held_out, labels = training_rows(10_000, seed=4)
    numbers = {"step": torch.arange(0.0, 300, 5)}
    for mode in ("stop", "implicit"):
        model = small_model(0)
        loss_fn = RecallAtQuantileLoss(
            num_classes=1, quantile=0.05, queue_size=0, temperature=0.5, threshold_gradient=mode
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        mean, recall = [], []
        for step, (rows, target) in enumerate(zip(features.split(64), targets.split(64), strict=True)):
            if step % 5 == 0:
                with torch.no_grad():
                    scores = model(held_out)[:, 0]
                mean.append(scores.mean())
                recall.append(metrics.recall_at_quantile(scores, labels, quantile=0.05))
            optimizer.zero_grad()
            loss_fn(model(rows), target).backward()
            optimizer.step()
        numbers |= {f"mean {mode}": torch.stack(mean), f"recall {mode}": torch.stack(recall)}
    return numbers


def population(n_rows: int, rate: float) -> tuple[Tensor, Tensor]:
    """Scores and labels of a fixed model on many rows."""
    random = torch.Generator().manual_seed(7)
    targets = (torch.rand(n_rows, generator=random) < rate).long()
    return torch.randn(n_rows, generator=random) + 2 * targets, targets


def batch_bias() -> Numbers:
    """Mean and spread of the average precision of random pools, against that of all rows."""
    scores, targets = population(200_000, 0.01)
    sizes = 2 ** torch.arange(5, 14)
    random = torch.Generator().manual_seed(11)
    means, spreads = [], []
    for size in sizes.tolist():
        values = []
        for _ in range(300):
            rows = torch.randint(len(scores), (size,), generator=random)
            if 0 < targets[rows].sum() < size:
                values.append(metrics.average_precision(scores[rows], targets[rows]))
        means.append(torch.stack(values).mean())
        spreads.append(torch.stack(values).std())
    whole = metrics.average_precision(scores, targets)
    return {"size": sizes, "mean": torch.stack(means), "spread": torch.stack(spreads), "all": whole}


def staleness() -> Numbers:
    """How many pairs of a stored and a live row are in another order than today, by age and learning rate."""
    features, targets = training_rows(400 * 64, seed=5)
    probe, _ = training_rows(500, seed=6)
    ages = torch.tensor([0, 1, 2, 4, 8, 16, 32, 64])
    numbers = {"age": ages}
    for rate in (0.001, 0.01, 0.1):
        model = small_model(0)
        loss_fn = SmoothAPLoss(num_classes=1, temperature=0.5)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        history = []
        for rows, target in zip(features.split(64), targets.split(64), strict=True):
            optimizer.zero_grad()
            loss_fn(model(rows), target).backward()
            optimizer.step()
            with torch.no_grad():
                history.append(model(probe)[:, 0])
        shares = []
        for age in ages.tolist():
            wrong = [
                ((history[step - age][:, None] > history[step]) != (history[step][:, None] > history[step]))
                .float()
                .mean()
                for step in range(300, 400, 10)
            ]
            shares.append(torch.stack(wrong).mean())
        numbers[f"rate {rate}"] = torch.stack(shares)
    return numbers


def subsampling() -> Numbers:
    """Smooth-AP of a pool, estimated from samples: all positives kept and not corrected, and ``max_pool_size``."""
    scores, targets = population(8192, 0.01)
    queue = init_queue(0, num_classes=1)
    loss_of_all, _ = smooth_ap(scores, targets, queue, SmoothAPConfig(num_classes=1, temperature=0.1))
    positives, negatives = scores[targets == 1], scores[targets == 0]
    sizes = 2 ** torch.arange(8, 13)
    random = torch.Generator().manual_seed(5)
    naive_means, means, spreads = [], [], []
    plain = SmoothAPConfig(num_classes=1, temperature=0.1)
    for size in sizes.tolist():
        sampled = SmoothAPConfig(num_classes=1, temperature=0.1, max_pool_size=size)
        naive, corrected = [], []
        for _ in range(100):
            others = negatives[torch.randperm(len(negatives), generator=random)[: size - len(positives)]]
            labels = (torch.arange(size) < len(positives)).long()
            naive.append(smooth_ap(torch.cat([positives, others]), labels, queue, plain)[0])
            corrected.append(smooth_ap(scores, targets, queue, sampled, generator=random)[0])
        naive_means.append(torch.stack(naive).mean())
        means.append(torch.stack(corrected).mean())
        spreads.append(torch.stack(corrected).std())
    return {
        "size": sizes,
        "naive": torch.stack(naive_means),
        "corrected": torch.stack(means),
        "spread": torch.stack(spreads),
        "all": loss_of_all,
    }


def fitted_error(terms: int) -> float:
    """Return the largest error of ``u / (1 + u)`` by a polynomial without constant term, relative to ``u``."""
    u = (1 - np.cos(np.linspace(0, np.pi, 801))) / 2
    basis = np.polynomial.chebyshev.chebvander(2 * u - 1, terms - 1)
    target, weights = 1 / (1 + u), np.ones_like(u)
    best = np.inf
    for _ in range(60):  # Lawson's iteration: weights grow where the error is large
        fit = np.linalg.lstsq(basis * weights[:, None] ** 0.5, target * weights**0.5, rcond=None)[0]
        error = np.abs(basis @ fit - target)
        best = min(best, error.max())
        weights = weights * error
        weights /= weights.sum()
    return float(best)


def exponential_terms() -> Numbers:
    """The error of a sum of exponentials by its number of terms; and that of the library's coefficients."""
    terms = torch.arange(1, 15)
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    powers = torch.stack([u**k for k in range(len(SINGLE[0]))])
    library = (torch.tensor(SINGLE[0], dtype=torch.float64) @ powers - 1 / (1 + u)).abs().max()
    errors = torch.tensor([fitted_error(int(k)) for k in terms]).double()
    return {"terms": terms, "error": errors, "library terms": torch.tensor(len(SINGLE[0])), "library": library}


def rank_accuracy() -> Numbers:
    """Relative error of soft ranks in float32 against all pairs in float64, by rows and temperature."""
    sizes = torch.tensor([1000, 4000, 16000])
    numbers = {"size": sizes}
    for temperature in (0.01, 0.1, 1.0, 10.0):
        errors = []
        for size in sizes.tolist():
            scores = torch.randn(1, size, generator=torch.Generator().manual_seed(2)).sort(-1).values
            tau = torch.tensor([temperature])
            ranks = sorted_sums(scores, torch.ones(1, 1, size), tau, 0)[0, 0, ::20].double()
            pairs = torch.sigmoid((scores[0].double() - scores[0, ::20].double()[:, None]) / tau.double())
            exact = pairs.sum(1) - 0.5
            errors.append(((ranks - exact) / (1 + exact)).abs().max())
        numbers[f"temperature {temperature}"] = torch.stack(errors)
    return numbers


def rank_times() -> Numbers:
    """From docs/paths.json: time of both ways to soft ranks."""
    measured = json.loads((DOCS / "paths.json").read_text(encoding="utf-8"))["choices"]["soft ranks; rows"]
    sizes = torch.tensor([float(size.replace(",", "")) for size in measured])
    times = torch.tensor([[values[0], values[1]] for values in measured.values()])
    return {"size": sizes, "all pairs": times[:, 0], "near-linear": times[:, 1]}


def label_noise() -> Numbers:
    """The share of the gradient that one wrong label takes, by its score."""
    random = torch.Generator().manual_seed(4)
    targets = torch.cat([(torch.arange(1000) < 20).long(), torch.zeros(1, dtype=torch.long)])
    scores = torch.randn(1001, generator=random) + 3 * targets - 3
    position = torch.linspace(-3, 6, 46)
    losses: dict[str, Loss] = {
        "cross-entropy": bce,
        "Smooth-AP": SmoothAPLoss(num_classes=1, queue_size=0, temperature=0.5),
        "partial AUC up to 10 %": PAUCAtBudgetLoss(
            num_classes=1, queue_size=0, surrogate="pairwise", beta=0.1, temperature=1.0
        ),
    }
    numbers = {"position": position}
    for name, loss_fn in losses.items():
        shares = []
        for score in position:
            moved = torch.cat([scores[:-1], score[None]])  # the last row: a positive labelled as a negative
            size = gradient(loss_fn, moved, targets).abs()
            shares.append(size[-1] / size.sum())
        numbers[name] = torch.stack(shares)
    return numbers


COMPUTED: dict[str, Callable[[], Numbers]] = {
    function.__name__: function
    for function in (
        *(where_losses_push, smooth_ap_steps, rows_with_gradient, threshold_drift, batch_bias, staleness),
        *(subsampling, exponential_terms, rank_accuracy, rank_times, label_noise),
    )
}
