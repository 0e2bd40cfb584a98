"""Parsed rows: the checked arguments of a ranking loss. They are checked here and nowhere else."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from imbalanced_losses.dispatch import can_read_values, may_branch_on_values
from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.label_values import check_target_values, check_weight_values
from imbalanced_losses.validation import check_logits, check_row_flags, check_row_weights, check_targets

__all__ = ["Rows", "Task", "parse_rows", "with_finite_weights"]


class Task(Protocol):
    """The part of a configuration that describes logits and targets."""

    @property
    def num_classes(self) -> int:
        """Number of columns of the logits."""

    @property
    def multilabel(self) -> bool:
        """Whether targets are ``[N, C]`` labels."""

    @property
    def ignore_index(self) -> int:
        """The target that marks an ignored row or label."""


class Rows(NamedTuple):
    """Parsed rows: logits [N, C], targets [N] or [N, C], iid [N], sample_weight [N], valid like targets."""

    logits: Tensor
    targets: Tensor
    iid: Tensor
    sample_weight: Tensor
    valid: Tensor


def parse_rows(
    logits: Tensor,
    targets: Tensor,
    task: Task,
    iid_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    *,
    check_values: bool = False,
) -> Rows:
    """Check the arguments of a ranking loss; flags and weights that are left out become ones.

    ``check_values`` also checks the values of labels and weights, if they can be read.
    """
    logits = check_logits(logits, task.num_classes)
    labels = check_targets(targets, logits, multilabel=task.multilabel)
    if check_values and can_read_values(targets):
        check_target_values(targets, task.num_classes, task.ignore_index, multilabel=task.multilabel)
    if iid_mask is None:
        iid = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    else:
        iid = check_row_flags("iid_mask", iid_mask, logits)
    weight = parse_weights(sample_weight, logits, check_values=check_values)
    rows = Rows(logits=logits, targets=labels, iid=iid, sample_weight=weight, valid=labels != task.ignore_index)
    return rows if sample_weight is None else with_finite_weights(rows)


def parse_weights(sample_weight: Tensor | None, logits: Tensor, *, check_values: bool) -> Tensor:
    """Check the rows' weights and return them in the compute dtype; ones if left out."""
    dtype = compute_dtype(logits)
    if sample_weight is None:
        return torch.ones(len(logits), dtype=dtype, device=logits.device)
    weight = check_row_weights("sample_weight", sample_weight, logits).to(dtype)
    if check_values and can_read_values(sample_weight):
        check_weight_values(sample_weight)
    return weight


def with_finite_weights(rows: Rows) -> Rows:
    """Set the logits of rows whose weight is not finite to ``nan``, also of ignored rows.

    The rule for ``nan`` logits then covers them: this step's loss is not finite, and the queue ignores the row.
    """
    weight = rows.sample_weight
    if may_branch_on_values(weight) and math.isfinite(weight.sum()):
        return rows
    finite = weight.isfinite()
    of_row = finite[:, None] if rows.valid.dim() == 2 else finite
    return rows._replace(
        logits=torch.where(finite[:, None], rows.logits, torch.nan),
        targets=torch.where(of_row, rows.targets, 0),
        sample_weight=torch.where(finite, weight, 1),
        valid=rows.valid | ~of_row,
    )
