"""The focal losses as modules: the pure functions with settings and checks of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.label_values import check_class_id_values, check_probability_values
from imbalanced_losses.losses.focal import (
    SigmoidFocalConfig,
    SoftmaxFocalConfig,
    SoftmaxReduction,
    sigmoid_focal,
    sigmoid_focal_elements,
    softmax_focal,
    softmax_focal_elements,
)
from imbalanced_losses.modules._base import refuse_gradient
from imbalanced_losses.modules._elementwise import ElementwiseLoss, class_numbers
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.validation import check_class_ids, check_element_targets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss"]


@final
class SigmoidFocalLoss(ElementwiseLoss[SigmoidFocalConfig], config=SigmoidFocalConfig):
    """Focal loss of independent binary decisions: :func:`~imbalanced_losses.sigmoid_focal` as a module.

    Parameters
    ----------
    alpha : float
        Weight of the label 1, in [0, 1]; the label 0 has ``1 - alpha``. -1 switches the weights off.
    gamma : float
        At least 0; 0 is binary cross-entropy.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of elements that are not ignored.
    ignore_index : int, optional
        Elements with this target are ignored.
    gather_distributed : bool, optional
        Whether to reduce over the elements of all ranks, so that a step of W processes equals that of one process on
        all rows. ``None``: if a process group of several ranks is initialised; ``False``: never; ``True``: always
        (``RuntimeError`` without a group). With ``reduction="none"`` each rank returns its own elements, as torch's
        losses do. The average of the ranks' means is then the mean over all rows only if the ranks have equally many.
    validate_targets : bool
        Check the values of targets and weights in eager mode, at the cost of a device synchronisation.
    grad_reduction : {"mean", "sum"}
        How the training framework combines the ranks' gradients: DDP and FSDP average them, others may sum them.
    group : ProcessGroup, optional
        The process group to reduce over. Default: the default group.

    Raises
    ------
    ValueError, TypeError
        At construction, if a setting is out of range; at the call, if an input has the wrong shape, dtype, device or
        values.

    Examples
    --------
    >>> import torch
    >>> loss_fn = SigmoidFocalLoss()
    >>> round(loss_fn(torch.tensor([0.0, 3.0, -3.0]), torch.tensor([1.0, 1.0, 0.0])).item(), 4)
    0.0145
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: Reduction = "mean",
        ignore_index: int | None = None,
        gather_distributed: bool | None = None,
        *,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss: 0-dim or, with ``reduction="none"``, of the inputs' shape."""
        return self._reduced(sigmoid_focal, sigmoid_focal_elements, inputs, targets, sample_weight, single_label=False)

    def _check_values(self, inputs: Tensor, targets: Tensor) -> None:
        check_probability_values(check_element_targets(targets, inputs), self._config.ignore_index)


@final
class SoftmaxFocalLoss(ElementwiseLoss[SoftmaxFocalConfig], config=SoftmaxFocalConfig):
    """Focal loss of one decision between C classes: :func:`~imbalanced_losses.softmax_focal` as a module.

    Parameters
    ----------
    alpha : sequence of C floats or Tensor [C], optional
        Non-negative class weights, stored in the buffer ``alpha`` in the default dtype or that of a floating tensor.
    gamma : float
        At least 0; 0 is cross-entropy.
    reduction : {"mean", "sum", "none", "mean_positive"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of positions that are not ignored, also
        with ``alpha``. ``"mean_positive"`` divides by that of positions that are neither ignored nor of
        ``background_class`` (RetinaNet).
    ignore_index : int
        Positions with this target are ignored.
    background_class : int
        The class that ``"mean_positive"`` leaves out of the count.
    label_smoothing : float
        In [0, 1], as in ``torch.nn.functional.cross_entropy``.
    gather_distributed, validate_targets, grad_reduction, group
        As in :class:`SigmoidFocalLoss`.

    Raises
    ------
    ValueError, TypeError
        As in :class:`SigmoidFocalLoss`.

    Examples
    --------
    >>> import torch
    >>> loss_fn = SoftmaxFocalLoss(alpha=[0.2, 0.8])
    >>> round(loss_fn(torch.tensor([[0.0, 0.0], [3.0, -3.0]]), torch.tensor([1, 0])).item(), 4)
    0.0693
    """

    _buffer_fields: ClassVar[tuple[str, ...]] = ("alpha",)

    alpha: Tensor | None

    def __init__(
        self,
        alpha: Tensor | Sequence[float] | None = None,
        gamma: float = 2.0,
        reduction: SoftmaxReduction = "mean",
        ignore_index: int = -100,
        background_class: int = 0,
        label_smoothing: float = 0.0,
        gather_distributed: bool | None = None,
        *,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        refuse_gradient("alpha", alpha)
        super().__init__(locals())
        self.register_buffer("alpha", class_numbers(alpha, self._config.alpha))

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss: 0-dim or, with ``reduction="none"``, of the targets' shape."""
        return self._reduced(
            softmax_focal, softmax_focal_elements, inputs, targets, sample_weight, single_label=True, alpha=self.alpha
        )

    def _check_values(self, inputs: Tensor, targets: Tensor) -> None:
        check_class_ids(targets, inputs)
        check_class_id_values(targets, inputs.shape[1], self._config.ignore_index)
