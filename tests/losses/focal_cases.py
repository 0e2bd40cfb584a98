"""The focal losses in a handful of configurations, and the paper's formula in float64 as their oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imbalanced_losses import (
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    sigmoid_focal,
    softmax_focal,
)

GAMMAS = [0.0, 0.3, 0.5, 1.0, 2.0, 5.0]
N_CLASSES = 4


@dataclass(frozen=True)
class Case:
    """One loss in one configuration, for logits ``[N, *rest]``."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rest: tuple[int, ...] = ()
    soft: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def is_softmax(self) -> bool:
        return self.name.startswith("softmax")

    @property
    def ignore_index(self) -> int | None:
        return self.config().ignore_index

    def config(self, **changes: Any) -> Any:
        return (SoftmaxFocalConfig if self.is_softmax else SigmoidFocalConfig)(**{**self.options, **changes})

    def shell(self, **changes: Any) -> nn.Module:
        return (SoftmaxFocalLoss if self.is_softmax else SigmoidFocalLoss)(**{**self.options, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, **changes: Any) -> Tensor:
        function = softmax_focal if self.is_softmax else sigmoid_focal
        return function(logits, targets, self.config(**changes), sample_weight=sample_weight)

    def inputs(
        self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, ignored: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits, one of them 0, and targets whose first element is ignored if the case can ignore."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, *self.rest, generator=generator, dtype=torch.float64)
        logits.view(-1)[-1:] = 0
        if self.is_softmax:
            targets = torch.randint(0, N_CLASSES, (n, *self.rest[1:]), generator=generator)
        else:
            targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
            targets = targets if self.soft else targets.round()
        if ignored and self.ignore_index is not None:
            targets.view(-1)[:1] = self.ignore_index
        return logits.to(dtype), targets


CASES = [
    Case("sigmoid"),
    Case("sigmoid-soft", {"alpha": -1, "gamma": 0.3}, (3,), soft=True),
    Case("sigmoid-ignore", {"alpha": 0.6, "gamma": 1.5, "ignore_index": -1}, (2, 2)),
    Case("softmax", {}, (N_CLASSES,)),
    Case("softmax-alpha", {"alpha": (1.0, 0.5, 0.0, 2.0), "gamma": 1.0, "ignore_index": 255}, (N_CLASSES, 2)),
    Case(
        "softmax-smooth",
        {"alpha": (1.0, 0.5, 3.0, 2.0), "gamma": 0.3, "label_smoothing": 0.2, "reduction": "mean_positive"},
        (N_CLASSES, 2, 2),
    ),
]
DEFAULTS = [CASES[0], CASES[3]]


def paper_sigmoid(logits: Tensor, targets: Tensor, gamma: float, alpha: float = -1) -> Tensor:
    """Lin et al., eq. 5, for labels 0 and 1."""
    p = 1 / (1 + torch.exp(-logits.double()))
    p_t = torch.where(targets == 1, p, 1 - p)
    alpha_t = torch.where(targets == 1, alpha, 1 - alpha) if alpha != -1 else 1
    return -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)


def paper_softmax(logits: Tensor, targets: Tensor, gamma: float, alpha: Tensor | None = None) -> Tensor:
    """The same with the softmax's probability of the target class; classes are dim 1."""
    p = torch.exp(logits.double()) / torch.exp(logits.double()).sum(1, keepdim=True)
    p_t = p.gather(1, targets.unsqueeze(1)).squeeze(1)
    alpha_t = 1 if alpha is None else alpha[targets]
    return -alpha_t * (1 - p_t) ** gamma * torch.log(p_t)
