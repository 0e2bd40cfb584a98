"""The soft F-beta loss as a module: configuration, and which pure functions stand behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.losses.soft_fbeta import SoftFBetaConfig, exact_soft_fbeta, measure_soft_fbeta
from imbalanced_losses.modules._ranking import RankingLoss
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.spread import TauScale

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["SoftFBetaLoss"]


@final
class SoftFBetaLoss(RankingLoss[SoftFBetaConfig], config=SoftFBetaConfig):
    """Soft F-beta loss (sigmoidF1) over the batch and a queue: :func:`~imbalanced_losses.soft_fbeta` as a module.

    Parameters
    ----------
    num_classes, queue_size, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`SmoothAPLoss`.
    max_pool_size, multilabel, validate_targets, grad_reduction, group, tau_scale
        As in :class:`SmoothAPLoss`.
    beta : float
        Above 0. Weight of recall against precision: 1 is F1, 2 counts missed positives four times.
    eta : float
        Offset of the sigmoid: scores above ``-eta`` are alerts.
    temperature : float
        Of the sigmoid that replaces the decision. Assign ``loss.temperature`` to change it.

    Examples
    --------
    >>> import torch
    >>> loss_fn = SoftFBetaLoss(num_classes=1, temperature=0.01)
    >>> logits = torch.tensor([3.0, 1.0, -1.0, -2.0], requires_grad=True)
    >>> loss = loss_fn(logits, torch.tensor([1, 0, 0, 1]))
    >>> round(loss.item(), 4)  # one true positive, one false, one missed
    0.5
    """

    def __init__(
        self,
        num_classes: int,
        beta: float = 1.0,
        eta: float = 0.0,
        queue_size: int = 1024,
        temperature: float = 1.0,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
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

    _objective = staticmethod(measure_soft_fbeta)
    _exact = staticmethod(exact_soft_fbeta)
