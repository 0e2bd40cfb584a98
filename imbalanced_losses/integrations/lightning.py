"""Lightning: a callback that calls the hooks of every loss schedule in a module."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, final

import torch

from imbalanced_losses.integrations._wrappers import find_wrappers, has_losses, read_schedules, start_new_run
from imbalanced_losses.modules._runs import warn_of_invalid_epoch

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError(
        "imbalanced_losses.integrations.lightning needs Lightning: pip install 'imbalanced-losses[lightning]'"
    ) from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["LossWarmupCallback"]


@final
class LossWarmupCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Drive and log every :class:`~imbalanced_losses.LossWarmupWrapper` and ranking loss of a ``LightningModule``.

    Wrappers are found at any depth, also inside each other. Each gets ``trainer.current_epoch`` when an epoch begins
    and ``trainer.global_step`` before each training batch. The callback logs ``main_weight`` and, if the main loss has
    one, ``temperature`` at each step. With several wrappers, their path in the module is a prefix, as in
    ``heads.fraud/main_weight``. It takes no arguments.

    A run from step 0 without a checkpoint is a new run (another fold, a ``fit`` of a new Trainer): every schedule
    restarts; the queue of every ranking loss, in a wrapper or not, is emptied, and the class counts of every
    ``LogitAdjustedLoss("stream")`` are reset. A run that continues, with ``ckpt_path=`` or in a second ``fit`` of the
    same Trainer, keeps all of them.

    Warns
    -----
    UserWarning
        If training starts and the module has none of these losses; and once per ranking loss that had no valid class in
        any step of an epoch.

    Notes
    -----
    ``trainer.global_step``, which ``max_steps`` refers to, counts optimizer steps. With ``accumulate_grad_batches`` all
    batches of a step share one objective. With several optimizers (manual optimization) each step of each counts.
    Lengths of the schedule are in this unit.

    The callback has no state. The schedule and the queue are in the module's checkpoint, so ``ckpt_path=`` restores
    them exactly, also mid-epoch. It restores no random numbers, and the position in the data only if the loader has a
    ``state_dict``. The callback also works with the Trainer of ``pytorch_lightning``.

    Examples
    --------
    >>> import lightning as L
    >>> from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss
    >>> class Ranker(L.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Linear(8, 1)
    ...         self.loss_fn = LossWarmupWrapper(SigmoidFocalLoss(), SmoothAPLoss(num_classes=1), blend_epochs=3)
    ...
    ...     def training_step(self, batch, batch_idx):
    ...         return self.loss_fn(self.net(batch[0]), batch[1])
    ...
    ...     def configure_optimizers(self):
    ...         return torch.optim.Adam(self.parameters())
    >>> batches = torch.utils.data.TensorDataset(torch.randn(2, 16, 8), torch.randint(2, (2, 16, 1)))
    >>> quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    >>> trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[LossWarmupCallback()], **quiet)
    >>> trainer.fit(Ranker(), batches)
    >>> trainer.callback_metrics["main_weight"]
    tensor(0.2500)
    """

    def __init__(self) -> None:
        super().__init__()
        self._wrappers: dict[str, LossWarmupWrapper] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the wrappers. In a new run restart them, empty queues and reset class counts. Then set the epoch."""
        self._wrappers = find_wrappers(pl_module)
        if not has_losses(pl_module):
            # not an error: to compare losses, users swap in a plain loss and keep the callbacks
            warnings.warn(
                f"expected a LossWarmupWrapper or a ranking loss in {type(pl_module).__name__}, got none: there is "
                "nothing to drive. Assign it to an attribute of the module; a plain list or dict hides it",
                stacklevel=2,
            )
        if trainer.global_step == 0 and trainer.ckpt_path is None:
            start_new_run(pl_module)
        # Lightning does not call on_train_epoch_start for the epoch that it resumes in, not even for a new epoch after
        # a checkpoint at an epoch's end
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the epoch of every wrapper."""
        for wrapper in self._wrappers.values():
            wrapper.on_train_epoch_start(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the step of every wrapper, and log its weight and temperature."""
        for wrapper in self._wrappers.values():
            wrapper.on_train_batch_start(trainer.global_step)
        # tensors on the host: Lightning would move a number to the device, and wait for it
        pl_module.log_dict({name: torch.tensor(value) for name, value in read_schedules(self._wrappers).items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about ranking losses that had no valid class in the epoch."""
        warn_of_invalid_epoch(pl_module)
