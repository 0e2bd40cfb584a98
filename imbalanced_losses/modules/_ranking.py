"""The base class of the ranking modules: their step and its diagnostics; the queue is in `_queue`."""

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
from imbalanced_losses.dispatch import is_traced, is_transformed
from imbalanced_losses.distributed import with_local_gradient
from imbalanced_losses.lifecycle import refuse_second_pass
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, mark_invalid, ranking_step, reduced
from imbalanced_losses.modules._gathering import gather_rows
from imbalanced_losses.modules._queue import QueueLoss
from imbalanced_losses.queue import QueueState, init_queue
from imbalanced_losses.rows import parse_rows

__all__ = ["RankingLoss"]

Config = TypeVar("Config", bound=RankingConfig)


class RankingLoss(QueueLoss[Config], ABC):
    """Base class of the ranking modules: value checks, the step and its record."""

    _fixed_fields: ClassVar[tuple[str, ...]] = ("num_classes", "multilabel", "ignore_index")

    # (pool, config) -> PerClass; (pool, config) -> the exact metric and its details
    _objective: ClassVar[Any]
    _exact: ClassVar[Any]

    _invalid_epoch = (
        "expected a class that {} can rank in some step of the epoch, got none: the loss was 0 throughout. Look for "
        "positives and negatives in targets, weights, iid_mask and ignore_index"
    )

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of the class below, by name."""
        super().__init__(arguments)
        self._validity = torch.full((self._config.num_classes,), -1)
        self._warned_of_subsampling = False
        self._record: StepRecord | None = None

    def reset_queue(self) -> None:
        """Empty the queue."""
        record, queue = self._record, self.queue_state
        if record is not None and record.parts is not None and record.matches(queue):
            # part of its pool is still in the queue
            with torch.no_grad():
                self._record = record.settle(queue, self._exact)
        super().reset_queue()

    def reset_parameters(self) -> None:
        """Restore the state after construction, from the configuration alone: an empty queue and the temperature.

        Use it for buffers without content: after ``to_empty()``, or where a loader made the module on ``meta``.
        """
        self._record = None
        super().reset_parameters()

    def _empty_queue(self, **kind: Any) -> QueueState:
        cfg = self._config
        settings = {"multilabel": cfg.multilabel, "ignore_index": cfg.ignore_index, **kind}
        return init_queue(self.queue_size, cfg.num_classes, **settings)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._record = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._record = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do not include the record of the last pass."""
        return {**super().__getstate__(), "_record": None}  # type: ignore[no-untyped-call]

    def diagnostics(self) -> dict[str, Tensor]:
        """Return statistics of the last forward pass.

        They are computed from that pass's pool when this is called. Each pass keeps the rows of its batch for it, which
        costs a few microseconds; a call costs about as much as an exact metric. It does not synchronise with the
        device. It works for compiled passes, but not inside transforms of ``torch.func``. With several processes the
        pool is that of all processes.

        Returns
        -------
        dict of str to Tensor
            Detached. Per class, ``[C]``: ``loss``, ``nan`` if invalid; ``valid``; ``gap``, the loss minus one minus
            the exact metric of the same pool (``nan`` if invalid or under ``max_pool_size``); ``live_positives`` in the
            batch. Of the current queue, ``[]``: ``queue_fill``, the share of slots that hold a row that is not ignored;
            ``queue_age``, steps since its oldest row was pushed, if batches were as large as the last.
            :class:`RecallAtQuantileLoss` adds ``threshold``, :class:`PrecisionAtRecallLoss` and
            :class:`FPRAtRecallLoss` ``threshold`` and the ``recall`` that it reaches, :class:`PAUCAtBudgetLoss` the
            diagnostics of :func:`~imbalanced_losses.pauc_at_budget_per_class`, and a ``tau_scale`` other than
            ``"none"`` adds ``tau_eff``, the temperature in score units; all ``[C]``.

        Raises
        ------
        RuntimeError
            If there was no pass, or the loss was moved, copied or called inside a transform since. Lightning moves it
            when ``fit`` returns.

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
            raise RuntimeError(
                "expected a call of the loss before its diagnostics, got none since it was made, moved, copied or "
                "called inside torch.func"
            )
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
        """Parse the arguments, gather, take the step of the pure functions, write the queue back."""
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
            rows, generator = gather_rows(ranks, logits, parse, cfg, queue, update_queue, **given)
        if not is_traced():
            self._warn_of_subsampling(rows.logits.shape[0] + self.queue_size)
        objective = partial(self._objective, **options)
        step = ranking_step(
            objective, rows, queue, cfg, temperature=self.temperature, update_queue=False, generator=generator
        )
        # tensors that a transform wraps are invalid after it
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

    def _outputs(self, result: PerClass, return_per_class: bool) -> tuple[Tensor, ...]:
        loss = reduced(result, self._config)
        if not return_per_class:
            return (loss,)
        result = mark_invalid(result)
        return loss, result.loss, result.valid
