r"""Sums of sigmoids over all pairs of scores: the soft ranks that Smooth-AP and the pairwise pAUC are made of.

One interface, :func:`sigmoid_sums` (Smooth-AP with few positives spares the ranks of several classes, see
``missed_precision.py``), and one place that chooses between three evaluators: the rows that are asked for,
pair by pair (few positives, on a CPU); all pairs (small pools); and short sums of exponentials over sorted scores (the
rest, in near-linear time). In eager mode they sit behind an ``autograd.Function`` that keeps the inputs and computes
pairs anew in the backward, but for very few pairs, whose derivatives it keeps; ``torch.compile`` gets plain
expressions, which it fuses and differentiates to any order.

With the rows :math:`Q` that are asked for, everything here is a derivative of one bilinear form,

.. math:: B_n(w, g) = \sum_{i \in Q} \sum_{j \neq i} g_i w_j\, \sigma^{(n)}\big((s_j - s_i) / \tau\big)

``above`` is :math:`\partial B_n / \partial g` and ``pulled`` is :math:`\partial B_n / \partial w`; the derivative
by the scores is made of the same two at ``n + 1``.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal, final

import torch
from torch import Tensor

from imbalanced_losses.execution import has_tangent, is_traced, is_transformed, reads_freely
from imbalanced_losses.kernels.exponential_sums import sorted_sums, weighted_sums
from imbalanced_losses.kernels.ordering import argsort_rows
from imbalanced_losses.kernels.pairs import all_pairs, asked_pairs, few_pairs, few_pairs_gradient, tail_sigmoid

__all__ = ["Method", "full_precision", "sigmoid_sums"]

Method = Literal["auto", "all_pairs", "asked_pairs", "near_linear"]

# Measured on one core, kernel forward + backward in ms. Rows asked for / sums of exponentials: 1,500 rows, 512 of them
# asked for, 2.7 / 3.1; 4,096, 256: 3.1 / 4.4, 512: 6.2 / 4.8; 16,384, 128: 6.3 / 9.4, 256: 12 / 10; 65,536, 128:
# 22 / 31, 256: 42 / 32; 10 x 4,096, 128 each: 15 / 26, 256: 26 / 21; 100 x 2,048, 20 each: 23 / 103. All pairs / sums:
# 1,056 rows 3.5 / 3. Rows asked for / all pairs: 1,056 rows, 105 of them asked for, 0.7 / 3.3; 10 x 200, 20 each:
# 1.6 / 1.4; 100 x 64, 5 each: 9 / 1.4. Few pairs kept / computed anew: 1,056 rows, 105: 0.64 / 0.81, 250: 1.04 / 1.18,
# 500: 1.8 / 1.8; 4,096, 64: 1.2 / 1.2, 128: 2.3 / 1.9.
NEAR_LINEAR_FROM = 1400  # rows, if none are few
# Compiled Smooth-AP, forward + backward in ms: 1,056 rows as all pairs 7.1, 4,096 as sums of exponentials 2.7. The sums
# take the compiler half a minute.
COMPILED_NEAR_LINEAR_FROM = 500
FEW_ROWS = 200  # asked for, on average over the problems
PROBLEM_PAIRS = 1 << 14  # pairs that take as long as one problem's operators
KEPT_PAIRS = 1 << 18  # that the backward may find kept
MOST_PAIRS = 1 << 22  # that compiled code may keep


def sigmoid_sums(
    scores: Tensor,
    weights: Tensor,
    temperature: Tensor,
    asked: Tensor | None = None,
    method: Method = "auto",
    *,
    exclusive: bool = False,
) -> Tensor:
    r"""Weighted soft count of the scores above each score.

    .. math:: y_{rki} = \sum_{j \neq i} w_{rkj}\, \sigma\big((s_{rj} - s_{ri}) / \tau_r\big)

    Only differences of raw scores are divided by the temperature, so shifting the scores changes nothing.

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64, finite
        R independent problems (classes, ensemble members) of M scores.
    weights : Tensor [R, K, M]
        K weightings, such as a mask of positives and a mask of negatives; 0 takes a score out. They may be
        differentiated, too.
    temperature : Tensor [R] or []
        Above 0; carries no gradient.
    asked : Tensor [R, M], bool, optional
        The rows i whose sums are of use; the others get 0.
    method : {"auto", "all_pairs", "asked_pairs", "near_linear"}
        Forces an evaluator, for tests. ``"asked_pairs"`` reads ``asked``, so that ``"auto"`` takes it in eager mode on
        the CPU alone, where reading is free.
    exclusive : bool
        Whether no column of ``asked`` holds more than one row, as for classes that exclude each other. Compiled code
        and transforms then take M^2 pairs for any number of problems.

    Returns
    -------
    Tensor [R, K, M], at least as wide as the scores

    Notes
    -----
    Cost: O(R M log M) time and O(R K M) memory from M = 1,400 on, O(M) time for each row asked for where those are few.
    Fewer rows take at most 2^22 pairs at a time. ``torch.autograd.grad(is_grads_batched=True)``, the legacy ``vmap``,
    raises where pairs are computed anew in the backward: use ``torch.vmap`` over ``torch.func.vjp``.
    Differentiable three times in eager mode (once in forward mode: torch does not nest the ``jvp`` of a Function), to
    any order under ``torch.compile``.
    """
    temperature = temperature.detach().expand(scores.shape[0])
    asked = torch.ones_like(scores, dtype=torch.bool) if asked is None else asked
    if method == "auto" and reads_freely(scores, weights, temperature, asked):
        if len(scores) == 1 and len(rows := asked.nonzero()) * scores.shape[1] <= KEPT_PAIRS:
            with full_precision(scores.device):
                return _FewPairs.apply(scores, weights, temperature, asked, rows[:, 1])  # type: ignore[no-any-return, no-untyped-call]
    else:
        exclusive = exclusive and len(scores) > 1
        method = _static_method(scores, exclusive) if method == "auto" else method
        if is_traced() or (exclusive and method == "all_pairs"):
            if method == "near_linear":
                sums = _sort_and_sum(scores, weights, temperature)
            else:
                sums = _fusible(scores, weights, temperature, asked if exclusive else None)
            return torch.where(asked[:, None], sums, 0)
    return _pair_sums(*_of_order_0(scores, weights, temperature, asked), 0, method)[0]


def _static_method(scores: Tensor, exclusive: bool) -> Method:
    """The choice by shape alone: compiled, under transforms and on accelerators."""
    r, m = scores.shape
    pairs = m * m * (1 if exclusive else r)
    near_linear_from = COMPILED_NEAR_LINEAR_FROM if is_traced() else NEAR_LINEAR_FROM
    few_rows = m < (max(near_linear_from, 100 * r) if exclusive else near_linear_from)
    return "all_pairs" if few_rows and pairs <= MOST_PAIRS else "near_linear"


def _sort_and_sum(scores: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    ascending, ranking = scores.sort(-1)
    by_rank = ranking[:, None].expand_as(weights)
    sums = sorted_sums(ascending, weights.gather(-1, by_rank), temperature, 0)
    return torch.zeros_like(sums).scatter(-1, by_rank, sums)


def _fusible(scores: Tensor, weights: Tensor, temperature: Tensor, asked: Tensor | None) -> Tensor:
    """All pairs as one expression that a compiler fuses, and that autograd and transforms take as it is.

    With ``asked``, of which no column holds more than one: for each column the pairs of the problem that asks for it.
    """
    number = torch.arange(scores.shape[1], device=scores.device)
    if asked is None:
        difference = (scores[:, :, None] - scores[:, None, :]) / temperature[:, None, None]  # [R, j, i]
        return weighted_sums(weights, _other_pairs(difference, number))
    owner = asked.int().argmax(0)
    rows = scores.index_select(0, owner).mT  # [j, i]
    own = scores.gather(0, owner[None])
    pairs = _other_pairs((rows - own) / temperature.index_select(0, owner), number)
    sums = [(weights[:, k].index_select(0, owner).mT * pairs).sum(0) for k in range(weights.shape[1])]
    return torch.stack(sums).expand_as(weights)


def _other_pairs(difference: Tensor, number: Tensor) -> Tensor:
    """Sigmoids of ``[..., j, i]``, 0 where j = i."""
    return torch.where(number[:, None] == number, 0, tail_sigmoid(difference))


def _evaluate(
    scores: Tensor,
    weights: Tensor,
    pulls: Tensor,
    temperature: Tensor,
    asked: Tensor,
    ranking: Tensor,
    order: int,
    method: Method,
) -> tuple[Tensor, Tensor, Tensor]:
    """The dispatch of eager mode: ``(above, pulled, ranking)``, see :class:`_PairSums`."""
    r, m = scores.shape
    # the ranking is returned as a view: autograd does not save an input that is returned as it is
    if method in ("auto", "asked_pairs"):
        rows = asked.nonzero()
        few = FEW_ROWS * r if m >= NEAR_LINEAR_FROM else r * m - r * PROBLEM_PAIRS // m
        if method == "asked_pairs" or len(rows) < few:
            return *asked_pairs(scores, weights, pulls, temperature, order, rows), ranking.view_as(ranking)
    pulls = pulls * asked[:, None]
    if method == "all_pairs" or (method == "auto" and m < NEAR_LINEAR_FROM):
        above, pulled = all_pairs(scores, weights, pulls, temperature, order)
        return torch.where(asked[:, None], above, 0), pulled, ranking.view_as(ranking)
    ranking = ranking.view_as(ranking) if ranking.shape[1] > 0 else argsort_rows(scores)
    by_rank = ranking[:, None].expand(r, weights.shape[1] + pulls.shape[1], m)
    summands = torch.cat([weights, pulls], 1).gather(-1, by_rank)
    sums = sorted_sums(scores.gather(-1, ranking), summands, temperature, order)
    above, pulled = torch.empty_like(sums).scatter_(-1, by_rank, sums).tensor_split([weights.shape[1]], 1)
    # sigmoid^(n)(-x) = (-1)^(n+1) sigmoid^(n)(x), and 1 - sigmoid(x) for n = 0
    pulled = pulls.sum(-1, keepdim=True) - pulls - pulled if order == 0 else pulled if order % 2 else -pulled
    return torch.where(asked[:, None], above, 0), pulled, ranking


def _of_order_0(scores: Tensor, weights: Tensor, temperature: Tensor, asked: Tensor) -> tuple[Tensor, ...]:
    """The tensors that :class:`_PairSums` takes for ``above`` alone, not sorted yet."""
    return scores, weights, weights[:, :0], temperature, asked, asked.new_empty(len(scores), 0, dtype=torch.int64)


def _pair_sums(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(inputs[0].device):
        differentiated = torch.is_grad_enabled() or is_transformed() or any(map(has_tangent, inputs[:3]))
        if not differentiated:
            return _evaluate(*inputs)
        return _PairSums.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast would run the matrix products in half precision."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


@final
class _PairSums(torch.autograd.Function):
    """``(above, pulled)`` of scores, weights w, pulls g, temperature, asked, ranking, order n and method.

    The ranking [R, M] is what the sums of exponentials sort by, [R, 0] before they did: derivatives sort no more.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _evaluate(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, _, ctx.order, ctx.method = inputs
        tensors.append(output[2])
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_above: Tensor, grad_pulled: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        return *_pull_back(ctx.saved_tensors, ctx.order, ctx.method, needed, grad_above, grad_pulled), *5 * (None,)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor, None]:
        return *_push_forward(ctx.saved_tensors, ctx.order, ctx.method, *tangents[:3]), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
        """A batch of problems is just more rows."""
        size = info.batch_size
        batched = [
            arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args[:6], in_dims[:6], strict=True)
        ]
        sums = _pair_sums(*(arg.flatten(0, 1) for arg in batched), *args[6:])
        above, pulled, ranking = (total.reshape(size, len(total) // size, *total.shape[1:]) for total in sums)
        return (above, pulled, ranking), (0, 0, 0)


@final
class _FewPairs(torch.autograd.Function):
    """``above`` of one problem's few rows; keeps the derivative of each pair.

    No ``setup_context``: with one, torch inspects a signature at every call.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weights: Tensor, temperature: Tensor, asked: Tensor, place: Tensor) -> Tensor:
        above, slopes = few_pairs(scores, weights, temperature, place)
        ctx.save_for_backward(scores, weights, temperature, asked, place, slopes)
        ctx.save_for_forward(scores, weights, temperature, asked)
        return above

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, weights, temperature, asked, place, slopes = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.needs_input_grad[1] or has_tangent(scores):
            tensors = _of_order_0(scores, weights, temperature, asked)
            grads = _pull_back(tensors, 0, "asked_pairs", ctx.needs_input_grad, grad, tensors[2])
            return *grads[:2], None, None, None
        with full_precision(scores.device):
            return few_pairs_gradient(grad, weights, temperature, place, slopes), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, scores_t: Tensor | None, weights_t: Tensor | None, *_constants: None) -> Tensor:
        tensors = _of_order_0(*ctx.saved_tensors)
        return _push_forward(tensors, 0, "asked_pairs", scores_t, weights_t, None)[0]


def _pull_back(
    saved: tuple[Tensor, ...],
    order: int,
    method: Method,
    needed: tuple[bool, ...],
    grad_above: Tensor,
    grad_pulled: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by scores, weights and pulls of what :class:`_PairSums` gives."""
    scores, weights, pulls, *rest = saved
    grad_scores = grad_weights = grad_pulls = None
    if needed[0]:
        temperature, asked, _ = rest
        masks = order % 2 == 0 and not needed[1]
        g = _centre(grad_above, weights, asked) if masks else grad_above
        w = weights
        if pulls.shape[1]:
            w, g = torch.cat([weights, grad_pulled], 1), torch.cat([g, pulls], 1)
        above, pulled, _ = _pair_sums(scores, w, g, *rest, order + 1, method)
        grad_scores = (w * pulled - g * above).sum(1) / temperature[:, None]
    if needed[1] or needed[2]:
        grad_pulls, grad_weights, _ = _pair_sums(scores, grad_pulled, grad_above, *rest, order, method)
    return grad_scores, grad_weights, grad_pulls


def _push_forward(
    saved: tuple[Tensor, ...],
    order: int,
    method: Method,
    scores_t: Tensor | None,
    weights_t: Tensor | None,
    pulls_t: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The derivatives of ``above`` and ``pulled`` in the direction of the tangents."""
    scores, weights, pulls, *rest = saved
    temperature = rest[0][:, None, None]
    above_t, pulled_t = torch.zeros_like(weights), torch.zeros_like(pulls)
    if weights_t is not None or pulls_t is not None:
        w = torch.zeros_like(weights) if weights_t is None else weights_t
        g = torch.zeros_like(pulls) if pulls_t is None else pulls_t
        above_t, pulled_t, _ = _pair_sums(scores, w, g, *rest, order, method)
    if scores_t is not None:
        shift = scores_t[:, None]
        w, g = torch.cat([weights * shift, weights], 1), torch.cat([pulls * shift, pulls], 1)
        above, pulled, _ = _pair_sums(scores, w, g, *rest, order + 1, method)
        (moved_above, above), (moved_pulled, pulled) = above.chunk(2, 1), pulled.chunk(2, 1)
        above_t = above_t + (moved_above - shift * above) / temperature
        pulled_t = pulled_t + (shift * pulled - moved_pulled) / temperature
    return above_t, pulled_t


def _centre(grad: Tensor, weights: Tensor, asked: Tensor) -> Tensor:
    """``grad`` less its share along constant ``weights``, if these are 0 wherever nothing is asked.

    Then the derivative of an even order along the weights is exactly 0, pair by pair: taking that share out first keeps
    it from drowning the rest in rounding.
    """
    norm = (weights * weights).sum(-1, keepdim=True)
    share = (grad * weights).sum(-1, keepdim=True) / torch.where(norm > 0, norm, 1)
    closed = ((weights == 0) | asked[:, None]).all(-1, keepdim=True)
    return grad - torch.where(closed, share, 0) * weights
