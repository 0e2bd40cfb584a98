"""Real Trainers on the CPU: a small network on digits with one rare class, and records of what happens in a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from imbalanced_losses import LossWarmupWrapper, ScheduleConfig, SigmoidFocalLoss, SmoothAPLoss, schedule
from imbalanced_losses.integrations.transformers import LossWarmupCallback, compute_loss_func

ROWS, MICRO_BATCH, ACCUMULATED, EPOCHS = 92, 8, 2, 4
TOKENS, VOCABULARY = 5, 11
STEPS_PER_EPOCH = 6  # 12 micro-batches, the last one of 4 rows
BY_EPOCH = ScheduleConfig(warmup_epochs=1, blend_epochs=1, temp_start=2.0, temp_end=0.5, temp_decay_steps=15)
BY_STEP = ScheduleConfig(warmup_steps=4, blend_steps=9, temp_start=2.0, temp_end=0.5, temp_decay_steps=15)


class NetworkConfig(PreTrainedConfig):
    model_type = "tests_network"


class Network(PreTrainedModel):
    """Dropout, so that a resumed run needs the random numbers of the one that stopped."""

    config_class = NetworkConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, config.num_labels))
        self.post_init()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.layers(features))


class Rows(Dataset[dict[str, Tensor]]):
    """Rows that know in which order they were asked for, and what the model calls its input."""

    def __init__(self, features: Tensor, labels: Tensor, name: str = "features") -> None:
        self.features, self.labels, self.name = features, labels, name
        self.order: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.order.append(index)
        return {self.name: self.features[index], "labels": self.labels[index]}


def digits(start: int = 0, stop: int = ROWS) -> Rows:
    features, labels = load_digits(return_X_y=True)
    rows = slice(start, stop)
    return Rows(torch.tensor(features[rows], dtype=torch.float32) / 16, torch.tensor(labels[rows] == 8).long())


def make_network() -> Network:
    torch.manual_seed(0)
    return Network(NetworkConfig(num_labels=1))


def tiny_bert(task: Literal["token", "sequence"], **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, **sizes, **settings)
    kind = {"token": BertForTokenClassification, "sequence": BertForSequenceClassification}[task]
    return without_dropout(kind(config))


def sentences(labels: Tensor) -> Rows:
    """Random tokens under the labels, ``[N]``, ``[N, C]`` or ``[N, TOKENS]``."""
    tokens = torch.randint(VOCABULARY, (len(labels), TOKENS), generator=torch.Generator().manual_seed(1))
    return Rows(tokens, labels, "input_ids")


def without_dropout(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def make_loss(cfg: ScheduleConfig) -> LossWarmupWrapper:
    """The queue holds more than an epoch has, so that it tells whether it was emptied when it should."""
    return LossWarmupWrapper(
        SigmoidFocalLoss(alpha=-1, gamma=0),
        SmoothAPLoss(num_classes=1, queue_size=128),
        **{name: getattr(cfg, name) for name in cfg.__dataclass_fields__},
        reset_queue_each_epoch=True,
    )


class Recorder(TrainerCallback):
    """Stands behind the tested callback and around the tested loss, and sees what they do."""

    def __init__(self, loss_fn: nn.Module) -> None:
        self.loss_fn, self.compute_loss = loss_fn, compute_loss_func(loss_fn)
        self.trace: list[tuple[bool, bool, float, float | None]] = []
        self.losses: list[Tensor] = []
        self.eval_losses: list[Tensor] = []
        self.logs: list[dict[str, float]] = []

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        loss = self.compute_loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        (self.losses if loss.requires_grad else self.eval_losses).append(loss.detach().clone())
        return loss

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._record()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._record()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(dict(logs))

    def _record(self) -> None:
        wrapper = self.loss_fn
        if isinstance(wrapper, LossWarmupWrapper):
            phase = (wrapper.in_warmup, wrapper.in_blend)
            self.trace.append((*phase, wrapper.main_weight, wrapper.current_temperature))


def make_trainer(
    folder: Path,
    loss_fn: nn.Module,
    model: nn.Module,
    rows: Rows,
    *,
    eval_dataset: Rows | None = None,
    callbacks: Sequence[TrainerCallback] | None = None,
    **settings: Any,
) -> tuple[Trainer, Recorder]:
    """With the tested callback and then the recorder, or with other ``callbacks`` alone."""
    recorder = Recorder(loss_fn)
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": ACCUMULATED,
        "num_train_epochs": EPOCHS,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model,
        TrainingArguments(**(defaults | settings)),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        compute_loss_func=recorder,
        callbacks=[LossWarmupCallback(loss_fn), recorder] if callbacks is None else list(callbacks),
    )
    return trainer, recorder


def pure_trace(cfg: ScheduleConfig) -> Iterator[tuple[bool, bool, float, float]]:
    """What the pure schedule says for each micro-batch of the run."""
    state = schedule.init_schedule(cfg)
    for epoch in range(EPOCHS):
        state = schedule.start_epoch(state, cfg, epoch)
        for step in range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH):
            state = schedule.start_step(state, cfg, step)
            phase = schedule.PHASES[schedule.phase(state, cfg)]
            weight, temperature = schedule.main_weight(state, cfg), schedule.temperature(state, cfg)
            for _ in range(ACCUMULATED):
                yield phase == "warmup", phase == "blend", weight.item(), temperature.item()
