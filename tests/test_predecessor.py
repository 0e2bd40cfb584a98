"""Code written for the library's predecessor runs with its import line changed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

USER_CODE = '''
import torch
from torch import nn
from proxy_losses import LossWarmupWrapper, RecallAtQuantileLoss, SmoothAPLoss


class Trainer:
    def __init__(self, model, main_loss, steps_per_epoch):
        self.model, self.steps_per_epoch = model, steps_per_epoch
        self.loss_fn = LossWarmupWrapper(
            warmup_loss=nn.BCEWithLogitsLoss(),
            main_loss=main_loss,
            warmup_epochs=2,
            temp_start=0.5,
            temp_end=0.1,
            temp_decay_steps=3 * steps_per_epoch,
            blend_epochs=1,
        )
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        self.log = []

    def fit(self, features, targets, epochs):
        step = 0
        for epoch in range(epochs):
            self.loss_fn.on_train_epoch_start(epoch)
            for rows in torch.arange(len(targets)).chunk(self.steps_per_epoch):
                self.loss_fn.on_train_batch_start(step)
                loss = self.loss_fn(self.model(features[rows]).squeeze(-1), targets[rows].float())
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                step += 1
            self.log.append(
                {
                    "in_warmup": self.loss_fn.in_warmup,
                    "ap_weight": self.loss_fn.ap_weight,
                    "temperature": self.loss_fn.current_temperature,
                    "loss": loss.item(),
                }
            )
        self.loss_fn.main_loss.reset_queue()


def run(features, targets, steps_per_epoch):
    """Train with either loss; a multi-class one on its own, and saved and loaded."""
    logs = []
    for main_loss in (
        SmoothAPLoss(num_classes=1, queue_size=256),
        RecallAtQuantileLoss(num_classes=1, quantile=0.1, queue_size=256),
    ):
        torch.manual_seed(0)
        trainer = Trainer(nn.Linear(features.shape[1], 1), main_loss, steps_per_epoch)
        trainer.fit(features, targets, epochs=6)
        logs.append((trainer.log, trainer.model))
    loss_fn = SmoothAPLoss(num_classes=4, queue_size=64, temperature=0.05)
    classes = torch.arange(len(targets)) % 4
    loss_fn(torch.randn(len(targets), 4), classes).item()
    copy = SmoothAPLoss(num_classes=4, queue_size=64, temperature=0.05)
    copy.load_state_dict(loss_fn.state_dict())
    copy.reset_queue()
    return logs
'''


@pytest.fixture(scope="module")
def logs() -> Any:
    scope: dict[str, Any] = {}
    exec(USER_CODE.replace("from proxy_losses import", "from imbalanced_losses import"), scope)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 8, generator=generator)
    targets = (features[:, 0] + torch.randn(400, generator=generator) > 1.8).long()
    return features, targets, scope["run"](features, targets, steps_per_epoch=10)


def test_phases_weights_and_temperatures_are_logged(logs: Any) -> None:
    for log, _ in logs[2]:
        assert [epoch["in_warmup"] for epoch in log] == [True, True, False, False, False, False]
        assert [epoch["ap_weight"] for epoch in log] == [0, 0, 0.5, 1, 1, 1]
        temperatures = [epoch["temperature"] for epoch in log]
        assert temperatures[:2] == [0.5, 0.5]
        assert temperatures[2:] == sorted(temperatures[2:], reverse=True)
        assert temperatures[-1] == pytest.approx(0.1)
        assert all(0 <= epoch["loss"] < 2 for epoch in log)


def test_the_models_learn(logs: Any) -> None:
    features, targets, runs = logs
    for _, model in runs:
        assert isinstance(model, nn.Module)
        with torch.no_grad():
            scores = model(features)[:, 0]
        assert scores[targets == 1].mean() > scores[targets == 0].mean() + 0.5
