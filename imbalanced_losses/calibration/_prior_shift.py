"""A change of the class shares, without a new fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import accumulation_dtype, compute_dtype
from imbalanced_losses.settings import check_flag, check_prior_sequence
from imbalanced_losses.validation import check_class_priors, check_tensor

__all__ = ["prior_shift"]


def prior_shift(
    logits: Tensor,
    train_prior: Tensor | Sequence[float] | float,
    deploy_prior: Tensor | Sequence[float] | float,
    *,
    multilabel: bool = False,
) -> Tensor:
    r"""Logits for other class shares, if the rows of each class look the same.

    With the shares :math:`\pi` of the rows that the logits are calibrated for, and :math:`\pi'` in deployment,

    .. math::
        z'_c = z_c + \log \frac{\pi'_c}{\pi_c} \;\text{(exclusive classes)}, \qquad
        z'_c = z_c + \log \frac{\pi'_c}{1 - \pi'_c} - \log \frac{\pi_c}{1 - \pi_c} \;\text{(binary, multi-label)}

    It is exact for calibrated logits: shift those of :class:`PlattScaling` or :class:`TemperatureScaling`, or of a
    model trained with cross-entropy, not the scores of a ranking loss.

    Parameters
    ----------
    logits : Tensor [N, C, ...], any floating dtype
        Binary if C is 1 or the shape is [N]. Arithmetic runs in float32 (float64 for float64 logits).
    train_prior, deploy_prior : Tensor [C], sequence of C numbers, or a number
        How frequent each class is. Exclusive classes: counts or shares. Binary: the share of positives, or the counts
        of the labels 0 and 1. ``multilabel``: the share of positives of each class. Above 0, and shares of positives
        below 1. They carry no gradient.
    multilabel : bool
        Each logit is a decision of its own.

    Returns
    -------
    Tensor of the logits' shape
        In float32 or float64. Cost: O(1) per logit.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit, or a prior is out of range. Values of tensors are checked in eager
        mode on the CPU only.

    References
    ----------
    Saerens, Latinne, Decaestecker. Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple
    Procedure. Neural Computation 14, 2002, eq. 2.4.

    Examples
    --------
    >>> logits = torch.tensor([0.0])  # 50 %, where training rows were half positives
    >>> prior_shift(logits, train_prior=0.5, deploy_prior=0.01).sigmoid()
    tensor([0.0100])
    """
    check_tensor("logits", logits)
    if not logits.is_floating_point() or logits.dim() == 0:
        raise ValueError(f"expected floating-point logits [N, C, ...] or [N], got {logits.dtype} {list(logits.shape)}")
    binary = check_flag("multilabel", multilabel) or logits.dim() == 1 or logits.shape[1] == 1
    trained, deployed = (
        _log_prior(name, prior, logits, binary)
        for name, prior in (("train_prior", train_prior), ("deploy_prior", deploy_prior))
    )
    wide = logits.to(compute_dtype(logits))
    return wide + (deployed - trained).to(wide.dtype).reshape(-1, *[1] * max(0, logits.dim() - 2))


def _log_prior(name: str, prior: Any, logits: Tensor, binary: bool) -> Tensor:
    """Logarithms of the shares ``[C]``, or log odds."""
    dtype = accumulation_dtype(logits.device)
    if isinstance(prior, Tensor):
        pi = check_class_priors(name, prior.unsqueeze(0) if prior.dim() == 0 else prior, logits).to(dtype)
        values: Sequence[float] = pi.tolist() if may_branch_on_values(pi) else []
    else:
        values = check_prior_sequence(name, prior)
        pi = check_class_priors(name, torch.tensor(values, dtype=dtype, device=logits.device), logits)
    of_two_labels = len(pi) == 2 and (logits.dim() == 1 or logits.shape[1] == 1)
    highest = 1.0 if binary and not of_two_labels else torch.inf
    for value in values:
        if not 0 < value < highest:
            between = "strictly between 0 and 1" if highest == 1 else "above 0"
            raise ValueError(
                f"expected {name} {between}, got {value}: use a small share for a class that hardly occurs"
            )
    if of_two_labels:
        return (pi[1:] / pi[:1]).log()
    return pi.logit() if binary else (pi / pi.sum()).log()
