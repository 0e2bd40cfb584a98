"""What the ranking losses share as modules: a queue and a temperature in buffers, checks, write-back, diagnostics."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from imbalanced_losses.checks import (
    check_integer,
    check_logits,
    check_row_weights,
    check_targets,
    check_temperature,
    check_temperature_number,
)
from imbalanced_losses.diagnostics import LastPass, describe
from imbalanced_losses.distributed import GradReduction, stand_for_all
from imbalanced_losses.execution import can_read_values, is_traced, is_transformed
from imbalanced_losses.label_values import check_target_values, check_weight_values
from imbalanced_losses.modules._base import LossModule, fixed_setting, refuse_gradient, refuse_second_pass
from imbalanced_losses.modules._gathering import Batch, gather_batch
from imbalanced_losses.pool import PerClass, Pool, RankingConfig, build_pool, mark_invalid, reduce
from imbalanced_losses.queue import QueueState, Rows, init_queue, push, push_in_place

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RankingLoss"]

QUEUE_FIELDS = ("logits", "targets", "iid", "sample_weight", "cursor", "ignore_index")

Config = TypeVar("Config", bound=RankingConfig)


class RankingLoss(LossModule[Config], ABC):
    """State, value checks and write-back: all that the ranking losses share as modules."""

    _buffer_fields: ClassVar[tuple[str, ...]] = ("temperature",)
    _fixed_fields: ClassVar[tuple[str, ...]] = ("num_classes", "multilabel", "ignore_index")

    temperature: Tensor

    def __init__(
        self,
        config: Config,
        queue_size: int,
        update_queue_in_eval: bool,
        gather_distributed: bool | None,
        validate_targets: bool,
        grad_reduction: GradReduction,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__(config, gather_distributed, validate_targets, grad_reduction, group)
        self._queue_size = check_integer("queue_size", queue_size, minimum=0)
        self.update_queue_in_eval = update_queue_in_eval
        self._warned_of_subsampling = False
        self._last_pass: LastPass | None = None
        queue = self._empty_queue()
        for field in QUEUE_FIELDS:
            self.register_buffer(f"queue_{field}", getattr(queue, field))
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # loaders make models under a half type
        self.register_buffer("temperature", torch.tensor(config.temperature, dtype=dtype))
        self._warned_of_invalid_epoch = False
        # of each class since the last look of `warn_of_invalid_epoch`: -1 no step, 0 never valid, 1 valid in some step;
        # no buffer, because it is no state
        self._validity = torch.full((config.num_classes,), -1)

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
        if self._last_pass is not None:  # whose pool is in the queue in part
            self._last_pass = self._last_pass._replace(pool=self._last_pass.find_pool(self.queue_state))
        self._store(self._empty_queue(dtype=self.queue_logits.dtype, device=self.queue_logits.device))

    def reset_parameters(self) -> None:
        """Bring back the state after construction, from the configuration alone: an empty queue and its temperature.

        For buffers that hold nothing yet: after ``to_empty()``, or where a loader made the module on ``meta``.
        """
        self._last_pass = None
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
        """Follow ``.to()``, but stay in float32 where the module is cast to a half type: weights overflow there."""
        self._last_pass = None
        super()._apply(functools.partial(_at_least_float32, fn), recurse)  # type: ignore[no-untyped-call]
        self._place_validity(self.temperature.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._last_pass = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is pickled, leaves the last pass behind."""
        return {**super().__getstate__(), "_last_pass": None}  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        settings = {name: getattr(self._config, name) for name in self._config.__dataclass_fields__}
        if can_read_values(self.temperature):
            settings["temperature"] = round(float(self.temperature), 7)  # of float32, what was assigned
        return ", ".join(f"{name}={value!r}" for name, value in {"queue_size": self.queue_size, **settings}.items())

    def __setattr__(self, name: str, value: Any) -> None:
        """``loss.temperature = x`` fills the buffer: no compilation for a schedule, and ``state_dict`` sees it."""
        if name != "temperature" or self.temperature.is_meta:  # load_state_dict(assign=True) fills a module on meta
            super().__setattr__(name, value)
            return
        refuse_gradient(name, value)
        temperature = check_temperature(value, self.temperature)
        if self.validate_targets and can_read_values(temperature):
            check_temperature_number("temperature", float(temperature))
        with torch.no_grad():
            self.temperature.copy_(temperature)

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
            :func:`~imbalanced_losses.pauc_at_budget_per_class`, all ``[C]``.

        Raises
        ------
        RuntimeError
            If there was no pass, or a copy of the loss or a transform has made it forget.

        Examples
        --------
        >>> from imbalanced_losses import SmoothAPLoss
        >>> loss_fn = SmoothAPLoss(num_classes=1, queue_size=8)
        >>> loss = loss_fn(torch.tensor([2.0, 1.0, -1.0, 0.0]), torch.tensor([1, 0, 0, 1]))
        >>> told = loss_fn.diagnostics()
        >>> told["live_positives"], told["queue_fill"], told["queue_age"]
        (tensor([2]), tensor(0.5000), tensor(1))
        """
        if self._last_pass is None:
            raise RuntimeError("expected a call of the loss before its diagnostics, got none outside torch.func")
        last, queue = self._last_pass, self.queue_state
        with torch.no_grad():
            pool = last.find_pool(queue)
            return describe(last, pool, queue, *self._look_at(pool, last.config))

    @abstractmethod
    def _measure(self, pool: Pool, **options: bool) -> PerClass:
        """The loss of a pool, by the pure function behind this module."""

    @staticmethod
    @abstractmethod
    def _look_at(pool: Pool, config: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The exact metric of a pool, and what else there is to tell."""

    def _step(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None,
        sample_weight: Tensor | None,
        update_queue: bool,
        **options: bool,
    ) -> PerClass:
        """Check, gather, compute, write the queue back."""
        batch = Batch(logits, targets, iid_mask, sample_weight)
        update_queue = update_queue and (self.training or self.update_queue_in_eval)
        if update_queue and self.queue_size > 0:
            refuse_second_pass()
        ranks = self._find_ranks()
        if ranks is not None:
            check = functools.partial(self._check_values, batch)
            batch = gather_batch(ranks, batch, self._config, self.queue_state, update_queue, check)
        elif not is_traced():
            self._check_values(batch)
        if not is_traced():
            self._warn_of_subsampling(batch.logits.shape[0] + self.queue_size)
        queue = self.queue_state
        pool, live = build_pool(
            batch.logits,
            batch.targets,
            queue,
            self._config,
            temperature=self.temperature,
            iid_mask=batch.iid_mask,
            sample_weight=batch.sample_weight,
            generator=batch.generator,
        )
        result = self._measure(pool, **options)
        if is_transformed():  # what it wraps is dead after it
            self._last_pass = None
        else:
            self._last_pass = LastPass.keep(self._config, result, pool, live, queue)
            self._note_validity(result.valid)
        if update_queue:
            self._push(queue, live)
        if ranks is None:
            return result
        loss = stand_for_all(result.loss, result.loss, ranks, self.grad_reduction)
        return dataclasses.replace(result, loss=loss)

    def _check_values(self, batch: Batch) -> None:
        cfg, logits, targets, sample_weight = self._config, batch.logits, batch.targets, batch.sample_weight
        columns = check_logits(logits, cfg.num_classes)
        if not self.validate_targets:
            return
        check_targets(targets, columns, multilabel=cfg.multilabel)
        if can_read_values(targets):
            check_target_values(targets, cfg.num_classes, cfg.ignore_index, multilabel=cfg.multilabel)
        if sample_weight is not None and can_read_values(check_row_weights("sample_weight", sample_weight, columns)):
            check_weight_values(sample_weight)

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
        loss = reduce(result, self._config)
        if not return_per_class:
            return (loss,)
        result = mark_invalid(result)
        return loss, result.loss, result.valid


def _at_least_float32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype.itemsize < 4 else moved
