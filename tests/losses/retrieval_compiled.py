"""Compiles the retrieval losses with the default backend and compares them with eager mode; arguments: threads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from tests.compiled.worker import code_for
from tests.losses.retrieval_cases import CASES, memory

NAMES = ("ap", "roadmap", "recall")


def losses_of(embeddings: Tensor, labels: Tensor, states: list[Any], temperature: Tensor) -> tuple[Tensor, list[Any]]:
    """All losses on one batch, so that they are compiled together."""
    chosen = [case for case in CASES if case.name in NAMES]
    results = [
        case.function(embeddings, labels, state, case.cfg(), temperature=temperature)
        for case, state in zip(chosen, states, strict=True)
    ]
    return torch.stack([loss for loss, _ in results]).sum(), [state for _, state in results]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(70, 5, generator=generator)
    labels = torch.randint(0, 6, (70,), generator=generator)
    labels[::9] = -100
    states = [memory(24, 33, dtype=torch.float32) for _ in NAMES]
    temperatures = torch.tensor([0.05, 0.2])
    expected = []
    for temperature in temperatures:
        leaf = embeddings.clone().requires_grad_()
        loss, new = losses_of(leaf, labels, states, temperature)
        loss.backward()
        expected.append((loss.detach(), leaf.grad, [state.logits for state in new]))
    for threads in map(int, sys.argv[1:]):
        with code_for(threads):
            compiled = torch.compile(losses_of, fullgraph=True)
            for temperature, wanted in zip(temperatures, expected, strict=True):
                leaf = embeddings.clone().requires_grad_()
                loss, new = compiled(leaf, labels, states, temperature)
                loss.backward()
                found = loss.detach(), leaf.grad, [state.logits for state in new]
                assert_close(found, wanted, rtol=2e-5, atol=2e-6)
    print("right")


if __name__ == "__main__":
    main()
