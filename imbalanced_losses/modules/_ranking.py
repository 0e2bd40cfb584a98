"""What the ranking losses share as modules: a queue and a temperature in buffers, checks, write-back, diagnostics."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imbalanced_losses.checks import (
    check_logits,
    check_row_weights,
    check_target_values,
    check_targets,
    check_temperature,
    check_temperature_number,
    check_weight_values,
)
from imbalanced_losses.diagnostics import LastPass, describe
from imbalanced_losses.distributed import GradReduction, stand_for_all
from imbalanced_losses.execution import can_read_values, is_traced, is_transformed
from imbalanced_losses.modules._gathering import Batch, GatheringLoss, gather_batch
from imbalanced_losses.pool import PerClass, Pool, RankingConfig, build_pool, mark_invalid, reduce
from imbalanced_losses.queue import QueueState, Rows, init_queue, push, push_in_place

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RankingLoss"]

QUEUE_FIELDS = ("logits", "targets", "iid", "sample_weight", "cursor", "ignore_index")


class RankingLoss(GatheringLoss, ABC):
    """State, value checks and write-back: all that the ranking losses share as modules."""

    temperature: Tensor

    def __init__(
        self,
        config: RankingConfig,
        queue_size: int,
        update_queue_in_eval: bool,
        gather_distributed: bool | None,
        validate_targets: bool,
        grad_reduction: GradReduction,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__(gather_distributed, validate_targets, grad_reduction, group)
        self.config = config
        self.queue_size = queue_size
        self.update_queue_in_eval = update_queue_in_eval
        self._warned_of_subsampling = False
        self._last_pass: LastPass | None = None
        queue = self._empty_queue()
        for field in QUEUE_FIELDS:
            self.register_buffer(f"queue_{field}", getattr(queue, field))
        self.register_buffer("temperature", torch.tensor(config.temperature))

    @property
    def queue_state(self) -> QueueState:
        """The queue's buffers as the state that the pure functions take (not a copy)."""
        return QueueState(**{field: getattr(self, f"queue_{field}") for field in QUEUE_FIELDS})

    def reset_queue(self) -> None:
        """Empty the queue."""
        self._store(self._empty_queue(dtype=self.queue_logits.dtype, device=self.queue_logits.device))

    def reset_parameters(self) -> None:
        """Bring back the state after construction, from the configuration alone: an empty queue and its temperature.

        For buffers that hold nothing yet: after ``to_empty()``, or where a loader made the module on ``meta``.
        """
        self.reset_queue()
        with torch.no_grad():
            self.temperature.fill_(self.config.temperature)

    def _empty_queue(self, **kind: Any) -> QueueState:
        cfg = self.config
        settings = {"multilabel": cfg.multilabel, "ignore_index": cfg.ignore_index, **kind}
        return init_queue(self.queue_size, cfg.num_classes, **settings)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow ``.to()``, but stay in float32 where the module is cast to a half type: weights overflow there."""
        return super()._apply(functools.partial(_at_least_float32, fn), recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """A copy, or what is pickled, leaves the last pass behind."""
        return {**super().__getstate__(), "_last_pass": None}  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        settings = {name: getattr(self.config, name) for name in self.config.__dataclass_fields__}
        if can_read_values(self.temperature):
            settings["temperature"] = round(float(self.temperature), 7)  # of float32, what was assigned
        return ", ".join(f"{name}={value!r}" for name, value in {"queue_size": self.queue_size, **settings}.items())

    def __setattr__(self, name: str, value: Any) -> None:
        """``loss.temperature = x`` fills the buffer: no compilation for a schedule, and ``state_dict`` sees it."""
        if name != "temperature" or self.temperature.is_meta:  # load_state_dict(assign=True) fills a module on meta
            super().__setattr__(name, value)
            return
        temperature = check_temperature(value, self.temperature)
        if self.validate_targets and can_read_values(temperature):
            check_temperature_number("temperature", float(temperature))
        with torch.no_grad():
            self.temperature.copy_(temperature)

    def diagnostics(self) -> dict[str, Tensor]:
        """Tell what the last pass looked like.

        Worked out from that pass's pool when called: a pass costs a few microseconds for it, a call about as much as
        an exact metric. Nothing waits for the device until a tensor is read. A compiled pass can be looked at, too; one
        inside a transform of ``torch.func`` cannot. With several processes the pool is that of all.

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
        with torch.no_grad():
            return describe(self._last_pass, self.queue_state, *self._look_at(self._last_pass.pool))

    @abstractmethod
    def _measure(self, pool: Pool, **options: bool) -> PerClass:
        """The loss of a pool, by the pure function behind this module."""

    @abstractmethod
    def _look_at(self, pool: Pool) -> tuple[Tensor, dict[str, Tensor]]:
        """The exact metric of a pool, and what else there is to tell."""

    def _step(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None,
        sample_weight: Tensor | None,
        **options: bool,
    ) -> PerClass:
        """Check, gather, compute, write the queue back."""
        batch = Batch(logits, targets, iid_mask, sample_weight)
        update_queue = self.training or self.update_queue_in_eval
        ranks = self._find_ranks()
        if ranks is not None:
            check = functools.partial(self._check_values, batch)
            batch = gather_batch(ranks, batch, self.config, self.queue_state, update_queue, check)
        elif not is_traced():
            self._check_values(batch)
        if not is_traced():
            self._warn_of_subsampling(batch.logits.shape[0] + self.queue_size)
        queue = self.queue_state
        pool, live = build_pool(
            batch.logits,
            batch.targets,
            queue,
            self.config,
            temperature=self.temperature,
            iid_mask=batch.iid_mask,
            sample_weight=batch.sample_weight,
            generator=batch.generator,
        )
        result = self._measure(pool, **options)
        # what a transform wraps is dead after it
        self._last_pass = None if is_transformed() else LastPass.keep(pool, result)
        if update_queue:
            self._push(queue, live)
        if ranks is None:
            return result
        loss = stand_for_all(result.loss, result.loss, ranks, self.grad_reduction)
        return dataclasses.replace(result, loss=loss)

    def _check_values(self, batch: Batch) -> None:
        cfg, logits, targets, sample_weight = self.config, batch.logits, batch.targets, batch.sample_weight
        columns = check_logits(logits, cfg.num_classes)
        if not self.validate_targets:
            return
        check_targets(targets, columns, multilabel=cfg.multilabel)
        if can_read_values(targets):
            check_target_values(targets, cfg.num_classes, cfg.ignore_index, multilabel=cfg.multilabel)
        if sample_weight is not None and can_read_values(check_row_weights("sample_weight", sample_weight, columns)):
            check_weight_values(sample_weight)

    def _warn_of_subsampling(self, pool_size: int) -> None:
        limit = self.config.max_pool_size
        if limit is not None and not self._warned_of_subsampling and pool_size > limit:
            self._warned_of_subsampling = True
            warnings.warn(
                f"max_pool_size={limit} estimates the loss from a sample of a pool of {pool_size} rows", stacklevel=4
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
        loss = reduce(result, self.config)
        if not return_per_class:
            return (loss,)
        result = mark_invalid(result)
        return loss, result.loss, result.valid


def _at_least_float32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    moved = fn(tensor)
    return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype.itemsize < 4 else moved
