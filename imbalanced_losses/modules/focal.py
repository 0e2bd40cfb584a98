"""The focal losses as modules: configuration and value checks around the pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from imbalanced_losses.checks import (
    check_class_id_values,
    check_class_ids,
    check_element_targets,
    check_probability_values,
    check_weight_sequence,
    check_weight_values,
)
from imbalanced_losses.execution import can_read_values, is_traced
from imbalanced_losses.losses.focal import (
    SigmoidFocalConfig,
    SoftmaxFocalConfig,
    SoftmaxReduction,
    sigmoid_focal,
    softmax_focal,
)
from imbalanced_losses.modules._gathering import check_local
from imbalanced_losses.reductions import Reduction

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss"]


@final
class SigmoidFocalLoss(nn.Module):
    """Focal loss of independent binary decisions: :func:`~imbalanced_losses.sigmoid_focal` as a module.

    Parameters
    ----------
    alpha : float
        Weight of the label 1 in [0, 1], against ``1 - alpha`` of the label 0; -1 switches the weights off.
    gamma : float
        At least 0; 0 is binary cross-entropy.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: by the mass) of elements that are not ignored.
    ignore_index : int, optional
        Elements with this target take no part.
    gather_distributed : bool, optional
        Gather over all ranks: ``None`` where a process group is there, ``False`` never, ``True`` always. This version
        cannot gather yet: with several ranks it takes ``False`` only.
    validate_targets : bool
        Check the values of targets and weights in eager mode, at the cost of a device synchronisation.

    Raises
    ------
    ValueError, TypeError
        At construction, if a setting is out of range; at the call, if an input has the wrong shape, dtype, device or
        values.

    Examples
    --------
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
    ) -> None:
        super().__init__()
        self.config = SigmoidFocalConfig(alpha=alpha, gamma=gamma, reduction=reduction, ignore_index=ignore_index)
        self.gather_distributed = gather_distributed
        self.validate_targets = validate_targets

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Give the loss: 0-dim or, with ``reduction="none"``, of the inputs' shape."""
        check_local(self.gather_distributed)
        if not is_traced():
            if self.validate_targets and can_read_values(targets):
                check_probability_values(check_element_targets(targets, inputs), self.config.ignore_index)
            _check_weights(self.validate_targets, sample_weight)
        return sigmoid_focal(inputs, targets, self.config, sample_weight=sample_weight)

    def extra_repr(self) -> str:
        """Show the configuration in ``repr``."""
        return _show(self.config)


@final
class SoftmaxFocalLoss(nn.Module):
    """Focal loss of one decision between C classes: :func:`~imbalanced_losses.softmax_focal` as a module.

    Parameters
    ----------
    alpha : sequence of C floats or Tensor [C], optional
        Non-negative class weights. They are the buffer ``alpha``, in the default dtype or that of a floating tensor.
    gamma : float
        At least 0; 0 is cross-entropy.
    reduction : {"mean", "sum", "none", "mean_positive"}
        ``"mean"`` divides by the number (with sample weights: by the mass) of positions that are not ignored, also with
        ``alpha``; ``"mean_positive"`` by that of positions that are not of ``background_class`` either (RetinaNet).
    ignore_index : int
        Positions with this target take no part.
    background_class : int
        The class that ``"mean_positive"`` does not count.
    label_smoothing : float
        In [0, 1], as in ``torch.nn.functional.cross_entropy``.
    gather_distributed, validate_targets
        As in :class:`SigmoidFocalLoss`.

    Raises
    ------
    ValueError, TypeError
        As in :class:`SigmoidFocalLoss`.

    Examples
    --------
    >>> loss_fn = SoftmaxFocalLoss(alpha=[0.2, 0.8])
    >>> round(loss_fn(torch.tensor([[0.0, 0.0], [3.0, -3.0]]), torch.tensor([1, 0])).item(), 4)
    0.0693
    """

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
    ) -> None:
        super().__init__()
        settings = SoftmaxFocalConfig(
            alpha=_as_tuple(alpha),
            gamma=gamma,
            reduction=reduction,
            ignore_index=ignore_index,
            background_class=background_class,
            label_smoothing=label_smoothing,
        )
        self.register_buffer("alpha", _as_buffer(alpha, settings.alpha))
        self._settings = dataclasses.replace(settings, alpha=None)  # the buffer's are the class weights that count
        self.gather_distributed = gather_distributed
        self.validate_targets = validate_targets

    @property
    def config(self) -> SoftmaxFocalConfig:
        """The configuration with the class weights of the buffer, for :func:`~imbalanced_losses.softmax_focal`."""
        return dataclasses.replace(self._settings, alpha=_as_tuple(self.alpha))

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Give the loss: 0-dim or, with ``reduction="none"``, of the targets' shape."""
        check_local(self.gather_distributed)
        if not is_traced():
            if self.validate_targets and can_read_values(targets):
                check_class_ids(targets, inputs)
                check_class_id_values(targets, inputs.shape[1], self._settings.ignore_index)
            _check_weights(self.validate_targets, sample_weight)
        return softmax_focal(inputs, targets, self._settings, alpha=self.alpha, sample_weight=sample_weight)

    def extra_repr(self) -> str:
        """Show the configuration in ``repr``."""
        return _show(self.config)


def _as_tuple(alpha: Tensor | Sequence[float] | None) -> tuple[float, ...] | None:
    return None if alpha is None else check_weight_sequence("alpha", alpha)


def _as_buffer(alpha: Tensor | Sequence[float] | None, values: tuple[float, ...] | None) -> Tensor | None:
    if isinstance(alpha, Tensor) and alpha.is_floating_point():
        return alpha.detach().clone()
    return None if values is None else torch.tensor(values)


def _check_weights(validate: bool, sample_weight: Tensor | None) -> None:
    if validate and sample_weight is not None and can_read_values(sample_weight):
        check_weight_values(sample_weight)


def _show(config: SigmoidFocalConfig | SoftmaxFocalConfig) -> str:
    return ", ".join(f"{name}={getattr(config, name)!r}" for name in config.__dataclass_fields__)
