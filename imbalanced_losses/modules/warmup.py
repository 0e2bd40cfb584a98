"""Warm-up on one loss, then training on another: :mod:`imbalanced_losses.schedule` as a module around two losses."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses import schedule
from imbalanced_losses.dispatch import is_traced, without_dispatch_modes
from imbalanced_losses.kernels.operators import unchanging
from imbalanced_losses.lifecycle import refuse_second_pass
from imbalanced_losses.modules._base import flag_property
from imbalanced_losses.modules._callables import (
    Loss,
    first,
    has_temperature,
    warn_of_missing_hooks,
)
from imbalanced_losses.modules._runs import warn_of_invalid_epoch
from imbalanced_losses.modules._warmup_state import WarmupState
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState
from imbalanced_losses.settings import check_counter

__all__ = ["LossWarmupWrapper"]


@final
class LossWarmupWrapper(WarmupState):
    """Train on an easy loss first, blend into a ranking loss, then anneal the ranking loss's temperature.

    ``loss = (1 - w) * warmup_loss + w * main_loss`` with ``w`` from :func:`~imbalanced_losses.schedule.main_weight`: in
    warm-up only ``warmup_loss`` runs, at ``w = 1`` only ``main_loss``. ``main_loss.temperature`` follows
    :func:`~imbalanced_losses.schedule.temperature`. ``main_loss.reset_queue()`` is called once, when warm-up ends.

    The training loop calls :meth:`on_train_epoch_start` and :meth:`on_train_batch_start`. If phases are counted in
    steps, ``auto_step=True`` makes these calls unnecessary. The schedule is part of ``state_dict()``: a resumed run
    continues as if it had never stopped.

    Parameters
    ----------
    warmup_loss, main_loss : nn.Module or other callable
        Called with ``(logits, targets)``. If a loss returns a tuple, its first element is the loss. Keyword arguments
        go to ``main_loss`` whenever it runs; ``sample_weight`` also goes to a ``warmup_loss`` that accepts it.
    warmup_epochs, temp_start, temp_end, temp_decay_steps, blend_epochs
        As in :class:`~imbalanced_losses.schedule.ScheduleConfig`.
    reset_queue_each_epoch : bool
        Also empty the queue at the start of each epoch after warm-up.
    gather_distributed : bool, optional
        If not ``None``, overrides the attribute of that name of both losses.
    warmup_steps, blend_steps, final_main_weight
        As in :class:`~imbalanced_losses.schedule.ScheduleConfig`.
    auto_step : bool
        Count each call in training mode as a step, until :meth:`on_train_batch_start` is called for the first time.
        With gradient accumulation each micro-batch is a step. Under ``torch.compile`` this causes a graph break.

    Attributes
    ----------
    config : ScheduleConfig
        Every parameter is also an attribute. An assignment is checked like an argument and takes effect at once. To
        assign several parameters of the schedule together, assign ``config``. If that ends warm-up, the queue is
        emptied.

    Raises
    ------
    TypeError, ValueError
        If the schedule is not a valid :class:`~imbalanced_losses.schedule.ScheduleConfig`, a loss is not callable, or
        ``auto_step`` is used with phases counted in epochs.

    Warns
    -----
    UserWarning
        If ``main_loss`` has no ``temperature`` or no ``reset_queue``; once per hook, if the schedule depends on it and
        training continues without calling it; and when an epoch begins, once per ranking loss that had no valid class
        in any step of the previous epoch.

    Notes
    -----
    *New runs.* Epoch 0 after a later epoch, or step 0 after a later step, starts a new run (another fold, a second
    ``fit``): the schedule restarts, queues are emptied, and class counts of a stream are reset. If the hooks cannot
    detect this (a loop of a single epoch without the batch hook), call :meth:`start_new_run`. To resume, load the state
    and continue counting.

    *Speed.* Forward and batch hook never wait for a device. The epoch hook does, once per epoch, if a ranking loss is
    on one. A copy of the schedule's state on the host, advanced by the same pure functions, decides which losses run.
    That changes at most twice per run, so a compiled graph changes at most twice.

    *Averaged weights.* Averaging buffers corrupts queue and counters. Average parameters and copy buffers, as
    ``AveragedModel(use_buffers=False)`` does, or keep the loss out of the averaged module.

    Examples
    --------
    >>> from imbalanced_losses import SmoothAPLoss
    >>> loss_fn = LossWarmupWrapper(torch.nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1), warmup_epochs=1)
    >>> logits, targets = torch.randn(8), torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 0])
    >>> for epoch in range(2):
    ...     loss_fn.on_train_epoch_start(epoch)
    ...     for step in range(3):
    ...         loss_fn.on_train_batch_start(3 * epoch + step)
    ...         loss = loss_fn(logits, targets)
    ...     print(epoch, loss_fn.in_warmup, loss_fn.main_weight)
    0 True 0.0
    1 False 1.0
    """

    reset_queue_each_epoch = flag_property("reset_queue_each_epoch")

    def __init__(
        self,
        warmup_loss: Loss,
        main_loss: Loss,
        warmup_epochs: int = 0,
        temp_start: float = 0.05,
        temp_end: float = 0.005,
        temp_decay_steps: int = 10_000,
        blend_epochs: int = 0,
        reset_queue_each_epoch: bool = False,
        gather_distributed: bool | None = None,
        warmup_steps: int | None = None,
        blend_steps: int | None = None,
        final_main_weight: float = 1.0,
        *,
        auto_step: bool = False,
    ) -> None:
        config = ScheduleConfig(
            warmup_epochs=warmup_epochs,
            temp_start=temp_start,
            temp_end=temp_end,
            temp_decay_steps=temp_decay_steps,
            blend_epochs=blend_epochs,
            warmup_steps=warmup_steps,
            blend_steps=blend_steps,
            final_main_weight=final_main_weight,
        )
        super().__init__(warmup_loss, main_loss, config, gather_distributed, auto_step)
        warn_of_missing_hooks(main_loss)
        self.reset_queue_each_epoch = reset_queue_each_epoch

    def on_train_epoch_start(self, epoch: int) -> None:
        """Call this when a training epoch begins. A second call for the same epoch changes nothing.

        Parameters
        ----------
        epoch : int >= 0
            Counted from 0. 0 after a later epoch starts a new run.
        """
        self._catch_up()
        epoch, last = _read_counter("epoch", epoch), without_dispatch_modes(int, self._host_state.epoch)
        is_first = (
            "on_train_epoch_start" in self._awaited_hooks and without_dispatch_modes(int, self._host_state.step) <= 0
        )
        if epoch != last:
            warn_of_invalid_epoch(self)
        if epoch == 0 < last:
            self._restart()
        state = without_dispatch_modes(schedule.start_epoch, self._host_state, self.config, epoch)
        self._advance(state, reset=self.reset_queue_each_epoch and (epoch != last or is_first))
        self._epoch_hook_called = True
        self._awaited_hooks.discard("on_train_epoch_start")

    def on_train_batch_start(self, global_step: int) -> None:
        """Call this before each training batch.

        Parameters
        ----------
        global_step : int >= 0
            Counted from 0 over all epochs. 0 after a later step starts a new run, in the epoch of
            :meth:`on_train_epoch_start` if it was called since that step, else in epoch 0.
        """
        self._catch_up()
        step = _read_counter("step", global_step)
        if step == 0 < without_dispatch_modes(int, self._host_state.step):
            epoch = without_dispatch_modes(int, self._host_state.epoch) if self._epoch_hook_called else 0
            self._restart()
            self._advance(without_dispatch_modes(schedule.start_epoch, self._host_state, self.config, epoch))
        self._advance(without_dispatch_modes(schedule.start_step, self._host_state, self.config, step))
        self._epoch_hook_called = False
        self._awaited_hooks.discard("on_train_batch_start")

    def forward(self, logits: Tensor, targets: Tensor, **kwargs: Any) -> Any:
        """Return the loss of the current phase.

        Parameters
        ----------
        logits, targets : Tensor
            Arguments of both losses.
        **kwargs
            Passed to the main loss. In warm-up all but ``sample_weight`` are dropped, so ``return_per_class`` and the
            like have no effect: the warm-up loss is returned alone.

        Returns
        -------
        Tensor or tuple
            The loss. If the main loss returns a tuple (``return_per_class=True``), its first element is blended and the
            rest is returned unchanged. If the warm-up loss returns a tuple, only its first element is used.
        """
        self._catch_up()
        if not is_traced():
            self._warn_of_uncalled_hooks()
        if not self._takes_own_steps:
            return self._mix(logits, targets, kwargs)
        refuse_second_pass()
        before, is_step = self._host_state, False
        self._take_own_step()
        try:
            output = self._mix(logits, targets, kwargs)
            is_step = kwargs.get("update_queue", True)  # False: another pass of this batch follows, and is the step
        finally:
            if not is_step:  # also if the loss raised
                self._go_back(before)
        return output

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the schedule's current values and, after warm-up, the diagnostics of the main loss's last pass.

        Returns
        -------
        dict of str to Tensor
            Detached: ``main_weight []``, ``temperature []`` if the main loss has one, and the main loss's
            ``diagnostics()`` if it has that method.

        Raises
        ------
        RuntimeError
            If warm-up is over and the main loss, which has diagnostics, has not been called yet.
        """
        stats = {"main_weight": schedule.main_weight(self.schedule_state, self.config)}
        if has_temperature(self.main_loss):
            stats["temperature"] = torch.as_tensor(self.main_loss.temperature).detach().clone()
        of_main_loss = getattr(self.main_loss, "diagnostics", None)
        return stats if self.in_warmup or of_main_loss is None else stats | of_main_loss()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _take_own_step(self) -> None:
        self._advance(
            without_dispatch_modes(
                schedule.start_step,
                self._host_state,
                self.config,
                without_dispatch_modes(int, self._host_state.step) + 1,
            )
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _go_back(self, state: ScheduleState) -> None:
        self._advance(state)

    def _mix(self, logits: Tensor, targets: Tensor, kwargs: dict[str, Any]) -> Any:
        if not self._main_updates_queue:
            kwargs = {name: value for name, value in kwargs.items() if name != "update_queue"}
        if not self._runs_main_loss:
            return self._run_warmup_loss(logits, targets, kwargs)
        if not self._runs_warmup_loss:
            return self.main_loss(logits, targets, **kwargs)
        # the warm-up loss first: if it rejects the inputs, the main loss has not changed its queue yet
        warmup = self._run_warmup_loss(logits, targets, kwargs)
        main = self.main_loss(logits, targets, **kwargs)
        weight = unchanging(schedule.main_weight(self.schedule_state, self.config))
        if isinstance(main, tuple):
            return schedule.blend(warmup, main[0], weight), *main[1:]
        return schedule.blend(warmup, main, weight)

    def _run_warmup_loss(self, logits: Tensor, targets: Tensor, kwargs: dict[str, Any]) -> Any:
        if self._weights_warmup and "sample_weight" in kwargs:
            return first(self.warmup_loss(logits, targets, sample_weight=kwargs["sample_weight"]))
        return first(self.warmup_loss(logits, targets))

    def _warn_of_uncalled_hooks(self) -> None:
        cfg = self.config
        is_annealing = has_temperature(self.main_loss) and not self.in_warmup
        moves_by_step = not self.auto_step and (cfg.counts_steps or is_annealing)
        waits_for_epoch = cfg.counts_epochs or self.reset_queue_each_epoch
        for hook, moves, unit, counter in (
            ("on_train_epoch_start", waits_for_epoch, "epoch", "epoch"),
            ("on_train_batch_start", moves_by_step, "batch", "step"),
        ):
            if self.training and moves and hook in self._awaited_hooks:
                self._awaited_hooks.remove(hook)
                warnings.warn(
                    f"expected a call of {hook} before each training {unit}, got none: "
                    f"the schedule's {counter} does not advance",
                    stacklevel=5,
                )


def _read_counter(name: str, value: int | Tensor) -> int:
    """Read a counter as an int. The pure functions cannot read a tensor, so they would accept a negative one."""
    check_counter(name, value)
    return int(value)
