"""``tau_scale`` in the transforms, compiled, and in the modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss
from tests.losses.tau_scale_cases import CASES, SPREADS, Case, batch_of, scores_of_unit, unit

every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
every_spread = pytest.mark.parametrize("tau_scale", SPREADS)
of_two_losses = pytest.mark.parametrize("case", [CASES["smooth_ap"], CASES["recall"]], ids=["smooth_ap", "recall"])


# --- transforms -------------------------------------------------------------------------------------------------------


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


# --- the modules ------------------------------------------------------------------------------------------------------


@of_two_losses
def test_these_losses_have_no_band(case: Case) -> None:
    for make in (case.configured, case.module):
        with pytest.raises(ValueError, match="expected tau_scale to be one of 'none', 'std', 'iqr', got 'band'"):
            make(tau_scale="band")


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
