"""Compiled steps between real processes: what eager mode gives, broken only where the processes talk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.training import Recipe

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.compiling"
RECIPES = {
    Recipe("smooth_ap", weighted=True, queue_size=40, shards="uneven"): "gather_rows",
    Recipe("trapezoid_live_classes", reduction="none", queue_size=40, shards="uneven"): "gather_rows",
    Recipe("sigmoid_focal", weighted=True, shards="uneven"): "_add_up",
    Recipe("softmax_focal", reduction="mean_positive", shards="uneven"): "_add_up",
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.loss)


@every_recipe
def test_one_graph_break_at_the_collectives(processes: GroupOf, recipe: Recipe) -> None:
    """Model and loss as one function: a graph up to the gather, and what is left of each caller after it."""
    for result in processes(2).run(f"{JOBS}:compile_step", recipe=recipe, fullgraph=False):
        torch.testing.assert_close(result["compiled"], result["eager"])
        assert result["breaks"] == [RECIPES[recipe]]
        assert result["graphs"] == 3 + (recipe.reduction == "none")  # which the caller then adds up


@every_recipe
def test_no_break_without_gathering(processes: GroupOf, recipe: Recipe) -> None:
    job = {"recipe": recipe, "fullgraph": True, "gather_distributed": False}
    first, second = processes(2).run(f"{JOBS}:compile_step", **job)
    for result in (first, second):
        torch.testing.assert_close(result["compiled"], result["eager"])
        assert (result["breaks"], result["graphs"]) == ([], 1)
    assert not torch.allclose(first["eager"]["found"][0], second["eager"]["found"][0])


def test_gather_of_rows(processes: GroupOf) -> None:
    """Rank r has r + 1 rows of r; of the squares of twice these it gets the gradient 8 r."""
    for rank, result in enumerate(processes(2).run(f"{JOBS}:compile_gather")):
        assert torch.equal(result["rows"], torch.tensor([0.0, 4, 4])[:, None].expand(3, 2))
        assert torch.equal(result["grad"], torch.full((rank + 1, 2), 8.0 * rank))
        assert result["breaks"] == ["_gather"]
