"""What the ranking losses share as modules: a queue and a temperature in buffers, checks, write-back, diagnostics."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from imbalanced_losses.diagnostics import StepRecord, describe_queue
from imbalanced_losses.dispatch import can_read_values, is_traced, is_transformed
from imbalanced_losses.distributed import with_local_gradient
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, mark_invalid, ranking_step, reduced
from imbalanced_losses.modules._base import LossModule, fixed_setting, flag_property, refuse_gradient
from imbalanced_losses.modules._gathering import gather_rows
from imbalanced_losses.modules._lifecycle import refuse_second_pass
from imbalanced_losses.queue import QueueState, init_queue, push, push_in_place
from imbalanced_losses.rows import Rows, parse_rows
from imbalanced_losses.validation import check_integer, check_temperature, check_temperature_number

__all__ = ["RankingLoss"]

QUEUE_FIELDS = ("logits", "targets", "iid", "sample_weight", "cursor", "ignore_index")

Config = TypeVar("Config", bound=RankingConfig)


class RankingLoss(LossModule[Config], ABC):
    """State, value checks and write-back: all that the ranking losses share as modules."""

    _buffer_fields: ClassVar[tuple[str, ...]] = ("temperature",)
    _fixed_fields: ClassVar[tuple[str, ...]] = ("num_classes", "multilabel", "ignore_index")

    # (pool, config) -> PerClass; and (pool, config) -> the metric that it tends to, and what else there is to tell
    _objective: ClassVar[Any]
    _exact: ClassVar[Any]

    update_queue_in_eval = flag_property("update_queue_in_eval")

    temperature: Tensor

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of the class below, by name."""
        super().__init__(arguments)
        self._queue_size = check_integer("queue_size", arguments["queue_size"], minimum=0)
        self.update_queue_in_eval = arguments["update_queue_in_eval"]
        self._warned_of_subsampling = False
        self._record: StepRecord | None = None
        queue = self._empty_queue()
        for field in QUEUE_FIELDS:
            self.register_buffer(f"queue_{field}", getattr(queue, field))
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # loaders make models under a half type
        self.register_buffer("temperature", torch.tensor(self._config.temperature, dtype=dtype))
        self._warned_of_invalid_epoch = False
        # of each class since the last look of `warn_of_invalid_epoch`: -1 no step, 0 never valid, 1 valid in some step;
        # no buffer, because it is no state
        self._validity = torch.full((self._config.num_classes,), -1)

    @property
    def queue_size(self) -> int:
        """Past rows that the queue holds."""
        return self._queue_size

    @queue_size.setter
    def queue_size(self, value: int) -> None:
        if value != self._queue_size:
            raise fixed_setting(self, "queue_size")

    @property
    def queue_state(self) -> QueueState:
        """The queue's buffers as the state that the pure functions take (not a copy)."""
        return QueueState(**{field: getattr(self, f"queue_{field}") for field in QUEUE_FIELDS})

    def reset_queue(self) -> None:
        """Empty the queue."""
        if self._record is not None and self._record.parts is not None:  # the pool is in the queue in part
            with torch.no_grad():
                self._record = self._record.settle(self.queue_state, self._exact)
        self._store(self._empty_queue(dtype=self.queue_logits.dtype, device=self.queue_logits.device))

    def reset_parameters(self) -> None:
        """Bring back the state after construction, from the configuration alone: an empty queue and its temperature.

        For buffers that hold nothing yet: after ``to_empty()``, or where a loader made the module on ``meta``.
        """
        self._record = None
        self.reset_queue()
        with torch.no_grad():
            self.temperature.fill_(self._config.temperature)
            self._validity.fill_(-1)

    def _configuration(self) -> Config:
        return self._config

    def _empty_queue(self, **kind: Any) -> QueueState:
        cfg = self._config
        settings = {"multilabel": cfg.multilabel, "ignore_index": cfg.ignore_index, **kind}
        return init_queue(self.queue_size, cfg.num_classes, **settings)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._record = None
        super()._apply(fn, recurse)
        self._place_validity(self.temperature.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._record = None
        super()._load_from_state_dict(*args, **kwargs)

    def _before_compiled_call(self, *, update_queue: bool = True, **kwargs: Any) -> None:
        if self._pushes(update_queue):
            refuse_second_pass()

    def _pushes(self, update_queue: bool) -> bool:
        return update_queue and (self.training or self.update_queue_in_eval) and self.queue_size > 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is pickled, leaves the last pass behind."""
        return {**super().__getstate__(), "_record": None}  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        settings = {name: getattr(self._config, name) for name in self._config.__dataclass_fields__}
        if can_read_values(self.temperature):
            settings["temperature"] = round(float(self.temperature), 7)  # of float32, what was assigned
        return ", ".join(f"{name}={value!r}" for name, value in {"queue_size": self.queue_size, **settings}.items())

    def __setattr__(self, name: str, value: Any) -> None:
        """``loss.temperature = x`` fills the buffer: no compilation for a schedule, and ``state_dict`` sees it."""
        # load_state_dict(assign=True) fills a module on meta
        if name != "temperature" or (self.temperature.is_meta and isinstance(value, Tensor)):
            super().__setattr__(name, value)
            return
        refuse_gradient(name, value)
        temperature = check_temperature(value, self.temperature)
        if self.validate_targets and can_read_values(temperature):
            check_temperature_number("temperature", float(temperature))
        with torch.no_grad():
            self.temperature.copy_(temperature)
        if not isinstance(value, Tensor) and not is_traced():
            self._config = dataclasses.replace(self._config, temperature=value)

    def diagnostics(self) -> dict[str, Tensor]:
        """Tell what the last pass looked like.

        Worked out from that pass's pool when called: a pass costs a few microseconds for it and keeps the rows of its
        batch, a call about as much as an exact metric. Nothing waits for the device until a tensor is read. A compiled
        pass can be looked at, too; one inside a transform of ``torch.func`` cannot. With several processes the pool is
        that of all.

        Returns
        -------
        dict of str to Tensor
            Detached. Of each class, ``[C]``: ``loss``, ``nan`` if invalid; ``valid``; ``gap``, the loss minus one minus
            the exact metric of the same pool (``nan`` if invalid or under ``max_pool_size``); ``live_positives`` in the
            batch. Of the queue as it now is, ``[]``: ``queue_fill``, the share of slots that hold a row;
            ``queue_age``, steps since its oldest row was pushed, if batches were as large as the last.
            :class:`RecallAtQuantileLoss` adds ``threshold``, :class:`PAUCAtBudgetLoss` the diagnostics of
            :func:`~imbalanced_losses.pauc_at_budget_per_class`, and a ``tau_scale`` other than ``"none"`` adds
            ``tau_eff``, the temperature in score units; all ``[C]``.

        Raises
        ------
        RuntimeError
            If there was no pass, or a copy of the loss or a transform has made it forget.

        Examples
        --------
        >>> from imbalanced_losses import SmoothAPLoss
        >>> loss_fn = SmoothAPLoss(num_classes=1, queue_size=8)
        >>> loss = loss_fn(torch.tensor([2.0, 1.0, -1.0, 0.0]), torch.tensor([1, 0, 0, 1]))
        >>> stats = loss_fn.diagnostics()
        >>> stats["live_positives"], stats["queue_fill"], stats["queue_age"]
        (tensor([2]), tensor(0.5000), tensor(1))
        """
        if self._record is None:
            raise RuntimeError("expected a call of the loss before its diagnostics, got none outside torch.func")
        queue = self.queue_state
        with torch.no_grad():
            stats = self._record.settle(queue, self._exact).stats
            assert stats is not None
            return {**stats, **describe_queue(queue, self._record.n_live)}

    def _step(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None,
        sample_weight: Tensor | None,
        update_queue: bool,
        **options: bool,
    ) -> PerClass:
        """Parse, gather, take the step of the pure functions, write the queue back."""
        cfg, queue = self._config, self.queue_state
        update_queue = self._pushes(update_queue)
        if update_queue:
            refuse_second_pass()
        parse = partial(parse_rows, logits, targets, cfg, iid_mask, sample_weight, check_values=self.validate_targets)
        ranks, generator = self._find_ranks(), None
        if ranks is None:
            rows = parse()
        else:
            given = {"has_flags": iid_mask is not None, "has_weights": sample_weight is not None}
            rows, generator = gather_rows(ranks, parse, cfg, queue, update_queue, **given)
        if not is_traced():
            self._warn_of_subsampling(rows.logits.shape[0] + self.queue_size)
        objective = partial(self._objective, **options)
        step = ranking_step(
            objective, rows, queue, cfg, temperature=self.temperature, update_queue=False, generator=generator
        )
        # what a transform wraps is dead after it
        self._record = None if is_transformed() else StepRecord.keep(cfg, step, rows)
        if update_queue:
            self._push(queue, rows)
        if self._record is not None:
            self._record = self._record.after_push(queue)
            self._note_validity(step.result.valid)
        if ranks is None:
            return step.result
        loss = with_local_gradient(step.result.loss, step.result.loss, ranks, self.grad_reduction)
        return dataclasses.replace(step.result, loss=loss)

    def _warn_of_subsampling(self, pool_size: int) -> None:
        limit = self._config.max_pool_size
        if limit is not None and not self._warned_of_subsampling and pool_size > limit:
            self._warned_of_subsampling = True
            warnings.warn(
                f"max_pool_size={limit} estimates the loss from a sample of a pool of {pool_size} rows", stacklevel=4
            )

    def _place_validity(self, device: torch.device) -> None:
        if self._validity.device != device:  # a loader may have filled the buffers one by one
            self._validity = torch.full_like(self._validity, -1, device=device)

    def _note_validity(self, valid: Tensor) -> None:
        if self.training:
            self._place_validity(valid.device)
            self._validity.clamp_min_(valid)

    def warn_of_invalid_epoch(self) -> None:
        """Warn, once, if training has called this since the last look and no class was ever valid. Reads data."""
        if not can_read_values(self._validity):
            return
        was_never_valid = int(self._validity.max()) == 0
        self._validity.fill_(-1)
        if was_never_valid and not self._warned_of_invalid_epoch:
            self._warned_of_invalid_epoch = True
            warnings.warn(
                f"expected a class that {type(self).__name__} can rank in some step of the epoch, got none: the loss "
                "was 0 throughout. Look for positives and negatives in targets, weights, iid_mask and ignore_index",
                stacklevel=4,
            )

    def _push(self, queue: QueueState, rows: Rows) -> None:
        if is_transformed():  # vmap has no rule for index_copy_
            self._store(push(queue, *rows))
            return
        with torch.no_grad():
            push_in_place(queue, rows)

    def _store(self, state: QueueState) -> None:
        """``copy_``, because an assignment is lost under ``vmap(functional_call)``."""
        with torch.no_grad():
            for field in QUEUE_FIELDS:
                buffer, value = getattr(self, f"queue_{field}"), getattr(state, field)
                if value is not buffer:
                    buffer.copy_(value)

    def _outputs(self, result: PerClass, return_per_class: bool) -> tuple[Tensor, ...]:
        loss = reduced(result, self._config)
        if not return_per_class:
            return (loss,)
        result = mark_invalid(result)
        return loss, result.loss, result.valid
