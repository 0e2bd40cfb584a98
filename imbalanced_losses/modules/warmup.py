"""Warm-up on one loss, then another: :mod:`imbalanced_losses.schedule` as a module around two losses."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any, final

import torch
from torch import Tensor, nn

from imbalanced_losses import schedule
from imbalanced_losses.checks import check_counter, check_module
from imbalanced_losses.execution import is_plain_eager, is_traced
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState

__all__ = ["LossWarmupWrapper"]

SCHEDULE_FIELDS = ("epoch", "step", "switch_step")


@final
class LossWarmupWrapper(nn.Module):
    """Train on an easy loss first, blend over to a ranking loss, then anneal the ranking loss's temperature.

    ``loss = (1 - w) * warmup_loss + w * main_loss`` with ``w`` from :func:`~imbalanced_losses.schedule.main_weight`: in
    warm-up only ``warmup_loss`` runs, at ``w = 1`` only ``main_loss``. ``main_loss.temperature`` follows
    :func:`~imbalanced_losses.schedule.temperature`, and ``main_loss.reset_queue()`` is called once, when warm-up ends.

    The training loop calls :meth:`on_train_epoch_start` and :meth:`on_train_batch_start`; where phases are counted in
    steps, ``auto_step=True`` does without. The schedule is part of ``state_dict()``: a resumed run goes on as if it had
    never stopped.

    Parameters
    ----------
    warmup_loss, main_loss : nn.Module
        Called with ``(logits, targets)``. Keyword arguments go to ``main_loss`` whenever it runs, ``sample_weight``
        also to a ``warmup_loss`` whose ``forward`` takes it.
    warmup_epochs, temp_start, temp_end, temp_decay_steps, blend_epochs
        As in :class:`~imbalanced_losses.schedule.ScheduleConfig`.
    reset_queue_each_epoch : bool
        Empty the queue also at the start of each epoch after warm-up.
    gather_distributed : bool, optional
        If not ``None``, overrides the attribute of that name of both losses.
    warmup_steps, blend_steps, final_main_weight
        As in :class:`~imbalanced_losses.schedule.ScheduleConfig`.
    auto_step : bool
        Each call in training mode is a step of its own, until :meth:`on_train_batch_start` is called for the first
        time. Micro-batches of accumulated gradients are steps, too. Compiled, it breaks the graph.

    Attributes
    ----------
    config : ScheduleConfig

    Raises
    ------
    TypeError, ValueError
        If the schedule is not a valid :class:`~imbalanced_losses.schedule.ScheduleConfig`, a loss no ``nn.Module``, or
        ``auto_step`` is to find out epochs.

    Warns
    -----
    UserWarning
        If ``main_loss`` has no ``temperature`` or no ``reset_queue``; and once for each of the two hooks, if training
        goes on without a call of it and something stands still for that.

    Notes
    -----
    No hook and no forward waits for a device: a copy of the schedule's state on the host, advanced by the same pure
    functions, decides which losses run. That changes at most twice in a run, and with it a compiled graph.

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

    epoch: Tensor
    step: Tensor
    switch_step: Tensor
    _versions: tuple[tuple[int, int], ...] | None = None

    def __init__(
        self,
        warmup_loss: nn.Module,
        main_loss: nn.Module,
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
        super().__init__()
        check_module("warmup_loss", warmup_loss)
        check_module("main_loss", main_loss)
        self.config = ScheduleConfig(
            warmup_epochs=warmup_epochs,
            temp_start=temp_start,
            temp_end=temp_end,
            temp_decay_steps=temp_decay_steps,
            blend_epochs=blend_epochs,
            warmup_steps=warmup_steps,
            blend_steps=blend_steps,
            final_main_weight=final_main_weight,
        )
        if auto_step and self.config.counts_epochs:
            raise ValueError("expected auto_step with warmup_steps and blend_steps, got phases counted in epochs")
        self.warmup_loss = warmup_loss
        self.main_loss = main_loss
        self.auto_step = auto_step
        self.reset_queue_each_epoch = reset_queue_each_epoch
        self._weights_warmup = _takes(warmup_loss, "sample_weight")
        self._awaited_hooks = {"on_train_epoch_start", "on_train_batch_start"}
        _warn_of_missing_hooks(main_loss)
        if gather_distributed is not None:
            _override_gather(gather_distributed, warmup_loss, main_loss)
        state = self._first_state()
        for field in SCHEDULE_FIELDS:
            self.register_buffer(field, torch.tensor(int(getattr(state, field))))
        self.register_load_state_dict_post_hook(_follow_loaded_state)  # type: ignore[no-untyped-call]
        self._follow(state)

    def _first_state(self) -> ScheduleState:
        state = schedule.init_schedule(self.config, device="cpu")
        # the first call of auto_step moves on to step 0
        return dataclasses.replace(state, step=state.step - 1) if self.auto_step else state

    def reset_parameters(self) -> None:
        """Bring back the schedule's state after construction; the losses bring back their own."""
        self._fill_buffers(self._first_state())
        self._versions = None  # the main loss may be reset after this: its temperature is set at the next use

    @property
    def schedule_state(self) -> ScheduleState:
        """The buffers as the state that the pure functions take (not a copy)."""
        return ScheduleState(epoch=self.epoch, step=self.step, switch_step=self.switch_step)

    @property
    def in_warmup(self) -> bool:
        """Whether only the warm-up loss runs."""
        self._catch_up()
        return self._phase == "warmup"

    @property
    def in_blend(self) -> bool:
        """Whether the main loss's weight is rising."""
        self._catch_up()
        return self._phase == "blend"

    @property
    def main_weight(self) -> float:
        """Weight of the main loss, in [0, 1]."""
        self._catch_up()
        return float(schedule.main_weight(self._host_state, self.config))

    @property
    def ap_weight(self) -> float:
        """Another name of :attr:`main_weight`, from the library's predecessor."""
        return self.main_weight

    @property
    def current_temperature(self) -> float | None:
        """The main loss's temperature; ``None`` if it has none."""
        self._catch_up()
        return float(self.main_loss.temperature) if self._has_temperature else None  # type: ignore[arg-type]

    def on_train_epoch_start(self, epoch: int) -> None:
        """Call when a training epoch begins.

        Parameters
        ----------
        epoch : int >= 0
            From 0.
        """
        self._catch_up()
        state = schedule.start_epoch(self._host_state, self.config, _read_counter("epoch", epoch))
        self._advance(state, reset=self.reset_queue_each_epoch)
        self._awaited_hooks.discard("on_train_epoch_start")

    def on_train_batch_start(self, global_step: int) -> None:
        """Call before each training batch.

        Parameters
        ----------
        global_step : int >= 0
            From 0, counted over all epochs.
        """
        self._catch_up()
        self._advance(schedule.start_step(self._host_state, self.config, _read_counter("step", global_step)))
        self._awaited_hooks.discard("on_train_batch_start")

    def forward(self, logits: Tensor, targets: Tensor, **kwargs: Any) -> Any:
        """Give the loss of the phase that training is in.

        Parameters
        ----------
        logits, targets : Tensor
            As the two losses want them.
        **kwargs
            For the main loss; in warm-up all but ``sample_weight`` are dropped. So ``return_per_class`` and the like
            have no effect there: what comes back is the bare warm-up loss.

        Returns
        -------
        Tensor or tuple
            The loss. Where the main loss gives a tuple (``return_per_class=True``), its first element is the loss to be
            mixed and the rest is passed on.
        """
        self._catch_up()
        if not is_traced():
            self._warn_of_uncalled_hooks()
        if not (self.auto_step and self.training and "on_train_batch_start" in self._awaited_hooks):
            return self._mix(logits, targets, kwargs)
        before = self._host_state
        self._take_own_step()
        try:
            return self._mix(logits, targets, kwargs)
        except Exception:
            self._advance(before)  # what raises was no step
            raise

    def diagnostics(self) -> dict[str, Tensor]:
        """Tell where the schedule stands and, outside warm-up, what the main loss's last pass looked like.

        Returns
        -------
        dict of str to Tensor
            Detached: ``main_weight []``, ``temperature []`` if the main loss has one, and the main loss's own
            ``diagnostics()`` if it has them.

        Raises
        ------
        RuntimeError
            If the main loss has diagnostics, but no pass yet although warm-up is over.
        """
        told = {"main_weight": schedule.main_weight(self.schedule_state, self.config)}
        if self._has_temperature:
            told["temperature"] = schedule.temperature(self.schedule_state, self.config)
        of_main_loss = getattr(self.main_loss, "diagnostics", None)
        return told if self.in_warmup or of_main_loss is None else told | of_main_loss()

    @property
    def _has_temperature(self) -> bool:
        return getattr(self.main_loss, "temperature", None) is not None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _take_own_step(self) -> None:
        self._advance(schedule.start_step(self._host_state, self.config, int(self._host_state.step) + 1))

    def _mix(self, logits: Tensor, targets: Tensor, kwargs: dict[str, Any]) -> Any:
        if self._phase == "warmup":
            return self._run_warmup_loss(logits, targets, kwargs)
        if self._phase == "main" and self.config.final_main_weight == 1:
            return self.main_loss(logits, targets, **kwargs)
        # first the loss without a queue: if its inputs are wrong, the queue has not moved yet
        warmup = self._run_warmup_loss(logits, targets, kwargs)
        main = self.main_loss(logits, targets, **kwargs)
        weight = schedule.main_weight(self.schedule_state, self.config)
        if isinstance(main, tuple):
            return schedule.blend(warmup, main[0], weight), *main[1:]
        return schedule.blend(warmup, main, weight)

    def _run_warmup_loss(self, logits: Tensor, targets: Tensor, kwargs: dict[str, Any]) -> Any:
        if self._weights_warmup and "sample_weight" in kwargs:
            return self.warmup_loss(logits, targets, sample_weight=kwargs["sample_weight"])
        return self.warmup_loss(logits, targets)

    def _advance(self, state: ScheduleState, reset: bool = False) -> None:
        """Take on a new state; empty the queue if it leaves warm-up, or is past it and ``reset``."""
        was_in_warmup = self.in_warmup
        self._fill_buffers(state)
        reset_queue = getattr(self.main_loss, "reset_queue", None)
        if not self.in_warmup and (was_in_warmup or reset) and reset_queue is not None:
            reset_queue()

    def _fill_buffers(self, state: ScheduleState) -> None:
        for field in SCHEDULE_FIELDS:
            # filling with a Python number enqueues a kernel; a copy from the host would wait for the device
            getattr(self, field).fill_(int(getattr(state, field)))
        self._follow(state)

    def _catch_up(self) -> None:
        """Follow the buffers, if something else has filled them: a loader, an average of models, a broadcast.

        Their version counters tell, so that a device is waited for only then. The temperature is in a buffer, too.
        """
        if is_plain_eager() and not self.epoch.is_meta and self._versions != self._buffer_versions():
            self._follow(self._read_buffers(), temperature=self._versions is None)

    def _read_buffers(self) -> ScheduleState:
        return ScheduleState(**{field: getattr(self, field).to("cpu", copy=True) for field in SCHEDULE_FIELDS})

    def _buffer_versions(self) -> tuple[tuple[int, int], ...]:
        buffers = [getattr(self, field) for field in SCHEDULE_FIELDS]
        return tuple((id(buffer), 0 if buffer.is_inference() else buffer._version) for buffer in buffers)

    def _follow(self, state: ScheduleState, *, temperature: bool = True) -> None:
        """Set what lives on the host, and the main loss's temperature, to a state on the host."""
        self._versions = self._buffer_versions()
        self._host_state = state
        self._phase = schedule.PHASES[int(schedule.phase(state, self.config))]
        if temperature and self._has_temperature:
            _set_temperature(self.main_loss, float(schedule.temperature(state, self.config)))

    def _warn_of_uncalled_hooks(self) -> None:
        cfg = self.config
        moves_by_step = not self.auto_step and (cfg.counts_steps or (self._has_temperature and not self.in_warmup))
        waits_for_epoch = cfg.counts_epochs or self.reset_queue_each_epoch
        for hook, moves, unit, what in (
            ("on_train_epoch_start", waits_for_epoch, "epoch", "what happens by epochs"),
            ("on_train_batch_start", moves_by_step, "batch", "what happens by steps"),
        ):
            if self.training and moves and hook in self._awaited_hooks:
                self._awaited_hooks.remove(hook)
                warnings.warn(
                    f"expected a call of {hook} before each training {unit}, got none: {what} stands still",
                    stacklevel=5,
                )


def _follow_loaded_state(wrapper: LossWarmupWrapper, _: object) -> None:
    """Runs after ``load_state_dict``; a plain function, so that a copied or unpickled wrapper follows its own state."""
    wrapper._follow(wrapper._read_buffers())
    wrapper._awaited_hooks.discard("on_train_epoch_start")  # who resumes within an epoch does not start it again


def _read_counter(name: str, value: int | Tensor) -> int:
    """Reads a tensor, which the pure functions cannot: they would let a negative one pass."""
    check_counter(name, value)
    return int(value)


def _takes(loss: nn.Module, keyword: str) -> bool:
    parameters = inspect.signature(loss.forward).parameters
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _warn_of_missing_hooks(main_loss: nn.Module) -> None:
    missing = [name for name in ("temperature", "reset_queue") if getattr(main_loss, name, None) is None]
    if missing:
        names = " and no ".join(missing)
        warnings.warn(f"{type(main_loss).__name__} has no {names}: the schedule goes without", stacklevel=3)


def _override_gather(gather_distributed: bool, *losses: nn.Module) -> None:
    for loss in losses:
        if hasattr(loss, "gather_distributed"):
            loss.gather_distributed = gather_distributed  # type: ignore[assignment]


def _set_temperature(loss: nn.Module, value: float) -> None:
    """Fill the tensor that ``loss.temperature`` is, else assign the number to the attribute or property."""
    current = getattr(loss, "temperature", None)
    if isinstance(current, Tensor) and not isinstance(getattr(type(loss), "temperature", None), property):
        with torch.no_grad():
            current.fill_(value)
    else:
        loss.temperature = value  # type: ignore[assignment]
