"""Errors that a well-known mistake explains say what to do, and doing it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
from tests.strategies import LOSSES

N = 8
LABELS = torch.arange(N) % 2
IDS = torch.arange(N) % 3
WIDE = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
COLUMN, PAIR = WIDE[:, :1], WIDE[:, :2]
ONE_HOT = F.one_hot(IDS, 3)

Inputs = tuple[Tensor, Tensor]
Mistake = tuple[str, dict[str, Any], Inputs, type[Exception], str, tuple[dict[str, Any], Inputs]]
MULTI = {"num_classes": 3}
SEVERAL = {"num_classes": 3, "multilabel": True}
BINARY = {"num_classes": 1}

# settings, inputs, what comes of them, and the settings and inputs that the message asks for
RANKING: list[Mistake] = [
    (
        "one-hot",
        MULTI,
        (WIDE, ONE_HOT),
        ValueError,
        r"targets.argmax\(1\), .*multilabel=True",
        (MULTI, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot floats",
        MULTI,
        (WIDE, ONE_HOT.float()),
        TypeError,
        r"targets.argmax\(1\), .*multilabel=True",
        (SEVERAL, (WIDE, ONE_HOT.float())),
    ),
    (
        "one-hot flags",
        MULTI,
        (WIDE, ONE_HOT.bool()),
        TypeError,
        r"targets.argmax\(1\), .*multilabel=True",
        (SEVERAL, (WIDE, ONE_HOT.bool())),
    ),
    (
        "two logits",
        BINARY,
        (PAIR, LABELS),
        ValueError,
        r"logits\[:, 1\] - logits\[:, 0\]",
        (BINARY, (PAIR[:, 1] - PAIR[:, 0], LABELS)),
    ),
    (
        "one-hot of two",
        BINARY,
        (COLUMN, F.one_hot(LABELS)),
        ValueError,
        r"use targets\[:, 1\]",
        (BINARY, (COLUMN, F.one_hot(LABELS)[:, 1])),
    ),
    ("one logit", {"num_classes": 2}, (COLUMN, LABELS), ValueError, "num_classes=1", (BINARY, (COLUMN, LABELS))),
    (
        "one logit a row",
        {"num_classes": 2},
        (COLUMN[:, 0], LABELS),
        ValueError,
        "num_classes=1",
        (BINARY, (COLUMN[:, 0], LABELS)),
    ),
    ("ids for labels", SEVERAL, (WIDE, IDS), ValueError, "for class ids use multilabel=False", (MULTI, (WIDE, IDS))),
    (
        "ids [N, 1]",
        SEVERAL,
        (WIDE, IDS[:, None]),
        ValueError,
        "for class ids use multilabel=False",
        (MULTI, (WIDE, IDS[:, None])),
    ),
    ("float ids", MULTI, (WIDE, IDS.float()), TypeError, r"targets.long\(\)", (MULTI, (WIDE, IDS.float().long()))),
    (
        "integer logits",
        BINARY,
        (COLUMN.long(), LABELS),
        TypeError,
        r"pass raw scores, not predictions .*\.float\(\)",
        (BINARY, (COLUMN.long().float(), LABELS)),
    ),
    (
        "sequences",
        MULTI,
        (WIDE.reshape(2, 4, 3), IDS.reshape(2, 4)),
        ValueError,
        r"logits.flatten\(0, 1\)",
        (MULTI, (WIDE, IDS)),
    ),
    (
        "labels -1 and 1",
        BINARY,
        (COLUMN, 2 * LABELS - 1),
        ValueError,
        r"\(targets > 0\).long\(\); .*ignore_index=-1",
        (BINARY, (COLUMN, (2 * LABELS - 1 > 0).long())),
    ),
    (
        "float labels -1 and 1",
        BINARY,
        (COLUMN, 2.0 * LABELS - 1),
        ValueError,
        r"\(targets > 0\).long\(\)",
        (BINARY, (COLUMN, (2 * LABELS - 1 > 0).long())),
    ),
    (
        "several labels -1 and 1",
        SEVERAL,
        (WIDE, 2 * ONE_HOT - 1),
        ValueError,
        r"\(targets > 0\).long\(\)",
        (SEVERAL, (WIDE, ONE_HOT)),
    ),
    (
        "an id to ignore",
        MULTI,
        (WIDE, IDS - 1),
        ValueError,
        "ignore_index=-1$",
        ({**MULTI, "ignore_index": -1}, (WIDE, IDS - 1)),
    ),
]

SOFTMAX: list[Mistake] = [
    (
        "one-hot",
        {},
        (WIDE, ONE_HOT),
        ValueError,
        r"targets.argmax\(1\), .*SigmoidFocalLoss",
        ({}, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot floats",
        {},
        (WIDE, ONE_HOT.float()),
        TypeError,
        r"targets.argmax\(1\), .*SigmoidFocalLoss",
        ({}, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot images",
        {},
        (torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).long()),
        ValueError,
        r"targets.argmax\(1\)",
        ({}, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long())),
    ),
    ("ids [N, 1]", {}, (WIDE, IDS[:, None]), ValueError, r"targets.squeeze\(1\)", ({}, (WIDE, IDS))),
    (
        "masks [N, 1, H, W]",
        {},
        (torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)),
        TypeError,
        r"targets.squeeze\(1\)",
        ({}, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long())),
    ),
    ("float ids", {}, (WIDE, IDS.float()), TypeError, r"targets.long\(\)", ({}, (WIDE, IDS))),
    ("one logit a row", {}, (COLUMN[:, 0], LABELS), ValueError, "SigmoidFocalLoss", ({}, (PAIR, LABELS))),
    ("integer logits", {}, (WIDE.long(), IDS), TypeError, "pass raw scores, not predictions", ({}, (WIDE, IDS))),
    ("an id to ignore", {}, (WIDE, IDS - 1), ValueError, "ignore_index=-1$", ({"ignore_index": -1}, (WIDE, IDS - 1))),
]

SIGMOID: list[Mistake] = [
    (
        "class ids",
        {},
        (WIDE, IDS),
        ValueError,
        r"for class ids use SoftmaxFocalLoss, or make labels with one_hot\(targets, 3\)",
        ({}, (WIDE, F.one_hot(IDS, 3))),
    ),
    (
        "two logits",
        {},
        (PAIR, LABELS),
        ValueError,
        r"one logit, logits\[:, 1\] - logits\[:, 0\]",
        ({}, (PAIR[:, 1] - PAIR[:, 0], LABELS)),
    ),
    ("labels [N]", {}, (COLUMN, LABELS), ValueError, r"targets.unsqueeze\(1\)", ({}, (COLUMN, LABELS.unsqueeze(1)))),
    (
        "labels -1 and 1",
        {},
        (COLUMN, (2 * LABELS - 1)[:, None]),
        ValueError,
        r"\(targets > 0\).long\(\)",
        ({}, (COLUMN, LABELS[:, None])),
    ),
    (
        "integer logits",
        {},
        (WIDE.long(), ONE_HOT),
        TypeError,
        "pass raw scores, not predictions",
        ({}, (WIDE, ONE_HOT)),
    ),
]


def table(mistakes: list[Mistake]) -> pytest.MarkDecorator:
    names = ("settings", "inputs", "error", "message", "right")
    return pytest.mark.parametrize(names, [m[1:] for m in mistakes], ids=[m[0] for m in mistakes])


def refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s)expected .*, got .*: .*{message}"):
        call()


@pytest.mark.parametrize("shell", [SmoothAPLoss, RecallAtQuantileLoss, PAUCAtBudgetLoss])
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
    if "long" not in message:
        refuses(lambda: sigmoid_focal(*inputs, SigmoidFocalConfig(**settings)), error, message)
    settings, inputs = right
    assert SigmoidFocalLoss(**settings)(*inputs).isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_on_another_device(loss: str) -> None:
    """A forgotten ``loss_fn.to(device)``."""
    spec = LOSSES[loss]
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
    with pytest.raises(ValueError, match=r"expected alpha on meta like the logits, got cpu: .*loss_fn.to\('meta'\)"):
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
