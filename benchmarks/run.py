"""Time forward + backward of every loss beside ``torch.sort`` of the same scores, and print a Markdown table.

    python benchmarks/run.py --sizes 1024 4096 16384

Binary, 10 % positives, no queue: the batch is the pool. Each number is the median over repeated calls in eager mode.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from imbalanced_losses import (
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)


def both_passes(loss_fn: nn.Module, scores: Tensor, targets: Tensor) -> Callable[[], object]:
    """Forward and backward as one call."""
    leaf = scores.clone().requires_grad_()
    return lambda: torch.autograd.grad(loss_fn(leaf, targets), leaf)


def work(scores: Tensor, targets: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and calls to time; the first is the yardstick."""
    yield "torch.sort", lambda: torch.sort(scores)
    yield "SigmoidFocalLoss", both_passes(SigmoidFocalLoss(), scores, targets.float())
    yield "SoftmaxFocalLoss", both_passes(SoftmaxFocalLoss(), torch.stack([-scores, scores], 1), targets)
    yield "SmoothAPLoss", both_passes(SmoothAPLoss(1, queue_size=0), scores, targets)
    yield "RecallAtQuantileLoss", both_passes(RecallAtQuantileLoss(1, queue_size=0), scores, targets)
    surrogates: tuple[Literal["trapezoid", "pairwise"], ...] = ("trapezoid", "pairwise")
    for surrogate in surrogates:
        loss_fn = PAUCAtBudgetLoss(1, surrogate=surrogate, queue_size=0)
        yield f"PAUCAtBudgetLoss, {surrogate}", both_passes(loss_fn, scores, targets)


def median_seconds(call: Callable[[], object], budget: float) -> float:
    """Median time of a call, after one to warm up, over at least three calls and about ``budget`` seconds."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(size: int, budget: float) -> dict[str, float]:
    """Seconds by name on one pool of ``size`` rows."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(size, generator=generator)
    targets = (torch.rand(size, generator=generator) < 0.1).long()
    return {name: median_seconds(call, budget) for name, call in work(scores, targets)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 16384], help="rows in the pool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds to spend on each number")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    columns = [measure(size, arguments.budget) for size in arguments.sizes]
    print(f"torch {torch.__version__}, {arguments.threads} threads, CPU; milliseconds (multiples of torch.sort)\n")
    print("| forward + backward |" + "".join(f" {size:,} rows |" for size in arguments.sizes))
    print("|---|" + "---:|" * len(columns))
    for name in columns[0]:
        cells = (f" {1e3 * column[name]:.3g} ({column[name] / column['torch.sort']:.3g}x) |" for column in columns)
        print(f"| {name} |" + "".join(cells))


if __name__ == "__main__":
    main()
