"""What class counts say about training: weights for a loss, and the bias that a last layer starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from imbalanced_losses.dispatch import can_read_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.label_values import check_weight_values
from imbalanced_losses.settings import (
    check_choice,
    check_flag,
    check_module,
    check_number,
    check_prior_sequence,
    check_share_sequence,
    described,
    plain,
)

__all__ = ["Scheme", "class_weights", "pos_weight", "prior_bias_", "relative_weights"]

Layer = TypeVar("Layer", bound=nn.Module)
Scheme = Literal["balanced", "sqrt", "effective"]

# What a share below it is taken for when a bias starts at its log odds: at most 13.8, from which training can return.
LEAST_SHARE = 1e-6
# What a count between 0 and it is taken for, so that every scheme stays finite.
LEAST_COUNT = 1e-30


def class_weights(counts: Tensor | Sequence[float], scheme: Scheme = "balanced", beta: float = 0.999) -> Tensor:
    r"""Weights of classes that were seen :math:`n_c` times of :math:`n`, for cross-entropy and the focal losses.

    .. math::
        w_c = \frac{n}{C n_c} \;\text{(balanced)}, \qquad
        w_c = \sqrt{\frac{n}{C n_c}} \;\text{(sqrt)}, \qquad
        w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \; \sum_c w_c = C \;\text{(effective)}

    Parameters
    ----------
    counts : Tensor [C] or sequence of C numbers
        Number (or total sample weight) of training rows of each class: non-negative, finite.
    scheme : {"balanced", "sqrt", "effective"}
        ``"balanced"`` gives every class the same total weight, and is scikit-learn's ``class_weight="balanced"``: the
        mean weight of a training row is 1. ``"sqrt"`` lies between it and no weights. ``"effective"`` weighs by the
        effective number of samples, :math:`E_c = (1 - \beta^{n_c}) / (1 - \beta)`, beyond which new rows repeat old
        ones; the weights of the classes sum to C.
    beta : float in [0, 1)
        For ``"effective"``: 0 gives equal weights, and near 1 they are in proportion to those of ``"balanced"``.
        :math:`1 / (1 - \beta)` is the largest effective number.

    Returns
    -------
    Tensor [C]
        In the default dtype, float32 or wider, on the device of ``counts``. A class with count 0 has the weight 1, and
        the others are weighted as if it were not there. Cost: O(C).

    Raises
    ------
    ValueError, TypeError
        If an argument has the wrong type, shape or value. Values of tensors are checked where they can be read.

    Notes
    -----
    The scale of the weights matters where a mean does not divide by them. ``torch.nn.CrossEntropyLoss(weight=w)``
    divides, :class:`~imbalanced_losses.SoftmaxFocalLoss` with ``alpha=w`` does not.

    References
    ----------
    Cui, Jia, Lin, Song, Belongie. Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019, eqs. 4 and 5.

    Examples
    --------
    >>> from imbalanced_losses import SoftmaxFocalLoss
    >>> class_weights([90, 10])
    tensor([0.5556, 5.0000])
    >>> class_weights(torch.bincount(torch.tensor([0, 0, 0, 0, 2])), "sqrt")  # no row of class 1
    tensor([0.7906, 1.0000, 1.5811])
    >>> loss_fn = SoftmaxFocalLoss(alpha=class_weights([5000, 50], "effective"))
    """
    n = _parse_counts("counts", counts)
    if n.dim() != 1:
        raise ValueError(f"expected counts of shape [C], got {list(n.shape)}")
    return _finite(relative_weights(n, scheme, beta))


def relative_weights(n: Tensor, scheme: Scheme, beta: float) -> Tensor:
    """:func:`class_weights` in the dtype of ``n [C]``, which is not read."""
    inverse, seen = _inverse_counts(n, scheme, beta), n > 0
    num_seen = seen.sum()
    if scheme == "effective":
        total = torch.where(seen, inverse, 0).sum()
        weights = inverse / torch.where(num_seen > 0, total, 1) * num_seen
    else:
        mean = n.sum() / num_seen.clamp_min(1)
        weights = inverse * (mean if scheme == "balanced" else mean.sqrt())
    return torch.where(seen, weights, 1)


def pos_weight(
    positives: Tensor | Sequence[float] | float,
    negatives: Tensor | Sequence[float] | float,
    scheme: Scheme = "balanced",
    beta: float = 0.999,
) -> Tensor:
    r"""Weight of the label 1 for ``torch.nn.BCEWithLogitsLoss(pos_weight=...)``, relative to the label 0.

    The ratio of the two :func:`class_weights`. With :math:`n_1` positives and :math:`n_0` negatives,

    .. math::
        \frac{n_0}{n_1} \;\text{(balanced)}, \qquad
        \sqrt{\frac{n_0}{n_1}} \;\text{(sqrt)}, \qquad
        \frac{1 - \beta^{n_0}}{1 - \beta^{n_1}} \;\text{(effective)}

    Parameters
    ----------
    positives, negatives : Tensor [C] or sequence of C numbers, or a number
        Number (or total sample weight) of the labels 1 and 0 of each class: non-negative, finite.
    scheme, beta
        As in :func:`class_weights`.

    Returns
    -------
    Tensor [C], or [] for numbers
        In the default dtype, float32 or wider. 1 for a class without positives or without negatives. Cost: O(C).

    Raises
    ------
    ValueError, TypeError
        As in :func:`class_weights`.

    Notes
    -----
    ``w / (1 + w)`` is the same ratio as ``alpha`` of :class:`~imbalanced_losses.SigmoidFocalLoss`, one number, where
    the label 0 has ``1 - alpha``. The focal factor already takes weight from easy negatives, so that the best ``alpha``
    is smaller: Lin et al. found 0.25 with ``gamma=2``.

    Examples
    --------
    >>> from imbalanced_losses import SigmoidFocalLoss
    >>> pos_weight([10, 50], [990, 950])
    tensor([99., 19.])
    >>> weight = pos_weight(10, 990, "sqrt")
    >>> loss_fn = SigmoidFocalLoss(alpha=weight / (1 + weight), gamma=1.0)
    """
    ones, zeros = _parse_counts("positives", positives), _parse_counts("negatives", negatives)
    if ones.shape != zeros.shape:
        raise ValueError(f"expected negatives of shape {list(ones.shape)} like positives, got {list(zeros.shape)}")
    if ones.device != zeros.device:
        raise ValueError(f"expected negatives on {ones.device} like positives, got {zeros.device}")
    ratio = _inverse_counts(ones, scheme, beta) / _inverse_counts(zeros, scheme, beta)
    return _finite(torch.where((ones > 0) & (zeros > 0), ratio, 1))


@torch.no_grad()
def prior_bias_(layer: Layer, counts: Tensor | Sequence[float] | float, *, multilabel: bool = False) -> Layer:
    r"""Set the bias of a last layer to the log odds of the classes, in place: the model starts at the base rates.

    .. math:: b_c = \log \pi_c \;\text{(exclusive classes)}, \qquad b_c = \log \frac{\pi_c}{1 - \pi_c}
        \;\text{(binary, multi-label)}

    A model with few positives then spends its first steps on what distinguishes them, and not on finding out that they
    are few.

    Parameters
    ----------
    layer : nn.Module
        Its parameter ``bias`` has one element for each class: ``nn.Linear``, ``nn.Conv2d``, ...
    counts : Tensor [C], sequence of C numbers, or a number
        As the ``priors`` of :class:`~imbalanced_losses.LogitAdjustedLoss`. Exclusive classes: counts or shares. One
        output: the counts of the labels 0 and 1, or the share of positives. ``multilabel``: the share of positives of
        each class, such as ``class_priors(counts)``. A share below 1e-6 (or above 1 - 1e-6) is taken for that, so that
        a class without rows starts at a bias of -13.8.
    multilabel : bool
        Each output is a decision of its own.

    Returns
    -------
    nn.Module
        The same layer. Cost: O(C).

    Raises
    ------
    ValueError, TypeError
        If the layer has no bias, one of another size, or one without values (on ``meta``, lazy, sharded), or the counts
        do not fit. The layer is unchanged then.

    References
    ----------
    Lin, Goyal, Girshick, He, Dollar. Focal Loss for Dense Object Detection. ICCV 2017, section 4.1.

    Examples
    --------
    >>> prior_bias_(torch.nn.Linear(16, 1), [990, 10]).bias.detach().sigmoid()
    tensor([0.0100])
    >>> prior_bias_(torch.nn.Linear(16, 3), [700, 200, 100]).bias.detach().softmax(0)
    tensor([0.7000, 0.2000, 0.1000])
    """
    bias = _find_bias(layer)
    num_classes = len(bias)
    independent = check_flag("multilabel", multilabel) or num_classes == 1
    given = check_share_sequence("counts", counts)
    if not independent or len(given) != num_classes:  # counts, which are divided by their sum
        given = check_prior_sequence("counts", given)
    shares = torch.tensor(given, dtype=torch.float64, device="cpu")
    if list(shares.shape) != [num_classes] and not (num_classes == 1 and len(shares) == 2):
        expected = (
            f"{num_classes} counts, one for each output of the layer" if num_classes > 1 else "1 share or 2 counts"
        )
        raise ValueError(f"expected {expected}, got {len(shares)}")
    if not independent:
        bias.copy_((shares / shares.sum()).clamp_min(LEAST_SHARE).log())
        return layer
    if num_classes == 1 and len(shares) == 2:
        shares = shares[1:] / shares.sum()
    if shares.amax() > 1:
        remedy = "divide the number of positives by the number of labels"
        raise ValueError(f"expected the share of positives in [0, 1], got {shares.amax().item()}: {remedy}")
    bias.copy_(shares.clamp(LEAST_SHARE, 1 - LEAST_SHARE).logit())
    return layer


def _parse_counts(name: str, counts: Tensor | Sequence[float] | float) -> Tensor:
    """Return counts in a wide dtype, after a check of the values if they can be read."""
    if not isinstance(counts, Tensor):
        values: Any = getattr(counts, "tolist", lambda: counts)()  # also turns NumPy numbers into Python's
        if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
            checked: float | list[float] = [check_number(f"every count in {name}", value) for value in values]
        elif plain(counts) is not counts or isinstance(counts, (int, float)):
            checked = check_number(name, values)
        else:
            raise TypeError(
                f"expected {name} to be a number, a sequence of numbers or a Tensor, got {described(counts)}"
            )
        counts = torch.tensor(checked, dtype=accumulation_dtype(torch.get_default_device()))
    if counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"expected {name} of a real dtype, got {counts.dtype}")
    if can_read_values(counts):
        check_weight_values(counts, name)
    return counts.detach().to(accumulation_dtype(counts.device))


def _inverse_counts(n: Tensor, scheme: Scheme, beta: float) -> Tensor:
    """What a scheme divides by, inverted; 1 where the count is 0."""
    check_choice("scheme", scheme, get_args(Scheme))
    beta = check_number("beta", beta)
    if not 0 <= beta < 1:
        raise ValueError(f"expected beta in [0, 1), got {beta}: 0.999 if about 1000 rows of a class are distinct")
    n = torch.where(n > 0, n.clamp_min(LEAST_COUNT), 1)
    if scheme == "balanced":
        return 1 / n
    if scheme == "sqrt":
        return n.rsqrt()
    log_beta = torch.full_like(n, beta).log()
    return (beta - 1) / torch.expm1(n * log_beta)


def _finite(weights: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return weights.clamp_max(torch.finfo(dtype).max).to(dtype)


def _find_bias(layer: nn.Module) -> Tensor:
    """The parameter ``bias [C]`` of a plain layer."""
    check_module("layer", layer)
    bias = layer._parameters.get("bias")
    if bias is None:
        remedy = "pass the last layer itself, made with bias=True"
        raise ValueError(f"expected a layer with a parameter `bias`, got {type(layer).__name__} without: {remedy}")
    if is_lazy(bias):
        raise ValueError("expected a bias of known size, got a lazy one: pass a batch through the model first")
    if bias.is_meta:
        raise ValueError("expected a bias with values, got one on meta: call prior_bias_ after layer.to_empty()")
    if type(bias.data) is not Tensor:
        kind = type(bias.data).__name__
        raise TypeError(f"expected a plain tensor as bias, got a {kind}: call prior_bias_ before the model is sharded")
    if bias.dim() != 1 or not bias.is_floating_point():
        raise ValueError(f"expected a floating-point bias of shape [C], got {described(bias.detach())}")
    return bias
