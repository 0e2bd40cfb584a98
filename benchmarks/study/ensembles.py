"""Ensembles by one vmap: members of stacked parameters, with a queue each, step together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import imbalanced_losses
from study.loop import Limits, average_precision, epochs, train
from study.losses import Job, make_loss, ranking_options, set_bias
from study.train import Data, last_layer, make_model

__all__ = ["Members", "fit_ensemble"]

Parameters = dict[str, Tensor]
# (logits, targets, state) -> (loss, state)
Objective = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]


class Members(nn.Module):
    """Models of one shape as one module: ``[N, D]`` gives the mean of their logits."""

    def __init__(self, models: list[nn.Sequential]) -> None:
        super().__init__()
        self.shape = [models[0]]  # in a list, so that it is no submodule
        stacked, _ = stack_module_state(models)
        self.stacked = nn.ParameterDict(
            {name.replace(".", "_"): nn.Parameter(value) for name, value in stacked.items()}
        )
        self.names = list(stacked)

    def parameters_by_name(self) -> Parameters:
        """Stacked, by the names in one model."""
        return {name: self.stacked[name.replace(".", "_")] for name in self.names}

    def one(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Logits of one member."""
        logits: Tensor = functional_call(self.shape[0], parameters, (features,))
        return logits

    def forward(self, features: Tensor) -> Tensor:
        """Mean of the members' logits ``[N, C]``."""
        return vmap(self.one, (0, None))(self.parameters_by_name(), features).mean(0)


FUNCTIONS: dict[str, tuple[Callable[..., Any], type]] = {
    "SoftFBetaLoss": (imbalanced_losses.soft_fbeta, imbalanced_losses.SoftFBetaConfig),
    "SmoothAPLoss": (imbalanced_losses.smooth_ap, imbalanced_losses.SmoothAPConfig),
    "RecallAtQuantileLoss": (imbalanced_losses.recall_at_quantile, imbalanced_losses.RecallAtQuantileConfig),
    "PAUCAtBudgetLoss": (imbalanced_losses.pauc_at_budget, imbalanced_losses.PAUCAtBudgetConfig),
    "PrecisionAtRecallLoss": (imbalanced_losses.precision_at_recall, imbalanced_losses.PrecisionAtRecallConfig),
}


def make_objective(job: Job, targets: Tensor) -> Objective:
    """A loss alone, of one label; what has no queue passes the state on. ``targets`` are those of the training set."""
    name, schedule = job["contender"]["loss"], job["contender"]["schedule"]
    if schedule != "alone":
        raise ValueError(f"expected a loss that is trained alone, got the schedule {schedule}")
    if name in FUNCTIONS:
        function, config = FUNCTIONS[name]
        return partial(function, cfg=config(num_classes=1, **ranking_options(job)))
    loss_fn = make_loss(job, targets)
    return lambda logits, labels, state: (loss_fn(logits, labels), state)


def fit_ensemble(data: Data, job: Job) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Held-out logits of an ensemble that is stopped by its own validation score, and what it took.

    Members differ in initial weights and in the order of rows.
    """
    features, targets, members = data["train_features"], data["train_targets"], job["members"]
    seeds = [100 * job["seed"] + job.get("first_member", 0) + k for k in range(members)]
    models = [make_model("MLP", features.shape[1], {**job, "seed": seed}) for seed in seeds]
    for one in models:
        set_bias(last_layer(one), targets, 1, job["contender"]["start"])
    ensemble, objective = Members(models), make_objective(job, targets)
    limits = Limits(**job["limits"])
    state = [imbalanced_losses.stack_states([imbalanced_losses.init_queue(1024, 1) for _ in range(members)])]
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=job["setting"]["lr"], fused=True)
    orders = [epochs(len(features), limits.batch, seed) for seed in seeds]

    def of_member(parameters: Parameters, of_batch: Tensor, labels: Tensor, queue: Any) -> tuple[Tensor, Any]:
        return objective(ensemble.one(parameters, of_batch), labels, queue)

    step_all = vmap(grad(of_member, has_aux=True))

    def step(rows: Tensor) -> None:
        named = {name: value.detach() for name, value in ensemble.parameters_by_name().items()}
        gradients, state[0] = step_all(named, features[rows], targets[rows], state[0])
        for name, value in ensemble.parameters_by_name().items():
            value.grad = gradients[name]
        optimizer.step()

    def watch(_: nn.Module) -> float:
        with torch.no_grad():
            return average_precision(ensemble(data["validation_features"]), data["validation_targets"])

    drawn = (torch.stack([next(order) for order in orders]) for _ in iter(int, 1))
    answer = train(ensemble, step, drawn, len(features), watch, limits)
    with torch.no_grad():
        return {name: ensemble(data[f"{name}_features"]) for name in ("validation", "test")}, answer
