"""Class counts over several processes: those of all ranks' labels, in step whatever a rank was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from imbalanced_losses import LogitAdjustedLoss
from tests.distributed.processes import Processes
from tests.distributed.training import Recipe

GroupOf = Callable[[int], Processes]
HERE = "tests.distributed.test_class_counts"

IDS = [torch.tensor([0, 0, 1]), torch.tensor([2])]


def count(reduction: str, evaluating: list[int], failing: list[int]) -> tuple[list[list[int]], str]:
    """Counts after a step in training and one in evaluation mode; the error of the step, if any."""
    rank = dist.get_rank()
    loss_fn = LogitAdjustedLoss("stream", num_classes=3, reduction=reduction).train(rank not in evaluating)
    targets = IDS[rank] + 7 * (rank in failing)
    error = ""
    try:
        loss = loss_fn(torch.zeros(len(targets), 3), targets)
        loss_fn.eval()(torch.zeros(len(targets), 3), targets)
        assert loss.shape == ((len(targets),) if reduction == "none" else ())
    except ValueError as caught:
        error = str(caught)
    return [loss_fn.class_counts.positives.tolist(), loss_fn.class_counts.labels.tolist()], error


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_counts_of_all_ranks(processes: GroupOf, reduction: str) -> None:
    results = processes(2).run(f"{HERE}:count", reduction=reduction, evaluating=[], failing=[])
    assert results == [([[2, 1, 1], [4, 4, 4]], "")] * 2


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_rank_waits_for_another(processes: GroupOf, reduction: str) -> None:
    """Where one has a bad label, or is in evaluation mode: nothing is counted, and all raise the same error."""
    results = processes(2).run(f"{HERE}:count", reduction=reduction, evaluating=[], failing=[1])
    expected = "rank 1: expected class ids in [0, 3) or ignore_index=-100, got 9"
    assert results == [([[0] * 3] * 2, expected)] * 2
    results = processes(2).run(f"{HERE}:count", reduction=reduction, evaluating=[1], failing=[])
    expected = (
        "expected whether class counts are updated to be the same on all ranks, got True on rank 0, False on rank 1"
    )
    assert results == [([[0] * 3] * 2, expected)] * 2


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_two_collectives(processes: GroupOf, reduction: str) -> None:
    recipe = Recipe("logit_adjusted_stream", reduction)
    for forward, backward in processes(2).run("tests.distributed.traffic:count", recipe=recipe, extras=[[], []]):
        assert len(forward) == 2
        assert backward == []
