"""The calibrators: modules whose buffers a fit on held-out rows sets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.calibration._fitting import fit_platt, fit_temperature
from imbalanced_losses.dtypes import accumulation_dtype, compute_dtype, moved_at_least_float32
from imbalanced_losses.label_values import check_class_id_values, check_weight_values
from imbalanced_losses.lifecycle import StatefulModule
from imbalanced_losses.pool import pool_of_scores
from imbalanced_losses.settings import check_ignore_index, check_integer
from imbalanced_losses.validation import check_class_ids, check_element_weights, check_floating, check_logits

__all__ = ["PlattScaling", "TemperatureScaling"]


class _Calibrator(StatefulModule):
    """A module whose buffers a fit sets."""

    fitted: Tensor

    def _before_compiled_call(self, **kwargs: Any) -> None:
        """Do nothing: a call changes no state."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow ``.to()``, but stay in float32 or wider when the module is cast to a half dtype."""
        return super()._apply(partial(moved_at_least_float32, fn), recurse)  # type: ignore[no-untyped-call]


@final
class PlattScaling(_Calibrator):
    r"""Calibrated logits of one binary decision or of several labels: :math:`a_c z_c + b_c`.

    ``fit`` minimises, for each class, the cross-entropy of :math:`\sigma(a z + b)` on held-out rows, with Platt's
    smoothed labels:

    .. math::
        \min_{a, b} \sum_i w_i \,\mathrm{CE}\big(t_i, \sigma(a z_i + b)\big), \qquad
        t_i = \frac{n_1 + 1}{n_1 + 2} \;\text{for positives}, \quad \frac{1}{n_0 + 2} \;\text{for negatives}

    where :math:`n_1` and :math:`n_0` are the weights of the positives and the negatives. The smoothing keeps the
    minimum finite if the rows are separable.

    Parameters
    ----------
    num_classes : int
        At least 1: columns of the logits.
    ignore_index : int
        Rows (several classes: elements) with this target take no part.

    Attributes
    ----------
    scale : Tensor [C]
        :math:`a`, 1 before the fit. A negative scale says that the logits rank the wrong way round.
    shift : Tensor [C]
        :math:`b`, 0 before the fit. Both are buffers in the default dtype, float32 or wider.
    fitted : Tensor [C], bool
        Whether a class was fitted.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range or of the wrong type.

    References
    ----------
    Platt. Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized Likelihood Methods. 1999.

    Examples
    --------
    >>> targets = (torch.rand(20_000) < 0.1).long()
    >>> logits = 5 * torch.randn(20_000) + 10 * targets  # far too confident
    >>> platt = PlattScaling().fit(logits, targets)
    >>> probabilities = platt(logits).sigmoid()
    >>> abs(probabilities.mean().item() - targets.float().mean().item()) < 1e-3
    True
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, num_classes: int = 1, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_classes = check_integer("num_classes", num_classes, minimum=1)
        self.ignore_index = check_ignore_index("ignore_index", ignore_index)
        self.register_buffer("scale", torch.ones(self.num_classes, dtype=_buffer_dtype()))
        self.register_buffer("shift", torch.zeros(self.num_classes, dtype=_buffer_dtype()))
        self.register_buffer("fitted", torch.zeros(self.num_classes, dtype=torch.bool))

    def reset_parameters(self) -> None:
        """Reset to the identity, which is not fitted."""
        with torch.no_grad():
            self.scale.fill_(1)
            self.shift.zero_()
            self.fitted.zero_()

    @torch.no_grad()
    def fit(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> PlattScaling:
        """Fit scale and shift of each class on held-out rows, in float64, by Newton's method.

        A class without positives or without negatives stays the identity: a ``UserWarning`` names it, and ``fitted`` is
        False there.

        Parameters
        ----------
        logits : Tensor [N, C] or [N] for one class, any floating dtype
            Raw scores of any loss, finite where they count. On the module's device.
        targets : Tensor of the logits' shape, or [N] beside [N, 1]
            Labels in {0, 1}, or ``ignore_index``.
        sample_weight : Tensor [N], optional
            Non-negative, finite: for how many rows each stands. The smoothed labels count rows, so weights that sum to
            1 would smooth nearly everything away.

        Returns
        -------
        PlattScaling
            This module. Cost: O(C N) for each of about 10 steps.

        Raises
        ------
        ValueError, TypeError
            If a shape, dtype, device or value does not fit. The module is unchanged then.
        """
        check_logits(logits, self.num_classes)
        if self.num_classes > 1 and isinstance(targets, Tensor) and targets.dim() == 1:
            expected = f"expected a label for each class, of shape {list(logits.shape)}, got {list(targets.shape)}"
            raise ValueError(f"{expected}: for class ids pass torch.nn.functional.one_hot(targets, {self.num_classes})")
        wide, multilabel = _check_fit_logits(logits, self.scale), self.num_classes > 1
        pool = pool_of_scores(wide, targets, multilabel, self.ignore_index, sample_weight, check_values=True)
        weight = torch.where(pool.valid, pool.row_weight.to(wide.dtype), 0)
        _check_finite(pool.scores[weight > 0])
        z = torch.where(weight > 0, pool.scores, 0)
        positives, total = (weight * pool.positive).sum(-1), weight.sum(-1)
        has_both = (positives > 0) & (positives < total)
        scale, shift = fit_platt(z, pool.positive, weight)
        self.scale.copy_(torch.where(has_both, scale, 1))
        self.shift.copy_(torch.where(has_both, shift, 0))
        self.fitted.copy_(has_both)
        if not has_both.all():
            classes = (~has_both).nonzero().flatten().tolist()
            _warn(f"expected held-out rows of both labels, got none for class {classes}: it stays as it is")
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """Return calibrated logits of the same shape, in float32 or float64; ``.sigmoid()`` gives probabilities."""
        check_logits(logits, self.num_classes)
        wide = logits.to(compute_dtype(logits))
        return wide * self.scale.to(wide.dtype) + self.shift.to(wide.dtype)

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return f"num_classes={self.num_classes}, ignore_index={self.ignore_index}"


@final
class TemperatureScaling(_Calibrator):
    r"""Calibrated logits of exclusive classes: :math:`z / T`.

    ``fit`` minimises the cross-entropy of :math:`\mathrm{softmax}(z / T)` on held-out rows. The order of the classes of
    a row does not change.

    Parameters
    ----------
    ignore_index : int
        Rows with this target take no part.

    Attributes
    ----------
    temperature : Tensor []
        :math:`T`, 1 before the fit. A buffer in the default dtype, float32 or wider.
    fitted : Tensor [], bool
        Whether it was fitted.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017, section 4.2.

    Examples
    --------
    >>> logits = torch.randn(20_000, 3)
    >>> targets = torch.distributions.Categorical(logits=logits).sample()
    >>> scaling = TemperatureScaling().fit(4 * logits, targets)  # four times too confident
    >>> round(scaling.temperature.item())
    4
    >>> probabilities = scaling(4 * logits).softmax(1)
    """

    temperature: Tensor

    def __init__(self, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = check_ignore_index("ignore_index", ignore_index)
        self.register_buffer("temperature", torch.ones((), dtype=_buffer_dtype()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def reset_parameters(self) -> None:
        """Reset to the identity, which is not fitted."""
        with torch.no_grad():
            self.temperature.fill_(1)
            self.fitted.zero_()

    @torch.no_grad()
    def fit(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> TemperatureScaling:
        """Fit the temperature on held-out rows, in float64, by Newton's method.

        It stays 1, with a ``UserWarning`` and ``fitted`` False, where no temperature is best: if the class with the
        highest logit is right in all rows, or if the logits predict the classes no better than chance.

        Parameters
        ----------
        logits : Tensor [N, C, ...], any floating dtype
            Raw scores, finite where they count. On the module's device.
        targets : Tensor [N, ...], integer
            Class ids in [0, C), or ``ignore_index``.
        sample_weight : Tensor [N], or one that broadcasts to the targets' shape with a first axis of N, optional
            Non-negative, finite: for how many rows each stands.

        Returns
        -------
        TemperatureScaling
            This module. Cost: O(N C) for each of about 10 steps.

        Raises
        ------
        ValueError, TypeError
            If a shape, dtype, device or value does not fit. The module is unchanged then.
        """
        if isinstance(logits, Tensor) and (logits.dim() == 1 or logits.shape[1:2] == (1,)):
            raise ValueError(f"expected logits of several classes, got shape {list(logits.shape)}: use PlattScaling")
        check_class_ids(targets, logits)
        check_class_id_values(targets, logits.shape[1], self.ignore_index)
        wide = _check_fit_logits(logits, self.temperature)
        weight = torch.ones(targets.shape, dtype=wide.dtype, device=wide.device)
        if sample_weight is not None:
            given = check_element_weights("sample_weight", sample_weight, targets)
            check_weight_values(given)
            of_rows = given.reshape(-1, *[1] * (targets.dim() - 1)) if given.dim() == 1 else given
            weight = weight * of_rows.to(wide.dtype)
        ids = targets.long()
        counts = (ids != self.ignore_index) & (weight > 0)
        z, y, weight = wide.movedim(1, -1)[counts], ids[counts], weight[counts]
        _check_finite(z)
        gaps = z - z.gather(1, y[:, None])  # of each class to the right one
        is_fitted = bool((gaps > 0).any() and (weight * gaps.mean(1)).sum() < 0)
        self.temperature.fill_(fit_temperature(gaps, weight) if is_fitted else 1)
        self.fitted.fill_(is_fitted)
        if not is_fitted:
            _warn(
                f"expected held-out rows that are not all predicted right, and better than by chance, got {len(y)} for "
                "which no temperature is best: it stays 1"
            )
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """Return ``logits / T``, in float32 or float64; ``.softmax(1)`` gives probabilities."""
        check_floating("logits", logits)
        wide = logits.to(compute_dtype(logits))
        return wide / self.temperature.to(wide.dtype)

    def extra_repr(self) -> str:
        """Show the arguments in ``repr``."""
        return f"ignore_index={self.ignore_index}"


def _buffer_dtype() -> torch.dtype:
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def _check_fit_logits(logits: Tensor, buffer: Tensor) -> Tensor:
    """Return the logits in a wide dtype."""
    if logits.device != buffer.device:
        device = str(logits.device)
        raise ValueError(f"expected logits on {buffer.device} like the module, got {device}: use .to({device!r}) on it")
    return logits.detach().to(accumulation_dtype(logits.device))


def _check_finite(logits: Tensor) -> None:
    wrong = logits[~logits.isfinite()]
    if len(wrong) > 0:
        raise ValueError(f"expected finite logits, got {len(wrong)} that are not, such as {wrong[0].item()}")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # through `fit` and the context manager that decorates it
