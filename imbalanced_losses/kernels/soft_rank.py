"""Sums of sigmoids over all pairs of scores: the soft ranks that Smooth-AP and the pairwise pAUC are made of.

One interface, :func:`sigmoid_sums`; behind it a dense form with memory bounded by chunking. Under ``torch.compile`` it
is one broadcast expression, which the compiler fuses and differentiates to any order; in eager mode it is an
``autograd.Function`` that keeps the scores and weights only and computes each chunk of pairs anew in the backward.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["sigmoid_sums"]

# Pairs of scores held at a time in eager mode: 2 MB of float32, about a core's share of the cache.
CHUNK_PAIRS = 1 << 19


def sigmoid_sums(scores: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    r"""Weighted soft count of the scores above each score.

    .. math:: y_{rki} = \sum_{j \neq i} w_{rkj}\, \sigma\big((s_{rj} - s_{ri}) / \tau_r\big)

    Only differences of raw scores are divided by the temperature, so shifting the scores changes nothing.

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64, finite
        R independent problems (classes, ensemble members) of M scores.
    weights : Tensor [R, K, M]
        K weightings, such as a mask of positives and a mask of negatives; 0 takes a score out. The last one may be
        differentiated, too.
    temperature : Tensor [R] or []
        Above 0; carries no gradient.

    Returns
    -------
    Tensor [R, K, M]

    Notes
    -----
    Cost: O(R M^2) time. Memory in eager mode: O(R K M) plus ``CHUNK_PAIRS``; under ``torch.compile`` the compiler may
    keep the O(R M^2) pairs. Differentiable three times in eager mode (once in forward mode: torch does not nest the
    ``jvp`` of a Function), to any order under ``torch.compile``.
    """
    temperature = temperature.detach().expand(scores.shape[0])
    if torch.compiler.is_compiling():
        return _fusible_sums(scores, weights, temperature)
    return _sums(scores, weights, temperature, 0)


def _fusible_sums(scores: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    """One expression over [R, K, M, M], a reduction that the compiler fuses."""
    difference = (scores[:, None, :] - scores[:, :, None]) / temperature[:, None, None]
    other = ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    pairs = torch.where(other, torch.sigmoid(difference), 0)
    return (weights[:, :, None, :] * pairs[:, None]).sum(-1)


def _sigmoid_derivative(x: Tensor, order: int) -> Tensor:
    """The n-th derivative of the sigmoid, accurate in both tails."""
    if order == 0:
        return torch.sigmoid(x)
    tail = torch.sigmoid(-x.abs())
    bell = tail * (1 - tail)
    if order == 1:
        return bell
    if order == 2:
        return bell * (2 * tail - 1) * torch.sign(x)
    if order == 3:
        return bell * (1 - 6 * bell)
    raise NotImplementedError(f"soft ranks can be differentiated three times in eager mode, this is time {order}")


def _chunked_sums(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
    """``sum_{j != i} w_j sigmoid^(order)((s_j - s_i) / tau)``, as many rows i at a time as fit ``CHUNK_PAIRS``."""
    r, m = scores.shape
    rows = max(1, CHUNK_PAIRS // max(1, r * m))
    sums = torch.empty_like(weights)  # written in place: small results between large temporaries fragment the heap
    with _full_precision(scores.device):  # autocast would run the matrix product in half precision
        for start in range(0, m, rows):
            own = scores[:, start : start + rows, None]
            pairs = _sigmoid_derivative((scores[:, None, :] - own) / temperature[:, None, None], order)
            pairs.diagonal(start, 1, 2).zero_()
            torch.matmul(weights, pairs.mT, out=sums[..., start : start + rows])
    return sums


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


class _SigmoidSums(torch.autograd.Function):
    """Closed under differentiation: the derivative of the sums of order n is made of sums of order n + 1."""

    @staticmethod
    def forward(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
        return _chunked_sums(scores, weights, temperature, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, weights, temperature, ctx.order = inputs
        ctx.save_for_backward(scores, weights, temperature)
        ctx.save_for_forward(scores, weights, temperature)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, temperature = ctx.saved_tensors
        order, sign = ctx.order, 1 if ctx.order % 2 else -1
        grad_scores = grad_weights = None
        if ctx.needs_input_grad[0]:
            # Along the weights themselves an even kernel's gradient is exactly 0 (pairs cancel): taking that part out
            # first keeps it from drowning the rest in rounding.
            centred = grad if order % 2 else grad - weights * _projection(grad, weights)
            stacked = torch.cat([weights, centred], 1)
            above, pull = _sums(scores, stacked, temperature, order + 1).chunk(2, 1)
            grad_scores = (-sign * weights * pull - centred * above).sum(1) / temperature[:, None]
        if ctx.needs_input_grad[1]:
            # sigmoid^(n)(-x) = (-1)^(n+1) sigmoid^(n)(x), and 1 - sigmoid(x) for n = 0
            transposed = _sums(scores, grad, temperature, order)
            grad_weights = grad.sum(-1, keepdim=True) - grad - transposed if order == 0 else sign * transposed
        return grad_scores, grad_weights, None, None

    @staticmethod
    def jvp(ctx: Any, scores_t: Tensor | None, weights_t: Tensor | None, *_: object) -> Tensor:
        scores, weights, temperature = ctx.saved_tensors
        tangent = torch.zeros_like(weights)
        if weights_t is not None:
            tangent = tangent + _sums(scores, weights_t, temperature, ctx.order)
        if scores_t is not None:
            stacked = torch.cat([weights * scores_t[:, None], weights], 1)
            others, own = _sums(scores, stacked, temperature, ctx.order + 1).chunk(2, 1)
            tangent = tangent + (others - scores_t[:, None] * own) / temperature[:, None, None]
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """A batch of problems is just more rows."""
        scores, weights, temperature = (
            arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args[:3], in_dims[:3], strict=True)
        )
        sums = _sums(scores.flatten(0, 1), weights.flatten(0, 1), temperature.flatten(0, 1), args[3])
        return sums.reshape(weights.shape), 0


def _sums(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
    sums: Tensor = _SigmoidSums.apply(scores, weights, temperature, order)  # type: ignore[no-untyped-call]
    return sums


def _projection(grad: Tensor, weights: Tensor) -> Tensor:
    norm = (weights * weights).sum(-1, keepdim=True)
    return (grad * weights).sum(-1, keepdim=True) / torch.where(norm > 0, norm, 1)
