"""A Trainer that each of several processes runs, and the same in one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from imbalanced_losses import SmoothAPLoss, SoftmaxFocalLoss
from tests.integrations.transformers_runs import Rows, make_trainer, sentences, tiny_bert

LOSSES = {
    "ranking": lambda: SmoothAPLoss(3, queue_size=64, temperature=1.0),
    "focal": lambda: SoftmaxFocalLoss(),
}


def rows() -> Rows:
    """Sentences of which one has most of the labels: ranks and micro-batches have anything but as many."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (32, 5), generator=generator)
    labels[torch.rand(32, generator=generator) < 0.6, 1:] = -100
    return sentences(labels)


def train(
    loss: str, rows_per_step: int, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float], float]:
    """Four steps; parameters, the loss's state, and what is logged of training and evaluation."""
    if dist.is_initialized():  # what torchrun sets
        rank, size = str(dist.get_rank()), str(dist.get_world_size())
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
    model, loss_fn = tiny_bert("token", num_labels=3), LOSSES[loss]()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_trainer(
            Path(folder),
            loss_fn,
            model,
            rows(),
            eval_dataset=rows(),
            per_device_train_batch_size=rows_per_step,
            per_device_eval_batch_size=rows_per_step,
            num_train_epochs=2,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            **settings,
        )
        trainer.train()
        eval_loss = trainer.evaluate()["eval_loss"]
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return model.state_dict(), loss_fn.state_dict(), logged, eval_loss
