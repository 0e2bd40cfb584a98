"""Logit-adjusted cross-entropy as a module: its priors and its counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from imbalanced_losses import LogitAdjustedConfig, LogitAdjustedLoss

PRIORS = (12.0, 3.0, 1.0)
SOFTMAX = (torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 0, 1, 0, -100]))
MAKE: dict[str, Any] = {
    "given": lambda **more: LogitAdjustedLoss(PRIORS, gamma=0.2, **more),
    "given binary": lambda **more: LogitAdjustedLoss(0.25, **more),
    "stream": lambda **more: LogitAdjustedLoss("stream", gamma=0.2, num_classes=3, **more),
    "stream binary": lambda **more: LogitAdjustedLoss("stream", num_classes=1, **more),
}


# --- given priors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor])
def test_given_priors_are_a_buffer(kind: Any) -> None:
    loss_fn = LogitAdjustedLoss(kind(PRIORS))
    assert_close(dict(loss_fn.named_buffers()), {"priors": torch.tensor(PRIORS)}, check_dtype=False)
    assert loss_fn.config == LogitAdjustedConfig(priors=PRIORS)
    assert "priors=(12.0, 3.0, 1.0)" in repr(loss_fn)
    assert loss_fn.num_classes is None


@pytest.mark.parametrize("values", [[4, 4, 8], torch.tensor([4, 4, 8]), torch.tensor([4.0, 4.0, 8.0]).half()])
def test_priors_can_be_assigned(values: Any) -> None:
    loss_fn = LogitAdjustedLoss(PRIORS)
    loss_fn.priors = values
    assert_close(loss_fn.priors, torch.tensor([4.0, 4.0, 8.0]))
    assert loss_fn.config.priors == (4.0, 4.0, 8.0)
    assert_close(loss_fn(*SOFTMAX), LogitAdjustedLoss([4, 4, 8])(*SOFTMAX), rtol=0, atol=0)
    loss_fn.reset_parameters()
    assert_close(loss_fn.priors, torch.tensor([4.0, 4.0, 8.0]))


OTHERS = {"tau": 0.5, "gamma": 0.7, "reduction": "sum", "ignore_index": 0, "label_smoothing": 0.3}


@pytest.mark.parametrize("name", OTHERS)
def test_an_assignment_is_an_argument(name: str) -> None:
    loss_fn, expected = LogitAdjustedLoss(PRIORS), LogitAdjustedLoss(PRIORS, **{name: OTHERS[name]})
    logits, targets = SOFTMAX[0][:7], SOFTMAX[1][:7]
    before = loss_fn(logits, targets)
    setattr(loss_fn, name, OTHERS[name])
    assert getattr(loss_fn, name) == OTHERS[name]
    assert loss_fn.config == expected.config
    assert_close(loss_fn(logits, targets), expected(logits, targets), rtol=0, atol=0)
    assert not torch.equal(loss_fn(logits, targets), before)


def test_a_whole_configuration_can_be_assigned() -> None:
    loss_fn = LogitAdjustedLoss(PRIORS)
    loss_fn.config = dataclasses.replace(loss_fn.config, priors=(1, 1, 2), tau=0.5)
    assert_close(loss_fn(*SOFTMAX), LogitAdjustedLoss([1, 1, 2], tau=0.5)(*SOFTMAX), rtol=0, atol=0)


# --- the stream -------------------------------------------------------------------------------------------------------


def test_counts() -> None:
    loss_fn = LogitAdjustedLoss("stream", num_classes=3)
    for _ in range(2):
        loss_fn(*SOFTMAX)
    assert loss_fn.class_counts.positives.tolist() == [8, 4, 2]
    assert loss_fn.class_counts.labels.tolist() == [14, 14, 14]


# --- its life ---------------------------------------------------------------------------------------------------------


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"priors": "batch"}, ValueError, "expected priors to be one of 'stream'"),
        ({"priors": "stream"}, ValueError, "expected num_classes .* give it with priors="),
        ({"priors": PRIORS, "num_classes": 3}, ValueError, "expected num_classes .* and only then"),
        ({"priors": "stream", "num_classes": 0}, ValueError, "expected num_classes to be at least 1"),
        ({"priors": None}, TypeError, "expected priors to be a sequence"),
        ({"priors": nn.Parameter(torch.ones(3))}, TypeError, "expected priors that needs no gradient"),
        ({"priors": PRIORS, "tau": -1}, ValueError, "expected tau"),
        ({"priors": PRIORS, "multilabel": True}, ValueError, "divide the number of positives"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogitAdjustedLoss(**arguments)


def test_assignments_that_make_another_loss() -> None:
    given, stream = MAKE["given"](), MAKE["stream"]()
    stream.priors, stream.num_classes = "stream", 3  # no change
    for loss_fn, name, value in ((given, "priors", "stream"), (stream, "priors", PRIORS), (stream, "num_classes", 4)):
        with pytest.raises(AttributeError, match="make a new LogitAdjustedLoss"):
            setattr(loss_fn, name, value)
    with pytest.raises(RuntimeError, match="it counts nothing"):
        _ = given.class_counts
    with pytest.raises(ValueError, match="expected every weight in priors"):
        given.priors = [-1, 2, 3]


@pytest.mark.parametrize(
    ("name", "targets", "weight", "message"),
    [
        ("given", [0, 3], None, r"expected class ids in \[0, 3\) or ignore_index=-100, got 3"),
        ("given binary", [0, 2], None, r"expected targets in \[0, 1\] or ignore_index=-100, got 2"),
        ("stream binary", [0.0, torch.nan], None, "got nan"),
        ("given", [0, 1], [1.0, -1.0], "expected finite sample_weight >= 0, got -1"),
    ],
)
def test_values_are_checked(name: str, targets: Any, weight: Any, message: str) -> None:
    logits = torch.zeros(2, 3) if name == "given" else torch.zeros(2)
    rows = {} if weight is None else {"sample_weight": torch.tensor(weight)}
    with pytest.raises(ValueError, match=message):
        MAKE[name]()(logits, torch.tensor(targets), **rows)
    if name != "given":
        MAKE[name](validate_targets=False)(logits, torch.tensor(targets))


def test_priors_do_not_overflow() -> None:
    assert LogitAdjustedLoss(torch.tensor([6e4, 1.0]).half()).half().priors.dtype == torch.float32


def test_priors_are_assigned_on_meta() -> None:
    """As any setting: a list has values, also where the buffer has no memory yet."""
    with torch.device("meta"):
        loss_fn = LogitAdjustedLoss([900.0, 100.0])
    loss_fn.priors = [700.0, 300.0]
    loss_fn.to_empty(device="cpu").reset_parameters()
    assert loss_fn.config.priors == (700.0, 300.0)


@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", "inductor"])
@pytest.mark.parametrize("shape", [(16, 3), (16, 1), (6, 3, 5)])
def test_a_compiled_stream_uses_the_counts_of_its_forward_in_the_backward(shape: tuple[int, ...], backend: str) -> None:
    """Over several steps: the counts are overwritten before each backward."""
    columns = shape[1]
    eager, inner = (LogitAdjustedLoss("stream", num_classes=columns) for _ in range(2))
    compiled = torch.compile(inner, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        logits = torch.randn(shape, generator=generator)
        targets = torch.randint(0, max(2, columns), (shape[0], *shape[2:]), generator=generator)
        targets = targets[:, None].float() if columns == 1 else targets
        found = []
        for loss_fn in (eager, compiled):
            inputs = logits.clone().requires_grad_()
            loss = loss_fn(inputs, targets)
            loss.backward()
            found.append((loss.detach(), inputs.grad))
        torch.testing.assert_close(found[1], found[0])
        assert inner.class_positives.equal(eager.class_positives)


def test_a_stream_of_two_classes_refuses_one_logit() -> None:
    loss_fn = LogitAdjustedLoss("stream", num_classes=2)
    for labels in (torch.tensor([0, 1, 0]), torch.tensor([0.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="expected num_classes=1 for one logit, got 2"):
            loss_fn(torch.zeros(3), labels)
    assert loss_fn.class_labels.tolist() == [0, 0]
