"""W processes under torch's own DDP train exactly as one on the concatenated batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.training import LOSSES, RANKING, Recipe, reductions_of, train

GroupOf = Callable[[int], Processes]

every_size = pytest.mark.parametrize("size", [2, 3, 4])
every_shard = pytest.mark.parametrize("shards", ["even", "uneven", "empty", "no positives"])


def recipes_of(loss: str, shards: str, size: int) -> list[Recipe]:
    """Every reduction with and without weights and queue; of more than two processes, with both or neither."""
    options = list(product([False, True], [0, 40])) if size == 2 else [(False, 0), (True, 40)]
    if loss not in RANKING:
        options = [(False, 0), (True, 0)]
    return [Recipe(loss, reduction, *rest, shards) for reduction in reductions_of(loss) for rest in options]


@every_size
@every_shard
@pytest.mark.parametrize("loss", LOSSES)
def test_five_steps_equal_those_of_one_process(processes: GroupOf, loss: str, shards: str, size: int) -> None:
    recipes = recipes_of(loss, shards, size)
    of_ranks = processes(size).run("tests.distributed.training:train_all", recipes=recipes)
    for recipe, *runs in zip(recipes, *of_ranks, strict=True):
        alone = train(recipe, parts=size)
        for run in runs:
            difference = (run["parameters"] - alone["parameters"]).norm()
            assert difference <= 1e-5 * alone["parameters"].norm(), (recipe, difference)
            assert difference <= 1e-4 * alone["moved"], (recipe, difference / alone["moved"])
            torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
            for name, value in run["state"].items():
                assert torch.equal(value, runs[0]["state"][name]), (recipe, name)  # to the bit across ranks
                torch.testing.assert_close(value, alone["state"][name], rtol=1e-4, atol=1e-5)
