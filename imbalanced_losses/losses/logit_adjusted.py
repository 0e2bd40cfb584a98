"""Logit-adjusted cross-entropy: class frequencies move and scale the logits during training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final, get_args

import torch
from torch import Tensor

from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.losses._cross_entropy import ChangedLogits, ParsedTargets, compare, parse_label_targets
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_flag,
    check_fraction,
    check_ignore_index,
    check_nonnegative,
    check_prior_sequence,
    optional,
)
from imbalanced_losses.validation import check_class_priors

__all__ = ["LogitAdjustedConfig", "adjust", "logit_adjusted"]

# What a prior or count of 0 is taken for, so that its logarithm is finite.
LEAST_PRIOR = 1e-12


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogitAdjustedConfig:
    """Configuration of :func:`logit_adjusted`.

    Parameters
    ----------
    priors : sequence of C floats, optional
        How frequent each class is; kept as a tuple. Between exclusive classes only ratios count, so that class counts
        and priors mean the same. For binary logits: the share of positives, or the counts of the labels 0 and 1. With
        ``multilabel``: the share of positives of each class. A prior or count below 1e-12 is taken for 1e-12.
    tau : float
        At least 0. Strength of the additive term; 0 switches it off.
    gamma : float
        At least 0. Strength of the multiplicative term; 0 switches it off.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of targets that are not ignored.
    ignore_index : int
        Targets that take no part and get zero gradient.
    label_smoothing : float
        In [0, 1], as in ``torch.nn.functional.cross_entropy``; for exclusive classes only.
    multilabel : bool
        Each logit is a decision of its own, with a label in [0, 1].
    """

    priors: tuple[float, ...] | None = None
    tau: float = 1.0
    gamma: float = 0.0
    reduction: Reduction = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    multilabel: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            priors=optional(check_prior_sequence),
            tau=check_nonnegative,
            gamma=check_nonnegative,
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=check_ignore_index,
            label_smoothing=check_fraction,
            multilabel=check_flag,
        )
        if self.multilabel and self.label_smoothing > 0:
            raise ValueError(
                f"expected label_smoothing=0 with multilabel=True, got {self.label_smoothing}: smooth the targets, "
                "which may be any in [0, 1]"
            )
        if self.priors is not None and (self.multilabel or len(self.priors) == 1) and max(self.priors) > 1:
            raise ValueError(
                f"expected the share of positives in [0, 1] as priors, got {max(self.priors)}: divide the number of "
                "positives by the number of labels"
            )


def logit_adjusted(
    logits: Tensor,
    targets: Tensor,
    cfg: LogitAdjustedConfig,
    *,
    priors: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of logits adjusted by the class frequencies: the vector-scaling (VS) loss.

    Between exclusive classes with priors :math:`\pi`, and the target class :math:`y`,

    .. math::
        \ell = -\log \frac{\exp(\Delta_y z_y + \iota_y)}{\sum_j \exp(\Delta_j z_j + \iota_j)}, \qquad
        \iota_j = \tau \log \pi_j, \quad \Delta_j = (\pi_j / \max_k \pi_k)^\gamma

    For a binary decision with the share of positives :math:`\pi` and the label :math:`y`,

    .. math::
        \ell = \mathrm{CE}\Big(y,\ \sigma\big(\Delta_y s + \tau \log \tfrac{\pi}{1 - \pi}\big)\Big), \qquad
        \Delta_1 = \Big(\frac{\pi}{m}\Big)^\gamma, \quad \Delta_0 = \Big(\frac{1 - \pi}{m}\Big)^\gamma, \quad
        m = \max(\pi, 1 - \pi)

    Labels between 0 and 1 interpolate :math:`\Delta` linearly. Train with the adjustment, predict without it: the raw
    logits then rank classes as if all were equally frequent. Cases: :math:`\gamma = 0` is logit adjustment,
    :math:`\gamma = 0, \tau = 1` balanced softmax, :math:`\tau = 0` the class-dependent temperatures (CDT) loss, and
    :math:`\gamma = \tau = 0` cross-entropy.

    Parameters
    ----------
    logits : Tensor [N, C, ...], any floating dtype
        Raw scores. Binary if C is 1 or the shape is [N]. Arithmetic runs in float32 (float64 for float64 logits), also
        under autocast.
    targets : Tensor [N, ...], integer; or Tensor of the logits' shape, any real dtype
        Class ids in [0, C), or ``cfg.ignore_index``. For binary logits and with ``cfg.multilabel``: labels in [0, 1]
        of the logits' shape, or ``cfg.ignore_index``; beside binary logits [N, 1, ...] also [N, ...].
    cfg : LogitAdjustedConfig
    priors : Tensor [C], optional
        Overrides ``cfg.priors``: for what already is on the device, or changes during training, such as
        ``class_priors(counts)``. Binary: [1], or [2] for the labels 0 and 1. It carries no gradient.
    sample_weight : Tensor [N], or one that broadcasts to the targets' shape with a first axis of N, optional
        Weights of rows or of elements: non-negative, finite. Means divide by what each counted element weighs. It
        carries no gradient.

    Returns
    -------
    Tensor [] or, with ``reduction="none"``, of the targets' shape
        Binary and multi-label: of the logits' shape. Not finite if a logit is not, unless its target is ignored; but a
        logit of ``-inf`` rules its class out of the softmax, as in ``torch.nn.functional.cross_entropy``. 0 if there is
        nothing to count.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit, or there are no priors. Values of targets, weights and ``priors`` are
        checked by the module shell.

    Notes
    -----
    Cost: O(1) per logit.

    References
    ----------
    Menon, Jayasumana, Rawat, Jain, Veit, Kumar. Long-tail learning via logit adjustment. ICLR 2021, eq. 10.
    Kini, Paraskevas, Oymak, Thrampoulidis. Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization. NeurIPS 2021: the VS loss, its binary form and the choice of its parameters.

    Examples
    --------
    >>> from imbalanced_losses import LogitAdjustedConfig, logit_adjusted
    >>> cfg = LogitAdjustedConfig(priors=(900, 100), reduction="none")
    >>> logit_adjusted(torch.zeros(2, 2), torch.tensor([0, 1]), cfg)  # -log 0.9, -log 0.1
    tensor([0.1054, 2.3026])
    >>> logit_adjusted(torch.zeros(2), torch.tensor([0, 1]), cfg)  # one logit
    tensor([0.1054, 2.3026])
    """
    check_config(cfg, LogitAdjustedConfig)
    parsed = parse_label_targets(logits, targets, multilabel=cfg.multilabel)
    return adjust(logits, parsed, cfg, priors).reduced(sample_weight, cfg.reduction)


def adjust(logits: Tensor, parsed: ParsedTargets, cfg: LogitAdjustedConfig, priors: Tensor | None) -> ChangedLogits:
    """Return the adjusted logits, whose cross-entropy with the targets is the loss."""
    if parsed.binary and cfg.label_smoothing > 0:
        raise ValueError("expected label_smoothing=0 for binary logits, got more: smooth the targets, any in [0, 1]")
    if priors is None and cfg.priors is None:
        raise ValueError("expected priors, got none: give class counts or shares to the config, or priors= to the call")
    dtype = compute_dtype(logits)
    if priors is None:
        priors = torch.tensor(cfg.priors, dtype=dtype, device=logits.device)
    priors = check_class_priors("priors", priors, logits).to(dtype)
    targets = parsed.converted(dtype)
    if parsed.binary:
        z = _adjust_binary(logits.to(dtype), targets, priors, cfg)
    else:
        z = _adjust_softmax(logits, priors, cfg)
    return compare(z, targets, parsed, cfg.ignore_index, cfg.label_smoothing)


def _adjust_softmax(logits: Tensor, priors: Tensor, cfg: LogitAdjustedConfig) -> Tensor:
    priors = priors.clamp_min(LEAST_PRIOR)
    if logits.dim() > 2:
        priors = priors.reshape(-1, *[1] * (logits.dim() - 2))
    iota = priors.log()  # of counts it is larger by a constant, which softmax ignores
    if cfg.tau != 1:
        iota = cfg.tau * iota
    if cfg.gamma == 0:
        return logits + iota
    return torch.addcmul(iota, logits.to(iota.dtype), _power(priors / priors.amax(), cfg.gamma))


def _adjust_binary(s: Tensor, labels: Tensor, priors: Tensor, cfg: LogitAdjustedConfig) -> Tensor:
    pi, rest = priors.clamp_min(LEAST_PRIOR), (1 - priors).clamp_min(LEAST_PRIOR)
    if len(priors) == 2 and (s.dim() == 1 or s.shape[1] == 1):  # of the labels 0 and 1
        rest, pi = pi.unbind()
    elif s.dim() > 1:
        pi, rest = (share.reshape(-1, *[1] * (s.dim() - 2)) for share in (pi, rest))
    iota = cfg.tau * (pi / rest).log()
    if cfg.gamma == 0:
        return s + iota
    largest = torch.maximum(pi, rest)
    of_zeros, of_ones = _power(rest / largest, cfg.gamma), _power(pi / largest, cfg.gamma)
    return torch.addcmul(iota, s, torch.addcmul(of_zeros, labels, of_ones - of_zeros))


def _power(ratio: Tensor, gamma: float) -> Tensor:
    """``ratio^gamma``, above 0 so that an infinite logit stays infinite."""
    return ratio.pow(gamma).clamp_min(torch.finfo(ratio.dtype).tiny)
