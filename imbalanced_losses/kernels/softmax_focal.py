"""The softmax focal loss per position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import is_traced, may_branch_on_values, may_run_in_place
from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.kernels.focal import Focal, by_blocks, floored, softplus
from imbalanced_losses.kernels.tuning import FEW_CLASSES, FEW_POWERS, SOFTMAX_BLOCK

__all__ = ["SoftmaxFocal"]

# The sigmoid of this is 1, also in float64.
CERTAIN = 100.0

# Up to this absolute value, sums, products and quotients of two exponentials stay in the range of float32.
LARGEST_LOGIT = 30.0


class _SoftmaxTerms(NamedTuple):
    ignored: Tensor
    own_class: Tensor  # the target, or 0 where ignored
    others: Tensor  # the other classes' unnormalised probabilities, 0 at the target
    rest: Tensor  # their sum
    miss: Tensor  # 1 - p_y
    modulator: Tensor  # (1 - p_y)^gamma
    cross_entropy: Tensor


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are set
class SoftmaxFocal(Focal):
    """``(1 - p_y)^gamma CE`` for logits ``[N, C, ...]`` and class ids ``[N, ...]``, with class weights ``alpha [C]``.

    It is computed as the binary loss of the target against all other classes, with the difference between their
    ``logsumexp`` and the target's logit. So ``1 - p_y`` and ``-log p_y`` keep full precision near 0. Every term is
    ``[N, 1, ...]`` or ``[N, C, ...]``. A logit of ``-inf`` rules its class out; ``inf`` and nan make the loss and
    gradient of their position nan.
    """

    gamma: float
    ignore_index: int
    label_smoothing: float

    def counted(self, targets: Tensor) -> Tensor:
        """Return the mask of positions that are not ignored."""
        return targets.long() != self.ignore_index

    def _fused_terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _ModerateTerms | None:
        if self.label_smoothing > 0:
            return None
        return _moderate_terms(logits.to(compute_dtype(logits)), targets, alpha, self.gamma, self.ignore_index)

    def _fused(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        reads = may_branch_on_values(logits, targets)
        few_classes = reads and logits.dim() == 2 and logits.shape[1] <= FEW_CLASSES

        def of_block(*rows: Tensor) -> Tensor:
            z, y, *grads = rows
            if reads and (terms := self._fused_terms(z, y, alpha)) is not None:
                return terms.gradient(grads[0]) if grads else terms.loss()
            if few_classes:
                z, y, *grads = (tensor.movedim(0, -1).unsqueeze(0).contiguous() for tensor in rows)
            block = self._vjp(grads[0], z, y, alpha) if grads else self._value(z, y, alpha)
            return block.squeeze(0).movedim(-1, 0) if few_classes else block

        if grad is None:
            return by_blocks(of_block, SOFTMAX_BLOCK, compute_dtype(logits), targets, logits, targets)
        return by_blocks(of_block, SOFTMAX_BLOCK, logits.dtype, logits, logits, targets, grad)

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets, alpha)
        return (terms.modulator * terms.cross_entropy).masked_fill(terms.ignored, 0).squeeze(1)

    def _vjp(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        ignored, own_class, others, rest, miss, modulator, cross_entropy = self._terms(logits, targets, alpha)
        base = floored(miss, self.gamma)
        by_modulator = 1 - miss if base is miss else (1 - miss) * (miss / base)
        by_margin = miss if alpha is None else miss * self._weight_of_all(alpha, own_class)
        if self.gamma > 0:
            # if the target is ruled out, 1 - miss is 0 and the cross-entropy infinite: the limit of their product is 0
            bounded = torch.where(by_modulator == 0, 0, cross_entropy)
            by_margin = torch.addcmul(by_margin, by_modulator, bounded, value=self.gamma)
        grad = grad.unsqueeze(1) * modulator
        by_others = (grad * by_margin / rest).masked_fill(ignored, 0)
        if may_run_in_place(grad, logits):
            gradient = others.mul_(by_others).scatter_(1, own_class, -by_others * rest)
        else:
            gradient = by_others * torch.where(_is_own(others, own_class), -rest, others)
        if self.label_smoothing == 0:
            return gradient
        smooth = grad.masked_fill(ignored, 0) * self._share(logits, alpha)
        return gradient - smooth + torch.where(_is_own(smooth, own_class), smooth.sum(1, keepdim=True), 0)

    def _jvp(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        ones = torch.ones_like(targets, dtype=compute_dtype(logits))
        return (self._vjp(ones, logits, targets, alpha) * tangent).sum(1)  # positions are independent

    def _terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _SoftmaxTerms:
        z = logits.to(compute_dtype(logits))
        targets = targets.long().unsqueeze(1)
        ignored = targets == self.ignore_index
        own_class = targets.masked_fill(ignored, 0)
        if may_run_in_place(logits) and z.shape[1] > 1:
            others, highest = self._fused_others(z, own_class)
            broken = highest * 0
        else:
            intact = z.detach().amax(1, keepdim=True).abs() < torch.inf  # -inf if all classes are ruled out
            # a compiler may replace 0 * z by 0
            broken = torch.where(intact | ignored, z.new_zeros(()), torch.nan)
            z = torch.where((z < torch.inf) & ~ignored, z, 0)
            others, highest = self._others(z, own_class)
        rest = others.sum(1, keepdim=True)
        own, log_rest = _own(z, own_class) - highest, rest.log()
        rest = rest.clamp_min(torch.finfo(z.dtype).tiny)  # to divide by
        lead = log_rest - own + broken
        miss, cross_entropy = self._miss(lead), softplus(lead)
        modulator = floored(miss, self.gamma).pow(self.gamma)
        if alpha is not None or self.label_smoothing > 0:
            cross_entropy = cross_entropy * self._target_weight(alpha, own_class)
        if self.label_smoothing > 0:
            log_likelihoods = z - highest - torch.logaddexp(own, log_rest)
            cross_entropy = cross_entropy - (self._share(logits, alpha) * log_likelihoods).sum(1, keepdim=True)
        return _SoftmaxTerms(ignored, own_class, others, rest, miss, modulator, cross_entropy)

    def _others(self, z: Tensor, own_class: Tensor) -> tuple[Tensor, Tensor]:
        """Return the other classes' ``exp(z - highest)`` and the highest of their logits."""
        others = torch.where(_is_own(z, own_class), torch.finfo(z.dtype).min, z)
        highest = others.detach().amax(1, keepdim=True)
        # exp is ten times slower where it underflows, so clamp; next to the highest, such terms are negligible
        powers = (others - highest).clamp_min_(0.9 * math.log(torch.finfo(z.dtype).tiny)).exp_()
        return torch.where(others > -torch.inf, powers, 0), highest

    def _fused_others(self, z: Tensor, own_class: Tensor) -> tuple[Tensor, Tensor]:
        """Like ``_others``, with the highest of all logits and fewer passes over ``z``; finite even if ``z`` is not."""
        highest = z.amax(1, keepdim=True)
        least = math.log2(torch.finfo(z.dtype).tiny)
        powers = (z - highest).mul_(math.log2(math.e)).clamp_min_(least).nan_to_num_(least)  # nan in ignored rows
        others = powers.exp2_().scatter_(1, own_class, 0)
        if not (z.numel() and may_branch_on_values(z) and z.amin().item() > -torch.inf):  # saves two slower passes
            others.masked_fill_(z == -torch.inf, 0)
        return others, highest

    def _miss(self, lead: Tensor) -> Tensor:
        """Return ``1 - p_y``; a constant 1 where the target is ruled out.

        The derivative there is 0, and compiled code would multiply it by an infinite cross-entropy.
        """
        return (torch.where(lead == torch.inf, CERTAIN, lead) if is_traced() else lead).sigmoid()

    def _target_weight(self, alpha: Tensor | None, own_class: Tensor) -> Tensor | float:
        """Return the weight of ``-log p_y`` in the cross-entropy, ``[N, 1, ...]``."""
        return (1 - self.label_smoothing) * (1.0 if alpha is None else alpha[own_class])

    def _share(self, logits: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the weight of every ``-log p_c`` in the cross-entropy, ``[1, C, 1, ...]``."""
        alpha = logits.new_ones(logits.shape[1], dtype=compute_dtype(logits)) if alpha is None else alpha
        return self.label_smoothing / len(alpha) * alpha.reshape(1, -1, *[1] * (logits.dim() - 2))

    def _weight_of_all(self, alpha: Tensor, own_class: Tensor) -> Tensor:
        """Return the sum of the weights in the cross-entropy, ``[N, 1, ...]``; it is 1 without class weights."""
        return self._target_weight(alpha, own_class) + self.label_smoothing * alpha.mean()


class _ModerateTerms(NamedTuple):
    """Intermediate results of the softmax focal loss for moderate logits ``[N, C, ...]``.

    All but ``others [N, C, ...]`` and ``ignored [N, ...]`` are ``[N, 1, ...]``.
    """

    ignored: Tensor | None  # None if no target is ignored
    own_class: Tensor  # the target, or 0 where ignored
    others: Tensor  # the other classes' exp(z)
    rest: Tensor  # their sum
    total: Tensor  # the sum over all classes
    odds: Tensor  # against the target: rest / exp(z_y)
    cross_entropy: Tensor
    modulator: Tensor  # (1 - p_y)^gamma times the target's weight
    gamma: float

    def loss(self) -> Tensor:
        """Return the loss per position ``[N, ...]``."""
        loss = (self.modulator * self.cross_entropy).squeeze(1)
        return loss if self.ignored is None else loss.masked_fill_(self.ignored, 0)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to the logits ``[N, C, ...]``, given that with respect to the loss."""
        by_others = torch.addcmul(self.modulator, self.modulator, self.cross_entropy / self.odds, value=self.gamma)
        by_others.div_(self.total).squeeze(1).mul_(grad)
        if self.ignored is not None:
            by_others.squeeze(1).masked_fill_(self.ignored, 0)
        return self.others.scatter_(1, self.own_class, self.rest.neg()) * by_others


def _moderate_terms(
    z: Tensor, targets: Tensor, alpha: Tensor | None, gamma: float, ignore_index: int
) -> _ModerateTerms | None:
    """Compute the terms without subtracting maxima, or return None if ``exp`` could overflow without that.

    This takes the fewest passes over the logits. It reads the logits and the targets.
    """
    if z.shape[1] == 1 or z.numel() == 0:
        return None
    own_class, ignored = targets.long(), None
    if (own_class == ignore_index).any().item():
        ignored = own_class == ignore_index
        own_class = own_class.masked_fill(ignored, 0)
    largest = _largest(z)
    if not math.isfinite(largest):
        z = _with_broken_rows(z, ignored)
        largest = _largest(z.nan_to_num())
    if largest > LARGEST_LOGIT:
        return None
    own_class = own_class.unsqueeze(1)
    others = z.exp() if z.numel() <= FEW_POWERS else (z * math.log2(math.e)).exp2_()
    own = others.gather(1, own_class)
    others.scatter_(1, own_class, torch.zeros_like(own))  # a tensor of zeros is twice as fast as the number 0
    rest = others.sum(1, keepdim=True)
    odds, total = rest / own, rest + own
    modulator = (rest / total).pow_(gamma)
    if alpha is not None:
        modulator.mul_(alpha[own_class])
    return _ModerateTerms(ignored, own_class, others, rest, total, odds, odds.log1p(), modulator, gamma)


def _is_own(z: Tensor, own_class: Tensor) -> Tensor:
    """Return the mask ``[N, C, ...]`` of the target. Inductor fuses a scatter, and then writes to wrong columns."""
    number = torch.arange(z.shape[1], device=z.device).reshape(1, -1, *[1] * (z.dim() - 2))
    return number == own_class


def _own(z: Tensor, own_class: Tensor) -> Tensor:
    """Return the target's logit ``[N, 1, ...]``; traced without a gather, whose backward is a scatter."""
    if not is_traced():
        return z.gather(1, own_class)
    return torch.where(_is_own(z, own_class), z, 0).sum(1, keepdim=True)


def _largest(z: Tensor) -> float:
    lowest, highest = torch.aminmax(z)
    return max(highest.item(), -lowest.item())


def _with_broken_rows(z: Tensor, ignored: Tensor | None) -> Tensor:
    """Set the logits of positions with a nan or inf, or with only -inf, to nan, or to 0 if the position is ignored."""
    z = z + z.amax(1, keepdim=True) * 0
    return z if ignored is None else z.masked_fill(ignored.unsqueeze(1), 0)
