"""``tau_scale`` in the transforms, compiled, and in the modules."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, init_queue, stack_states
from tests.compiled.matrix import THREADS
from tests.compiled.processes import last_words, run_python
from tests.losses import tau_scale_compiled
from tests.losses.tau_scale_cases import CASES, SPREADS, Case, batch_of, scaled, scores_of_unit, unit

every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
every_spread = pytest.mark.parametrize("tau_scale", SPREADS)
of_two_losses = pytest.mark.parametrize("case", [CASES["smooth_ap"], CASES["recall"]], ids=["smooth_ap", "recall"])


# --- transforms -------------------------------------------------------------------------------------------------------


@every_case
@every_spread
def test_vmap_of_grad_is_a_loop(case: Case, tau_scale: str) -> None:
    batches = [scaled(batch_of(30, 3, queue_size=12, seed=seed), 10.0**seed) for seed in range(3)]
    cfg = case.configured(num_classes=3, reduction="sum", tau_scale=tau_scale)

    def loss_of(logits: Tensor, targets: Tensor, state: Any, temperature: Tensor) -> Tensor:
        return case.function(logits, targets, state, cfg, temperature=temperature)[0]

    logits, targets = (torch.stack([getattr(batch, name) for batch in batches]) for name in ("logits", "targets"))
    states = stack_states([batch.queue_state for batch in batches])
    temperatures = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    gradients = vmap(grad(loss_of))(logits, targets, states, temperatures)
    for batch, temperature, gradient in zip(batches, temperatures, gradients, strict=True):
        _, expected = case.run(batch, tau_scale=tau_scale, temperature=float(temperature))
        assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@every_case
@every_spread
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
def test_jvp_is_the_gradient_along_a_direction(case: Case, tau_scale: str) -> None:
    """The spread is a constant of the step in forward mode, too."""
    batch = batch_of(30, 2, queue_size=12)
    cfg = case.configured(num_classes=2, reduction="sum", tau_scale=tau_scale)
    direction = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, slope = jvp(
        lambda logits: case.function(logits, batch.targets, batch.queue_state, cfg)[0], (batch.logits,), (direction,)
    )
    loss, gradient = case.run(batch, tau_scale=tau_scale)
    assert_close(value, loss.sum())
    assert_close(slope, (gradient * direction).sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["smooth_ap", "recall", "pairwise", "trapezoid"])
@every_spread
def test_second_derivatives_hold_the_spread(name: str, tau_scale: str) -> None:
    """As those of the loss at that temperature in score units."""
    case, batch = CASES[name], batch_of(16)
    cfg = case.configured(reduction="sum", tau_scale=tau_scale)
    tau = 0.4 * unit(scores_of_unit(case, batch, 0, cfg), cfg)
    of_scores = case.configured(reduction="sum", tau_scale="none", temperature=tau)

    def second(own: Any) -> Tensor:
        def value(logits: Tensor) -> Tensor:
            return case.function(logits, batch.targets, batch.queue_state, own)[0]

        return torch.autograd.functional.hessian(value, batch.logits)  # type: ignore[no-any-return]

    assert second(cfg).count_nonzero() > 0
    assert_close(second(cfg), second(of_scores), rtol=1e-8, atol=1e-10)


@every_case
@every_spread
def test_meta_and_fake_tensors(case: Case, tau_scale: str) -> None:
    cfg = case.configured(num_classes=3, tau_scale=tau_scale)
    for mode, device in ((FakeTensorMode(), "cpu"), (torch.device("meta"), "meta")):
        with mode:
            logits = torch.zeros(12, 3, device=device, requires_grad=True)
            state = init_queue(8, 3, device=device)
            loss, _ = case.function(logits, torch.zeros(12, device=device, dtype=torch.long), state, cfg)
            (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert (loss.shape, gradient.shape) == ((3,), (12, 3))


@every_case
def test_one_graph_serves_every_temperature_and_scale(case: Case) -> None:
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    cfg = case.configured(num_classes=2, reduction="mean", tau_scale="iqr")
    compiled = torch.compile(case.function, backend=count, fullgraph=True)
    for seed in range(3):
        batch = scaled(batch_of(30, 2, queue_size=12, seed=seed), 100.0**seed)
        temperature = torch.tensor(0.1 * (seed + 1))
        arguments = (batch.logits, batch.targets, batch.queue_state, cfg)
        loss, state = compiled(*arguments, temperature=temperature)
        expected, expected_state = case.function(*arguments, temperature=temperature)
        assert_close(loss, expected)
        assert torch.equal(state.logits, expected_state.logits)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", tau_scale_compiled.CASES)
def test_the_default_backend_on_one_two_and_four_threads(name: str, tmp_path: Path) -> None:
    """Loss, gradient and queue as in eager mode, over several steps and repeated calls."""
    report, output = tmp_path / "report", tmp_path / "output"
    end = run_python([tau_scale_compiled.__file__, str(report), name], output, timeout=600)
    assert not end, f"the process {end}: {last_words(output)}"
    findings = [json.loads(line) for line in report.read_text().splitlines()]
    assert findings == [[name, threads, []] for threads in THREADS]


# --- the modules ------------------------------------------------------------------------------------------------------


@every_case
@every_spread
def test_the_module_is_the_function(case: Case, tau_scale: str) -> None:
    module = case.module(num_classes=2, tau_scale=tau_scale)
    state = init_queue(8, 2)
    assert f"tau_scale={tau_scale!r}" in repr(module)
    assert module.tau_scale == tau_scale
    for seed in range(3):
        batch = batch_of(12, 2, torch.float32, seed=seed)
        expected, state = case.function(batch.logits, batch.targets, state, module.config)
        assert torch.equal(module(batch.logits, batch.targets), expected)
    assert torch.equal(module.queue_logits, state.logits)


@every_case
def test_an_assignment_takes_effect_and_a_wrong_one_changes_nothing(case: Case) -> None:
    batch = batch_of(20, dtype=torch.float32)
    module = case.module(tau_scale="none", queue_size=0)
    for tau_scale in SPREADS:
        before = module(batch.logits * 3, batch.targets)
        module.tau_scale = tau_scale
        assert module.config.tau_scale == tau_scale
        expected = case.module(tau_scale=tau_scale, queue_size=0)(batch.logits, batch.targets)
        assert_close(module(batch.logits * 3, batch.targets), expected)
        assert not torch.equal(before, expected)
    config = module.config
    with pytest.raises(ValueError, match=r"expected tau_scale to be one of 'none', 'std', 'iqr'.*, got 'mad'"):
        module.tau_scale = "mad"
    assert module.config == config


@of_two_losses
def test_these_losses_have_no_band(case: Case) -> None:
    for make in (case.configured, case.module):
        with pytest.raises(ValueError, match="expected tau_scale to be one of 'none', 'std', 'iqr', got 'band'"):
            make(tau_scale="band")


@every_case
@every_spread
def test_copies_and_a_resumed_run_go_on_as_the_first(case: Case, tau_scale: str) -> None:
    module = case.module(tau_scale=tau_scale)
    first, then = (batch_of(12, dtype=torch.float32, seed=seed) for seed in (0, 1))
    module(first.logits, first.targets)
    module.temperature = 0.7
    resumed = case.module(tau_scale=tau_scale)
    resumed.load_state_dict(module.state_dict())
    others = [resumed, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    expected = module(then.logits, then.targets)
    for other in others:
        assert torch.equal(other(then.logits, then.targets), expected)


@every_case
@every_spread
def test_diagnostics_tell_the_temperature_in_score_units(case: Case, tau_scale: str) -> None:
    module = case.module(num_classes=3, tau_scale=tau_scale, queue_size=0)
    batch = batch_of(40, 3, torch.float32)
    module(batch.logits, batch.targets)
    expected = [0.4 * unit(scores_of_unit(case, batch, label, module.config), module.config) for label in range(3)]
    assert_close(module.diagnostics()["tau_eff"], torch.tensor(expected))


@of_two_losses
def test_without_a_unit_there_is_nothing_to_tell(case: Case) -> None:
    module, batch = case.module(), batch_of(20, dtype=torch.float32)
    module(batch.logits, batch.targets)
    assert "tau_eff" not in module.diagnostics()


class Scaled(nn.Module):
    """A linear model whose logits have another scale."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight * self.factor


@every_case
@every_spread
def test_a_schedule_is_in_units_of_the_spread(case: Case, tau_scale: str) -> None:
    """Two runs whose logits differ by a factor take the same steps: the model's factor undoes that of the gradient."""
    runs = []
    for factor in (1.0, 2.0**12):
        main = case.module(tau_scale=tau_scale)
        wrapper = LossWarmupWrapper(
            SigmoidFocalLoss(alpha=-1, gamma=0), main, temp_start=1.0, temp_end=0.25, temp_decay_steps=4, auto_step=True
        )
        model = Scaled(factor)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        taken = []
        for step in range(6):
            generator = torch.Generator().manual_seed(step)
            features = torch.randn(24, 3, generator=generator)
            targets = (torch.rand(24, generator=generator) < 0.4).long()
            loss = wrapper(model(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            taken.append((loss.item(), wrapper.current_temperature))
        runs.append((torch.tensor(taken), model.weight.detach()))
    assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-6)
    assert_close(runs[0][0][:, 1], torch.tensor([1.0, 0.25**0.25, 0.5, 0.25**0.75, 0.25, 0.25]))


def test_a_configuration_is_replaced_field_by_field() -> None:
    """pAUC takes over the field of the other losses and adds "band"."""
    cfg = CASES["pairwise"].configured(tau_scale="band")
    assert dataclasses.replace(cfg, tau_scale="std").tau_scale == "std"
    with pytest.raises(ValueError, match="'none', 'std', 'iqr', 'band', got 'mad'"):
        dataclasses.replace(cfg, tau_scale="mad")
