"""The number of collectives, and their bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.training import ELEMENTWISE, LOSSES, RANKING, Recipe

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.traffic"
GATHER = "c10d::allgather_"
FACTS = 128  # bytes: sizes and flags, whatever the rows

OPTIONAL = {"iid_mask": 1, "sample_weight": 4}  # bytes a row
EXTRAS = [[], ["iid_mask"], ["sample_weight"], ["iid_mask", "sample_weight"]]


def bytes_of_a_row(loss: str) -> int:
    """Float32 logits; a byte for each label in {0, 1}, eight for the number of a class."""
    classes = LOSSES[loss][0]
    return 4 * classes + (classes if classes == 1 or loss.endswith("multilabel") else 8)


@pytest.mark.parametrize("shards", ["even", "uneven", "empty"])
@pytest.mark.parametrize("loss", RANKING)
def test_two_collectives_whatever_each_rank_was_given(processes: GroupOf, loss: str, shards: str) -> None:
    recipe = Recipe(loss, queue_size=40, shards=shards)
    bounds = recipe.bounds(2)
    longest = max(end - start for start, end in pairwise(bounds))
    for extras in product(EXTRAS, repeat=2):
        counted = processes(2).run(f"{JOBS}:count", recipe=recipe, extras=extras)
        row = bytes_of_a_row(loss) + sum(OPTIONAL[name] for name in {*extras[0], *extras[1]})
        for forward, backward in counted:
            (facts, few), rows = forward
            assert (facts, rows) == (GATHER, (GATHER, longest * row))
            assert few <= FACTS
            assert backward == []


@pytest.mark.parametrize("weighted", [[], ["sample_weight"]], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(
    ("loss", "reduction"), [*product(ELEMENTWISE, ["mean", "sum"]), ("softmax_focal", "mean_positive")], ids=str
)
def test_one_small_collective_of_the_focal_losses(
    processes: GroupOf, loss: str, reduction: str, weighted: list[str]
) -> None:
    recipe = Recipe(loss, reduction, shards="uneven")
    for forward, backward in processes(3).run(f"{JOBS}:count", recipe=recipe, extras=[weighted, [], []]):
        assert [name for name, _ in forward] == [GATHER]
        assert forward[0][1] <= FACTS
        assert backward == []


@pytest.mark.parametrize("loss", LOSSES)
def test_none_without_gathering(processes: GroupOf, loss: str) -> None:
    job = {"recipe": Recipe(loss), "extras": [[], []], "gather_distributed": False}
    assert processes(2).run(f"{JOBS}:count", **job) == [([], [])] * 2


@pytest.mark.parametrize("loss", ELEMENTWISE)
def test_none_for_elements(processes: GroupOf, loss: str) -> None:
    recipe = Recipe(loss, reduction="none")
    assert processes(2).run(f"{JOBS}:count", recipe=recipe, extras=[[], []]) == [([], [])] * 2


@pytest.mark.parametrize("counts", [[2, 5], [0, 4], [3, 3]], ids=lambda counts: "+".join(map(str, counts)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gather_of_rows(processes: GroupOf, counts: list[int], dtype: torch.dtype) -> None:
    for forward, backward in processes(2).run(f"{JOBS}:count_gather", counts=counts, dtype=dtype):
        (facts, few), rows = forward
        assert (facts, rows) == (GATHER, (GATHER, max(counts) * 3 * dtype.itemsize))
        assert few <= FACTS
        assert backward == []


def test_half_the_bytes_for_half_types(processes: GroupOf) -> None:
    """Under autocast rows travel as they are."""
    recipe = Recipe("smooth_ap_classes")
    full, half = (
        processes(2).run(f"{JOBS}:count", recipe=recipe, extras=[[], []], dtype=dtype)[0][0][1][1]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (full, half) == (12 * (3 * 4 + 8), 12 * (3 * 2 + 8))


def test_the_count_sees_collectives_in_forward_and_backward(processes: GroupOf) -> None:
    reduce = ("c10d::allreduce_", 12)
    assert processes(2).run(f"{JOBS}:count_known", numbers=3) == [([reduce, (GATHER, 12)], [reduce])] * 2
