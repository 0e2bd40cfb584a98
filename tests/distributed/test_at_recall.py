"""The losses at a recall, and recall at a false-positive rate: W processes under DDP train exactly as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from imbalanced_losses import FPRAtRecallLoss, PrecisionAtRecallLoss, RecallAtQuantileLoss
from tests.distributed import training
from tests.distributed.processes import Processes
from tests.distributed.training import Recipe

OWN: dict[str, tuple[int, Callable[..., Any]]] = {
    "precision_at_recall": (1, lambda **options: PrecisionAtRecallLoss(1, 0.6, temperature=0.3, **options)),
    "precision_at_recall_classes": (3, lambda **options: PrecisionAtRecallLoss(3, 0.6, temperature=0.3, **options)),
    "fpr_at_recall": (3, lambda **options: FPRAtRecallLoss(3, 0.6, temperature=0.3, **options)),
    "recall_at_fpr": (
        3,
        lambda **options: RecallAtQuantileLoss(
            3, 0.3, temperature=0.3, budget_basis="fpr", threshold_gradient="implicit", **options
        ),
    ),
}


def with_own(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of ``training`` that knows these losses, too."""
    with patch.dict(training.RANKING, OWN), patch.dict(training.LOSSES, OWN):
        return function(*arguments, **options)


def train_all(recipes: list[Recipe]) -> list[dict[str, Any]]:
    """In a process of the group."""
    return with_own(training.train_all, recipes)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shards", ["even", "uneven", "empty", "no positives"])
@pytest.mark.parametrize("loss", OWN)
def test_five_steps_equal_those_of_one_process(
    processes: Callable[[int], Processes], loss: str, shards: str, size: int
) -> None:
    recipes = [
        Recipe(loss, reduction, weighted, queue, shards)
        for reduction in ("mean", "sum", "none")
        for weighted, queue in ((False, 0), (True, 40))
    ]
    of_ranks = processes(size).run("tests.distributed.test_at_recall:train_all", recipes=recipes)
    for recipe, *runs in zip(recipes, *of_ranks, strict=True):
        alone = with_own(training.train, recipe, parts=size)
        assert alone["moved"] > 0
        for run in runs:
            difference = (run["parameters"] - alone["parameters"]).norm()
            assert difference <= 1e-4 * alone["moved"], (recipe, difference / alone["moved"])
            torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
            for name, value in run["state"].items():
                assert torch.equal(value, runs[0]["state"][name]), (recipe, name)  # to the bit across ranks
                torch.testing.assert_close(value, alone["state"][name], rtol=1e-4, atol=1e-5)
