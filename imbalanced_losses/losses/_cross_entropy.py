"""What the losses share that are a cross-entropy of changed logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imbalanced_losses.reductions import Elements, Reduction, reduce_elements
from imbalanced_losses.validation import check_class_ids, check_element_targets, check_element_weights

__all__ = ["ChangedLogits", "mask_ignored", "parse_label_targets", "which_counted"]


class ChangedLogits(NamedTuple):
    """Changed logits, and what they are compared with."""

    logits: Tensor
    targets: Tensor  # class ids, or labels of the logits' shape and dtype
    counted: Tensor | None  # which targets are not ignored; None: all, and there are some
    binary: bool
    ignore_index: int
    reads: bool  # whether values may be read, see may_branch_on_values
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


def parse_label_targets(logits: Tensor, targets: Tensor, *, multilabel: bool = False) -> tuple[Tensor, bool]:
    """The targets, and whether they are labels in the shape of the logits (binary, multi-label) instead of class ids.

    Beside binary logits ``[N, 1, ...]``, labels ``[N, ...]`` are taken, too.
    """
    if not isinstance(logits, Tensor) or not (multilabel or logits.dim() == 1 or logits.shape[1:2] == (1,)):
        check_class_ids(targets, logits)
        return targets, False
    if isinstance(targets, Tensor) and logits.shape[1:2] == (1,) and targets.dim() == logits.dim() - 1:
        targets = targets.unsqueeze(1)
    return check_element_targets(targets, logits), True


def which_counted(targets: Tensor, ignore_index: int, *, reads: bool) -> Tensor | None:
    """Which targets are not ignored; None if a look at the data shows that all are, which spares passes over them."""
    if reads and targets.numel():
        lowest = targets.amin().item()
        if lowest > ignore_index or (lowest != ignore_index and targets.amax().item() < ignore_index):
            return None
    return targets != ignore_index


def mask_ignored(z: Tensor, counted: Tensor | None, *, binary: bool, reads: bool) -> Tensor:
    """Replace ignored logits, unless all are known to be finite: before the loss, whose gradient is nan beside nan."""
    if counted is None or (reads and math.isfinite(z.detach().sum().item())):
        return z
    return torch.where(counted if binary else counted.unsqueeze(1), z, 0)


def _with_nonfinite_gradient(loss: Tensor, reads: bool) -> Tensor:
    """``loss``, with a gradient that is not finite where it is not, so that a ``GradScaler`` notices.

    That of the binary cross-entropy at an infinite logit is finite.
    """
    if loss.dim() == 0 and reads and math.isfinite(loss.item()):
        return loss
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
