"""The losses at a fixed recall as modules: configuration, and which pure functions stand behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.losses.fpr_at_recall import FPRAtRecallConfig, exact_fpr_at_recall, measure_fpr_at_recall
from imbalanced_losses.losses.precision_at_recall import (
    PrecisionAtRecallConfig,
    exact_precision_at_recall,
    measure_precision_at_recall,
)
from imbalanced_losses.modules._ranking import RankingLoss
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.spread import TauScale

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["FPRAtRecallLoss", "PrecisionAtRecallLoss"]


@final
class PrecisionAtRecallLoss(RankingLoss[PrecisionAtRecallConfig], config=PrecisionAtRecallConfig):
    """Precision-at-recall loss over the batch and a queue: :func:`~imbalanced_losses.precision_at_recall` as a module.

    Parameters
    ----------
    num_classes, queue_size, temperature, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`~imbalanced_losses.SmoothAPLoss`.
    max_pool_size, multilabel, validate_targets, grad_reduction, group, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPLoss`.
    recall : float
        The share of the positives to find, above 0 and at most 1.
    threshold_gradient : {"implicit", "stop"}
        Whether the threshold follows the scores of the positives or is a constant of the step. As a constant it gives
        no gradient to the positives.

    Examples
    --------
    >>> import torch
    >>> loss_fn = PrecisionAtRecallLoss(num_classes=1, recall=0.8)
    >>> logits = torch.tensor([3.0, 2.0, 1.0, 0.0], requires_grad=True)
    >>> loss = loss_fn(logits, torch.tensor([1, 0, 1, 0]))
    >>> loss.backward()
    >>> round(loss.item(), 4), loss_fn.diagnostics()["threshold"]
    (0.3333, tensor([1.]))
    """

    def __init__(
        self,
        num_classes: int,
        recall: float = 0.8,
        queue_size: int = 1024,
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
        threshold_gradient: Literal["stop", "implicit"] = "implicit",
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
        tau_scale: TauScale = "none",
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None = None,
        return_per_class: bool = False,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Give the loss, or ``(loss, per_class [C] with nan at invalid classes, valid [C])``."""
        outputs = self._outputs(self._step(logits, targets, iid_mask, sample_weight, update_queue), return_per_class)
        return outputs if return_per_class else outputs[0]  # type: ignore[return-value]

    _objective = staticmethod(measure_precision_at_recall)
    _exact = staticmethod(exact_precision_at_recall)


@final
class FPRAtRecallLoss(RankingLoss[FPRAtRecallConfig], config=FPRAtRecallConfig):
    """False-positive rate at a recall over the batch and a queue: :func:`~imbalanced_losses.fpr_at_recall` as a module.

    Parameters
    ----------
    num_classes, queue_size, temperature, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`~imbalanced_losses.SmoothAPLoss`.
    max_pool_size, multilabel, validate_targets, grad_reduction, group, tau_scale
        As in :class:`~imbalanced_losses.SmoothAPLoss`.
    recall, threshold_gradient
        As in :class:`PrecisionAtRecallLoss`.

    Examples
    --------
    >>> import torch
    >>> loss_fn = FPRAtRecallLoss(num_classes=1, recall=0.8)
    >>> logits = torch.tensor([3.0, 2.0, 1.0, 0.0], requires_grad=True)
    >>> loss = loss_fn(logits, torch.tensor([1, 0, 1, 0]))
    >>> loss.backward()
    >>> round(loss.item(), 4), loss_fn.diagnostics()["threshold"]
    (0.5, tensor([1.]))
    """

    def __init__(
        self,
        num_classes: int,
        recall: float = 0.8,
        queue_size: int = 1024,
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
        threshold_gradient: Literal["stop", "implicit"] = "implicit",
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
        tau_scale: TauScale = "none",
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None = None,
        return_per_class: bool = False,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Give the loss, or ``(loss, per_class [C] with nan at invalid classes, valid [C])``."""
        outputs = self._outputs(self._step(logits, targets, iid_mask, sample_weight, update_queue), return_per_class)
        return outputs if return_per_class else outputs[0]  # type: ignore[return-value]

    _objective = staticmethod(measure_fpr_at_recall)
    _exact = staticmethod(exact_fpr_at_recall)
