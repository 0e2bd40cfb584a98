"""The focal losses' cases, and the paper's formula in float64 on tensors as an oracle of many at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.contracts.elements import CASES as ELEMENTWISE_CASES
from tests.contracts.elements import Case
from tests.registry import N_CLASSES

__all__ = ["CASES", "DEFAULTS", "GAMMAS", "N_CLASSES", "Case", "paper_sigmoid", "paper_softmax"]

GAMMAS = [0.0, 0.3, 0.5, 1.0, 2.0, 5.0]
CASES = [case for case in ELEMENTWISE_CASES if "focal" in case.loss.function.__name__]
DEFAULTS = [case for case in CASES if case.name in ("sigmoid_focal", "softmax_focal")]


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
