"""Measured constants: from which size on which evaluator is used, and how much is worked on at a time.

None of them changes a result beyond rounding. ``make bench-paths`` measures both sides of each choice and writes
docs/paths.md with the ratios; measure again before you change a number.
"""

from __future__ import annotations

# --- soft ranks and pairs ---------------------------------------------------------------------------------------------
NEAR_LINEAR_FROM = 1000  # rows of a problem on the CPU; fewer are compared in all pairs
NEAR_LINEAR_FROM_ELSEWHERE = 1400  # on other devices, where fewer operators matter more
FEW_POSITIVES = 320  # average over the classes; fewer are compared with every row, more take soft ranks
OVERHEAD_ROWS = 1600  # rows that take soft ranks as long as their operators take to be called
PAIRS_PER_ROW = 280  # positive-negative pairs, per row of the pool; fewer are compared, more take soft ranks
FEW_PAIRS = 1 << 15  # of one problem: these are compared in one block, in float64
CHUNK_PAIRS = 1 << 19  # pairs held at a time on the CPU: 2 MB of float32, about a core's share of the cache
CHUNK_PAIRS_ELSEWHERE = 1 << 24  # on other devices, where fewer steps matter more
OWN_BLOCK_PAIRS = 1 << 16  # of one problem, to have a block of its own; smaller problems share blocks
FAN_OUT = 16  # blocks that one level of the tree of moments joins
SLICE = 1 << 19  # numbers in a temporary of the near-linear evaluator

ROBUST_CHUNK = 1 << 17  # scores of the classes whose hinge losses are worked on at a time

# --- order statistics -------------------------------------------------------------------------------------------------
RADIX_FROM = 1 << 15  # values, from which on torch's radix sort of integers beats its sort of floats
JOINED_UP_TO = 1 << 19  # values in rows that are sorted as one row of 64-bit integers
LARGE_SHARE = 1 / 16  # of a row: its largest values, if fewer, are selected instead of sorted
SMALL_ROW = 2048  # values of a single row that is sorted once for several levels
OPAQUE_FROM = 1 << 13  # values, from which on compiled code calls the operator; fewer are fused
QUANTILE_CHUNK = 1 << 19  # values that are ordered at a time

# --- recall -----------------------------------------------------------------------------------------------------------
RECALL_CHUNK = 1 << 17  # scores of the classes that are worked on at a time
PACKED_FROM = 1 << 14  # scores, from which on the positives are gathered first

# --- focal losses -----------------------------------------------------------------------------------------------------
# up to which the graph keeps the forward's terms: in float32 at most 13 MB of a sigmoid, 19 MB of a softmax
FEW_LOGITS = 1 << 20
SIGMOID_BLOCK = 1 << 17  # logits per thread that are worked on at a time
SOFTMAX_BLOCK = 1 << 20  # the same of the softmax, some of whose calls go by rows
FEW_CLASSES = 16  # up to which classes are laid out as the first axis
FEW_POWERS = 1 << 12  # up to which one call of exp costs less than a product and exp2


def near_field_block(rows: int) -> int:
    """Scores of a block of the near-linear evaluator: long while operators count, short once its pairs do."""
    return 128 if rows <= 1536 else 64 if rows <= 4096 else 32
