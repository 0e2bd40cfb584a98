"""Sums of sigmoids over pairs of sorted scores in near-linear time, as short sums of exponentials.

For ``x >= 0`` the n-th derivative of the sigmoid at ``-x`` is, to float precision, a polynomial of ``e^-x`` without
constant term. An exponential of a difference factorises, ``e^-k(a - b) = e^-k(a - c) e^-k(c - b)``. So a block of
sorted scores is summarised by as many moments as the polynomial has terms, and a tree carries the moments to all later
and earlier blocks. Inside a block the sigmoid is evaluated pair by pair. Only differences of raw scores are divided by
the temperature, and no exponent is positive, so no scores overflow, and distant pairs become exact counts.

This is the one-dimensional fast multipole idea (Greengard, Rokhlin 1987) with a sum-of-exponentials kernel, whose
translations are diagonal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.ranks.sigmoid import sigmoid_derivative
from imbalanced_losses.kernels.tuning import FAN_OUT, SLICE, near_field_block

__all__ = ["sorted_sums"]

# Coefficients of u, u^2, ... with u = e^-x in the n-th derivative of the sigmoid at -x, x >= 0: minimax (Remez). The
# error is at most 4.4e-8, 8.8e-8, 1.5e-7, 9.9e-7 times u for n = 0, 1, 2, 3. A test checks these bounds.
# fmt: off
SINGLE = {
    0: (0.999999956, -0.999991114, 0.999699331, -0.995964506, 0.971688147, -0.881056407, 0.675075179, -0.385343343,
        0.139071282, -0.0231785469),
    1: (0.999999912, -1.99997987, 2.99921672, -3.9877533, 4.89855691, -5.48959229, 5.30602176, -4.06275683, 2.2214204,
        -0.751683753, 0.116550348),
    2: (0.999999853, -3.99995969, 8.9981196, -15.9647419, 24.6487344, -33.8635785, 40.3764796, -39.50245, 29.4953695,
        -15.3902188, 4.92152877, -0.719282923),
    3: (0.999999725, -7.99991055, 26.9950706, -63.8908264, 123.71263, -206.697758, 298.180942, -359.367119, 343.861391,
        -245.740871, 121.373389, -36.5957959, 5.04385759),
}
# The same for float64: at most 5.7e-15, 3.6e-15, 1.6e-14, 4.2e-13.
DOUBLE = {
    0: (0.9999999999999943, -0.999999999995882, 0.9999999995023987, -0.999999976012597, 0.9999993854118704,
        -0.9999903295340619, 0.9998981242327385, -0.9992395149375712, 0.9958147466027014, -0.9825185871849718,
        0.9433299067958737, -0.8547736679945352, 0.7007628179052509, -0.49509909809371433, 0.2861708747931057,
        -0.12767360194436816, 0.040755742640221755, -0.008219645574498505, 0.0007828233880474767),
    1: (0.9999999999999964, -1.9999999999969518, 2.9999999995645164, -3.999999975074794, 4.999999238246345,
        -5.999985629116891, 6.999817444271263, -7.998346291128266, 8.988878557399916, -9.942806660444994,
        10.76994828455942, -11.26303349673562, 11.090511012896876, -9.939513306633136, 7.800653850104259,
        -5.148600120872115, 2.7374542437880596, -1.1143470581807278, 0.3235972839615708, -0.05938484668572217,
        0.0051574700769966),
    2: (0.9999999999999897, -3.9999999999903535, 8.999999998482952, -15.999999904424953, 24.9999967834648,
        -35.99993311750771, 48.99906230638817, -63.990608529697745, 80.93001511489229, -99.60015368744406,
        119.20789265373688, -137.582626320889, 150.35523196627807, -151.42718193839633, 136.05049761043756,
        -105.340667580285, 67.82878603482901, -34.93712302197714, 13.724441322586816, -3.8393547001429007,
        0.6784968285681302, -0.056771818909439165),
    3: (0.9999999999999684, -7.999999999967436, 26.999999994387654, -63.999999612515374, 124.99998570372877,
        -215.999673861267, 342.9949776833359, -511.9446660791505, 728.5455373493767, -997.1318904714307,
        1316.764275610512, -1671.3916949716177, 2013.8571982061826, -2255.265986413172, 2284.6450381801164,
        -2032.2021642113225, 1539.5598882616132, -962.4054577115207, 479.03760864241156, -181.4267381855515,
        48.89176158050155, -8.324599914390781, 0.6716002197402939),
}
# fmt: on


def sorted_sums(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
    """Return ``sum_{j != i} w_j sigmoid^(n)((s_j - s_i)/tau)`` for every i of every row, in O(R K M).

    Parameters
    ----------
    scores : Tensor [R, M]
        Ascending along M.
    weights : Tensor [R, K, M]
    temperature : Tensor [R]
    order : int in 0..3

    Returns
    -------
    Tensor [R, K, M]
    """
    (r, m), k = scores.shape, weights.shape[1]
    size = near_field_block(r * m)
    n = (m + size - 1) // size
    if padding := n * size - m:  # with weight 0, at the last score
        scores = torch.cat([scores, scores[:, -1:].expand(r, padding)], 1)
        weights = functional.pad(weights, (0, padding))
    blocks = scores.reshape(r, n, size)
    block_weights = weights.reshape(r, k, n, size).transpose(1, 2)
    sums = _near_field(blocks, block_weights, temperature, order) + _far_field(
        blocks, block_weights, temperature, order
    )
    return sums.transpose(1, 2).reshape(r, k, n * size)[..., :m].to(scores.dtype)


def _near_field(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
    """Return the sums over pairs within each block: scores [R, N, B], weights [R, N, K, B] -> [R, N, K, B]."""
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)

    def part(scores: Tensor, weights: Tensor) -> Tensor:
        pairs = (scores[..., :, None] - scores[..., None, :]) / temperature[:, None, None, None]  # [.., j, i]
        return weights @ sigmoid_derivative(pairs, order).masked_fill_(itself, 0)

    return _in_parts(part, scores.shape[-1], scores, weights)


def _far_field(scores: Tensor, weights: Tensor, temperature: Tensor, order: int) -> Tensor:
    """Return the contributions of all other blocks to each block's sums; shapes as in :func:`_near_field`.

    Computed in float64 if the device has it: the alternating coefficients amplify rounding about thirty times when many
    scores lie within a temperature.
    """
    wide = accumulation_dtype(scores.device)
    table = (DOUBLE if scores.dtype == torch.float64 else SINGLE)[order]
    scores, weights, temperature = scores.to(wide), weights.to(wide), temperature.to(wide)
    first, last = scores[..., :1], scores[..., -1:]

    def moments(scores: Tensor, weights: Tensor) -> Tensor:  # relative to the block's last, and to its first score
        return torch.stack([weights @ decay.mT for decay in _decays(scores, temperature, len(table))])

    to_last, to_first = _in_parts(moments, len(table), scores, weights, dim=2)
    earlier, later = _carry(first[..., 0], last[..., 0], to_last, to_first, temperature)
    # a dispatch mode may return other tensors, such as fakes, which must not be cached
    make = _make_coefficients if _get_current_dispatch_mode() is not None else _coefficients
    coefficients = make(table, wide, scores.device)
    sign = 1 if order % 2 else -1  # sigmoid^(n)(x) = sign sigmoid^(n)(-x), and 1 - sigmoid(-x) for n = 0

    def read_off(scores: Tensor, earlier: Tensor, later: Tensor) -> Tensor:
        from_last, from_first = _decays(scores, temperature, len(table))
        return (earlier * coefficients) @ from_first + (later * coefficients) @ from_last * sign

    sums = _in_parts(read_off, len(table), scores, earlier, later)
    if order > 0:
        return sums
    total_weight = weights.sum(-1, keepdim=True)
    return sums + (total_weight.sum(1, keepdim=True) - total_weight.cumsum(1))


def _make_coefficients(table: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor of coefficients. Cached: a copy from the host waits for an accelerator, and bars CUDA graphs."""
    with torch.inference_mode(mode=False):
        return torch.tensor(table, dtype=dtype, device=device)


_coefficients = functools.cache(_make_coefficients)


def _carry(
    first: Tensor, last: Tensor, to_last: Tensor, to_first: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the moments of all earlier blocks, relative to each block's first score, and of all later, to its last.

    ``first, last [R, N]``, moments ``[R, N, K, T]``. Within a group of blocks, moments are carried between all pairs of
    blocks; a group is then one block of the next level.
    """
    (r, n), (k, terms) = first.shape, to_last.shape[-2:]
    group = n if n <= 2 * FAN_OUT else FAN_OUT
    groups = (n + group - 1) // group
    if padding := groups * group - n:
        end = last[:, -1:].expand(r, padding)
        first, last = torch.cat([first, end], 1), torch.cat([last, end], 1)
        to_last, to_first = (functional.pad(t, (0, 0, 0, 0, 0, padding)) for t in (to_last, to_first))
    first, last = first.reshape(r, groups, group), last.reshape(r, groups, group)
    to_last, to_first = (
        t.reshape(r, groups, group, k, terms).permute(0, 1, 4, 3, 2) for t in (to_last, to_first)
    )  # [R, G, T, K, group]
    gap = (last[..., :, None] - first[..., None, :]) / temperature[:, None, None, None]
    hop = _exp(gap.clamp_max(0)).triu(1)  # from block c' to a later block c
    hops = _powers(hop.flatten(-2), terms).reshape(r, groups, terms, group, group)
    earlier, later = to_last @ hops, to_first @ hops.mT
    if groups > 1:
        to_end, to_start = (
            _powers(_exp((edge - score) * sign / temperature[:, None, None]), terms)[..., None, :]
            for edge, score, sign in ((last[..., -1:], last, -1), (first[..., :1], first, 1))
        )
        above = _carry(
            first[..., 0],
            last[..., -1],
            (to_last * to_end).sum(-1).mT,
            (to_first * to_start).sum(-1).mT,
            temperature,
        )
        earlier = earlier + above[0].mT[..., None] * to_start
        later = later + above[1].mT[..., None] * to_end
    earlier, later = (t.permute(0, 1, 4, 3, 2).reshape(r, groups * group, k, terms) for t in (earlier, later))
    return earlier[:, :n], later[:, :n]


def _decays(scores: Tensor, temperature: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Return ``e^-t(last - s)/tau`` and ``e^-t(s - first)/tau``, t = 1 .. T: scores [R, N, B] -> two [R, N, T, B]."""
    first, last = scores[..., :1], scores[..., -1:]
    scale = temperature[:, None, None]
    return _powers(_exp((scores - last) / scale), terms), _powers(_exp((first - scores) / scale), terms)


def _exp(x: Tensor) -> Tensor:
    """Return ``exp(x)``. On the CPU torch's ``exp2`` is twice as fast as ``exp``, and eight times on underflow."""
    return torch.exp2(x * math.log2(math.e))


def _powers(base: Tensor, terms: int) -> Tensor:
    """Return ``u^1 .. u^T`` of ``u [..., B]`` as ``[..., T, B]``."""
    powers = [base]
    for _ in range(terms - 1):
        powers.append(powers[-1] * base)
    return torch.stack(powers, -2)


def _in_parts(function: Callable[..., Tensor], width: int, *rows: Tensor, dim: int = 1) -> Tensor:
    """Apply ``function`` to ``[R, N, ...]`` tensors, a slice of N at a time so that it fits the CPU cache."""
    r, n, size = rows[0].shape
    step = max(1, SLICE // (r * size * width))
    if step >= n:
        return function(*rows)
    parts = [slice(start, start + step) for start in range(0, n, step)]
    return torch.cat([function(*(t[:, part] for t in rows)) for part in parts], dim)
