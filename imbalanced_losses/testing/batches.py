"""Batches: the arguments of one call of a loss, as one value that hypothesis can print."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from imbalanced_losses import QueueState

__all__ = ["Batch", "ElementwiseBatch", "RankingBatch"]


@dataclass(frozen=True, eq=False)
class RankingBatch:
    """The arguments of one call of a ranking loss: ``loss(*batch.args, **batch.kwargs)``.

    Attributes
    ----------
    logits : Tensor [N, C]
    targets : Tensor [N], or [N, C] if multi-label, int64
    queue_state : QueueState
    iid_mask : Tensor [N], bool, or None
    sample_weight : Tensor [N], or None
    """

    logits: Tensor
    targets: Tensor
    queue_state: QueueState
    iid_mask: Tensor | None = None
    sample_weight: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of columns of the logits."""
        return self.logits.shape[1]

    @property
    def multilabel(self) -> bool:
        """Whether each row has a label for each class."""
        return self.queue_state.targets.dim() == 2

    @property
    def args(self) -> tuple[Tensor, Tensor, QueueState]:
        """Logits, targets and queue state."""
        return self.logits, self.targets, self.queue_state

    @property
    def kwargs(self) -> dict[str, Tensor]:
        """The optional arguments that are not None."""
        return _given(iid_mask=self.iid_mask, sample_weight=self.sample_weight)

    def rows(self, index: Tensor) -> RankingBatch:
        """Return the rows of the batch at ``index``, with the same queue."""
        return _rows(self, index)


@dataclass(frozen=True, eq=False)
class ElementwiseBatch:
    """The arguments of one call of an elementwise loss: ``loss(*batch.args, **batch.kwargs)``.

    Attributes
    ----------
    logits : Tensor [N, C, ...]
    targets : Tensor [N, ...] of int64 class ids, or of the logits' shape and dtype with labels in [0, 1]
    sample_weight : Tensor [N], or None
    """

    logits: Tensor
    targets: Tensor
    sample_weight: Tensor | None = None

    @property
    def args(self) -> tuple[Tensor, Tensor]:
        """Logits and targets."""
        return self.logits, self.targets

    @property
    def kwargs(self) -> dict[str, Tensor]:
        """The optional arguments that are not None."""
        return _given(sample_weight=self.sample_weight)

    def rows(self, index: Tensor) -> ElementwiseBatch:
        """Return the rows of the batch at ``index``."""
        return _rows(self, index)


Batch = TypeVar("Batch", RankingBatch, ElementwiseBatch)


def _given(**optional: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in optional.items() if value is not None}


def _rows(batch: Batch, index: Tensor) -> Batch:
    own = {"logits": batch.logits, "targets": batch.targets, **batch.kwargs}
    changes: dict[str, Any] = {name: value[index] for name, value in own.items()}
    return dataclasses.replace(batch, **changes)
