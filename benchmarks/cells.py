"""What is measured: the cells of the sweep, and the promises as statements about cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

Options = tuple[tuple[str, str], ...]

# names as they stand in the page, in its order: class and options
RANKING: dict[str, tuple[str, Options]] = {
    "SmoothAP": ("SmoothAPLoss", ()),
    "recall": ("RecallAtQuantileLoss", ()),
    "pAUC, trapezoid": ("PAUCAtBudgetLoss", (("surrogate", "trapezoid"),)),
    "pAUC, pairwise": ("PAUCAtBudgetLoss", (("surrogate", "pairwise"),)),
}
FOCAL: dict[str, tuple[str, Options]] = {
    "sigmoid focal": ("SigmoidFocalLoss", ()),
    "softmax focal": ("SoftmaxFocalLoss", ()),
}
POOLS = (1_056, 4_096, 16_384, 65_536, 262_144, 1_048_576)
CLASSES = (1, 10, 100)
RATES = (0.005, 0.1)

# rows x classes up to which ours is measured compiled; a shape takes tens of seconds to compile, large ones minutes
COMPILED_SCORES = 16_384


@dataclass(frozen=True)
class Cell:
    """One loss on inputs of one shape, and the series to measure on them."""

    loss: str
    batch: int = 0
    queue: int = 0
    classes: int = 1
    rate: float = 0.1
    shape: tuple[int, ...] = ()  # of a focal loss's logits
    steps: int = 0  # more than 0: count compilations over so many steps instead of timing one
    series: tuple[str, ...] = field(default=("ours", "peer"), compare=False)

    @property
    def pool(self) -> int:
        """Rows that are ranked together; of a focal loss, its rows."""
        return self.batch + self.queue if self.batch else self.shape[0]

    @property
    def key(self) -> str:
        """Name in the JSON file."""
        if self.shape:
            return f"{self.loss}, logits {self.shape}"
        size = f"batch {self.batch} + queue {self.queue}" if self.queue else f"pool {self.pool}"
        steps = f", {self.steps} temperatures" if self.steps else ""
        return f"{self.loss}, {size}, classes {self.classes}, rate {self.rate:g}{steps}"

    @property
    def family(self) -> tuple[object, ...]:
        """What it shares with the same loss on pools of other sizes."""
        return self.loss, self.queue, self.classes, self.rate, self.shape

    def work(self, series: str) -> dict[str, object]:
        """What a worker needs to know."""
        name, options = {**RANKING, **FOCAL}[self.loss]
        sizes = {"batch": self.batch, "queue": self.queue, "classes": self.classes, "rate": self.rate}
        more = {"shape": self.shape, "steps": self.steps, "series": series, "options": dict(options)}
        return {"loss": name, **sizes, **more}


@dataclass(frozen=True)
class Promise:
    """A bound on what is measured on some cells.

    ``measure`` is what the bound is about: ``speed`` and ``memory`` are how many times the peer's the peer needs,
    ``sort`` the time in multiples of ``torch.sort``, ``megabytes`` the peak, ``compilations`` their number.
    """

    work: str
    measure: Literal["speed", "memory", "sort", "megabytes", "compilations"]
    bound: float
    cells: tuple[Cell, ...]


def promises() -> tuple[Promise, ...]:
    """Every row of the contract's table."""
    everything = ("ours", "compiled", "peer", "sort")
    small = tuple(Cell(loss, batch=32, queue=1024, series=everything) for loss in RANKING)
    small_focal = (
        Cell("sigmoid focal", shape=(32,), series=("ours", "compiled", "peer")),
        Cell("softmax focal", shape=(32, 10), series=("ours", "compiled", "peer")),
    )
    ten = tuple(Cell(loss, batch=32, queue=1024, classes=10, series=everything) for loss in RANKING)
    hundred = tuple(Cell(loss, batch=2048, classes=100) for loss in RANKING)
    large = tuple(Cell(loss, batch=262_144) for loss in RANKING if loss != "SmoothAP")
    sigmoid = tuple(Cell("sigmoid focal", shape=(n,)) for n in (800_000, 1_000_000))
    shapes = ((100_000, 8), (8_000, 100), (8, 10, 100, 100), (125_000, 8), (10_000, 100), (10, 10, 100, 100))
    softmax = tuple(Cell("softmax focal", shape=shape) for shape in shapes)
    binary = (Cell("SmoothAP", batch=16_384),)
    million = tuple(Cell("SmoothAP", batch=1_048_576, rate=rate, series=("ours", "sort")) for rate in RATES)
    steps = tuple(Cell(loss, batch=32, queue=1024, steps=1_000) for loss in RANKING)
    return (
        Promise("every loss at its defaults, batch 32 + queue 1,024", "speed", 1, small + small_focal),
        Promise("SmoothAP, binary, pool 16,384, 10 % positives", "speed", 10, binary),
        Promise("SmoothAP, binary, pool 16,384, 10 % positives", "memory", 20, binary),
        Promise("SmoothAP, binary, pool 1,048,576", "sort", 6, million),
        Promise("SmoothAP, binary, pool 1,048,576", "megabytes", 300, million),
        Promise("10 classes, batch 32 + queue 1,024", "speed", 2, ten),
        Promise("100 classes, pool 2,048", "speed", 5, hundred),
        Promise("recall and pAUC, pool 262,144", "speed", 3, large),
        Promise("focal losses, 800,000 and 1,000,000 logits", "speed", 1.5, sigmoid + softmax),
        Promise("1,000 steps with a new temperature each", "compilations", 1, steps),
    )


def sweep() -> Iterator[Cell]:
    """Every ranking loss over classes, pool and positive rate: what the plot shows comes first, smaller pools first."""
    for classes in CLASSES:
        for pool in POOLS:
            for loss in RANKING:
                for rate in RATES:
                    yield Cell(
                        loss, batch=pool, classes=classes, rate=rate, series=("ours", "compiled", "peer", "sort")
                    )


def select(rows: str, max_rows: int, *, quick: bool) -> list[Cell]:
    """The cells of a run, each once, with the series of all that ask for it; ``quick``: less, and nothing compiled."""
    asked = [cell for promise in promises() for cell in promise.cells] if rows != "sweep" else []
    asked += [cell for cell in sweep() if not quick or cell.classes == 1] if rows != "promises" else []
    cells: dict[Cell, tuple[str, ...]] = {}
    for cell in asked:
        if cell.pool <= max_rows and not (quick and cell.steps):
            cells[cell] = tuple(dict.fromkeys((*cells.get(cell, ()), *cell.series)))
    left_out = {"compiled"} if quick else set()
    return [replace(cell, series=tuple(s for s in series if s not in left_out)) for cell, series in cells.items()]
