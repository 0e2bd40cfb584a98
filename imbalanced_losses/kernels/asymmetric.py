"""The asymmetric loss per element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.kernels.focal import Focal, by_blocks, floored, softplus
from imbalanced_losses.kernels.tuning import SIGMOID_BLOCK

__all__ = ["Asymmetric"]


class _Terms(NamedTuple):
    """Intermediate results, all of one shape."""

    y: Tensor
    p: Tensor
    q: Tensor  # 1 - p
    log_p: Tensor  # -log p
    modulator: Tensor  # q^gamma_pos
    shifted: tuple[Tensor, Tensor] | None  # p_m and 1 - p_m, both 1/2 where p_m is 0; None without a margin
    log_rest: Tensor  # -log(1 - p_m)
    negative_modulator: Tensor  # p_m^gamma_neg, or 0 where p_m is 0
    gamma_pos: float
    gamma_neg: float
    ignored: Tensor | None

    def loss(self) -> Tensor:
        """Return the loss per element."""
        loss = torch.lerp(self.negative_modulator * self.log_rest, self.modulator * self.log_p, self.y)
        return loss if self.ignored is None else torch.where(self.ignored, 0, loss)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to the logits, given that with respect to the loss."""
        of_ones = -self.modulator * torch.addcmul(self.q, self.p, self.log_p, value=self.gamma_pos)
        if self.shifted is None:
            of_zeros = torch.addcmul(self.p, self.q, self.log_rest, value=self.gamma_neg)
        else:
            p_shifted, rest = self.shifted
            of_zeros = torch.add(1 / rest, self.log_rest / p_shifted, alpha=self.gamma_neg) * self.p * self.q
        of_zeros = of_zeros * self.negative_modulator
        gradient = torch.lerp(of_zeros, of_ones, self.y) * grad
        return gradient if self.ignored is None else torch.where(self.ignored, 0, gradient)


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are set
class Asymmetric(Focal):
    """``-y (1 - p)^gamma_pos log p - (1 - y) p_m^gamma_neg log(1 - p_m)`` with ``p_m = max(p - margin, 0)``.

    Logits have any shape, labels are in [0, 1].
    """

    gamma_pos: float
    gamma_neg: float
    margin: float
    ignore_index: int | None

    def counted(self, targets: Tensor) -> Tensor | None:
        """Return the mask of elements that are not ignored; None if there is no ignore index."""
        # converted, because in uint8 156 == -100
        return None if self.ignore_index is None else targets.to(compute_dtype(targets)) != self.ignore_index

    def _fused_terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _Terms:
        return self._terms(logits, targets)

    def _fused(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        def of_block(z: Tensor, y: Tensor, grad: Tensor | None = None) -> Tensor:
            terms = self._terms(z, y)
            return terms.loss() if grad is None else terms.gradient(grad)

        rows = [tensor.reshape(-1) for tensor in (logits, targets, *([] if grad is None else [grad]))]
        dtype = compute_dtype(logits) if grad is None else logits.dtype
        return by_blocks(of_block, SIGMOID_BLOCK, dtype, rows[0], *rows).view(logits.shape)

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._terms(logits, targets).loss()

    def _vjp(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._terms(logits, targets).gradient(grad)

    def _jvp(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._vjp(tangent, logits, targets, alpha)  # the Jacobian is diagonal

    def _terms(self, logits: Tensor, targets: Tensor) -> _Terms:
        dtype = compute_dtype(logits)
        z, y = logits.to(dtype), targets.to(dtype)
        counted = self.counted(targets)
        if counted is not None:
            z, y = torch.where(counted, z, 0), torch.where(counted, y, 0)
        if not _is_finite(z):  # an infinite logit becomes nan, so that loss and gradient show it beside any label
            z = z + torch.where(z.detach().abs() < torch.inf, z.new_zeros(()), torch.nan)
        p, q, log_p = z.sigmoid(), (-z).sigmoid(), softplus(-z)
        return _Terms(
            y,
            p,
            q,
            log_p,
            floored(q, self.gamma_pos).pow(self.gamma_pos),
            *self._negative_terms(z, p, q),
            self.gamma_pos,
            self.gamma_neg,
            None if counted is None else ~counted,
        )

    def _negative_terms(self, z: Tensor, p: Tensor, q: Tensor) -> tuple[tuple[Tensor, Tensor] | None, Tensor, Tensor]:
        """Return ``p_m`` and ``1 - p_m``, ``-log(1 - p_m)``, and ``p_m^gamma_neg``."""
        if self.margin == 0:  # in log space, as 1 - p underflows
            return None, softplus(z), floored(p, self.gamma_neg).pow(self.gamma_neg)
        # Where p_m is 0, the loss and all of its derivatives are. Replace it there, to take powers and to divide by.
        p_shifted = p - self.margin
        is_zero = p_shifted <= 0
        p_shifted = torch.where(is_zero, 0.5, p_shifted)
        rest = torch.where(is_zero, 0.5, q + self.margin)
        # each logarithm where it is precise; the clamp keeps the gradient of the one that is not taken finite
        log_rest = -torch.where(p_shifted < 0.5, (-p_shifted.clamp_max(0.5)).log1p(), rest.log())
        return (p_shifted, rest), log_rest, torch.where(is_zero, 0, p_shifted.pow(self.gamma_neg))


def _is_finite(z: Tensor) -> bool:
    """Whether all logits are known to be finite."""
    return may_branch_on_values(z) and math.isfinite(z.detach().sum().item())
