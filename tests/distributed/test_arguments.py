"""Arguments that differ between ranks: no rank waits for another, whatever each was given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.distributed.jobs import call_arguments, call_shard
from tests.distributed.processes import Processes
from tests.distributed.training import ELEMENTWISE, RANKING, Recipe

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.jobs"
SECONDS = 10  # far below the group's timeout of 60

LOGITS, TARGETS = torch.linspace(-1, 1, 6)[:, None], torch.tensor([0, 1, 0, 0, 1, 0])
GOOD = {"logits": LOGITS, "targets": TARGETS}


@pytest.mark.parametrize("loss", RANKING)
@pytest.mark.parametrize(
    "extras", [[[], ["sample_weight"]], [["iid_mask"], []], [["iid_mask"], ["sample_weight"]]], ids=str
)
def test_an_argument_that_one_rank_leaves_out_is_ones_there(
    processes: GroupOf, loss: str, extras: list[list[str]]
) -> None:
    recipe = Recipe(loss, queue_size=30)
    results = processes(2).run(f"{JOBS}:call_with", recipe=recipe, extras=extras)
    _, _, given = call_arguments(recipe)
    for rank, names in enumerate(extras):
        start, end = recipe.bounds(2)[rank : rank + 2]
        for name, value in given.items():
            if name not in names:
                value[start:end] = 1
    loss_alone, grad_alone, state_alone = call_shard(recipe, 0, 1, sorted({*extras[0], *extras[1]}), given)
    for value, _, state in results:
        torch.testing.assert_close(value, loss_alone)
        torch.testing.assert_close(state, state_alone)
    torch.testing.assert_close(torch.cat([grad for _, grad, _ in results]), 2 * grad_alone, rtol=1e-5, atol=1e-6)


def refusal(value: str) -> str:
    return f"ValueError('expected {value}')"


DIFFERENT: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]], str]] = {
    "dtype": (
        "smooth_ap",
        [GOOD, {**GOOD, "logits": LOGITS.bfloat16()}],
        [{}, {}],
        refusal(
            "the logits\\' dtype to be the same on all ranks, got torch.float32 on rank 0, torch.bfloat16 on rank 1"
        ),
    ),
    "columns": (
        "smooth_ap",
        [GOOD, {**GOOD, "logits": LOGITS.expand(6, 2)}],
        [{}, {}],
        "ValueError('rank 1: expected logits of shape [N, 1], got [6, 2]",
    ),
    "queue": (
        "smooth_ap",
        [GOOD, GOOD],
        [{"queue_size": 4}, {"queue_size": 5}],
        refusal("queue_size to be the same on all ranks, got 4 on rank 0, 5 on rank 1"),
    ),
    "ignored": (
        "smooth_ap",
        [GOOD, GOOD],
        [{}, {"ignore_index": 3}],
        refusal("ignore_index to be the same on all ranks, got -100 on rank 0, 3 on rank 1"),
    ),
    "update": (
        "smooth_ap",
        [GOOD, GOOD],
        [{"eval": True}, {}],
        refusal("whether the queue is updated to be the same on all ranks, got 0 on rank 0, 1 on rank 1"),
    ),
    "sparse": (
        "smooth_ap",
        [GOOD, {**GOOD, "logits": LOGITS.to_sparse()}],
        [{}, {}],
        "TypeError('rank 1: expected logits to be a dense Tensor, got one of layout torch.sparse_coo')",
    ),
    "labels": (
        "recall",
        [{**GOOD, "targets": TARGETS + 1}, GOOD],
        [{}, {}],
        "ValueError('rank 0: expected labels in {0, 1} or ignore_index=-100, got 2')",
    ),
    "kind": (
        "pairwise",
        [{**GOOD, "targets": "rows"}, GOOD],
        [{}, {}],
        "TypeError('rank 0: expected targets to be a Tensor, got str')",
    ),
    "focal dtype": (
        "sigmoid_focal",
        [{"inputs": LOGITS, "targets": TARGETS[:, None]}, {"inputs": LOGITS.double(), "targets": TARGETS[:, None]}],
        [{}, {}],
        refusal("the loss\\'s dtype to be the same on all ranks, got torch.float32 on rank 0, torch.float64 on rank 1"),
    ),
    "focal classes": (
        "softmax_focal",
        [{"inputs": LOGITS.expand(6, 2), "targets": TARGETS}, {"inputs": LOGITS.expand(6, 3), "targets": TARGETS}],
        [{}, {}],
        refusal("the number of columns to be the same on all ranks, got 2 on rank 0, 3 on rank 1"),
    ),
    "focal columns": (
        "sigmoid_focal",
        [
            {"inputs": LOGITS, "targets": TARGETS[:, None]},
            {"inputs": LOGITS.expand(6, 2), "targets": TARGETS[:, None].expand(6, 2)},
        ],
        [{}, {}],
        refusal("the number of columns to be the same on all ranks, got 1 on rank 0, 2 on rank 1"),
    ),
    "focal labels": (
        "sigmoid_focal",
        [{"inputs": LOGITS, "targets": TARGETS[:, None]}, {"inputs": LOGITS, "targets": 3 * TARGETS[:, None]}],
        [{}, {}],
        "ValueError('rank 1: expected targets in [0, 1], got 3')",
    ),
    "focal labels beyond the classes": (
        "softmax_focal",
        [
            {"inputs": LOGITS.expand(6, 2), "targets": TARGETS},
            {"inputs": LOGITS.expand(6, 2), "targets": TARGETS + 5},
        ],
        [{"validate_targets": False}, {"validate_targets": False}],
        "RuntimeError('rank 1: index ",
    ),
    "focal weights": (
        "sigmoid_focal",
        [
            {"inputs": LOGITS, "targets": TARGETS[:, None]},
            {"inputs": LOGITS, "targets": TARGETS[:, None], "sample_weight": torch.ones(6, dtype=torch.complex64)},
        ],
        [{}, {}],
        "TypeError('rank 1: expected sample_weight of a real dtype, got torch.complex64')",
    ),
    "focal kind": (
        "softmax_focal",
        [{"inputs": LOGITS.expand(6, 2), "targets": TARGETS}, {"inputs": 3.0, "targets": TARGETS}],
        [{}, {}],
        "TypeError('rank 1: expected logits to be a Tensor, got float')",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_same_error_on_every_rank(processes: GroupOf, case: str) -> None:
    loss, calls, options, expected = DIFFERENT[case]
    results = processes(2).run(f"{JOBS}:call_different", loss=loss, calls=calls, options=options)
    for message, seconds, state_stayed in results:
        assert message.replace('"', "'").startswith(expected.replace("\\'", "'"))
        assert seconds < SECONDS
        assert state_stayed


@pytest.mark.parametrize("loss", [*RANKING, *ELEMENTWISE])
def test_the_loss_can_be_changed_in_place(processes: GroupOf, loss: str) -> None:
    for whole, half in processes(2).run(f"{JOBS}:change_in_place", recipe=Recipe(loss)):
        assert half == pytest.approx(whole / 2)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ELEMENTWISE)
def test_a_checkpointed_loss_without_state_is_right(
    processes: GroupOf, loss: str, reduction: str, use_reentrant: bool
) -> None:
    job = {"recipe": Recipe(loss, reduction), "use_reentrant": use_reentrant}
    for plain, checkpointed in processes(2).run(f"{JOBS}:checkpoint_call", **job):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("loss", RANKING)
def test_half_types_under_autocast_to_the_other(processes: GroupOf, loss: str) -> None:
    for outside, inside in processes(2).run(f"{JOBS}:call_under_autocast", recipe=Recipe(loss)):
        assert inside == outside


def test_a_weight_that_is_not_finite_shows_where_the_ignored_class_is_0(processes: GroupOf) -> None:
    for losses in processes(2).run(f"{JOBS}:call_with_infinite_weight"):
        assert all(math.isnan(loss) for loss in losses)


def test_ranks_that_call_different_losses(processes: GroupOf) -> None:
    expected = (
        "expected what gathers to be the same on all ranks, got a ranking loss on rank 0, an elementwise loss on rank 1"
    )
    assert processes(2).run(f"{JOBS}:call_unlike", losses=["smooth_ap", "sigmoid_focal"]) == [expected] * 2


def test_settings(processes: GroupOf) -> None:
    """``None`` and ``True`` gather, ``False`` does not; the wrapper's setting overrides the loss's unless ``None``."""
    first, second = processes(2).run(f"{JOBS}:settings")
    for name in ("loss None", "loss True", "wrapper True"):
        assert first[name] == second[name] == pytest.approx(first["loss None"])
    for name in ("loss False", "wrapper None", "wrapper False"):
        assert first[name] == pytest.approx(first["loss False"])
        assert second[name] == pytest.approx(second["loss False"])
        assert first[name] != pytest.approx(second[name])
