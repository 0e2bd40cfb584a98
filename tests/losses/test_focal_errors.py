"""What the focal losses' configurations and pure functions refuse, and what they say was expected and what came."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from imbalanced_losses import (
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    sigmoid_focal,
    softmax_focal,
)


@pytest.mark.parametrize("config", [SigmoidFocalConfig, SoftmaxFocalConfig])
def test_configurations_are_immutable_values(config: Any) -> None:
    assert config(gamma=1.5) == config(gamma=1.5)
    assert hash(config(gamma=1.5)) == hash(config(gamma=1.5))
    assert dataclasses.replace(config(), gamma=3.0).gamma == 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().gamma = 1.0
    with pytest.raises(TypeError):
        config(0.25)


@pytest.mark.parametrize("alpha", [(1.0, 2.0), np.array([1.0, 2.0], np.float32), torch.tensor([1, 2])], ids=type)
def test_class_weights_from_any_sequence(alpha: Any) -> None:
    assert SoftmaxFocalConfig(alpha=alpha).alpha == SoftmaxFocalLoss(alpha).config.alpha == (1.0, 2.0)


def test_alpha_becomes_a_hashable_tuple() -> None:
    assert SoftmaxFocalConfig(alpha=[1, 2]).alpha == (1.0, 2.0)
    assert hash(SoftmaxFocalConfig(alpha=[1, 2])) == hash(SoftmaxFocalConfig(alpha=(1.0, 2.0)))


@pytest.mark.parametrize(
    ("config", "settings", "error", "message"),
    [
        (SigmoidFocalConfig, {"alpha": 1.1}, ValueError, r"alpha in \[0, 1\], or -1 to switch it off, got 1.1"),
        (SigmoidFocalConfig, {"alpha": -0.5}, ValueError, "got -0.5"),
        (SigmoidFocalConfig, {"alpha": torch.nan}, ValueError, "got nan"),
        *[
            (cls, {"alpha": alpha}, TypeError, r"expected alpha to be a number, got ")
            for alpha in (None, "x", [0.2, 0.8], True, torch.tensor([0.3]))
            for cls in (SigmoidFocalConfig, SigmoidFocalLoss)
        ],
        *[
            (cls, {"alpha": alpha}, TypeError, r"expected alpha to be a sequence of numbers, got ")
            for alpha in (0.25, "123", b"123", True, np.float32(0.3))
            for cls in (SoftmaxFocalConfig, SoftmaxFocalLoss)
        ],
        *[
            (cls, {"alpha": alpha}, TypeError, r"expected every weight in alpha to be a number, got ")
            for alpha in (["a"], ["1"], [None], [[1.0, 2.0]])
            for cls in (SoftmaxFocalConfig, SoftmaxFocalLoss)
        ],
        (SoftmaxFocalConfig, {"alpha": torch.tensor(0.25)}, ValueError, r"expected alpha of shape \[C\], got \[\]"),
        (SigmoidFocalConfig, {"gamma": -1.0}, ValueError, "gamma to be a finite number of at least 0, got -1.0"),
        (SigmoidFocalConfig, {"gamma": torch.inf}, ValueError, "got inf"),
        (SigmoidFocalConfig, {"reduction": "mean_positive"}, ValueError, "one of 'mean', 'sum', 'none', got"),
        (SigmoidFocalConfig, {"ignore_index": 0.5}, TypeError, "expected ignore_index to be an int, got 0.5"),
        (SoftmaxFocalConfig, {"alpha": (1.0, -1.0)}, ValueError, "expected every weight in alpha to be .*, got -1.0"),
        (SoftmaxFocalConfig, {"alpha": (1.0, torch.nan)}, ValueError, "got nan"),
        (SoftmaxFocalConfig, {"gamma": torch.nan}, ValueError, "got nan"),
        (SoftmaxFocalConfig, {"reduction": "median"}, ValueError, "'mean_positive', got 'median'"),
        (SoftmaxFocalConfig, {"ignore_index": None}, TypeError, "expected ignore_index to be an int, got None"),
        (SoftmaxFocalConfig, {"background_class": -1}, ValueError, "background_class to be at least 0, got -1"),
        (SoftmaxFocalConfig, {"label_smoothing": 1.5}, ValueError, r"expected label_smoothing in \[0, 1\], got 1.5"),
    ],
)
def test_settings_out_of_range(config: Any, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3).long()}, TypeError, "expected floating-point logits, got torch.int64"),
        ({"logits": [[0.5]]}, TypeError, "expected logits to be a Tensor, got list"),
        ({"targets": [[0, 1, 1]]}, TypeError, "expected targets to be a Tensor, got list"),
        ({"sample_weight": [1.0, 1.0]}, TypeError, "expected sample_weight to be a Tensor, got list"),
        ({"cfg": SoftmaxFocalConfig()}, TypeError, "cfg to be a SigmoidFocalConfig, got SoftmaxFocalConfig"),
        ({"cfg": None}, TypeError, "expected cfg to be a SigmoidFocalConfig, got NoneType"),
        ({"targets": torch.zeros(2)}, ValueError, r"expected targets of shape \[2, 3\] like the logits, got \[2\]"),
        ({"targets": torch.zeros(2, 3) * 1j}, TypeError, "expected targets of a real dtype, got torch.complex64"),
        ({"targets": torch.zeros(2, 3, device="meta")}, ValueError, "targets on cpu like the logits, got meta"),
        ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight of shape \[2\] or \[2, 3\] .*, got \[3\]"),
        ({"sample_weight": torch.ones(1, 3)}, ValueError, r"got \[1, 3\]"),
        ({"sample_weight": torch.ones(2, 2)}, ValueError, r"got \[2, 2\]"),
        ({"sample_weight": torch.ones(2, 3, 1)}, ValueError, r"got \[2, 3, 1\]"),
        ({"sample_weight": torch.ones(2) > 0}, TypeError, "expected sample_weight of a real dtype, got torch.bool"),
        ({"sample_weight": torch.ones(2, device="meta")}, ValueError, "expected sample_weight on cpu .*, got meta"),
    ],
)
def test_sigmoid_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, 3), "cfg": SigmoidFocalConfig()}
    with pytest.raises(error, match=message):
        sigmoid_focal(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3).int()}, TypeError, "expected floating-point logits, got torch.int32"),
        ({"logits": [[0.5]]}, TypeError, "expected logits to be a Tensor, got list"),
        ({"targets": [0, 1]}, TypeError, "expected targets to be a Tensor, got list"),
        ({"sample_weight": [1.0, 1.0]}, TypeError, "expected sample_weight to be a Tensor, got list"),
        ({"alpha": [1.0, 1.0, 1.0]}, TypeError, "expected alpha to be a Tensor, got list"),
        ({"cfg": SigmoidFocalConfig()}, TypeError, "cfg to be a SoftmaxFocalConfig, got SigmoidFocalConfig"),
        ({"logits": torch.zeros(3)}, ValueError, r"expected logits of shape \[N, C, ...\] .*, got \[3\]"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"at least one class, got \[2, 0\]"),
        ({"targets": torch.zeros(2)}, TypeError, "expected integer class ids as targets, got torch.float32"),
        ({"targets": torch.zeros(2) > 0}, TypeError, "got torch.bool"),
        ({"targets": torch.zeros(2, 3).long()}, ValueError, r"targets of shape \[2\] for logits .*, got \[2, 3\]"),
        ({"targets": torch.zeros(2, device="meta").long()}, ValueError, "expected targets on cpu .*, got meta"),
        ({"targets": torch.tensor([0, 3])}, (RuntimeError, IndexError), "out of bounds"),
        ({"sample_weight": torch.ones(3)}, ValueError, r"expected sample_weight of shape \[2\], got \[3\]"),
        ({"alpha": torch.ones(2)}, ValueError, r"expected alpha of shape \[3\], got \[2\]"),
        ({"alpha": torch.ones(3).long()}, TypeError, "expected floating-point alpha, got torch.int64"),
        ({"alpha": torch.ones(3, device="meta")}, ValueError, "expected alpha on cpu like the logits, got meta"),
        ({"cfg": SoftmaxFocalConfig(alpha=(1.0,))}, ValueError, r"expected alpha of shape \[3\], got \[1\]"),
        ({"cfg": SoftmaxFocalConfig(background_class=3)}, ValueError, r"expected background_class in \[0, 3\), got 3"),
    ],
)
def test_softmax_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 3), "targets": torch.zeros(2).long(), "cfg": SoftmaxFocalConfig()}
    with pytest.raises(error, match=message):
        softmax_focal(**{**arguments, **changes})


@pytest.mark.parametrize("validate_targets", [True, False])
@pytest.mark.parametrize("shell", [SigmoidFocalLoss, SoftmaxFocalLoss])
def test_shells_take_tensors_only(shell: Any, validate_targets: bool) -> None:
    arguments = {"inputs": torch.zeros(2, 2), "targets": torch.zeros(2, 2 if shell is SigmoidFocalLoss else 1)}
    arguments["targets"] = arguments["targets"].squeeze(-1).long()
    loss_fn = shell(validate_targets=validate_targets)
    for name, argument in {**arguments, "sample_weight": torch.ones(2)}.items():
        expected = {"inputs": "logits"}.get(name, name)
        with pytest.raises(TypeError, match=f"expected {expected} to be a Tensor, got list"):
            loss_fn(**{**arguments, name: argument.tolist()})
