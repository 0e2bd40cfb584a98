"""Training to early stopping: the part that all contenders share, with torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Limits", "Stopper", "Watch", "average_precision", "epochs", "log_odds", "ranked", "train"]


@dataclass(frozen=True)
class Limits:
    """When training stops.

    Validation follows each epoch, but at most every 50 steps: small tables have epochs of four steps. Training stops
    after five validations without a better average precision, after 60 epochs or 2,000 steps, whichever is more, and
    after 4,000 steps in any case.
    """

    batch: int = 256
    every: int = 50
    patience: int = 5
    epochs: int = 60
    least: int = 2_000
    most: int = 4_000

    def steps_between(self, n_rows: int) -> int:
        """From one validation to the next."""
        return max(self.every, -(-n_rows // self.batch))

    def steps(self, n_rows: int) -> int:
        """The last step."""
        return min(self.most, max(self.least, self.epochs * -(-n_rows // self.batch)))


class Stopper:
    """Keeps the weights of the best validation score; of equal scores the first."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.since = patience, -torch.inf, 0
        self.weights: dict[str, Tensor] = {}

    def update(self, score: float, model: nn.Module) -> bool:
        """Whether to stop; a score that is not a number is the worst."""
        if score > self.best or not self.weights:
            self.best, self.since = (score if score == score else -torch.inf), 0
            self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        else:
            self.since += 1
        return self.since >= self.patience


Watch = Callable[[nn.Module], float]


def ranked(logits: Tensor, link: str) -> Tensor:
    """Scores that compare across rows: of a softmax, log odds of each class against the rest."""
    if link != "softmax":
        return logits
    return log_odds(logits)


def log_odds(logits: Tensor) -> Tensor:
    """``[N, C]`` float64: of each class's softmax probability, exact also where that rounds to one."""
    z = logits.double()
    total, top = z.logsumexp(1, keepdim=True), z.argmax(1, keepdim=True)
    without_top = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    others = total + torch.log1p(-(z - total).exp().clamp_max(0.5))  # of all but the top, which is replaced
    return z - others.scatter(1, top, without_top)


def average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over the columns of ``[N, C]``, one class against the rest; equal scores are one alert.

    Written here as the environments share no package that has it; a class without positives does not count.
    """
    if not scores.isfinite().all():
        return float("nan")
    found = []
    for k, column in enumerate(scores.T):
        positive = (targets == (k if scores.shape[1] > 1 else 1)).double()
        ordered, order = column.sort(descending=True)
        hits = positive[order].cumsum(0)
        last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of equals
        hits, alerts = hits[last], torch.arange(1.0, len(column) + 1, dtype=torch.float64)[last]
        if hits[-1] > 0:
            gained = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
            found.append(float((gained * hits / alerts).sum() / hits[-1]))
    return sum(found) / len(found) if found else float("nan")


def epochs(n_rows: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Row numbers without end: one random order after another, cut into full batches."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.empty(0, dtype=torch.int64)
    while True:
        rest = torch.cat([rest, torch.randperm(n_rows, generator=generator)])
        whole = len(rest) // batch * batch
        if whole:  # a split of nothing would give an empty batch
            yield from torch.split(rest[:whole], batch)
            rest = rest[whole:]


def train(
    model: nn.Module,
    step: Callable[[Tensor], None],
    rows: Iterator[Tensor],
    n_rows: int,
    watch: Watch,
    limits: Limits,
) -> dict[str, Any]:
    """Step until validation says so, leave the best weights in the model, and tell what it took.

    ``seconds`` are processor time, so that other processes do not count. They include validation.
    """
    begin = time.process_time()
    stopper, between, steps = Stopper(limits.patience), limits.steps_between(n_rows), 0
    stopper.update(watch(model), model)  # the start counts: fine-tuning may only make it worse
    stopper.since = 0
    for steps in range(1, limits.steps(n_rows) + 1):
        step(next(rows))
        if steps % between == 0 and stopper.update(watch(model), model):
            break
    model.load_state_dict(stopper.weights)
    return {"seconds": time.process_time() - begin, "steps": steps, "best": stopper.best}
