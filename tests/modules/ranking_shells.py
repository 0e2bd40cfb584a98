"""What the tests of the ranking shells share: cases as shells, calls with every argument, states to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tests.registry import RANKING
from tests.transforms.cases import CASES, DIAGONAL, ONE_PER_LOSS, Case, Inputs

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_variant = pytest.mark.parametrize("case", DIAGONAL, ids=str)
every_loss = pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)

SHELLS = [loss.shell for loss in RANKING.values()]
every_class = pytest.mark.parametrize("shell_class", SHELLS, ids=lambda cls: cls.__name__)


def assert_bits(actual: Any, expected: Any) -> None:
    """Equal bit for bit, nan where nan."""
    torch.testing.assert_close(
        _pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=0, atol=0, equal_nan=True
    )


def snapshot(shell: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in shell.state_dict().items()}


def float_inputs(case: Case, seed: int = 0) -> Inputs:
    return case.inputs(seed, torch.float32)


def called(shell: nn.Module, inputs: Inputs, **flags: Any) -> Any:
    return shell(inputs.logits, inputs.targets, inputs.iid_mask, sample_weight=inputs.sample_weight, **flags)


def stepped(case: Case, steps: int = 2, **changes: Any) -> Any:
    """A shell that has seen some batches."""
    shell = case.shell(**changes)
    for seed in range(steps):
        called(shell, float_inputs(case, seed))
    return shell
