"""The ways in which people train: each equals one process on all rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.distributed import setups
from tests.distributed.processes import Processes
from tests.distributed.training import ELEMENTWISE, RANKING, Recipe, make_model

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.setups"

RECIPES = [
    Recipe("smooth_ap_classes", weighted=True, queue_size=40, shards="uneven"),
    Recipe("pairwise_live_implicit", queue_size=40, shards="empty"),
    Recipe("sigmoid_focal", weighted=True, shards="uneven"),
    Recipe("softmax_focal", reduction="mean_positive", shards="empty"),
]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.loss)
every_ranking_loss = pytest.mark.parametrize("loss", RANKING)


def assert_equal(run: dict[str, Any], alone: dict[str, Any]) -> None:
    difference = (run["parameters"] - alone["parameters"]).norm() / alone["parameters"].norm()
    assert difference <= 1e-5
    torch.testing.assert_close(run["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run["state"], alone["state"], rtol=1e-4, atol=1e-5)


def assert_same_everywhere(runs: list[Any]) -> None:
    first = pytree.tree_leaves(runs[0])
    for run in runs[1:]:
        for value, expected in zip(pytree.tree_leaves(run), first, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


@every_recipe
@pytest.mark.parametrize(
    "setup", ["train_with_fsdp", "train_with_sums", "train_with_loss_inside", "train_compiled"], ids=lambda s: s[6:]
)
@pytest.mark.parametrize("size", [2, 3])
def test_five_steps_equal_those_of_one_process(processes: GroupOf, size: int, setup: str, recipe: Recipe) -> None:
    runs = processes(size).run(f"{JOBS}:{setup}", recipe=recipe)
    alone = setups.alone(recipe)
    for run in runs:
        assert_equal(run, alone)


@every_recipe
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_accumulated_gradients_are_those_of_one_process(processes: GroupOf, recipe: Recipe, micro_batches: int) -> None:
    alone = setups.accumulate(recipe, micro_batches, distributed=False)
    for run in processes(2).run(f"{JOBS}:accumulate", recipe=recipe, micro_batches=micro_batches):
        assert_equal(run, alone)


@every_recipe
def test_two_groups_of_three_ranks_train_apart(processes: GroupOf, recipe: Recipe) -> None:
    runs = processes(3).run(f"{JOBS}:train_in_groups", recipe=recipe)
    for rank, run in enumerate(runs):
        assert_equal(run, setups.alone(recipe, first_batch=10 * (rank % 2)))
        assert run["twin shares"]
    assert not torch.allclose(runs[0]["parameters"], runs[1]["parameters"])


@every_recipe
def test_autocast(processes: GroupOf, recipe: Recipe) -> None:
    """The same on all ranks to the bit; of one process's update within what bfloat16's 8 bits let a sum differ."""
    runs = processes(2).run(f"{JOBS}:train_with_autocast", recipe=recipe)
    assert_same_everywhere(runs)
    alone = setups.alone(recipe, autocast=True)
    start = setups.whole_parameters(make_model(recipe))
    difference = (runs[0]["parameters"] - alone["parameters"]).norm() / (alone["parameters"] - start).norm()
    assert difference <= 2**-6
    torch.testing.assert_close(runs[0]["losses"], alone["losses"], rtol=2**-6, atol=2**-8)
    assert runs[0]["losses"].dtype == alone["losses"].dtype == torch.float32


@pytest.mark.parametrize("size", [2, 4])
def test_warm_up_blend_and_main_loss(processes: GroupOf, size: int) -> None:
    """With even shards, since the warm-up loss is torch's, each rank's own: its mean over ranks is that of all rows."""
    recipe = Recipe("smooth_ap_multilabel", queue_size=40)
    runs = processes(size).run(f"{JOBS}:train_wrapped", recipe=recipe)
    alone = setups.train_wrapped(recipe, distributed=False)
    torch.testing.assert_close(alone["weights"], torch.tensor([0, 1 / 3, 2 / 3, 1, 1]))
    losses = torch.stack([run["losses"] for run in runs])
    assert not torch.equal(losses[0, 0], losses[1, 0])  # each rank's own warm-up
    torch.testing.assert_close(losses[0, 3:], losses[1, 3:])
    for run in runs:
        assert_equal({**run, "losses": losses.mean(0)}, alone)


@every_ranking_loss
def test_all_ranks_keep_the_same_rows(processes: GroupOf, loss: str) -> None:
    """Of a pool of 24 + 20, while their generators differ."""
    recipe = Recipe(loss, queue_size=20, options=(("max_pool_size", 12),))
    runs = processes(2).run(f"{JOBS}:call", recipe=recipe, modes=[True] * 3)
    for calls in zip(*runs, strict=True):
        assert_same_everywhere([(found["outputs"], found["state"]) for found in calls])


@every_ranking_loss
def test_an_infinite_logit_is_seen_by_all_and_kept_by_none(processes: GroupOf, loss: str) -> None:
    runs = processes(2).run(f"{JOBS}:call", recipe=Recipe(loss, queue_size=30), modes=[True, True], spoilt=1)
    for spoilt, following in runs:
        assert not spoilt["outputs"].isfinite()
        assert spoilt["state"]["queue_logits"].isfinite().all()
        assert following["outputs"].isfinite()
        assert following["grad"].isfinite().all()
    assert_same_everywhere([[found["state"] for found in run] for run in runs])


@pytest.mark.parametrize("loss", ELEMENTWISE)
def test_an_infinite_logit_is_seen_by_all(processes: GroupOf, loss: str) -> None:
    for spoilt, following in processes(2).run(f"{JOBS}:call", recipe=Recipe(loss), modes=[True, True], spoilt=1):
        assert not spoilt["outputs"].isfinite()
        assert following["outputs"].isfinite()


@pytest.mark.parametrize("update_in_eval", [False, True])
@every_ranking_loss
def test_evaluation_gathers_and_leaves_the_queue_alone(processes: GroupOf, loss: str, update_in_eval: bool) -> None:
    recipe = Recipe(loss, queue_size=30, options=(("update_queue_in_eval", update_in_eval),))
    modes = [True, False, False]
    alone = setups.call_rows(recipe, 0, 1, modes=modes)
    for run in processes(2).run(f"{JOBS}:call", recipe=recipe, modes=modes):
        for found, expected in zip(run, alone, strict=True):
            torch.testing.assert_close(found["outputs"], expected["outputs"])
            torch.testing.assert_close(found["state"], expected["state"])
        moved = not torch.equal(run[1]["state"]["queue_cursor"], run[0]["state"]["queue_cursor"])
        assert moved == update_in_eval


@pytest.mark.parametrize("reduction", ["mean", "none"])
@every_ranking_loss
def test_every_output_is_that_of_one_process(processes: GroupOf, loss: str, reduction: str) -> None:
    recipe = Recipe(loss, reduction, queue_size=30, shards="empty")
    options: dict[str, Any] = {"return_per_class": True, "modes": [True, True]}
    if loss.startswith(("trapezoid", "pairwise")):
        options["return_diagnostics"] = True
    alone = setups.call_rows(recipe, 0, 1, **options)
    for run in processes(3).run(f"{JOBS}:call", recipe=recipe, **options):
        for found, expected in zip(run, alone, strict=True):
            assert len(pytree.tree_leaves(found["outputs"])) == (9 if "return_diagnostics" in options else 3)
            torch.testing.assert_close(found["outputs"], expected["outputs"], equal_nan=True)
