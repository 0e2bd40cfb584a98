"""The public gathers, between real processes."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from imbalanced_losses.distributed import all_gather_no_grad, all_gather_with_grad
from tests.distributed.jobs import rows_of
from tests.distributed.processes import Processes

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.jobs"
DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]

every_count = pytest.mark.parametrize(
    "counts", [[2, 2], [3, 1], [0, 4], [0, 0], [5, 0, 2], [1, 2, 3, 4]], ids=lambda counts: "+".join(map(str, counts))
)


@every_count
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_rows_in_the_order_of_the_ranks(processes: GroupOf, counts: list[int], dtype: torch.dtype) -> None:
    expected = torch.cat([rows_of(rank, count, dtype) for rank, count in enumerate(counts)])
    for result in processes(len(counts)).run(f"{JOBS}:gather", counts=counts, dtype=dtype):
        assert result.dtype == dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("counts", [[4, 4], [5, 1]], ids=str)
def test_columns_of_a_table(processes: GroupOf, counts: list[int]) -> None:
    table = torch.cat([rows_of(rank, count, torch.float32, (5,)) for rank, count in enumerate(counts)])
    for column, numbers in processes(2).run(f"{JOBS}:gather_columns_of_tables", counts=counts):
        assert torch.equal(column, table[:, 3:4])
        assert torch.equal(numbers, table[:, 3])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 0)], ids=str)
def test_any_shape_of_a_row(processes: GroupOf, shape: tuple[int, ...]) -> None:
    expected = torch.cat([rows_of(rank, count, torch.float32, shape) for rank, count in enumerate([2, 1])])
    for result in processes(2).run(f"{JOBS}:gather", counts=[2, 1], dtype=torch.float32, shape=shape):
        assert torch.equal(result, expected)
        assert result.shape == expected.shape


@every_count
def test_gradient_reaches_the_own_rows_as_if_in_place(processes: GroupOf, counts: list[int]) -> None:
    results = processes(len(counts)).run(f"{JOBS}:gather_with_grad", counts=counts)
    start = 0
    for rank, (count, (everyones, grad)) in enumerate(zip(counts, results, strict=True)):
        assert len(everyones) == sum(counts)
        places = torch.arange(start + 1.0, start + count + 1)[:, None].expand(count, 3)
        assert torch.equal(grad, places * (rank + 1))
        start += count


def test_a_group_of_some_ranks(processes: GroupOf) -> None:
    first, second, outside = processes(3).run(f"{JOBS}:gather_in_group", members=[0, 2], counts=[2, 5, 1])
    expected = torch.cat([rows_of(0, 2, torch.int64), rows_of(2, 1, torch.int64)])
    assert torch.equal(first, expected)
    assert torch.equal(outside, expected)
    assert second == "expected a process group that this process is in, got one without it"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (
            [torch.zeros(2, 3), torch.zeros(2, 3).double()],
            "ValueError('expected the dtype to be the same on all ranks, got torch.float32 on rank 0, "
            "torch.float64 on rank 1')",
        ),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            "ValueError('expected the shape of a row to be the same on all ranks, got [3] on rank 0, [4] on rank 1')",
        ),
        ([torch.zeros(2), 7], "TypeError('rank 1: expected tensor to be a Tensor, got int')"),
        (
            [torch.zeros(()), torch.zeros(2)],
            "ValueError('rank 0: expected a tensor of 1 to 9 dimensions, got shape []')",
        ),
        (
            [torch.zeros(2), torch.zeros(2, dtype=torch.complex64)],
            "TypeError('rank 1: expected a dtype that can be gathered, got torch.complex64')",
        ),
    ],
)
def test_the_same_error_on_every_rank(processes: GroupOf, tensors: list[object], expected: str) -> None:
    assert processes(2).run(f"{JOBS}:gather_different", tensors=tensors) == [expected, expected]


@pytest.mark.parametrize("function", [all_gather_with_grad, all_gather_no_grad])
def test_without_a_group(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="expected an initialised process group, got none"):
        function(torch.zeros(2))


def test_one_rank_gets_its_input_back() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        rows = torch.zeros(2, requires_grad=True)
        assert all_gather_with_grad(rows) is rows
        assert not all_gather_no_grad(rows).requires_grad
    finally:
        dist.destroy_process_group()
    assert not os.environ.get("MASTER_ADDR")
