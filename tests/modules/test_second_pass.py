"""A batch that passes through a loss twice: SAM, L-BFGS, activation checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imbalanced_losses import LossWarmupWrapper, SmoothAPLoss, smooth_ap
from tests.registry import MAIN, make_main

MAKE: dict[str, Any] = {
    **{name: partial(make_main, name) for name in MAIN},
    "wrapper": lambda **more: LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, **more)),
}
every_loss = pytest.mark.parametrize("name", MAKE)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, generator=generator), (torch.rand(16, generator=generator) < 0.4).long()


def make(name: str, **more: Any) -> Any:
    """With a batch in the queue."""
    loss_fn = MAKE[name](**{"queue_size": 24, **more})
    if name == "wrapper":
        loss_fn.on_train_epoch_start(0)
        loss_fn.on_train_batch_start(0)
    loss_fn(*batch(0))
    return loss_fn


def value_and_gradient(loss_of: Any) -> tuple[Tensor, Tensor]:
    logits = batch(1)[0].requires_grad_()
    loss = loss_of(logits)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


# --- two passes of one batch ------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("compiled", [False, True])
def test_a_first_pass_can_leave_the_queue_as_it_is(name: str, compiled: bool) -> None:
    """So the second one ranks against the same pool, and the batch is pushed once."""
    loss_fn, once = make(name), make(name)
    if compiled:
        loss_fn.compile(backend="aot_eager")
    targets = batch(1)[1]
    before = {key: value.clone() for key, value in loss_fn.state_dict().items()}
    first = value_and_gradient(lambda logits: loss_fn(logits, targets, update_queue=False))
    torch.testing.assert_close(dict(loss_fn.state_dict()), before, rtol=0, atol=0)
    second = value_and_gradient(lambda logits: loss_fn(logits, targets))
    expected = value_and_gradient(lambda logits: once(logits, targets))
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    torch.testing.assert_close(dict(loss_fn.state_dict()), dict(once.state_dict()), rtol=0, atol=0)


def test_the_mode_of_the_module_still_holds() -> None:
    loss_fn = make("smooth_ap").eval()
    before = loss_fn.queue_logits.clone()
    loss_fn(*batch(1), update_queue=True)
    assert loss_fn.queue_logits.equal(before)
    assert loss_fn.diagnostics()["loss"].equal(loss_fn(*batch(1)).reshape(1))


def test_lbfgs() -> None:
    """Every evaluation of the closure ranks against one pool; the last call pushes."""
    logits, targets = batch(1)
    model, loss_fn = nn.Linear(1, 1), make("smooth_ap")
    queue = loss_fn.queue_logits.clone()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(logits), targets, update_queue=False)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert loss_fn.queue_logits.equal(queue)
    assert loss_fn(model(logits), targets) <= first
    assert loss_fn.queue_cursor == 8  # 32 rows through a ring of 24


# --- activation checkpointing -----------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_loss_is_refused_in_the_backward(name: str, use_reentrant: bool) -> None:
    loss_fn, targets = make(name), batch(1)[1]
    logits = batch(1)[0].requires_grad_()
    loss = checkpoint(lambda rows: loss_fn(2 * rows, targets), logits, use_reentrant=use_reentrant)
    before = {key: value.clone() for key, value in loss_fn.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"expected the loss outside activation checkpointing, .* call the loss on its"
    ):
        loss.backward()
    torch.testing.assert_close(dict(loss_fn.state_dict()), before, rtol=0, atol=0)


def test_a_checkpointed_step_of_a_schedule_is_not_counted_twice() -> None:
    loss_fn = LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1), warmup_steps=9, auto_step=True)
    logits, targets = batch(1)
    loss = checkpoint(loss_fn, logits.requires_grad_(), targets[:, None].float(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="expected the loss outside activation checkpointing"):
        loss.backward()
    assert loss_fn.step == 0


@every_loss
@pytest.mark.parametrize("how", ["no queue", "frozen", "not updated"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_loss_that_pushes_nothing_is_right(name: str, how: str, use_reentrant: bool) -> None:
    loss_fn, targets = make(name, **({"queue_size": 0} if how == "no queue" else {})), batch(1)[1]
    loss_fn.train(how != "frozen")
    flags = {"update_queue": False} if how == "not updated" else {}

    def loss_of(rows: Tensor) -> Tensor:
        return loss_fn(2 * rows, targets, **flags)  # type: ignore[no-any-return]

    plain = value_and_gradient(loss_of)
    checkpointed = value_and_backward(lambda logits: checkpoint(loss_of, logits, use_reentrant=use_reentrant))
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_the_pure_function_can_be_checkpointed(use_reentrant: bool) -> None:
    loss_fn, targets = make("smooth_ap"), batch(1)[1]

    def loss_of(logits: Tensor) -> Tensor:
        return smooth_ap(2 * logits, targets, loss_fn.queue_state, loss_fn.config)[0]

    checkpointed = value_and_backward(lambda logits: checkpoint(loss_of, logits, use_reentrant=use_reentrant))
    torch.testing.assert_close(checkpointed, value_and_gradient(loss_of), rtol=0, atol=0)


def value_and_backward(loss_of: Any) -> tuple[Tensor, Tensor]:
    """Reentrant checkpoints know only ``backward()``."""
    logits = batch(1)[0].requires_grad_()
    loss = loss_of(logits)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad
