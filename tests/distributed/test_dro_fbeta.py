"""KL-DRO, the two-way partial AUC and soft F-beta: W processes under DDP train exactly as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from imbalanced_losses import PAUCAtBudgetLoss, SoftFBetaLoss
from tests.distributed import training
from tests.distributed.processes import Processes
from tests.distributed.training import Recipe

OWN: dict[str, tuple[int, Callable[..., Any]]] = {
    "dro": (1, lambda **options: PAUCAtBudgetLoss(1, surrogate="dro", temperature=0.5, **options)),
    "dro_two_way": (
        3,
        lambda **options: PAUCAtBudgetLoss(
            3, surrogate="dro", temperature=0.5, tau_scale="std", positive_temperature=0.7, min_tpr=0.2, **options
        ),
    ),
    "pairwise_two_way": (
        1,
        lambda **options: PAUCAtBudgetLoss(1, beta=0.6, surrogate="pairwise", temperature=0.3, min_tpr=0.2, **options),
    ),
    "soft_fbeta": (1, lambda **options: SoftFBetaLoss(1, beta=2.0, **options)),
    "soft_fbeta_classes": (3, lambda **options: SoftFBetaLoss(3, tau_scale="std", **options)),
}


def with_own(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of ``training`` that knows these losses, too."""
    with patch.dict(training.RANKING, OWN), patch.dict(training.LOSSES, OWN):
        return function(*arguments, **options)


def train_all(recipes: list[Recipe]) -> list[dict[str, Any]]:
    """In a process of the group."""
    return with_own(training.train_all, recipes)


@pytest.mark.parametrize("shards", ["even", "uneven", "empty", "no positives"])
@pytest.mark.parametrize("loss", OWN)
def test_five_steps_equal_those_of_one_process(processes: Callable[[int], Processes], loss: str, shards: str) -> None:
    recipes = [
        Recipe(loss, reduction, weighted, queue, shards)
        for reduction, weighted, queue in (("mean", False, 0), ("sum", True, 40), ("none", True, 40))
    ]
    of_ranks = processes(2).run("tests.distributed.test_dro_fbeta:train_all", recipes=recipes)
    for recipe, *runs in zip(recipes, *of_ranks, strict=True):
        alone = with_own(training.train, recipe, parts=2)
        assert alone["moved"] > 0
        for run in runs:
            assert (run["parameters"] - alone["parameters"]).norm() <= 1e-4 * alone["moved"], recipe
            torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
            for name, value in run["state"].items():
                assert torch.equal(value, runs[0]["state"][name]), (recipe, name)  # to the bit across ranks
