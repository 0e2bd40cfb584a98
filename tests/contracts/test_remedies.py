"""Errors that a well-known mistake explains say what to do, and doing it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    init_queue,
    sigmoid_focal,
    softmax_focal,
)
from tests.contracts.mistakes import (
    COLUMN,
    IDS,
    LABELS,
    ONE_HOT,
    PAIR,
    RANKING,
    SIGMOID,
    SOFTMAX,
    WIDE,
    Inputs,
    Mistake,
)
from tests.registry import RANKING as RANKING_LOSSES


def table(mistakes: list[Mistake]) -> pytest.MarkDecorator:
    names = ("settings", "inputs", "error", "message", "right")
    return pytest.mark.parametrize(names, [m[1:] for m in mistakes], ids=[m[0] for m in mistakes])


def refuses(call: Callable[[], object], error: type[Exception] | tuple[type[Exception], ...], message: str) -> None:
    with pytest.raises(error, match=f"(?s)expected .*, got .*: .*{message}"):
        call()


@pytest.mark.parametrize("shell", [loss.shell for loss in RANKING_LOSSES.values()])
@table(RANKING)
def test_ranking(
    shell: Any, settings: dict[str, Any], inputs: Inputs, error: type[Exception], message: str, right: Any
) -> None:
    refuses(lambda: shell(**settings)(*inputs), error, message)
    settings, inputs = right
    assert shell(**settings)(*inputs).isfinite()


@table(SOFTMAX)
def test_softmax(settings: dict[str, Any], inputs: Inputs, error: type[Exception], message: str, right: Any) -> None:
    refuses(lambda: SoftmaxFocalLoss(**settings)(*inputs), error, message)
    if "ignore" not in message:  # a value, which the function does not look at
        refuses(lambda: softmax_focal(*inputs, SoftmaxFocalConfig(**settings)), error, message)
    settings, inputs = right
    assert SoftmaxFocalLoss(**settings)(*inputs).isfinite()


@table(SIGMOID)
def test_sigmoid(settings: dict[str, Any], inputs: Inputs, error: type[Exception], message: str, right: Any) -> None:
    refuses(lambda: SigmoidFocalLoss(**settings)(*inputs), error, message)
    if inputs[0].shape != inputs[1].shape or error is TypeError:  # values, which the function does not look at
        refuses(lambda: sigmoid_focal(*inputs, SigmoidFocalConfig(**settings)), error, message)
    settings, inputs = right
    assert SigmoidFocalLoss(**settings)(*inputs).isfinite()


@pytest.mark.parametrize("targets", [LABELS, LABELS[:, None], LABELS[:, None].float()], ids=["[N]", "[N, 1]", "floats"])
def test_one_logit_is_no_softmax(targets: Tensor) -> None:
    refuses(lambda: SoftmaxFocalLoss()(COLUMN, targets), (ValueError, TypeError), "for one logit .*SigmoidFocalLoss")
    assert SigmoidFocalLoss()(COLUMN, targets if targets.dim() == 2 else targets.unsqueeze(1)).isfinite()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("loss", RANKING_LOSSES)
def test_rows_that_are_too_many_have_no_remedy(loss: str, dtype: torch.dtype) -> None:
    """A conversion would not help."""
    with pytest.raises(ValueError, match=r"expected targets of shape \[4\], got \[5\]$"):
        RANKING_LOSSES[loss].shell(num_classes=1)(torch.randn(4), torch.ones(5, dtype=dtype))


def test_layouts_that_may_be_either_have_no_remedy() -> None:
    square = torch.randn(2, 3, 3)
    with pytest.raises(ValueError, match=r"got \[2, 3, 3\]$"):
        SmoothAPLoss(num_classes=3)(square, torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match=r"got \[2, 3\]$"):
        SigmoidFocalLoss()(square, torch.zeros(2, 3).long())


@pytest.mark.parametrize("alpha", [0.25, torch.tensor(0.25)], ids=["float", "tensor"])
def test_one_class_weight(alpha: Any) -> None:
    refuses(lambda: SoftmaxFocalLoss(alpha=alpha), (ValueError, TypeError), r"for two classes \[1 - alpha, alpha\]$")
    weighted = SoftmaxFocalLoss(alpha=[1 - alpha, alpha])(PAIR, LABELS)
    torch.testing.assert_close(weighted, SigmoidFocalLoss(alpha=0.25)(PAIR[:, 1] - PAIR[:, 0], LABELS))


@pytest.mark.parametrize("loss", RANKING_LOSSES)
def test_a_loss_on_another_device(loss: str) -> None:
    """A forgotten ``loss_fn.to(device)``."""
    spec = RANKING_LOSSES[loss]
    for validate in (True, False):
        shell = spec.shell(num_classes=1, queue_size=4, validate_targets=validate)
        message = r"expected a queue on meta like the logits, got cpu: .*loss_fn.to\('meta'\)"
        with pytest.raises(ValueError, match=message):
            shell(COLUMN.to("meta"), LABELS.to("meta"))
    with pytest.raises(ValueError, match=r"init_queue\(..., device=...\)"):
        spec.function(COLUMN.to("meta"), LABELS.to("meta"), init_queue(4, 1), spec.config(num_classes=1))


def test_tensors_on_another_device() -> None:
    meta = WIDE.to("meta")
    for name, value in {"targets": IDS, "iid_mask": IDS > 0, "sample_weight": IDS.float()}.items():
        arguments = {"targets": IDS.to("meta"), name: value}
        with pytest.raises(
            ValueError, match=rf"expected {name} on meta like the logits, got cpu: .*{name}.to\('meta'\)"
        ):
            SmoothAPLoss(num_classes=3).to("meta")(meta, **arguments)
    message = (
        r"expected alpha on meta like the logits, got cpu: .*loss_fn.to\('meta'\) or, .*function, alpha.to\('meta'\)"
    )
    with pytest.raises(ValueError, match=message):
        SoftmaxFocalLoss(alpha=[1.0, 2.0, 3.0])(meta, IDS.to("meta"))


def test_dtypes_of_masks_and_weights() -> None:
    loss_fn = SmoothAPLoss(num_classes=1)
    with pytest.raises(TypeError, match=r"iid_mask.bool\(\)"):
        loss_fn(COLUMN, LABELS, iid_mask=LABELS)
    with pytest.raises(TypeError, match=r"sample_weight.float\(\)"):
        loss_fn(COLUMN, LABELS, sample_weight=LABELS > 0)


@pytest.mark.parametrize(
    ("loss_fn", "scores", "targets"),
    [
        (SmoothAPLoss(num_classes=1), COLUMN.sigmoid(), LABELS),
        (RecallAtQuantileLoss(num_classes=3), WIDE.softmax(1), IDS),
        (PAUCAtBudgetLoss(num_classes=3, multilabel=True), WIDE.sigmoid(), ONE_HOT),
        (SigmoidFocalLoss(), WIDE.sigmoid(), ONE_HOT),
        (SoftmaxFocalLoss(), WIDE.softmax(1), IDS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_probabilities_are_no_error(loss_fn: Any, scores: Tensor, targets: Tensor) -> None:
    """They are scores, too."""
    assert loss_fn(scores, targets).isfinite()
