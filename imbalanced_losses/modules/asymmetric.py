"""The asymmetric loss as a module: the pure function with settings and checks of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.label_values import check_probability_values
from imbalanced_losses.losses.asymmetric import AsymmetricConfig, asymmetric, asymmetric_elements
from imbalanced_losses.modules._elementwise import ElementwiseLoss
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.validation import check_element_targets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["AsymmetricLoss"]


@final
class AsymmetricLoss(ElementwiseLoss[AsymmetricConfig], config=AsymmetricConfig):
    """Asymmetric loss (ASL) of independent binary decisions: :func:`~imbalanced_losses.asymmetric` as a module.

    Parameters
    ----------
    gamma_pos : float
        At least 0. Focusing exponent of the label 1; the paper uses 0 and 1.
    gamma_neg : float
        At least 0. Focusing exponent of the label 0.
    margin : float
        In [0, 1]. Negatives with a probability up to this have a loss and gradient of 0; 0 switches it off.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of elements that are not ignored.
    ignore_index : int, optional
        Elements with this target are ignored.
    gather_distributed, validate_targets, grad_reduction, group
        As in :class:`SigmoidFocalLoss`.

    Raises
    ------
    ValueError, TypeError
        As in :class:`SigmoidFocalLoss`.

    Examples
    --------
    >>> import torch
    >>> loss_fn = AsymmetricLoss()
    >>> logits, targets = torch.tensor([[0.0, -3.0, 1.0]]), torch.tensor([[1, 0, 0]])
    >>> round(loss_fn(logits, targets).item(), 4)
    0.1975
    """

    def __init__(
        self,
        gamma_pos: float = 1.0,
        gamma_neg: float = 4.0,
        margin: float = 0.05,
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
        return self._reduced(asymmetric, asymmetric_elements, inputs, targets, sample_weight, single_label=False)

    def _check_values(self, inputs: Tensor, targets: Tensor) -> None:
        check_probability_values(check_element_targets(targets, inputs), self._config.ignore_index)
