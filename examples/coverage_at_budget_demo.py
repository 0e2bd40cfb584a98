"""Compare how many rare positives are found if 50 of 10,000 rows can be reviewed and hard negatives rank high.

    python examples/coverage_at_budget_demo.py --plot coverage_at_budget_demo.png

The data are generated. Positives are separated from most negatives in one direction, but a small group of hard
negatives, as large as the budget, is further out than most positives. Only two weaker directions separate these groups.

Weighted cross-entropy is the baseline and the warm-up of all others: Smooth-AP, and partial AUC up to the budget by
trapezoid or by pairs, over the positives of batch and queue (pool) or of the batch alone (live). The trapezoid's
thresholds have a gradient (``threshold_gradient="implicit"``). On each seed all train from the same weights on the
same batches. Coverage is the share of the held-out positives among the 50 basis points that score highest.

Data and defaults were chosen on seeds 100 to 103: the learning rate out of four, three of which are equally good for
weighted cross-entropy, the temperatures out of three pairs, and the strength of the weaker directions out of two. With
the other strength, the losses were closer together. The seeds shown, 0 to 4, were not used for this.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from comparison import Contender, Run, WeightedBCE, after_warm_up, make_parser, parse, run_demo
from torch import Tensor
from toy_demo import Split

from imbalanced_losses import PAUCAtBudgetLoss, SmoothAPLoss
from imbalanced_losses.metrics import coverage_at_budget

BUDGET = 0.005
COVERAGE = partial(coverage_at_budget, budget=BUDGET)
HARD_RATE = 0.005
TRAINING_ROWS, HELD_OUT_ROWS = 20_000, 40_000  # 200 alerts on the held-out set
N_FEATURES = 10
# means in units of the standard deviation that all rows share; the negatives' is 0
POSITIVE_MEAN = (2.5, 0.0, 0.0)
HARD_MEAN = (3.5, 1.5, -1.5)


def load(args: argparse.Namespace) -> Split:
    """Draw a training and a held-out set with the same, randomly turned, means."""
    generator = np.random.default_rng(args.seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(N_FEATURES, N_FEATURES)))
    return Split(
        *draw_rows(TRAINING_ROWS, args.pos_rate, rotation, generator),
        *draw_rows(HELD_OUT_ROWS, args.pos_rate, rotation, generator),
    )


def draw_rows(
    n_rows: int, positive_rate: float, rotation: np.ndarray[Any, Any], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw features [N, D] and labels [N]: positives, then hard negatives, then the others."""
    n_positives, n_hard = round(n_rows * positive_rate), round(n_rows * HARD_RATE)
    if not 4 <= n_positives <= n_rows - n_hard:
        raise SystemExit(
            f"--pos-rate {positive_rate} needs {n_positives} positives; {n_rows} rows allow 4 to {n_rows - n_hard}"
        )
    features = generator.normal(size=(n_rows, N_FEATURES))
    features[:n_positives, :3] += POSITIVE_MEAN
    features[n_positives : n_positives + n_hard, :3] += HARD_MEAN
    labels = torch.zeros(n_rows, dtype=torch.int64)
    labels[:n_positives] = 1
    return torch.tensor(features @ rotation, dtype=torch.float32), labels


after_weighted_ce = partial(after_warm_up, WeightedBCE)


def pauc(name: str, **options: Any) -> Contender:
    """Return a contender with the partial AUC up to the budget."""
    return after_weighted_ce(
        name, lambda args, data: PAUCAtBudgetLoss(1, beta=BUDGET, queue_size=args.queue_size, **options)
    )


CONTENDERS = (
    after_weighted_ce("weighted CE", lambda args, data: WeightedBCE(data)),
    after_weighted_ce("Smooth-AP", lambda args, data: SmoothAPLoss(1, queue_size=args.queue_size)),
    pauc("trapezoid pool", pos_numerator="pool", threshold_gradient="implicit"),
    pauc("trapezoid live", pos_numerator="live", threshold_gradient="implicit"),
    pauc("pairwise pool", pos_numerator="pool", surrogate="pairwise"),
    pauc("pairwise live", pos_numerator="live", surrogate="pairwise"),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.set_defaults(pos_rate=0.005, warmup_epochs=2, blend_epochs=2, total_epochs=10, batch_size=512)
    parser.set_defaults(queue_size=4096, temp_start=0.5, temp_end=0.1, lr=3e-3)
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Run the demo and return its runs."""
    args = parse_args(argv)
    print(f"budget: {round(BUDGET * HELD_OUT_ROWS)} alerts on the held-out set")
    return run_demo("contested top", load, CONTENDERS, args, metrics={"coverage at 50 bps": COVERAGE})


if __name__ == "__main__":
    main()
