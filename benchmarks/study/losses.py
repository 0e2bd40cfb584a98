"""The contenders' losses as functions of logits and targets, in whichever environment this process runs.

Imports nothing of the package at the top: the peer's environment has another one of the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CrossEntropy", "Job", "Loss", "make_loss", "ranking_options", "set_bias"]

# logits [B, C], targets [B] -> a scalar
Loss = Callable[[Tensor, Tensor], Tensor]
Job = dict[str, Any]

ANNEALED_STEPS, MOST_SCALED = 1_000, 100.0
RANKING_LOSSES = (
    "SmoothAPLoss",
    "RecallAtQuantileLoss",
    "PAUCAtBudgetLoss",
    "PrecisionAtRecallLoss",
    "FPRAtRecallLoss",
)


def class_counts(targets: Tensor, n_classes: int) -> Tensor:
    """``[C]`` float64, or ``[2]`` of one logit; at least 1, as a training set may lack a class."""
    return torch.bincount(targets, minlength=max(2, n_classes)).double().clamp_min(1)


class CrossEntropy(nn.Module):
    """Cross-entropy of classes or of one label, with the weights of a scheme."""

    def __init__(self, counts: Tensor, n_classes: int, weights: str | None = None) -> None:
        super().__init__()
        self.of_classes = n_classes > 1
        self.weight: Tensor | None = None
        if weights is not None:
            import imbalanced_losses

            of_classes = imbalanced_losses.class_weights(counts, weights).float()  # type: ignore[arg-type]
            self.weight = of_classes if self.of_classes else of_classes[1] / of_classes[0]

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch."""
        if self.of_classes:
            return functional.cross_entropy(logits, targets, self.weight)
        labels = targets.view_as(logits).to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.weight)


class OneHot(nn.Module):
    """A loss of independent labels, on classes one against the rest."""

    def __init__(self, loss: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.loss, self.n_classes = loss, n_classes

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the loss gives."""
        of_classes = self.n_classes > 1
        hot = functional.one_hot(targets, self.n_classes) if of_classes else targets.view_as(logits)
        loss: Tensor = self.loss(logits, hot.to(logits.dtype))
        return loss


class Flat(nn.Module):
    """A loss that takes one label's logits as ``[B]``."""

    def __init__(self, loss: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.loss, self.of_classes = loss, n_classes > 1

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the loss gives."""
        loss: Tensor = self.loss(logits if self.of_classes else logits[:, 0], targets)
        return loss


class Half(nn.Module):
    """Half of a loss, and half cross-entropy."""

    def __init__(self, main: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.main, self.other = main, other

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean of the two."""
        mean: Tensor = (self.main(logits, targets) + self.other(logits, targets)) / 2
        return mean


class Balanced(Half):
    """A loss and cross-entropy, the loss scaled so that both have gradients of one norm at the logits."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean of the two; a loss without a gradient counts as it is."""
        losses = self.main(logits, targets), self.other(logits, targets)
        norms = [torch.autograd.grad(one, logits, retain_graph=True)[0].norm() for one in losses]
        mean: Tensor = (losses[0] * (norms[1] / norms[0].clamp_min(1e-12)).clamp_max(MOST_SCALED) + losses[1]) / 2
        return mean


class Annealed(nn.Module):
    """A loss whose temperature falls from four times its own, geometrically, over the first steps."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main, self.end, self.steps = main, float(main.temperature), 0  # type: ignore[arg-type]

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Each call is a step."""
        self.main.temperature = self.end * 4 ** (1 - min(1.0, self.steps / ANNEALED_STEPS))  # type: ignore[assignment]
        self.steps += 1
        loss: Tensor = self.main(logits, targets)
        return loss


def ranking_options(job: Job) -> dict[str, Any]:
    """Arguments of a ranking loss: the share of alerts is the problem's budget, or ``band`` times that."""
    name, options = job["contender"]["loss"], {**job["contender"]["options"], **own_setting(job)}
    share = min(1.0, options.pop("band", 1.0) * job["budget"])
    shares = {"RecallAtQuantileLoss": "quantile", "PAUCAtBudgetLoss": "beta"}
    return {**options, **({shares[name]: share} if name in shares else {})}


def own_setting(job: Job) -> dict[str, Any]:
    """What the loss takes of a setting; the rest is the optimizer's."""
    return {name: value for name, value in job["setting"].items() if name not in ("lr", "decay")}


def make_loss(job: Job, targets: Tensor) -> Loss:
    """The contender's loss, of our series or of the peer; ``targets`` are those of the training set."""
    contender, n_classes = job["contender"], job["n_classes"]
    name, counts = contender["loss"], class_counts(targets, n_classes)
    options = {**contender["options"], **own_setting(job)}
    if name == "CrossEntropy":
        return CrossEntropy(counts, n_classes, **options)
    import imbalanced_losses

    if name == "Focal":
        if n_classes > 1:
            return imbalanced_losses.SoftmaxFocalLoss(**options)
        return OneHot(imbalanced_losses.SigmoidFocalLoss(alpha=-1, **options), n_classes)
    made = getattr(imbalanced_losses, name)
    if name == "AsymmetricLoss":
        return OneHot(made(**options), n_classes)
    if name in ("LogitAdjustedLoss", "LDAMLoss"):
        return Flat(made(counts, **options), n_classes)
    options = ranking_options(job) if name in RANKING_LOSSES else options
    if contender["series"] == "ours":
        options["validate_targets"] = False  # a check of each batch that a training set of {0, 1} does not need
    module: nn.Module = made(num_classes=n_classes, **options)
    if contender["schedule"] == "annealed":
        return Annealed(module)
    mix = {"half": Half, "balanced": Balanced}.get(contender["schedule"])
    return module if mix is None else mix(module, CrossEntropy(counts, n_classes))


def set_bias(layer: nn.Linear, targets: Tensor, n_classes: int, start: str) -> None:
    """Zero, or the log odds (of classes: log shares) of the training set."""
    counts = class_counts(targets, n_classes)
    logs = (counts / counts.sum()).log()
    with torch.no_grad():
        if start == "zero":
            layer.bias.zero_()
        else:
            layer.bias.copy_(logs if n_classes > 1 else logs[1:] - logs[:1])
