"""The label-distribution-aware margin loss as a module, with class counts and class weights in buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.losses._cross_entropy import ChangedLogits, parse_label_targets
from imbalanced_losses.losses.ldam import LDAMConfig, enforce_margins
from imbalanced_losses.modules._base import refuse_gradient
from imbalanced_losses.modules._elementwise import ChangedLogitsLoss, class_numbers
from imbalanced_losses.modules._gathering import reduce_over_ranks
from imbalanced_losses.reductions import Elements, Reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["LDAMLoss"]


@final
class LDAMLoss(ChangedLogitsLoss[LDAMConfig], config=LDAMConfig):
    """Label-distribution-aware margin (LDAM) loss: :func:`~imbalanced_losses.ldam` as a module.

    Parameters
    ----------
    counts : sequence of C floats or Tensor [C]
        Class counts, or shares: only ratios count. For binary logits those of the labels 0 and 1. Stored in the buffer
        ``counts``.
    max_margin : float
        At least 0. The margin of the rarest class.
    scale : float
        Above 0. Multiplies the logits less their margins. The default is for cosines: normalise features and weights.
    class_weights : sequence of C floats or Tensor [C], optional
        Non-negative, stored in the buffer ``class_weights``. For deferred re-weighting start with ones, so that the
        buffer is in every checkpoint, and assign those of :func:`~imbalanced_losses.deferred_weights` in each epoch.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of targets that are not ignored, also
        with ``class_weights``.
    ignore_index : int
        Targets with this value are ignored.
    gather_distributed, validate_targets, grad_reduction, group
        As in :class:`SigmoidFocalLoss`.

    Raises
    ------
    ValueError, TypeError
        As in :class:`SigmoidFocalLoss`.

    Examples
    --------
    >>> import torch
    >>> from imbalanced_losses import deferred_weights
    >>> counts = torch.tensor([900, 100])
    >>> loss_fn = LDAMLoss(counts, class_weights=torch.ones(2))
    >>> cosines, targets = torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1])
    >>> for epoch in (0, 160):
    ...     loss_fn.class_weights = deferred_weights(epoch, counts, start=160)
    ...     print(round(loss_fn(cosines, targets).item(), 2))
    16.5
    29.58
    """

    _buffer_fields: ClassVar[tuple[str, ...]] = ("counts", "class_weights")

    counts: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        counts: Tensor | Sequence[float],
        max_margin: float = 0.5,
        scale: float = 30.0,
        class_weights: Tensor | Sequence[float] | None = None,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        gather_distributed: bool | None = None,
        *,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        for name, value in (("counts", counts), ("class_weights", class_weights)):
            refuse_gradient(name, value)
        super().__init__(locals())
        self.register_buffer("counts", class_numbers(counts, self._config.counts))
        self.register_buffer("class_weights", class_numbers(class_weights, self._config.class_weights))

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss: 0-dim or, with ``reduction="none"``, one for each target."""
        ranks, reduction = self._find_ranks(), self._config.reduction
        if ranks is None or reduction == "none":
            return self._compared(inputs, targets, sample_weight).reduced(sample_weight, reduction)

        def elements() -> Elements:
            return self._compared(inputs, targets, sample_weight).elements(sample_weight)

        mean, single_label = reduction == "mean", isinstance(inputs, Tensor) and inputs.dim() > 1
        return reduce_over_ranks(ranks, self.grad_reduction, inputs, elements, mean=mean, single_label=single_label)

    def _compared(self, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None) -> ChangedLogits:
        parsed = parse_label_targets(inputs, targets)
        self._check_parsed(inputs, parsed, sample_weight)
        return enforce_margins(inputs, parsed, self._config, self.counts, self.class_weights)
