r"""Sums of sigmoids over all pairs of scores: soft ranks and their derivatives.

With the queries :math:`Q`, everything here is a derivative of one bilinear form,

.. math:: B_n(w, g) = \sum_{i \in Q} \sum_{j \neq i} g_i w_j\, \sigma^{(n)}\big((s_j - s_i) / \tau\big)

``counts`` is :math:`\partial B_n / \partial g` and ``weight_grads`` is :math:`\partial B_n / \partial w`. The
derivative with respect to the scores consists of the same two at ``n + 1``, so :func:`pair_sums` is closed under
differentiation.

It chooses between two evaluators by shape and device alone: all pairs, or short sums of exponentials over sorted scores
in near-linear time.
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor

from imbalanced_losses.kernels.operators import (
    batch_of_rows,
    full_precision,
    in_graph,
    make_operator,
    refuse_forward_over_forward,
    rows_of_batch,
)
from imbalanced_losses.kernels.ordering import argsort_rows
from imbalanced_losses.kernels.ranks.exponential_sums import sorted_sums
from imbalanced_losses.kernels.ranks.sigmoid import sigmoid_derivative, stop_underflow
from imbalanced_losses.kernels.tuning import (
    CHUNK_PAIRS,
    CHUNK_PAIRS_ELSEWHERE,
    NEAR_LINEAR_FROM,
    NEAR_LINEAR_FROM_ELSEWHERE,
)

__all__ = ["Method", "PairSums", "gradient_by_scores", "pair_sums", "soft_counts"]

Method = Literal["auto", "all_pairs", "near_linear"]


def soft_counts(
    scores: Tensor, weights: Tensor, temperature: Tensor, queries: Tensor | None = None, method: Method = "auto"
) -> Tensor:
    r"""Weighted soft count of the scores above each score.

    .. math:: y_{rki} = \sum_{j \neq i} w_{rkj}\, \sigma\big((s_{rj} - s_{ri}) / \tau_r\big)

    Only differences of raw scores are divided by the temperature, so shifting the scores changes nothing.

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64, finite
        R independent problems (classes, ensemble members) of M scores.
    weights : Tensor [R, K, M]
        K weightings, such as a mask of positives and a mask of negatives; 0 leaves a score out. Differentiable.
    temperature : Tensor [R] or []
        Above 0; carries no gradient.
    queries : Tensor [R, M], bool, optional
        The query mask: rows i whose sums are computed; the others get 0.
    method : {"auto", "all_pairs", "near_linear"}
        Forces an evaluator, for tests.

    Returns
    -------
    Tensor [R, K, M], at least as wide as the scores

    Notes
    -----
    Cost: O(R M log M) time and O(R K M) memory from M = 1,000 on (1,400 on accelerators). Fewer rows take R M^2 pairs,
    a bounded number at a time. Differentiable three times.
    """
    queries = torch.ones_like(scores, dtype=torch.bool) if queries is None else queries
    temperature = temperature.detach().expand(scores.shape[0])
    return pair_sums(scores, weights, weights[:, :0], temperature, queries, 0, method)[0]


@final
class PairSums:
    """Evaluates the bilinear form for given scores at several orders.

    It sorts once, or reuses the pairs of order 0 for order 1 if there are few.

    Parameters
    ----------
    scores : Tensor [R, M]
    temperature : Tensor [R]
    queries : Tensor [R, M], bool, optional
        The query mask; other rows get counts of 0. Not needed if their cotangents are 0.
    method : {"auto", "all_pairs", "near_linear"}
    """

    def __init__(
        self, scores: Tensor, temperature: Tensor, queries: Tensor | None = None, method: Method = "auto"
    ) -> None:
        self.scores, self.temperature, self.queries = scores, temperature, queries
        self._held: tuple[Tensor, Tensor] | None = None
        if method == "auto":
            least = NEAR_LINEAR_FROM if scores.device.type == "cpu" else NEAR_LINEAR_FROM_ELSEWHERE
            method = "all_pairs" if scores.shape[1] < least else "near_linear"
        self.ranking = argsort_rows(scores) if method == "near_linear" else None
        self.ascending = scores if self.ranking is None else scores.gather(-1, self.ranking)

    def __call__(self, weights: Tensor, cotangents: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Return ``counts [R, K, M]`` for the weights, and ``weight_grads [R, L, M]`` for cotangents ``[R, L, M]``."""
        evaluate = self._all_pairs if self.ranking is None else self._near_linear
        if self.queries is None:
            return evaluate(weights, cotangents, order)
        queries = self.queries[:, None]
        cotangents = cotangents * queries if cotangents.shape[1] else cotangents
        counts, weight_grads = evaluate(weights, cotangents, order)
        return counts * queries, weight_grads

    def gradient(self, weights: Tensor, cotangents: Tensor) -> Tensor:
        """Return the gradient ``[R, M]`` of ``B_0(weights, cotangents)``, both ``[R, K, M]``, summed over K."""
        counts, weight_grads = self(weights, cotangents, 1)
        gradient = torch.addcmul(weights * weight_grads, cotangents, counts, value=-1).sum(1)
        return gradient / self.temperature[:, None]

    def _all_pairs(self, weights: Tensor, cotangents: Tensor, order: int) -> tuple[Tensor, Tensor]:
        """Evaluate a block of queries at a time: static shapes, one matrix product per block."""
        scores = self.scores
        r, m = scores.shape
        rows = max(1, (CHUNK_PAIRS if scores.device.type == "cpu" else CHUNK_PAIRS_ELSEWHERE) // max(1, r * m))
        # written in-place: small results between large temporaries fragment the heap
        counts, weight_grads = torch.empty_like(weights), torch.empty_like(cotangents)
        for start in range(0, m, rows):
            block = slice(start, start + rows)
            pairs = self._pairs(block, order)
            torch.matmul(weights, pairs.mT, out=counts[..., block])
            if cotangents.shape[1]:
                weight_grads.baddbmm_(cotangents[..., block], pairs, beta=min(start, 1))
        return counts, weight_grads

    def _pairs(self, block: slice, order: int) -> Tensor:
        """Return ``sigmoid^(n)((s_j - s_i)/tau) [R, B, M]`` for the queries i in a block; 0 for ``j = i``."""
        if order == 1 and self._held is not None:  # sigmoid'(x) = sigmoid(x) sigmoid(-x)
            (differences, sigmoids), self._held = self._held, None
            return differences.neg_().sigmoid_().mul_(sigmoids)
        differences = self.scores[:, None, :] - self.scores[:, block, None]
        differences.div_(self.temperature[:, None, None])
        if order == 0 and block.stop >= self.scores.shape[1] and block.start == 0:
            stop_underflow(differences).diagonal(0, 1, 2).fill_(-torch.inf)
            self._held = differences, differences.sigmoid()
            return self._held[1]
        pairs = sigmoid_derivative(differences, order)
        pairs.diagonal(block.start, 1, 2).zero_()
        return pairs

    def _near_linear(self, weights: Tensor, cotangents: Tensor, order: int) -> tuple[Tensor, Tensor]:
        assert self.ranking is not None
        r, m = self.scores.shape
        by_rank = self.ranking[:, None].expand(r, weights.shape[1] + cotangents.shape[1], m)
        summands = torch.cat([weights, cotangents], 1).gather(-1, by_rank)
        sums = sorted_sums(self.ascending, summands, self.temperature, order)
        counts, sums = torch.empty_like(sums).scatter_(-1, by_rank, sums).tensor_split([weights.shape[1]], 1)
        # sigmoid^(n)(-x) = (-1)^(n+1) sigmoid^(n)(x), and 1 - sigmoid(x) for n = 0
        if order == 0:
            return counts, cotangents.sum(-1, keepdim=True) - cotangents - sums
        return counts, sums if order % 2 else -sums


@full_precision
def _kernel(
    scores: Tensor,
    weights: Tensor,
    cotangents: Tensor,
    temperature: Tensor,
    queries: Tensor,
    order: int,
    method: Method,
) -> tuple[Tensor, Tensor]:
    return PairSums(scores, temperature, queries, method)(weights, cotangents, order)


def _fake(scores: Tensor, weights: Tensor, cotangents: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), cotangents.new_empty(cotangents.shape)


_operator = make_operator(
    "pair_sums(Tensor scores, Tensor weights, Tensor cotangents, Tensor temperature, Tensor queries, int order,"
    " str method) -> (Tensor, Tensor)",
    _kernel,
    _fake,
)


@in_graph
def pair_sums(
    scores: Tensor,
    weights: Tensor,
    cotangents: Tensor,
    temperature: Tensor,
    queries: Tensor,
    order: int,
    method: Method,
) -> tuple[Tensor, Tensor]:
    """Return :class:`PairSums`' counts and weight_grads in every mode, differentiable in the first three arguments."""
    refuse_forward_over_forward()
    return _PairSums.apply(scores, weights, cotangents, temperature, queries, order, method)  # type: ignore[no-any-return, no-untyped-call]


def gradient_by_scores(
    scores: Tensor, weights: Tensor, cotangents: Tensor, temperature: Tensor, queries: Tensor
) -> Tensor:
    """Return :meth:`PairSums.gradient` ``[R, M]`` in every mode, as a differentiable expression."""
    counts, weight_grads = pair_sums(scores, weights, cotangents, temperature, queries, 1, "auto")
    return (weights * weight_grads - cotangents * counts).sum(1) / temperature[:, None]


@final
class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _operator(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.order, ctx.method = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_counts: Tensor, grad_weight_grads: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, cotangents, temperature, queries = ctx.saved_tensors
        grad_scores = grad_weights = grad_cotangents = None
        if ctx.needs_input_grad[0]:
            w = torch.cat([weights, grad_weight_grads], 1)
            g = torch.cat([grad_counts, cotangents], 1)
            counts, weight_grads = pair_sums(scores, w, g, temperature, queries, ctx.order + 1, ctx.method)
            grad_scores = (w * weight_grads - g * counts).sum(1) / temperature[:, None]
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_cotangents, grad_weights = pair_sums(
                scores, grad_weight_grads, grad_counts, temperature, queries, ctx.order, ctx.method
            )
        return grad_scores, grad_weights, grad_cotangents, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, scores_t: Tensor | None, weights_t: Tensor | None, cotangents_t: Tensor | None, *_: None
    ) -> tuple[Tensor, Tensor]:
        scores, weights, cotangents, temperature, queries = ctx.saved_tensors
        counts_t, weight_grads_t = torch.zeros_like(weights), torch.zeros_like(cotangents)
        if weights_t is not None or cotangents_t is not None:
            w = torch.zeros_like(weights) if weights_t is None else weights_t
            g = torch.zeros_like(cotangents) if cotangents_t is None else cotangents_t
            counts_t, weight_grads_t = pair_sums(scores, w, g, temperature, queries, ctx.order, ctx.method)
        if scores_t is not None:
            shift, scale = scores_t[:, None], temperature[:, None, None]
            w = torch.cat([weights * shift, weights], 1)
            g = torch.cat([cotangents * shift, cotangents], 1)
            counts, weight_grads = pair_sums(scores, w, g, temperature, queries, ctx.order + 1, ctx.method)
            (moved_counts, counts), (moved_grads, weight_grads) = counts.chunk(2, 1), weight_grads.chunk(2, 1)
            counts_t = counts_t + (moved_counts - shift * counts) / scale
            weight_grads_t = weight_grads_t + (shift * weight_grads - moved_grads) / scale
        return counts_t, weight_grads_t

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """Flatten a batch of problems to more rows."""
        outputs = pair_sums(*rows_of_batch(info.batch_size, in_dims, args))
        return batch_of_rows(info.batch_size, outputs)
