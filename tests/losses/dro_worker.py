"""Compiles KL-DRO and the two-way surrogates on 1, 2 and 4 threads and writes down what differs from eager mode."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from imbalanced_losses import PAUCAtBudgetConfig, PAUCAtBudgetLoss, pauc_at_budget
from tests.compiled.matrix import THREADS, Case, Form, Kind, Loss, Pool
from tests.compiled.worker import check_safely, code_for

DRO = {"surrogate": "dro", "temperature": 0.5}
PAIRWISE = {"surrogate": "pairwise", "temperature": 0.1, "beta": 0.3}
LOSSES: dict[str, dict[str, Any]] = {
    "dro": DRO,
    "dro two-way": {**DRO, "positive_temperature": 1.0},
    "dro floor": {**DRO, "min_tpr": 0.4},
    "pairwise floor": {**PAIRWISE, "min_tpr": 0.4},
    "trapezoid floor": {"temperature": 0.1, "beta": 0.2, "min_tpr": 0.4},
}
# sizes at which the compiler's two bugs were seen
CASES: list[tuple[str, Form, Kind, Pool]] = [
    ("dro", "function", Kind(3), Pool(16, 40)),
    ("dro floor", "ensemble", Kind(1), Pool(32, 1024)),
    ("pairwise floor", "function", Kind(2), Pool(600)),
    ("trapezoid floor", "module", Kind(10, multilabel=True), Pool(32, 200)),
]


@dataclass(frozen=True)
class TwoWayCase(Case):
    """A case whose losses are those above."""

    @property
    def loss(self) -> Loss:
        return Loss(pauc_at_budget, PAUCAtBudgetConfig, PAUCAtBudgetLoss, LOSSES[self.loss_name])


def second_order(threads: int) -> list[str]:
    """The Hessian-vector product, compiled, of a pool whose rows do not fill whole blocks."""
    case = TwoWayCase("dro two-way", "function", Kind(3), Pool(60, 40), weighted=False)
    batch, state = case.batch(0), case.state()
    direction = torch.randn(batch.logits.shape, generator=torch.Generator().manual_seed(0))

    def product(logits: torch.Tensor) -> torch.Tensor:
        gradient = torch.func.grad(lambda own: case.evaluate(own, batch.targets, state, {})[0])
        return torch.func.grad(lambda own: (gradient(own) * direction).sum())(logits)

    expected = product(batch.logits)
    with code_for(threads):
        found = torch.compile(product, fullgraph=True)(batch.logits)
    error, largest = (found - expected).abs().max(), expected.abs().max()
    return [] if error <= 2e-5 * largest and largest > 0 else [f"off by {error:.2g} of {largest:.2g}"]


def main(report: str) -> None:
    """Write a line per run, as soon as it is done."""
    with Path(report).open("w", buffering=1) as lines:
        for i, (name, form, kind, pool) in enumerate(CASES):
            case = TwoWayCase(name, form, kind, pool, weighted=i % 2 == 1)
            for threads in THREADS:
                lines.write(f"{case}, threads={threads}: {'; '.join(check_safely(case, threads)) or 'right'}\n")
        for threads in THREADS:
            lines.write(f"second order, threads={threads}: {'; '.join(second_order(threads)) or 'right'}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
