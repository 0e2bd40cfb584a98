"""What the losses share that are a cross-entropy of changed logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imbalanced_losses.dispatch import holds_values, may_branch_on_values
from imbalanced_losses.label_values import Bounds, read_bounds
from imbalanced_losses.reductions import Elements, Reduction, reduce_elements
from imbalanced_losses.validation import check_class_ids, check_element_targets, check_element_weights, ids_in_range

__all__ = ["ChangedLogits", "ParsedTargets", "compare", "parse_label_targets", "which_counted"]


class ParsedTargets(NamedTuple):
    """Targets that fit the logits in shape, dtype and device."""

    values: Tensor  # class ids [N, ...] or, if binary, labels of the logits' shape
    binary: bool
    reads: bool  # whether the values of logits and targets may be read, see may_branch_on_values
    bounds: Bounds | None  # of the values, if they were read

    def converted(self, dtype: torch.dtype) -> Tensor:
        """Return labels in ``dtype``, or class ids as int64: uint8 156 equals -100 if it is compared as it is."""
        return self.values.to(dtype) if self.binary else self.values.long()


class ChangedLogits(NamedTuple):
    """Changed logits, and what they are compared with."""

    logits: Tensor
    targets: Tensor  # class ids, or labels of the logits' shape and dtype
    counted: Tensor | None  # which targets are not ignored; None: all, and there are some
    binary: bool
    ignore_index: int
    reads: bool  # whether values may be read
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # [C], or [2] for the labels 0 and 1

    def reduced(self, sample_weight: Tensor | None, reduction: Reduction) -> Tensor:
        """Return the loss."""
        weights = self._check(sample_weight)
        if reduction == "mean" and weights is None and self.counted is None and self.class_weights is None:
            loss = self._cross_entropy("mean")
        else:
            loss = reduce_elements(self._cross_entropy("none"), self.counted, weights, reduction)
        return _with_nonfinite_gradient(loss, self.reads)

    def elements(self, sample_weight: Tensor | None) -> Elements:
        """Return the loss before its reduction."""
        weights = self._check(sample_weight)
        return _with_nonfinite_gradient(self._cross_entropy("none"), self.reads), self.counted, weights

    def _check(self, sample_weight: Tensor | None) -> Tensor | None:
        return None if sample_weight is None else check_element_weights("sample_weight", sample_weight, self.targets)

    def _cross_entropy(self, reduction: str) -> Tensor:
        """Return the cross-entropy, 0 where ignored."""
        if not self.binary:
            return F.cross_entropy(
                self.logits,
                self.targets,
                weight=self.class_weights,
                ignore_index=self.ignore_index,
                reduction=reduction,
                label_smoothing=self.label_smoothing,
            )
        of_label = None
        if self.class_weights is not None:
            of_zeros, of_ones = self.class_weights.unbind()
            of_label = torch.lerp(of_zeros, of_ones, self.targets)
        loss = F.binary_cross_entropy_with_logits(self.logits, self.targets, weight=of_label, reduction=reduction)
        return loss if self.counted is None else torch.where(self.counted, loss, 0)


def parse_label_targets(logits: Tensor, targets: Tensor, *, multilabel: bool = False) -> ParsedTargets:
    """Check shapes, dtypes and devices. Binary (or multi-label) targets are labels in the shape of the logits.

    Beside binary logits ``[N, 1, ...]``, labels ``[N, ...]`` are taken, too.
    """
    binary = isinstance(logits, Tensor) and (multilabel or logits.dim() == 1 or logits.shape[1:2] == (1,))
    if not binary:
        check_class_ids(targets, logits)
    else:
        if isinstance(targets, Tensor) and logits.shape[1:2] == (1,) and targets.dim() == logits.dim() - 1:
            targets = targets.unsqueeze(1)
        targets = check_element_targets(targets, logits)
    reads = may_branch_on_values(logits, targets)
    return ParsedTargets(targets, binary, reads, read_bounds(targets) if reads else None)


def compare(
    z: Tensor,
    targets: Tensor,
    parsed: ParsedTargets,
    ignore_index: int,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> ChangedLogits:
    """Pair changed logits with their converted targets, after ignored logits are replaced."""
    reads = parsed.reads and holds_values(z)
    if not parsed.binary:
        targets = ids_in_range(targets, z.shape[1], ignore_index)
    counted = which_counted(targets, ignore_index, parsed.bounds)
    # before the loss, whose gradient is nan beside nan, unless all logits are known to be finite
    if counted is not None and not (reads and math.isfinite(z.detach().sum().item())):
        z = torch.where(counted if parsed.binary else counted.unsqueeze(1), z, 0)
    return ChangedLogits(z, targets, counted, parsed.binary, ignore_index, reads, label_smoothing, class_weights)


def which_counted(targets: Tensor, ignore_index: int, bounds: Bounds | None) -> Tensor | None:
    """Which targets are not ignored; None if the values that were read show that all are, which spares passes."""
    if bounds is not None and (bounds[0] > ignore_index or bounds[1] < ignore_index):
        return None
    return targets != ignore_index


def _with_nonfinite_gradient(loss: Tensor, reads: bool) -> Tensor:
    """``loss``, with a gradient that is not finite where it is not, so that a ``GradScaler`` notices.

    That of the binary cross-entropy at an infinite logit is finite.
    """
    if loss.dim() == 0 and reads and math.isfinite(loss.item()):
        return loss
    return loss * torch.where(loss.detach().isfinite(), loss.new_ones(()), torch.nan)
