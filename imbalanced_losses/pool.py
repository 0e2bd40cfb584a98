"""The pool: the live batch and the queue's rows, side by side under masks, one row of scores per class.

Everything that depends on labels being ignored, rows being live or classes being one-vs-rest is decided here, once; the
losses see scores and masks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from imbalanced_losses import remedies
from imbalanced_losses.checks import (
    check_choice,
    check_flag,
    check_integer,
    check_logits,
    check_row_flags,
    check_row_weights,
    check_targets,
    check_temperature,
    check_temperature_number,
)
from imbalanced_losses.execution import reads_freely
from imbalanced_losses.precision import widest_dtype, working_dtype
from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.queue import QueueState, Rows
from imbalanced_losses.reductions import Reduction, reduce_classes
from imbalanced_losses.settings import check_fields, optional

__all__ = [
    "PerClass",
    "Pool",
    "RankingConfig",
    "build_pool",
    "check_queue",
    "check_rows",
    "join_rows",
    "mark_invalid",
    "reduce",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingConfig:
    """What every ranking loss can be told; see the losses' own configs."""

    num_classes: int
    temperature: float = 0.01
    reduction: Reduction = "mean"
    ignore_index: int = -100
    max_pool_size: int | None = None
    multilabel: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_classes=partial(check_integer, minimum=1),
            temperature=check_temperature_number,
            reduction=partial(check_choice, choices=("mean", "sum", "none")),
            ignore_index=partial(check_integer, minimum=-(2**63)),
            max_pool_size=optional(partial(check_integer, minimum=2)),
            multilabel=check_flag,
        )


@state_dataclass
class PerClass:
    """A ranking loss before its reduction.

    Attributes
    ----------
    loss : Tensor [C]
        ``nan`` at each invalid class.
    valid : Tensor [C], bool
        Whether the class had what the loss needs (see there).
    diagnostics : dict of Tensor [C]
        Detached; empty but for pAUC.
    """

    loss: Tensor
    valid: Tensor
    diagnostics: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """M = N live rows, then Q queue rows, as C one-vs-rest problems, in memory of its own.

    Attributes
    ----------
    scores : Tensor [C, M], float32 or float64
        0 where not valid; only live rows carry gradient.
    valid : Tensor [C, M], bool
        Rows that take part.
    positive : Tensor [C, M], bool
        Valid rows of the class.
    iid : Tensor [M], bool
        Rows drawn from the deployment distribution.
    sample_weight : Tensor [M]
    n_live : int
        N.
    temperature : Tensor []
    kept : Tensor [M], int64, optional
        Which of the rows are in the pool; all of them if left out.
    stands_for : Tensor [M], optional
        For how many rows of the whole pool each kept one counts: one over its probability to be kept (nearly that for
        rows of several classes).
    beside : Tensor [C], optional
        For how many positives of the whole pool each kept one counts beside another kept one.
    """

    scores: Tensor
    valid: Tensor
    positive: Tensor
    iid: Tensor
    sample_weight: Tensor
    n_live: int
    temperature: Tensor
    kept: Tensor | None = None
    stands_for: Tensor | None = None
    beside: Tensor | None = None

    @property
    def negative(self) -> Tensor:
        """Bool ``[C, M]``: valid rows of the other classes."""
        return self.valid ^ self.positive

    @property
    def live(self) -> Tensor:
        """Bool ``[M]``: rows of the batch."""
        rows = torch.arange(len(self.iid), device=self.iid.device) if self.kept is None else self.kept
        return rows < self.n_live

    @property
    def row_weight(self) -> Tensor:
        """``[C, M]``: the weight of each row in a mean over rows, the same for all classes."""
        weight = self.sample_weight if self.stands_for is None else self.sample_weight * self.stands_for
        return weight.expand_as(self.scores)

    @property
    def row_count(self) -> Tensor | None:
        """``[C, M]``: for how many rows of the whole pool each counts, if not always 1."""
        return None if self.stands_for is None else self.stands_for.expand_as(self.scores)

    @property
    def positive_weight(self) -> Tensor:
        """``[C, M]``: the weight of each positive in a mean over positives, 0 elsewhere."""
        return self.count(self.positive) * self.sample_weight

    def count(self, rows: Tensor) -> Tensor:
        """What each of ``rows [..., M]``, a mask, adds to a count over the whole pool."""
        counts = rows.to(self.scores.dtype)
        return counts if self.stands_for is None else counts * self.stands_for

    def rank_counts(self, negative: Tensor) -> Tensor | None:
        """``[C, 2, M]``: what each positive and each negative adds to the rank of a kept positive, if not always 1."""
        if self.beside is None:
            return None
        return torch.stack([self.positive * self.beside[:, None], self.count(negative)], 1)


def build_pool(
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: RankingConfig,
    *,
    temperature: Tensor | float | None,
    iid_mask: Tensor | None,
    sample_weight: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Pool, Rows]:
    """Check the inputs and join them with the queue: the first half of every ranking loss.

    The pool is a copy, so a queue buffer that is overwritten before the backward does no harm. Returned with it are the
    live rows, which are pushed once the loss is there.
    """
    live = check_rows(logits, targets, cfg, iid_mask, sample_weight)
    check_queue(queue_state, live, cfg)
    pool = join_rows(live, queue_state, cfg, cfg.temperature if temperature is None else temperature)
    if cfg.max_pool_size is not None and pool.scores.shape[1] > cfg.max_pool_size:
        pool = _subsample(pool, cfg.max_pool_size, cfg.multilabel, generator)
    return pool, live


def mark_invalid(result: PerClass) -> PerClass:
    """What ``measure_*`` gave, which is 0 at invalid classes, as users see it: ``nan`` there.

    A class with a logit that is not finite is valid, and ``nan``, too.
    """
    if reads_freely(result.valid) and result.valid.all():
        return result
    valid = result.valid | result.loss.isnan()
    return dataclasses.replace(result, loss=torch.where(valid, result.loss, torch.nan), valid=valid)


def reduce(result: PerClass, cfg: RankingConfig) -> Tensor:
    """The loss: what ``measure_*`` gave, under ``cfg.reduction``."""
    return reduce_classes(result.loss, result.valid, cfg.reduction)


def check_rows(
    logits: Tensor, targets: Tensor, cfg: RankingConfig, iid_mask: Tensor | None, sample_weight: Tensor | None
) -> Rows:
    """The live rows, with ones for what is left out."""
    logits = check_logits(logits, cfg.num_classes)
    targets = check_targets(targets, logits, multilabel=cfg.multilabel)
    n, device, dtype = logits.shape[0], logits.device, working_dtype(logits)
    rows = Rows(
        logits=logits,
        targets=targets,
        valid=targets != cfg.ignore_index,
        iid=torch.ones(n, dtype=torch.bool, device=device)
        if iid_mask is None
        else check_row_flags("iid_mask", iid_mask, logits),
        sample_weight=torch.ones(n, dtype=dtype, device=device)
        if sample_weight is None
        else check_row_weights("sample_weight", sample_weight, logits).to(dtype),
    )
    return rows if sample_weight is None else _with_finite_weights(rows)


def _with_finite_weights(rows: Rows) -> Rows:
    """Give rows whose weight is not finite ``nan`` logits, also ignored rows.

    So the rules of such logits hold: this step's loss is not finite, and the row is stored as an ignored one.
    """
    weight = rows.sample_weight
    if reads_freely(weight) and math.isfinite(weight.sum()):
        return rows
    finite = weight.isfinite()
    of_row = finite[:, None] if rows.valid.dim() == 2 else finite
    return rows._replace(
        logits=torch.where(finite[:, None], rows.logits, torch.nan),
        targets=torch.where(of_row, rows.targets, 0),
        sample_weight=torch.where(finite, weight, 1),
        valid=rows.valid | ~of_row,
    )


def check_queue(state: QueueState, live: Rows, cfg: RankingConfig) -> None:
    """The queue must be one that the live rows can be pushed to."""
    if not isinstance(state, QueueState):
        raise TypeError(f"expected queue_state to be a QueueState, got {type(state).__name__}")
    kind = "multi-label" if cfg.multilabel else "single-label"
    if state.logits.shape[1] != cfg.num_classes or state.targets.dim() != live.targets.dim():
        shapes = f"logits {list(state.logits.shape)} and targets {list(state.targets.shape)}"
        raise ValueError(f"expected a {kind} queue of {cfg.num_classes} classes, got one with {shapes}")
    if state.logits.device != live.logits.device:
        device = live.logits.device
        remedy = f"{remedies.for_loss_elsewhere(device)}, init_queue(..., device=...)"
        raise ValueError(f"expected a queue on {device} like the logits, got {state.logits.device}{remedy}")


def join_rows(live: Rows, queue: QueueState, cfg: RankingConfig, temperature: Tensor | float) -> Pool:
    """The pool of checked rows and a queue that fits. Without any row it gets an ignored one: nothing knows M = 0."""
    dtype = working_dtype(live.logits)
    parts = [live]
    if queue.logits.shape[0] > 0:
        weights = queue.sample_weight.to(dtype)
        parts.append(Rows(queue.logits, queue.targets, queue.iid, weights, queue.valid))
    elif live.logits.shape[0] == 0:
        parts.append(Rows(*(rows.new_zeros(1, *rows.shape[1:]) for rows in live)))
    # transposed before they are joined: of [C, M] intermediates in two layouts the default backend makes wrong code
    logits, targets, iid, sample_weight, valid = (
        torch.cat([values.mT if values.dim() == 2 else values for values in field], -1)
        for field in zip(*parts, strict=True)
    )
    valid, positive = _one_vs_rest(targets, valid, cfg)
    scores = logits.to(dtype)
    if not (reads_freely(valid) and valid.all()):  # spares two operators, and two in the backward
        scores = torch.where(valid, scores, 0)
    return Pool(
        scores=scores,
        valid=valid,
        positive=positive,
        iid=iid,
        sample_weight=sample_weight,
        n_live=live.logits.shape[0],
        temperature=check_temperature(temperature, scores),
    )


def _one_vs_rest(targets: Tensor, valid: Tensor, cfg: RankingConfig) -> tuple[Tensor, Tensor]:
    """Masks ``[C, M]`` of valid rows and positives; ``targets`` and ``valid`` are ``[M]`` or, of labels, ``[C, M]``.

    What is no label never counts: one out of range that nobody checked, or what averaging made of a queue's labels.
    """
    highest = 1 if cfg.multilabel or cfg.num_classes == 1 else cfg.num_classes - 1
    valid = valid & (targets.clamp(0, highest) == targets)
    if cfg.multilabel:
        return valid, valid & (targets == 1)
    if cfg.num_classes == 1:
        return valid[None], (valid & (targets == 1))[None]
    classes = torch.arange(cfg.num_classes, device=targets.device)
    return valid.expand(cfg.num_classes, -1), valid & (targets == classes[:, None])


def _subsample(pool: Pool, size: int, multilabel: bool, generator: torch.Generator | None) -> Pool:
    """Keep ``size`` rows: up to ``size // (2 * observed classes)`` random ones of each class, the rest uniformly.

    Rows are brought into random order, for each class anew if a row may have several; the first of each class are
    protected and come first, then the others in another random order, and ignored rows last. Without ``generator``
    torch's global one is used, as in ``functional.dropout``.
    """
    takes_part = pool.valid.any(0)
    groups = torch.cat([pool.positive, (takes_part & ~pool.positive.any(0))[None]])  # [G = C + 1, M]: rest = label 0
    quota = size // (2 * groups.any(-1).sum().clamp_min(1))
    shape = (len(groups) + 1 if multilabel else 2, groups.shape[1])
    # the compiler does not take a generator=None beside a size that varies
    random = torch.rand if generator is None else partial(torch.rand, generator=generator)
    noise = random(shape, device=groups.device)
    shuffled = noise[1:].argsort(-1).expand_as(groups)
    members = groups.gather(-1, shuffled)
    first = members & (members.cumsum(-1) <= quota)
    protected = torch.zeros_like(first).scatter(-1, shuffled, first).any(0)
    kept = torch.where(protected, -1, torch.where(takes_part, noise[0], 2)).argsort()[:size]
    rows = {name: getattr(pool, name)[..., kept] for name in ("scores", "valid", "positive", "iid", "sample_weight")}
    chance = _chance_to_be_kept(groups, takes_part, quota, protected.sum(), size)[kept]
    n, k = pool.positive.sum(-1), rows["positive"].sum(-1)
    beside = (n - 1).to(chance.dtype) / (k - 1).clamp_min(1)  # one over the chance of another, given that one is kept
    dtype = pool.scores.dtype
    return dataclasses.replace(pool, kept=kept, stands_for=(1 / chance).to(dtype), beside=beside.to(dtype), **rows)


def _chance_to_be_kept(groups: Tensor, takes_part: Tensor, quota: Tensor, n_protected: Tensor, size: int) -> Tensor:
    """``[M]``: of being among the protected of one of the row's classes, or else among those that fill up."""
    dtype = widest_dtype(groups.device)
    protection = (quota.to(dtype) / groups.sum(-1).clamp_min(1)).clamp_max(1)
    unprotected = torch.where(groups, 1 - protection[:, None], 1).prod(0)
    n_others = (takes_part.sum() - n_protected).clamp_min(1)
    return 1 - unprotected * (1 - ((size - n_protected).to(dtype) / n_others).clamp_max(1))
