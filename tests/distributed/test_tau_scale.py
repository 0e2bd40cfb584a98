"""With ``tau_scale`` W processes train exactly as one: the spread is that of all ranks' rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.training import Recipe, train

LOSSES = ["smooth_ap", "smooth_ap_multilabel", "recall", "recall_implicit", "trapezoid", "pairwise_live"]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("tau_scale", ["std", "iqr"])
@pytest.mark.parametrize("loss", LOSSES)
def test_five_steps_equal_those_of_one_process(
    processes: Callable[[int], Processes], loss: str, tau_scale: str, size: int
) -> None:
    options = (("tau_scale", tau_scale),)
    recipes = [
        Recipe(loss, "mean", weighted, queue_size, shards, options)
        for shards in ("even", "uneven", "empty")
        for weighted, queue_size in ((False, 0), (True, 40))
    ]
    of_ranks = processes(size).run("tests.distributed.training:train_all", recipes=recipes)
    for recipe, *runs in zip(recipes, *of_ranks, strict=True):
        alone = train(recipe, parts=size)
        for run in runs:
            assert (run["parameters"] - alone["parameters"]).norm() <= 1e-4 * alone["moved"], recipe
            torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
            for name, value in run["state"].items():
                assert torch.equal(value, runs[0]["state"][name]), (recipe, name)
