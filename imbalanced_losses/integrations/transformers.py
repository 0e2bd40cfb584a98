"""Hugging Face Transformers: a loss for ``Trainer(compute_loss_func=...)``, and a callback for its schedule."""

from __future__ import annotations

import base64
import inspect
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imbalanced_losses.integrations._model_outputs import IGNORED, as_rows, find_logits, is_shifted
from imbalanced_losses.integrations._wrappers import find_wrappers, read_schedules, start_new_run
from imbalanced_losses.modules._runs import warn_of_invalid_epoch
from imbalanced_losses.settings import check_module

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise ImportError(
        "imbalanced_losses.integrations.transformers needs Transformers: pip install 'imbalanced-losses[transformers]'"
    ) from error

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["LossWarmupCallback", "compute_loss_func"]


def compute_loss_func(loss_fn: nn.Module, *, shift_labels: bool | None = None) -> Callable[..., Tensor]:
    """Wrap a loss as a function for ``Trainer(compute_loss_func=...)``.

    The function takes the logits from the model's output (a ``ModelOutput`` or other mapping, a tuple or list that
    starts with them, or the tensor itself), flattens ``[B, T, C]`` to ``[B * T, C]``, drops rows whose label is -100
    (so that padding does not enter a queue and needs no ``ignore_index``), and calls ``loss_fn``.

    Parameters
    ----------
    loss_fn : nn.Module
        Any loss of this library or of torch, called with ``(logits, targets)``. It must return one value, so
        ``reduction="none"`` is not allowed. Pass the same object to :class:`LossWarmupCallback`.
    shift_labels : bool, optional
        Whether the logits at a position are scored against the label at the next position, as for causal language
        models. ``None`` shifts if the model returns a ``...CausalLMOutput...`` and labels are ``[B, T]``. Set ``True``
        for a causal model that returns something else (a tuple, ``return_dict=False``, its own output class). Set
        ``False`` if labels are already shifted, and for decoders of an encoder-decoder (``BartForCausalLM``,
        ``TrOCRForCausalLM``): they return such an output, but their own loss does not shift. Labels of
        sequence-to-sequence models (``Seq2SeqLMOutput``) and of encoders are at the same positions as their logits.

    Returns
    -------
    callable ``(outputs, labels, num_items_in_batch=None) -> Tensor []``
        With logits ``[B, C]`` or ``[B, T, C]``, ``labels`` are class ids ``[B]`` or ``[B, T]``, or multi-label targets
        in {0, 1} of the logits' shape (the loss must ignore single elements of -100 itself, ``ignore_index=-100``).
        With one column (``num_labels=1``) either shape is allowed, float or integer.

    Raises
    ------
    TypeError
        If ``loss_fn`` is not a module.
    ValueError
        At the call: if logits or labels are missing, their shapes do not match, the loss is not one value, or
        ``shift_labels=True`` is used without a sequence.

    Notes
    -----
    *Gradient accumulation.* The Trainer sums the returned losses of a step's micro-batches and, unlike a usual loop,
    does not divide the sum. So each loss is multiplied by its micro-batch's share of the step's items (labels other
    than -100; ``num_items_in_batch`` is their number in the step). For micro-batches of equal size the share is one
    over their number. A loss that is a mean over items, such as focal ``reduction="mean"``, then equals that of one
    large batch. Any other loss is a weighted mean over micro-batches; a ranking loss has a pool per micro-batch.
    Depending on the model's class, the Trainer may count the first label of each text although the loss shifts, or
    leave it out although it does not. Micro-batches are then weighted by the Trainer's count, and the shares still add
    up to 1.

    *Label smoothing.* ``TrainingArguments.label_smoothing_factor`` has no effect with ``compute_loss_func``. Use the
    loss's own: ``SoftmaxFocalLoss(label_smoothing=...)``.

    *Several processes.* The share is over the rows of all ranks (one ``all_reduce`` of two numbers): the losses gather
    by themselves, so every rank has the same loss and needs the same factor. The Trainer's own factor
    (``average_tokens_across_devices``) cancels. A loss with its own ``group=`` is also weighted by the rows of all
    ranks.

    *Evaluation.* The Trainer evaluates under ``no_grad`` and does not change the loss's mode. So the function sets the
    loss to ``eval()`` if gradients are off, else to ``train()``, and evaluation does not change the queue.

    *Several runs.* This function cannot detect that a run begins. :class:`LossWarmupCallback` then empties the loss's
    queue and resets class counts; without it call ``loss_fn.reset_queue()`` or ``loss_fn.reset_class_counts()`` before
    a second ``train()``, another fold or trial.

    The loss is moved to the logits' device.

    Examples
    --------
    >>> from imbalanced_losses import SoftmaxFocalLoss
    >>> compute_loss = compute_loss_func(SoftmaxFocalLoss(gamma=0))
    >>> labels = torch.tensor([[0, 2, -100], [1, -100, -100]])
    >>> compute_loss({"logits": torch.zeros(2, 3, 4)}, labels)  # log(4): cross-entropy of the three that count
    tensor(1.3863)
    >>> compute_loss({"logits": torch.zeros(2, 3, 4)}, labels, num_items_in_batch=6)  # half of the step's items
    tensor(0.6931)
    """
    check_module("loss_fn", loss_fn)

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = find_logits(outputs)
        given = labels
        if labels is not None and is_shifted(outputs, logits, labels, shift_labels):
            logits, labels = logits[:, :-1], labels[:, 1:]
        logits, targets = as_rows(logits, labels)
        loss: Tensor = loss_fn.to(logits.device).train(torch.is_grad_enabled())(logits, targets)
        if loss.dim() != 0:
            raise ValueError(f"expected a loss of one value, got shape {list(loss.shape)}: set its reduction to 'mean'")
        if num_items_in_batch is None:
            return loss
        items = _counted_by_trainer(given, default=labels) != IGNORED
        return loss * _share_of_step(items.sum(), num_items_in_batch).to(loss.dtype)

    return compute_loss


@final
class LossWarmupCallback(TrainerCallback, ExportableState):
    """Drive, log and checkpoint the loss of a ``transformers.Trainer``.

    Every :class:`~imbalanced_losses.LossWarmupWrapper` in ``loss_fn`` and in the model, at any depth, gets the epoch
    when one begins and ``state.global_step`` before each optimizer step. ``max_steps`` and checkpoints use the same
    count: the micro-batches of a step share one objective, and lengths of the schedule are in optimizer steps.

    The callback adds ``main_weight`` and, if the main loss has one, ``temperature`` to each log with a ``loss``. With
    several wrappers their path is a prefix, as in ``loss_fn.fraud/main_weight``. The values are in
    ``state.log_history`` and reach the callbacks after this one. Callbacks of ``report_to`` come before it. To log to
    one, set ``report_to="none"`` and pass it yourself:
    ``callbacks=[LossWarmupCallback(loss_fn), TensorBoardCallback()]``.

    The loss is not part of the model, so the Trainer's checkpoint lacks it. The callback adds ``loss_fn.state_dict()``
    (queue, temperature, schedule) to ``trainer_state.json``. ``train(resume_from_checkpoint=...)`` then continues
    exactly, from any folder, in new objects.

    A run that does not resume from a checkpoint is a new run (a second ``train()``, a trial of
    ``hyperparameter_search``): every schedule restarts; the queue of every ranking loss in ``loss_fn`` and in the model
    is emptied, and the class counts of every ``LogitAdjustedLoss("stream")`` are reset.

    Parameters
    ----------
    loss_fn : nn.Module, optional
        The loss passed to :func:`compute_loss_func`, also one without a schedule, so that its queue is saved. ``None``
        if the wrappers are parts of the model, whose checkpoint has them.

    Raises
    ------
    TypeError
        If ``loss_fn`` is not a module.
    ValueError
        On resume, if the checkpoint holds the state of a loss and the callback has no ``loss_fn``.

    Warns
    -----
    UserWarning
        On resume, if the checkpoint has no state for ``loss_fn``; and once per ranking loss that had no valid class in
        any step of an epoch.

    Examples
    --------
    >>> from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss
    >>> loss_fn = LossWarmupWrapper(SigmoidFocalLoss(), SmoothAPLoss(num_classes=1), warmup_epochs=1)
    >>> hooks = {"compute_loss_func": compute_loss_func(loss_fn), "callbacks": [LossWarmupCallback(loss_fn)]}
    >>> trainer = Trainer(model, arguments, train_dataset=rows, **hooks)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(self, loss_fn: nn.Module | None = None) -> None:
        if loss_fn is not None:
            check_module("loss_fn", loss_fn)
        self.loss_fn = loss_fn
        self._wrappers: dict[str, LossWarmupWrapper] = {}
        self._next_epoch = 0

    def state(self) -> dict[str, dict[str, str | None]]:
        """Return what the Trainer writes to ``trainer_state.json`` with each checkpoint."""
        return {"args": {}, "attributes": {"loss_state": None if self.loss_fn is None else _to_text(self.loss_fn)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the wrappers. On resume restore the loss's state, else start a new run."""
        saved = _saved_state(state, type(self).__name__)
        searched = self._searched(kwargs["model"])
        self._wrappers = find_wrappers(searched)
        self._next_epoch = int(state.epoch)
        if state.global_step > 0:
            self._restore(saved)
        else:
            start_new_run(searched)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch of every wrapper."""
        # counted here: after an epoch that was cut short, or of unknown length, state.epoch lags behind
        epoch = self._next_epoch
        self._next_epoch += 1
        for wrapper in self._wrappers.values():
            wrapper.on_train_epoch_start(epoch)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn about ranking losses that had no valid class in the epoch."""
        warn_of_invalid_epoch(self._searched(kwargs["model"]))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the optimizer step of every wrapper."""
        for wrapper in self._wrappers.values():
            wrapper.on_train_batch_start(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the schedules' weights and temperatures to the training logs."""
        if logs is not None and "loss" in logs:  # not to the metrics that evaluate() returns
            values = read_schedules(self._wrappers)
            logs.update(values)
            state.log_history[-1].update(values)  # where the Trainer has already put a copy of the logs

    def _searched(self, model: nn.Module) -> nn.ModuleDict:
        """Return all modules that may contain losses."""
        parts = {"loss_fn": self.loss_fn, "model": model}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def _restore(self, loss_state: str | None) -> None:
        if self.loss_fn is None and loss_state is not None:
            raise ValueError(
                "expected LossWarmupCallback to have the loss_fn whose state the checkpoint holds, got none. With "
                "restore_callback_states_from_checkpoint=True the Trainer recreates it without one: set that to False"
            )
        if self.loss_fn is not None and loss_state is None:
            warnings.warn(
                "expected the state of loss_fn in the checkpoint, got none: it was saved without LossWarmupCallback. "
                "Queue, temperature and schedule restart",
                stacklevel=3,
            )
            start_new_run(self.loss_fn)
        if self.loss_fn is not None and loss_state is not None:
            self.loss_fn.load_state_dict(_from_text(loss_state))


def _saved_state(state: TrainerState, name: str) -> str | None:
    """Return the loss's state in the checkpoint, as :meth:`LossWarmupCallback.state` wrote it."""
    callbacks = cast("dict[str, Any]", state.stateful_callbacks)
    # a run that started without the callback has no entry, and the Trainer saves only callbacks with an entry
    saved = callbacks.setdefault(name, {"args": {}, "attributes": {"loss_state": None}})
    if isinstance(saved, list):
        raise ValueError(f"expected one {name} in a Trainer, got {len(saved)}: give it all losses in a ModuleList")
    loss_state: str | None = saved["attributes"]["loss_state"]
    return loss_state


def _counted_by_trainer(labels: Tensor, default: Tensor) -> Tensor:
    """Return those of a batch's ``labels`` that the calling Trainer counts for ``num_items_in_batch``.

    That depends on its version and its model's class, not on the loss: all labels, or all but the first of each row for
    models that Transformers knows to shift. Without a Trainer on the call stack, return ``default``.
    """
    trainer = _find_trainer()
    if trainer is None:
        return default
    # private, but there is no public attribute; a Trainer without it (Transformers 5.0) counts all labels
    return labels[..., 1:] if getattr(trainer, "_loss_shifts_labels", False) else labels


def _find_trainer() -> Trainer | None:
    """Find the calling Trainer on the call stack. It passes neither itself nor its model."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(trainer := frame.f_locals.get("self"), Trainer):
            return trainer
        frame = frame.f_back
    return None


def _share_of_step(items: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Return the share of this micro-batch in the items of the optimizer step, 0-dim."""
    # under nn.DataParallel the Trainer passes one number per device, and multiplies the loss by their number
    in_step = torch.as_tensor(num_items_in_batch, device=items.device).sum()
    counts = torch.stack([items.float(), in_step.float()])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # the step's number is each rank's own or, if averaged over devices, that of all ranks, and the Trainer then
        # multiplies the loss by W: summing both counts is right in both cases
        dist.all_reduce(counts)
    return counts[0] / counts[1].clamp(min=1)


def _to_text(module: nn.Module) -> str:
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _from_text(text: str) -> dict[str, Any]:
    state_dict: dict[str, Any] = torch.load(io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True)
    return state_dict
