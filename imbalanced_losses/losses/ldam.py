"""The label-distribution-aware margin loss: cross-entropy with a larger margin for rarer classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import final, get_args

import torch
from torch import Tensor

from imbalanced_losses.class_weights import relative_weights
from imbalanced_losses.dispatch import holds_values
from imbalanced_losses.dtypes import accumulation_dtype, compute_dtype
from imbalanced_losses.losses._cross_entropy import ChangedLogits, ParsedTargets, compare, parse_label_targets
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_ignore_index,
    check_nonnegative,
    check_normal_number,
    check_number,
    check_prior_sequence,
    check_weight_sequence,
    optional,
)
from imbalanced_losses.validation import check_class_priors, check_tensor

__all__ = ["LDAMConfig", "deferred_weights", "enforce_margins", "ldam"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LDAMConfig:
    """Configuration of :func:`ldam`.

    Parameters
    ----------
    counts : sequence of C floats, optional
        Class counts, or shares: only ratios count. Kept as a tuple. For binary logits: of the labels 0 and 1. A class
        without examples gets the largest margin.
    max_margin : float
        At least 0. The margin of the rarest class; 0 is cross-entropy of the scaled logits.
    scale : float
        Above 0. Multiplies the logits less their margins.
    class_weights : sequence of C floats, optional
        Non-negative. Kept as a tuple.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of targets that are not ignored, also
        with ``class_weights``.
    ignore_index : int
        Targets that take no part and get zero gradient.
    """

    counts: tuple[float, ...] | None = None
    max_margin: float = 0.5
    scale: float = 30.0
    class_weights: tuple[float, ...] | None = None
    reduction: Reduction = "mean"
    ignore_index: int = -100

    def __post_init__(self) -> None:
        check_fields(
            self,
            counts=optional(check_prior_sequence),
            max_margin=check_nonnegative,
            scale=check_normal_number,
            class_weights=optional(check_weight_sequence),
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=check_ignore_index,
        )


def ldam(
    logits: Tensor,
    targets: Tensor,
    cfg: LDAMConfig,
    *,
    counts: Tensor | None = None,
    class_weights: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Label-distribution-aware margin (LDAM) loss: the target's logit has to win by a margin that grows with rarity.

    With class counts :math:`n`, scale :math:`s`, class weights :math:`w` (by default 1) and the target :math:`y`,

    .. math::
        \ell = -w_y \log \frac{\exp(s (z_y - \Delta_y))}{\exp(s (z_y - \Delta_y)) + \sum_{j \ne y} \exp(s z_j)}, \qquad
        \Delta_j = \frac{C}{n_j^{1/4}}

    where :math:`C` makes the largest margin ``max_margin``. A single logit :math:`z` is the difference of two, of the
    labels 1 and 0: :math:`\ell = w_1 \log(1 + e^{-s (z - \Delta_1)})` or :math:`w_0 \log(1 + e^{s (z + \Delta_0)})`.
    Labels between 0 and 1 interpolate weights and margins linearly. Predict with the raw logits.

    The paper's logits are cosines: features and the rows of the last layer have length 1, so that logits are in
    [-1, 1] and a margin of 0.5 and a scale of 30 suit them. Normalise both in the model. For other logits lower
    ``scale`` (1 for those of a plain linear layer) and choose ``max_margin`` in their units.

    Parameters
    ----------
    logits : Tensor [N, C, ...], any floating dtype
        Cosines or other raw scores. Binary if C is 1 or the shape is [N]. Arithmetic runs in float32 (float64 for
        float64 logits), also under autocast.
    targets : Tensor [N, ...], integer; or Tensor of the logits' shape, any real dtype
        Class ids in [0, C), or ``cfg.ignore_index``. For binary logits: labels in [0, 1] of the logits' shape, or
        ``cfg.ignore_index``; beside logits [N, 1, ...] also [N, ...].
    cfg : LDAMConfig
    counts : Tensor [C], optional
        Overrides ``cfg.counts``: for what already is on the device, or changes during training, such as the
        ``positives`` of :class:`~imbalanced_losses.ClassCounts`. Binary: [2], for the labels 0 and 1. No gradient.
    class_weights : Tensor [C], optional
        Overrides ``cfg.class_weights``, such as :func:`deferred_weights`. Binary: [2]. No gradient.
    sample_weight : Tensor [N], or one that broadcasts to the targets' shape with a first axis of N, optional
        Weights of rows or of elements: non-negative, finite. Means divide by what each counted element weighs. It
        carries no gradient.

    Returns
    -------
    Tensor [] or, with ``reduction="none"``, of the targets' shape
        Binary: of the logits' shape. Not finite if a logit is not, unless its target is ignored; but a logit of
        ``-inf`` rules its class out of the softmax, as in ``torch.nn.functional.cross_entropy``. 0 if there is nothing
        to count.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit, or there are no counts. Values of targets and weights are checked by
        the module shell.

    Notes
    -----
    Cost: O(1) per logit.

    References
    ----------
    Cao, Wei, Gaidon, Arechiga, Ma. Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss. NeurIPS
    2019, section 3.

    Examples
    --------
    >>> from imbalanced_losses import LDAMConfig, ldam
    >>> cosines, targets = torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.tensor([0, 1])
    >>> cfg = LDAMConfig(counts=(1600, 100), scale=2.0, reduction="none")  # margins 0.25 and 0.5
    >>> ldam(cosines, targets, cfg)  # log(1 + exp(-2 (0.5 - 0.25))) and log(2)
    tensor([0.4741, 0.6931])
    """
    check_config(cfg, LDAMConfig)
    parsed = parse_label_targets(logits, targets)
    return enforce_margins(logits, parsed, cfg, counts, class_weights).reduced(sample_weight, cfg.reduction)


def deferred_weights(progress: Tensor | float, counts: Tensor, start: float, beta: float = 0.9999) -> Tensor:
    r"""Class weights of deferred re-weighting (DRW): ones at first, later weights by the effective number of examples.

    .. math::
        w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}, \qquad \sum_j w_j = C

    from ``progress >= start`` on: :func:`~imbalanced_losses.class_weights` with ``scheme="effective"``. Train on all
    classes alike until the learning rate falls, then re-weight.

    Parameters
    ----------
    progress : float or Tensor []
        Epoch, step or share of the training; as a tensor it costs no compilation when it changes.
    counts : Tensor [C], any real dtype
        Class counts. A class without examples has the weight 1, and the others are weighted as if it were not there.
    start : float
        Where re-weighting starts, in the unit of ``progress``.
    beta : float
        In [0, 1). 0 gives equal weights; towards 1 they become inverse counts.

    Returns
    -------
    Tensor [C], float32 (float64 for float64 counts)
        For the ``class_weights`` of :func:`ldam`; also weights for ``torch.nn.functional.cross_entropy``.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or ``beta`` is out of range.

    Notes
    -----
    Cost: O(C). It runs under ``torch.compile`` and ``torch.func.vmap``.

    References
    ----------
    Cao et al., NeurIPS 2019, algorithm 1. Cui, Jia, Lin, Song, Belongie. Class-Balanced Loss Based on Effective Number
    of Samples. CVPR 2019, eq. 2.

    Examples
    --------
    >>> from imbalanced_losses import deferred_weights
    >>> counts = torch.tensor([900, 100])
    >>> deferred_weights(159, counts, start=160), deferred_weights(160, counts, start=160)
    (tensor([1., 1.]), tensor([0.2073, 1.7927]))
    """
    check_tensor("counts", counts)
    if counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"expected counts of a real dtype, got {counts.dtype}")
    if counts.dim() != 1:
        raise ValueError(f"expected counts of shape [C], got {list(counts.shape)}")
    start = check_number("start", start)
    if math.isnan(start):
        raise ValueError("expected start to be a number, got nan")
    wide = accumulation_dtype(counts.device)
    if not isinstance(progress, Tensor):
        progress = torch.full((), check_number("progress", progress), dtype=wide, device=counts.device)
    if progress.dim() != 0:
        raise ValueError(f"expected progress as a number or a 0-dim tensor, got shape {list(progress.shape)}")
    # in float64: compiled, torch's expm1 is exp(x) - 1 on the CPU, which has three digits left in float32
    weights = relative_weights(counts.detach().to(wide), "effective", beta).to(compute_dtype(counts))
    # not in int32, which would be compared in float32: 2^24 + 1 is 2^24 there
    return torch.where(progress.to(counts.device, wide) >= start, weights, 1)


def enforce_margins(
    logits: Tensor, parsed: ParsedTargets, cfg: LDAMConfig, counts: Tensor | None, class_weights: Tensor | None
) -> ChangedLogits:
    """Return the scaled logits less the margins, whose cross-entropy with the targets is the loss."""
    binary = parsed.binary
    counts = _numbers("counts", counts, cfg.counts, logits, binary)
    shift = _by_rarity(counts, -cfg.scale * cfg.max_margin, reads=parsed.reads and holds_values(counts))
    weights = None
    if class_weights is not None or cfg.class_weights is not None:
        weights = _numbers("class_weights", class_weights, cfg.class_weights, logits, binary)
    dtype = compute_dtype(logits)
    targets, z = parsed.converted(dtype), logits.to(dtype)
    if binary:
        of_zeros, of_ones = shift.unbind()
        shifts = torch.lerp(-of_zeros, of_ones, targets)
    else:
        classes = torch.arange(logits.shape[1], device=logits.device)
        if logits.dim() > 2:
            shift, classes = (tensor.reshape(-1, *[1] * (logits.dim() - 2)) for tensor in (shift, classes))
        shifts = (classes == targets.unsqueeze(1)) * shift
    return compare(torch.add(shifts, z, alpha=cfg.scale), targets, parsed, cfg.ignore_index, class_weights=weights)


def _numbers(
    name: str, given: Tensor | None, default: tuple[float, ...] | None, logits: Tensor, binary: bool
) -> Tensor:
    """Numbers of the classes ``[C]``, or of the labels 0 and 1."""
    if given is None and default is None:
        raise ValueError(f"expected {name}, got none: give them to the config, or {name}= to the call")
    dtype = compute_dtype(logits)
    numbers = torch.tensor(default, dtype=dtype, device=logits.device) if given is None else given
    if binary and isinstance(numbers, Tensor) and list(numbers.shape) != [2]:
        raise ValueError(f"expected {name} of shape [2], for the labels 0 and 1, got {list(numbers.shape)}")
    return check_class_priors(name, numbers, logits).to(dtype)


def _by_rarity(counts: Tensor, largest: float, *, reads: bool) -> Tensor:
    """``n_j^(-1/4)``, scaled so that it is ``largest`` for the rarest class with examples, and for those without."""
    if reads and (rarest := counts.amin().item()) > 0:  # half of the operators
        return counts.pow(-0.25) * (largest * math.sqrt(math.sqrt(rarest)))
    lowest = torch.where(counts > 0, counts, torch.finfo(counts.dtype).max).amin()
    return (lowest / torch.maximum(counts, lowest)).pow(0.25) * largest
