"""The asymmetric loss: focal terms with separate exponents for the labels 1 and 0, and a margin for easy negatives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final, get_args

from torch import Tensor

from imbalanced_losses.kernels.asymmetric import Asymmetric
from imbalanced_losses.reductions import Elements, Reduction, reduce_elements
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_fraction,
    check_ignore_index,
    check_nonnegative,
    optional,
)
from imbalanced_losses.validation import check_element_targets, check_element_weights

__all__ = ["AsymmetricConfig", "asymmetric", "asymmetric_elements"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AsymmetricConfig:
    """Configuration of :func:`asymmetric`.

    Parameters
    ----------
    gamma_pos : float
        At least 0. Focusing exponent of the label 1; the paper uses 0 and 1.
    gamma_neg : float
        At least 0. Focusing exponent of the label 0.
    margin : float
        In [0, 1]. Negatives with a probability up to this have a loss and gradient of 0; 0 switches it off.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with weights: by their total weight) of elements that are not ignored.
    ignore_index : int, optional
        Elements with this target take no part and get zero gradient.
    """

    gamma_pos: float = 1.0
    gamma_neg: float = 4.0
    margin: float = 0.05
    reduction: Reduction = "mean"
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            gamma_pos=check_nonnegative,
            gamma_neg=check_nonnegative,
            margin=check_fraction,
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=optional(check_ignore_index),
        )


def asymmetric(
    logits: Tensor, targets: Tensor, cfg: AsymmetricConfig, *, sample_weight: Tensor | None = None
) -> Tensor:
    r"""Asymmetric loss (ASL) of independent binary decisions, for multi-label targets with few positives.

    With :math:`p = \sigma(z)`, the label :math:`y` and the margin :math:`m`,

    .. math::
        \ell = -y\, (1 - p)^{\gamma_+} \log p - (1 - y)\, p_m^{\gamma_-} \log(1 - p_m), \qquad
        p_m = \max(p - m, 0)

    The exponents focus on hard elements separately for the labels 1 and 0. The margin removes easy negatives: where
    :math:`p \le m`, the loss of the label 0 and its gradient are 0. Labels between 0 and 1 mix both terms. The gradient
    is the derivative of this formula, also through the powers. :math:`\gamma_+ = \gamma_- = m = 0` is binary
    cross-entropy; :math:`m = 0` and equal exponents give, for the labels 0 and 1, the focal loss without its weight.

    Parameters
    ----------
    logits : Tensor of any shape [N, ...], any floating dtype
        Raw scores. Arithmetic runs in float32 (float64 for float64 logits), also under autocast.
    targets : Tensor of the logits' shape, any real dtype
        Labels in [0, 1], or ``cfg.ignore_index``.
    cfg : AsymmetricConfig
    sample_weight : Tensor [N], or one that broadcasts to the logits' shape with a first axis of N, optional
        Weights of rows or of elements, such as [N, 1] beside [N, C]: non-negative, finite. Means divide by what each
        counted element weighs. It carries no gradient.

    Returns
    -------
    Tensor [] or, with ``reduction="none"``, of the logits' shape
        Not finite if a logit is not, unless its target is ignored. 0 if there is nothing to count.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of labels and weights are checked by the module shell.

    Notes
    -----
    Cost: O(1) per logit. In eager mode the backward of more than 2^20 logits keeps ``logits`` and ``targets`` and
    recomputes the rest. At :math:`p = m` the second derivative exists for :math:`\gamma_- > 1`.

    References
    ----------
    Ben-Baruch, Ridnik, Zamir, Noy, Friedman, Protter, Zelnik-Manor. Asymmetric Loss For Multi-Label Classification.
    ICCV 2021, eq. 4 to 7.

    Examples
    --------
    >>> import torch
    >>> from imbalanced_losses import AsymmetricConfig, asymmetric
    >>> logits, targets = torch.tensor([0.0, 0.0, -3.0]), torch.tensor([1.0, 0.0, 0.0])
    >>> cfg = AsymmetricConfig(reduction="none")
    >>> asymmetric(logits, targets, cfg)  # 0.5 log 2, -0.45^4 log 0.55, and 0 for a probability below the margin
    tensor([0.3466, 0.0245, 0.0000])
    """
    loss_fn, targets, weights = _check(logits, targets, cfg, sample_weight)
    if cfg.reduction == "mean" and weights is None and (mean := loss_fn.fused_mean(logits, targets)) is not None:
        return mean
    return reduce_elements(loss_fn(logits, targets), loss_fn.counted(targets), weights, cfg.reduction)


def asymmetric_elements(
    logits: Tensor, targets: Tensor, cfg: AsymmetricConfig, *, sample_weight: Tensor | None = None
) -> Elements:
    """:func:`asymmetric` before its reduction."""
    loss_fn, targets, weights = _check(logits, targets, cfg, sample_weight)
    return loss_fn(logits, targets), loss_fn.counted(targets), weights


def _check(
    logits: Tensor, targets: Tensor, cfg: AsymmetricConfig, sample_weight: Tensor | None
) -> tuple[Asymmetric, Tensor, Tensor | None]:
    check_config(cfg, AsymmetricConfig)
    targets = check_element_targets(targets, logits)
    weights = None if sample_weight is None else check_element_weights("sample_weight", sample_weight, targets)
    return Asymmetric(cfg.gamma_pos, cfg.gamma_neg, cfg.margin, cfg.ignore_index), targets, weights
