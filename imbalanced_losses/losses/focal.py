"""The focal losses: cross-entropy times a power of the probability that the model gives to the wrong answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, final, get_args

import torch
from torch import Tensor

from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.kernels.sigmoid_focal import SigmoidFocal
from imbalanced_losses.kernels.softmax_focal import SoftmaxFocal
from imbalanced_losses.reductions import Elements, Reduction, reduce_elements
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_fraction,
    check_ignore_index,
    check_integer,
    check_nonnegative,
    check_number,
    check_weight_sequence,
    optional,
)
from imbalanced_losses.validation import (
    check_class_ids,
    check_class_weights,
    check_element_targets,
    check_element_weights,
    ids_in_range,
)

__all__ = [
    "SigmoidFocalConfig",
    "SoftmaxFocalConfig",
    "SoftmaxReduction",
    "sigmoid_focal",
    "sigmoid_focal_elements",
    "softmax_focal",
    "softmax_focal_elements",
]

SoftmaxReduction = Literal["mean", "sum", "none", "mean_positive"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidFocalConfig:
    """Configuration of :func:`sigmoid_focal`.

    Parameters
    ----------
    alpha : float
        Weight of the label 1 in [0, 1], against ``1 - alpha`` of the label 0; -1 switches the weights off.
    gamma : float
        At least 0. How fast well-classified elements lose influence; 0 is binary cross-entropy.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with weights: by their total weight) of elements that are not ignored.
    ignore_index : int, optional
        Elements with this target take no part and get zero gradient.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    reduction: Reduction = "mean"
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.alpha is None:
            raise TypeError("expected alpha to be a number, got None: use alpha=-1 to switch the weights off")
        check_fields(
            self,
            alpha=check_number,
            gamma=check_nonnegative,
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=optional(check_ignore_index),
        )
        if not (self.alpha == -1 or 0 <= self.alpha <= 1):
            raise ValueError(f"expected alpha in [0, 1], or -1 to switch it off, got {self.alpha}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxFocalConfig:
    """Configuration of :func:`softmax_focal`.

    Parameters
    ----------
    alpha : sequence of C floats, optional
        Non-negative class weights; kept as a tuple.
    gamma : float
        At least 0. How fast well-classified positions lose influence; 0 is cross-entropy.
    reduction : {"mean", "sum", "none", "mean_positive"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of positions that are not ignored, also
        with ``alpha``. ``"mean_positive"`` divides the same sum by the number (total weight) of those not of
        ``background_class``.
    ignore_index : int
        Positions with this target take no part and get zero gradient.
    background_class : int
        The class that ``"mean_positive"`` does not count.
    label_smoothing : float
        In [0, 1], as in ``torch.nn.functional.cross_entropy``.
    """

    alpha: tuple[float, ...] | None = None
    gamma: float = 2.0
    reduction: SoftmaxReduction = "mean"
    ignore_index: int = -100
    background_class: int = 0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            alpha=optional(check_weight_sequence),
            gamma=check_nonnegative,
            reduction=partial(check_choice, choices=get_args(SoftmaxReduction)),
            ignore_index=check_ignore_index,
            background_class=partial(check_integer, minimum=0),
            label_smoothing=check_fraction,
        )


def sigmoid_focal(
    logits: Tensor, targets: Tensor, cfg: SigmoidFocalConfig, *, sample_weight: Tensor | None = None
) -> Tensor:
    r"""Focal loss of independent binary decisions.

    With :math:`p = \sigma(z)` and the label :math:`y`,

    .. math::
        \ell = \alpha_t \lvert y - p \rvert^\gamma \,\mathrm{CE}, \qquad
        \alpha_t = y \alpha + (1 - y)(1 - \alpha), \quad
        \mathrm{CE} = -y \log p - (1 - y) \log(1 - p)

    For labels 0 and 1 this is the focal loss :math:`-\alpha_t (1 - p_t)^\gamma \log p_t`. For labels between them it is
    the quality focal loss: its minimum is at :math:`p = y`, and :math:`\gamma = 0` is binary cross-entropy.

    Parameters
    ----------
    logits : Tensor of any shape [N, ...], any floating dtype
        Raw scores. Arithmetic runs in float32 (float64 for float64 logits), also under autocast.
    targets : Tensor of the logits' shape, any real dtype
        Labels in [0, 1], or ``cfg.ignore_index``. What rounding takes a little out of [0, 1] counts as 0 or 1. They
        carry no gradient.
    cfg : SigmoidFocalConfig
    sample_weight : Tensor [N], or one that broadcasts to the targets' shape with a first axis of N, optional
        Weights of rows or of elements, such as [N, 1] beside [N, 4]: non-negative, finite. Means divide by what each
        counted element weighs. It carries no gradient.

    Returns
    -------
    Tensor [] or, with ``reduction="none"``, of the logits' shape
        Not finite if a logit is not, unless it is ignored. 0 if there is nothing to count.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of labels and weights are checked by the module shell.

    Notes
    -----
    Cost: O(1) per element. In eager mode the backward keeps ``logits`` and ``targets`` and recomputes the rest. On the
    CPU it can also keep terms of the forward of up to 2^20 logits, at most 13 MB in float32.

    References
    ----------
    Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017, eq. 5.
    Li, Wang, Wu, Chen, Hu, Li, Tang, Yang. Generalized Focal Loss. NeurIPS 2020: the quality focal loss.

    Examples
    --------
    >>> from imbalanced_losses import SigmoidFocalConfig, sigmoid_focal
    >>> logits, targets = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 0.0])
    >>> cfg = SigmoidFocalConfig(alpha=-1, reduction="none")
    >>> sigmoid_focal(logits, targets, cfg)  # 0.5^2 log 2, and little for the two that are right
    tensor([0.1733, 0.0227, 0.0227])
    """
    focal, targets, weights = _check_sigmoid(logits, targets, cfg, sample_weight)
    if cfg.reduction == "mean" and weights is None and (mean := focal.fused_mean(logits, targets)) is not None:
        return mean
    return reduce_elements(*_sigmoid_elements(focal, logits, targets, weights), cfg.reduction)


def sigmoid_focal_elements(
    logits: Tensor, targets: Tensor, cfg: SigmoidFocalConfig, *, sample_weight: Tensor | None = None
) -> Elements:
    """:func:`sigmoid_focal` before its reduction."""
    focal, targets, weights = _check_sigmoid(logits, targets, cfg, sample_weight)
    return _sigmoid_elements(focal, logits, targets, weights)


def _check_sigmoid(
    logits: Tensor, targets: Tensor, cfg: SigmoidFocalConfig, sample_weight: Tensor | None
) -> tuple[SigmoidFocal, Tensor, Tensor | None]:
    check_config(cfg, SigmoidFocalConfig)
    targets = check_element_targets(targets, logits)
    weights = None if sample_weight is None else check_element_weights("sample_weight", sample_weight, targets)
    return SigmoidFocal(cfg.alpha, cfg.gamma, cfg.ignore_index), targets, weights


def _sigmoid_elements(focal: SigmoidFocal, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Elements:
    loss = focal(logits, targets)
    return loss, focal.counted(targets), weights


def softmax_focal(
    logits: Tensor,
    targets: Tensor,
    cfg: SoftmaxFocalConfig,
    *,
    alpha: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Focal loss of one decision between C classes.

    With :math:`p = \mathrm{softmax}(z)`, the target class :math:`y` and the label smoothing :math:`\varepsilon`,

    .. math::
        \ell = (1 - p_y)^\gamma \Big[ -(1 - \varepsilon)\, \alpha_y \log p_y
        - \frac{\varepsilon}{C} \sum_c \alpha_c \log p_c \Big]

    The bracket is what ``torch.nn.functional.cross_entropy`` gives with ``weight=alpha`` and ``reduction="none"``.
    Unlike there, ``"mean"`` divides by the number of positions, not by the sum of their class weights.

    Parameters
    ----------
    logits : Tensor [N, C, ...], any floating dtype
        Raw scores. Arithmetic runs in float32 (float64 for float64 logits), also under autocast.
    targets : Tensor [N, ...], integer
        Class ids in [0, C), or ``cfg.ignore_index``.
    cfg : SoftmaxFocalConfig
    alpha : Tensor [C], optional
        Overrides ``cfg.alpha``: weights that already are on the device need no copy each step. It carries no gradient.
    sample_weight : Tensor [N], or one that broadcasts to the targets' shape with a first axis of N, optional
        Weights of rows or of positions, such as [N, 1, 1] beside [N, H, W]: non-negative, finite. Means divide by what
        each counted position weighs. It carries no gradient.

    Returns
    -------
    Tensor [] or, with ``reduction="none"``, [N, ...]
        As in ``torch.nn.functional.cross_entropy``, a logit of ``-inf`` rules its class out: it gets no gradient, and
        the loss is ``inf`` where it is the target's or, with label smoothing, any. A logit that is ``inf`` or nan shows
        as nan, unless its position is ignored. 0 if there is nothing to count.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of class ids and weights are checked by the module shell.

    Notes
    -----
    Cost: O(C) per position. In eager mode the backward keeps ``logits`` and ``targets`` and recomputes the rest. On the
    CPU it can also keep terms of the forward of up to 2^20 logits, at most 19 MB in float32.

    References
    ----------
    Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017, eq. 5.

    Examples
    --------
    >>> from imbalanced_losses import SoftmaxFocalConfig, softmax_focal
    >>> logits, targets = torch.tensor([[0.0, 0.0], [1.0, -1.0]]), torch.tensor([1, 0])
    >>> softmax_focal(logits, targets, SoftmaxFocalConfig(gamma=1.0, reduction="none"))  # 0.5 log 2, and little
    tensor([0.3466, 0.0151])
    """
    focal, targets, alpha, weights = _check_softmax(logits, targets, cfg, alpha, sample_weight)
    if cfg.reduction == "mean" and weights is None and (mean := focal.fused_mean(logits, targets, alpha)) is not None:
        return mean
    elements = _softmax_elements(focal, logits, targets, cfg, alpha, weights)
    return reduce_elements(*elements, "mean" if cfg.reduction == "mean_positive" else cfg.reduction)


def softmax_focal_elements(
    logits: Tensor,
    targets: Tensor,
    cfg: SoftmaxFocalConfig,
    *,
    alpha: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Elements:
    """:func:`softmax_focal` before its reduction."""
    focal, targets, alpha, weights = _check_softmax(logits, targets, cfg, alpha, sample_weight)
    return _softmax_elements(focal, logits, targets, cfg, alpha, weights)


def _check_softmax(
    logits: Tensor, targets: Tensor, cfg: SoftmaxFocalConfig, alpha: Tensor | None, sample_weight: Tensor | None
) -> tuple[SoftmaxFocal, Tensor, Tensor | None, Tensor | None]:
    check_config(cfg, SoftmaxFocalConfig)
    check_class_ids(targets, logits)
    if cfg.background_class >= logits.shape[1]:
        raise ValueError(f"expected background_class in [0, {logits.shape[1]}), got {cfg.background_class}")
    weights = None if sample_weight is None else check_element_weights("sample_weight", sample_weight, targets)
    focal = SoftmaxFocal(cfg.gamma, cfg.ignore_index, cfg.label_smoothing)
    targets = ids_in_range(targets, logits.shape[1], cfg.ignore_index)
    return focal, targets, _class_weights(logits, cfg, alpha), weights


def _softmax_elements(
    focal: SoftmaxFocal,
    logits: Tensor,
    targets: Tensor,
    cfg: SoftmaxFocalConfig,
    alpha: Tensor | None,
    weights: Tensor | None,
) -> Elements:
    loss = focal(logits, targets, alpha)
    counted = focal.counted(targets)
    if cfg.reduction == "mean_positive":
        counted = counted & (targets.long() != cfg.background_class)
    return loss, counted, weights


def _class_weights(logits: Tensor, cfg: SoftmaxFocalConfig, alpha: Tensor | None) -> Tensor | None:
    if alpha is None and cfg.alpha is None:
        return None
    dtype = compute_dtype(logits)
    weights = torch.tensor(cfg.alpha, dtype=dtype, device=logits.device) if alpha is None else alpha
    return check_class_weights("alpha", weights, logits).to(dtype)
