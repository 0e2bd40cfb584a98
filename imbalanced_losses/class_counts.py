"""Class counts of the labels seen in training, as an immutable state, and the priors estimated from them."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.operators import unchanging
from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.settings import check_flag, check_ignore_index, check_integer
from imbalanced_losses.validation import check_tensor

__all__ = ["ClassCounts", "class_priors", "count_classes", "init_class_counts", "update_class_counts"]


@state_dataclass
class ClassCounts:
    """How often each class was seen.

    The counts are integers: exact, the same on all ranks, and unchanged by a cast of the module that holds them.

    Attributes
    ----------
    positives : Tensor [C], int64
        Number of labels of each class.
    labels : Tensor [C], int64
        Number of labels that could have been of the class: the total over all classes or, for binary and multi-label
        targets, the zeros and ones of that class.
    """

    positives: Tensor
    labels: Tensor


def init_class_counts(num_classes: int, *, device: torch.device | str | None = None) -> ClassCounts:
    """Make counts of zero.

    Parameters
    ----------
    num_classes : int >= 1
        1 for binary labels.
    device : torch.device or str, optional

    Raises
    ------
    TypeError, ValueError
        If ``num_classes`` is not an integer or too small.

    Examples
    --------
    >>> init_class_counts(3).positives
    tensor([0, 0, 0])
    """
    num_classes = check_integer("num_classes", num_classes, minimum=1)
    zeros = torch.zeros(num_classes, dtype=torch.int64, device=device)
    return ClassCounts(positives=zeros, labels=zeros.clone())


def update_class_counts(
    state: ClassCounts, targets: Tensor, *, multilabel: bool = False, ignore_index: int = -100
) -> ClassCounts:
    """Add the labels of a batch to the counts.

    Parameters
    ----------
    state : ClassCounts
    targets : Tensor [N, ...], integer, or [N, C, ...] with ``multilabel``, or of any shape for one class
        Class ids in [0, C). For binary and multi-label targets labels in [0, 1], which are rounded: those above 1/2 are
        positive. A label that rounds to neither 0 nor 1, and an id outside [0, C), count for no class.
    multilabel : bool
        Each class has its own label, on axis 1.
    ignore_index : int
        Targets that do not count.

    Returns
    -------
    ClassCounts
        A new state; ``state`` is unchanged.

    Raises
    ------
    ValueError, TypeError
        If the targets' shape, dtype or device does not fit.

    Notes
    -----
    Cost: O(N C). Runs under ``vmap`` and ``torch.compile``. Sample weights are not used.

    Examples
    --------
    >>> counts = update_class_counts(init_class_counts(3), torch.tensor([0, 0, 2, -100]))
    >>> counts.positives, counts.labels
    (tensor([2, 0, 1]), tensor([3, 3, 3]))
    """
    batch = count_classes(state, targets, multilabel=multilabel, ignore_index=ignore_index)
    return ClassCounts(positives=state.positives + batch.positives, labels=state.labels + batch.labels)


def class_priors(state: ClassCounts) -> Tensor:
    """Estimate the share of labels of each class, ``[C]`` in float32.

    ``(positives + 1/2) / (labels + 1)``, the Krichevsky-Trofimov estimate. It is strictly between 0 and 1, also for a
    class that was never seen, and the same for all classes before the first batch.

    Examples
    --------
    >>> class_priors(update_class_counts(init_class_counts(1), torch.tensor([0, 0, 0, 1])))
    tensor([0.3000])
    """
    wide = accumulation_dtype(state.positives.device)  # not the default dtype, which may be a half type
    return unchanging(((state.positives.to(wide) + 0.5) / (state.labels.to(wide) + 1)).float())


def count_classes(state: ClassCounts, targets: Tensor, *, multilabel: bool, ignore_index: int) -> ClassCounts:
    """Count the labels of one batch; ``state`` gives the shape and the device."""
    num_classes = len(state.positives)
    ignore_index = check_ignore_index("ignore_index", ignore_index)
    _check_targets(targets, state, multilabel=check_flag("multilabel", multilabel))
    if multilabel or num_classes == 1:
        return _count_labels(targets, num_classes, ignore_index)
    ids, classes = targets.long().flatten(), torch.arange(num_classes, device=targets.device)
    if may_branch_on_values(ids):
        positives = torch.bincount(ids.clamp(-1, num_classes) + 1, minlength=num_classes + 2)[1:-1]
    else:  # not a scatter-add, which torch's C++ code generator gets wrong on several threads
        positives = (ids.unsqueeze(-1) == classes).sum(0)
    if 0 <= ignore_index < num_classes:
        positives = torch.where(classes == ignore_index, 0, positives)
    return ClassCounts(positives=positives, labels=positives.sum().expand(num_classes))


def _count_labels(targets: Tensor, num_classes: int, ignore_index: int) -> ClassCounts:
    """Count binary or multi-label targets. Values that are not labels, such as nan, count for no class."""
    values = targets if targets.is_floating_point() else targets.long()  # in uint8, 156 == -100
    by_class = values.reshape(-1, 1) if num_classes == 1 else values
    others = [axis for axis in range(by_class.dim()) if axis != 1]
    if targets.numel() and ignore_index not in (0, 1) and may_branch_on_values(targets):
        lowest, highest = torch.aminmax(by_class)
        if lowest.item() >= 0 and highest.item() <= 1:  # true of most batches, and a third of the work
            positives = (by_class > 0.5).sum(others)
            return ClassCounts(positives=positives, labels=torch.full_like(positives, by_class[:, 0].numel()))
    is_label = (by_class >= -0.5) & (by_class <= 1.5) & (by_class != ignore_index)
    return ClassCounts(positives=(is_label & (by_class > 0.5)).sum(others), labels=is_label.sum(others))


def _check_targets(targets: Tensor, state: ClassCounts, *, multilabel: bool) -> None:
    check_tensor("targets", targets)
    num_classes = len(state.positives)
    if targets.is_complex():
        raise TypeError(f"expected targets of a real dtype, got {targets.dtype}")
    if num_classes > 1 and not multilabel and (targets.is_floating_point() or targets.dtype == torch.bool):
        raise TypeError(
            f"expected integer class ids as targets, got {targets.dtype}: for several labels a row "
            "multilabel=True, for class ids targets.long()"
        )
    if num_classes > 1 and multilabel and list(targets.shape[1:2]) != [num_classes]:
        raise ValueError(f"expected targets of shape [N, {num_classes}, ...], got {list(targets.shape)}")
    if targets.device != state.positives.device:
        raise ValueError(
            f"expected targets on {state.positives.device} like the class counts, got {targets.device}: "
            "make the counts with init_class_counts(..., device=targets.device), or move the loss with loss_fn.to()"
        )
