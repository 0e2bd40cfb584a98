"""A logit of -inf in code of the default backend: the softmax focal loss on 1, 2 and 4 threads equals eager mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import SoftmaxFocalConfig, softmax_focal
from tests.compiled.matrix import THREADS
from tests.compiled.worker import code_for

OUT = -torch.inf


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    return softmax_focal(logits, targets, SoftmaxFocalConfig(gamma=gamma, reduction="none"))


def value_and_grad(function: Any, logits: Tensor, targets: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, targets, gamma)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_the_default_backend_is_eager(gamma: float, threads: int) -> None:
    """With targets that are ruled out, positions that are broken, and ignored ones."""
    classes, generator = 37, torch.Generator().manual_seed(0)
    logits = torch.randn(600, classes, generator=generator)
    targets = torch.randint(0, classes, (600,), generator=generator)
    logits[torch.rand(600, classes, generator=generator) < 0.3] = OUT
    logits[torch.arange(20, 600), targets[20:]] = 1.0
    logits[7, 0], logits[8], logits[9] = torch.nan, OUT, torch.nan
    targets[8:10] = -100
    with code_for(threads):
        loss, gradient = value_and_grad(torch.compile(focal, fullgraph=True), logits, targets, gamma)
    expected, expected_gradient = value_and_grad(focal, logits, targets, gamma)
    assert expected[:20].isposinf().any()
    assert_close(loss, expected, equal_nan=True)
    whole = torch.arange(600) != 7
    assert_close(gradient[whole], expected_gradient[whole])
    others = (logits == OUT) & (torch.arange(classes) != targets[:, None])
    assert (gradient[others] == 0).all()
    assert not gradient[7].isfinite().all()
