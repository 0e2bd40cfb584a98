"""Precision and false-positive rate at a recall under ``torch.func``, compilers, on meta tensors, and as modules."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.func import vmap
from torch.testing import assert_close

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss
from tests.contracts.cases import example
from tests.losses.at_recall_cases import AtRecall, both

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


# --- derivatives ------------------------------------------------------------------------------------------------------


@both
def test_vmap_over_temperatures(loss: AtRecall) -> None:
    problem, temperatures = example("multiclass"), torch.tensor([0.1, 0.5, 2.0])
    cfg = loss.config(problem)

    def at(temperature: Tensor) -> Tensor:
        arguments = (problem.logits, problem.targets, problem.state, cfg)
        return loss.names.function(*arguments, temperature=temperature, **problem.extras)[0]

    expected = [loss.run(problem, temperature=float(t)).loss for t in temperatures]
    assert_close(vmap(at)(temperatures), torch.stack(expected), rtol=1e-6, atol=1e-7)


# --- modules ----------------------------------------------------------------------------------------------------------


@both
def test_after_a_warm_up(loss: AtRecall) -> None:
    """The wrapper sets the temperature and empties the queue at the switch."""
    problem = example("binary", dtype=torch.float32)
    main = loss.shell(problem, queue_size=16)
    wrapper = LossWarmupWrapper(
        SigmoidFocalLoss(), main, warmup_steps=1, blend_steps=1, temp_start=0.5, temp_end=0.05, temp_decay_steps=2
    )
    temperatures = []
    for step in range(5):
        wrapper.on_train_batch_start(step)
        logits = problem.logits.clone().requires_grad_()
        labels = (problem.targets == 1).float()
        value = wrapper(logits[:, 0], labels)
        value.backward()
        assert value.isfinite()
        assert logits.grad.abs().sum() > 0
        temperatures.append(round(main.temperature.item(), 4))
    assert temperatures == [0.5, 0.5, 0.1581, 0.05, 0.05]
    assert main.diagnostics()["recall"].item() >= 0.7


@both
def test_training_finds_the_positives(loss: AtRecall) -> None:
    """Descent on a linear model with a misleading feature ends near what the exact metric allows."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(400) % 20 == 0).long()
    inputs = torch.randn(400, 2, generator=generator)
    inputs[:, 0] += 3.0 * targets
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0]]))
    loss_fn = type(loss.shell(example("binary")))(1, recall=0.8, queue_size=0, temperature=0.3)
    before = loss.metric(model(inputs), targets, 0.8).item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    after = loss.metric(model(inputs), targets, 0.8).item()
    best = loss.metric(inputs[:, 0], targets, 0.8).item()
    assert abs(after - best) < 0.1 * abs(best - before)
    assert loss_fn.diagnostics()["recall"].item() >= 0.8
