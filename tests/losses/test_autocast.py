"""The ranking losses under autocast: no result depends on it, whatever half type it has and the logits have."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import SmoothAPConfig, init_queue, smooth_ap
from imbalanced_losses.queue import next_slots, with_slots
from tests.registry import shells_of_every_loss

HALF = (torch.float16, torch.bfloat16)
LOSSES = shells_of_every_loss(
    {
        "recall": ("recall", {"quantile": 0.2, "threshold_gradient": "implicit"}),
        "recall_iqr": ("recall", {"quantile": 0.2, "tau_scale": "iqr", "budget_basis": "fpr"}),
        "trapezoid": ("pauc", {"beta": 0.4}),
        "pairwise": ("pauc", {"beta": 0.4, "surrogate": "pairwise", "min_tpr": 0.2}),
        "dro": ("pauc", {"surrogate": "dro", "positive_temperature": 0.5}),
        "precision_at_recall": ("precision_at_recall", {"tau_scale": "std"}),
        "soft_fbeta": ("soft_fbeta", {"tau_scale": "std"}),
    }
)
over_types = pytest.mark.parametrize(
    ("dtype", "inside"), list(itertools.product([*HALF, torch.float32, torch.float64], HALF))
)


def batches(classes: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(30) % max(2, classes)
    return [(torch.randn(30, classes, generator=generator).to(dtype), targets) for _ in range(3)]


def identical(actual: Tensor, expected: Tensor) -> bool:
    return actual.dtype == expected.dtype and torch.equal(actual, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [1, 3])
@over_types
def test_a_module_gives_the_same(name: str, classes: int, dtype: torch.dtype, inside: torch.dtype) -> None:
    """Loss, gradient, queue and diagnostics."""
    shell, options = LOSSES[name]
    modules = [shell(num_classes=classes, queue_size=40, **options) for _ in range(2)]
    for logits, targets in batches(classes, dtype):
        results = []
        for module, enabled in zip(modules, (True, False), strict=True):
            leaf = logits.clone().requires_grad_()
            with torch.autocast("cpu", dtype=inside, enabled=enabled):
                loss = module(leaf, targets)
                stats = module.diagnostics()
            loss.backward()
            results.append([loss.detach(), leaf.grad, *stats.values(), *module.state_dict().values()])
        assert all(map(identical, *results))


@pytest.mark.parametrize("stored", HALF)
@over_types
def test_a_half_queue_is_the_same(stored: torch.dtype, dtype: torch.dtype, inside: torch.dtype) -> None:
    cfg = SmoothAPConfig(num_classes=3, temperature=0.5)
    states = [init_queue(40, 3, dtype=stored) for _ in range(2)]
    for logits, targets in batches(3, dtype):
        with torch.autocast("cpu", dtype=inside):
            loss, states[0] = smooth_ap(logits, targets, states[0], cfg)
            restored = with_slots(states[0], next_slots(states[0], 7))
        expected, states[1] = smooth_ap(logits, targets, states[1], cfg)
        assert identical(loss, expected)
        for state in (states[0], restored):
            assert identical(state.logits, states[1].logits)


@pytest.mark.parametrize("mode", ["compile", "vmap"])
def test_the_other_modes_give_the_same(mode: str) -> None:
    (logits, targets), state = batches(3, torch.float16)[0], init_queue(40, 3, dtype=torch.float16)
    cfg = SmoothAPConfig(num_classes=3, temperature=0.5)
    expected, expected_state = smooth_ap(logits, targets, state, cfg)

    def step(logits: Tensor) -> tuple[Tensor, Any]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return smooth_ap(logits, targets, state, cfg)

    if mode == "compile":
        loss, new_state = torch.compile(step, backend="aot_eager", fullgraph=True)(logits)
        stored = new_state.logits
    else:
        losses, new_states = torch.func.vmap(step)(logits[None])
        loss, stored = losses[0], new_states.logits[0]
    torch.testing.assert_close(loss, expected)
    assert identical(stored, expected_state.logits)
