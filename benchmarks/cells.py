"""What is measured: the cells of the sweep, and the promises as statements about cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

Options = tuple[tuple[str, str], ...]
Task = Literal["time", "compilations", "operators"]

# names as they stand in the page, in its order: class and options
RANKING: dict[str, tuple[str, Options]] = {
    "SmoothAP": ("SmoothAPLoss", ()),
    "recall": ("RecallAtQuantileLoss", ()),
    "pAUC, trapezoid": ("PAUCAtBudgetLoss", (("surrogate", "trapezoid"),)),
    "pAUC, pairwise": ("PAUCAtBudgetLoss", (("surrogate", "pairwise"),)),
}
WITHOUT_PEER: dict[str, tuple[str, Options]] = {
    "precision at a recall": ("PrecisionAtRecallLoss", ()),
    "FPR at a recall": ("FPRAtRecallLoss", ()),
    "pAUC, dro": ("PAUCAtBudgetLoss", (("surrogate", "dro"),)),
    "soft F-beta": ("SoftFBetaLoss", ()),
}
RETRIEVAL: dict[str, tuple[str, Options]] = {
    "retrieval AP": ("RetrievalAPLoss", ()),
    "retrieval recall@k": ("RecallAtKLoss", ()),
}
FOCAL: dict[str, tuple[str, Options]] = {
    "sigmoid focal": ("SigmoidFocalLoss", ()),
    "softmax focal": ("SoftmaxFocalLoss", ()),
}
ELEMENTWISE: dict[str, tuple[str, Options]] = {
    **FOCAL,
    "logit-adjusted": ("LogitAdjustedLoss", ()),
    "asymmetric": ("AsymmetricLoss", ()),
    "LDAM": ("LDAMLoss", ()),
}
POOLS = (1_056, 4_096, 16_384, 65_536, 262_144, 1_048_576)
CLASSES = (1, 10, 100)
RATES = (0.005, 0.1)
STEPS = 1_000  # with a new temperature each, over which compilations are counted

# a process each, all of ours but the peer, torch.sort and the plain formula; the last three take one step of several
# states
SERIES = ("ours", "compiled", "peer", "sort", "plain", "vmap", "loop", "compiled vmap")
COMPILED = ("compiled", "compiled vmap")


@dataclass(frozen=True)
class Cell:
    """One loss on inputs of one shape, and the series to measure on them."""

    loss: str
    batch: int = 0
    queue: int = 0
    classes: int = 1
    rate: float = 0.1
    shape: tuple[int, ...] = ()  # of a focal loss's logits
    states: int = 0  # more than 0: an ensemble of so many queues, each with its own batch
    embedding_size: int = 0  # more than 0: a retrieval loss, whose memory is the queue
    task: Task = "time"
    series: tuple[str, ...] = field(default=("ours", "peer"), compare=False)

    @property
    def pool(self) -> int:
        """Rows that are ranked together; of a focal loss, its rows."""
        return self.batch + self.queue if self.batch else self.shape[0]

    @property
    def key(self) -> str:
        """Name in the JSON file."""
        size = f"batch {self.batch} + queue {self.queue}" if self.queue else f"pool {self.pool}"
        inputs = f"logits {self.shape}" if self.shape else f"{size}, classes {self.classes}, rate {self.rate:g}"
        states = f", {self.states} states" if self.states else ""
        embeddings = f", embedding size {self.embedding_size}" if self.embedding_size else ""
        task = {"time": "", "compilations": f", {STEPS} temperatures", "operators": ", operators"}[self.task]
        return f"{self.loss}, {inputs}{states}{embeddings}{task}"

    @property
    def family(self) -> tuple[object, ...]:
        """What it shares with the same loss on pools of other sizes."""
        return self.loss, self.queue, self.classes, self.rate, self.shape, self.states

    def work(self, series: str) -> dict[str, object]:
        """What a worker needs to know."""
        name, options = {**RANKING, **WITHOUT_PEER, **RETRIEVAL, **ELEMENTWISE}[self.loss]
        sizes = {"batch": self.batch, "queue": self.queue, "classes": self.classes, "rate": self.rate}
        sizes["embedding_size"] = self.embedding_size
        more = {"shape": self.shape, "states": self.states, "steps": STEPS, "options": dict(options)}
        return {"loss": name, **sizes, **more, "series": series, "compiled": series in COMPILED}


Measure = Literal[
    "faster", "leaner", "time ratio", "memory ratio", "megabytes", "first call", "growth", "compilations", "operators"
]


@dataclass(frozen=True)
class Promise:
    """A bound on what is measured on some cells.

    ``measure`` is what the bound is about. From below: ``faster`` and ``leaner`` are how many times the time and memory
    of ``series`` the series ``against`` takes. From above: ``time ratio`` and ``memory ratio`` are those of ``series``
    in multiples of ``against``, ``megabytes`` its peak, ``first call`` the seconds of its first call, ``compilations``
    their number. ``growth`` is that of the time of ``series``, in multiples of the pool's, from the cell at the same
    place in ``smaller``. ``operators`` are to be fewer than those of ``against``, and none may read the device.
    """

    work: str
    measure: Measure
    bound: float
    cells: tuple[Cell, ...]
    series: str = "ours"
    against: str = "peer"
    smaller: tuple[Cell, ...] = ()  # of ``growth``, one for each of ``cells``


def small_pools(classes: int) -> tuple[Cell, ...]:
    """Every ranking loss on a batch and a queue."""
    series = ("ours", "compiled", "peer", "sort")
    return tuple(Cell(loss, batch=32, queue=1024, classes=classes, series=series) for loss in RANKING)


def small_without_peer() -> tuple[Cell, ...]:
    """Losses that the peer does not have, on a batch and a queue."""
    series, classes = ("ours", "compiled", "sort"), CLASSES[:2]
    ranking = (Cell(loss, batch=32, queue=1024, classes=c, series=series) for c in classes for loss in WITHOUT_PEER)
    return (*ranking, *(retrieval(loss, 1024, ("ours", "compiled", "plain")) for loss in RETRIEVAL))


def retrieval(loss: str, memory: int, series: tuple[str, ...] = ("ours",)) -> Cell:
    """A retrieval loss on a batch and a memory."""
    return Cell(loss, batch=32, queue=memory, classes=16, embedding_size=64, series=series)


def growing() -> tuple[tuple[Cell, Cell], ...]:
    """Pairs of a smaller and a larger pool or memory, of losses that the peer does not have."""
    small, large = (
        [Cell(loss, batch=pool, series=("ours", "sort")) for loss in ("pAUC, dro", "soft F-beta")]
        for pool in (16_384, 262_144)
    )
    memories = [retrieval("retrieval AP", memory) for memory in (1_024, 8_192, 65_536)]
    return (*zip(small, large, strict=True), *pairwise(memories))


def small_focal() -> tuple[Cell, ...]:
    """Every focal loss on a batch."""
    series = ("ours", "compiled", "peer")
    shapes = {"sigmoid focal": (32,), "softmax focal": (32, 10)}
    return tuple(Cell(loss, shape=shape, series=series) for loss, shape in shapes.items())


def elementwise() -> tuple[Cell, ...]:
    """Every elementwise loss and its formula in plain torch."""
    sizes = (32, 4_096, 65_536)
    return tuple(Cell(loss, shape=(n, 10), series=("ours", "plain")) for loss in ELEMENTWISE for n in sizes)


def ensembles(states: int, classes: int = 1) -> tuple[Cell, ...]:
    """Every ranking loss on several small pools at once."""
    series = ("vmap", "loop", "compiled vmap")
    return tuple(replace(cell, states=states, series=series) for cell in small_pools(classes))


def promises() -> tuple[Promise, ...]:
    """Every row of the contract's table."""
    small = (*small_pools(1), *small_focal())
    counted = ("ours", "peer")
    operators = tuple(replace(cell, task="operators", series=counted) for cell in small)
    steps = tuple(replace(cell, task="compilations", series=counted) for cell in small_pools(1))
    binary = (Cell("SmoothAP", batch=16_384, series=("ours", "compiled", "peer")),)
    million = tuple(Cell("SmoothAP", batch=1_048_576, rate=rate, series=("ours", "compiled", "sort")) for rate in RATES)
    hundred = tuple(Cell(loss, batch=2048, classes=100) for loss in RANKING)
    large, *many = (
        tuple(Cell(loss, batch=262_144, classes=classes) for loss in RANKING if loss != "SmoothAP")
        for classes in CLASSES
    )
    large_of_many = tuple(cell for cells in many for cell in cells)
    smaller, larger = zip(*growing(), strict=True)
    small_work, binary_work = "batch 32 + queue 1,024", "SmoothAP, binary, pool 16,384, 10 % positives"
    million_work, large_work = "SmoothAP, binary, pool 1,048,576", "recall and pAUC, pool 262,144"
    return (
        Promise(f"every loss at its defaults, {small_work}", "faster", 1, small),
        Promise("the same, compiled, and the peer in eager mode", "faster", 1.5, small, "compiled"),
        Promise("the same, compiled, and ours in eager mode", "faster", 1.5, small, "compiled", "ours"),
        Promise("the same, compiled", "first call", 6, small, "compiled"),
        Promise(f"`vmap(grad)` over 8 states, {small_work}", "faster", 2, ensembles(8), "vmap", "loop"),
        Promise(f"`vmap(grad)` over 64 states, {small_work}", "faster", 4, ensembles(64), "vmap", "loop"),
        Promise(binary_work, "faster", 30, binary),
        Promise(binary_work, "leaner", 40, binary),
        Promise(f"{binary_work}, compiled", "time ratio", 1.1, binary, "compiled", "ours"),
        Promise(million_work, "time ratio", 4, million, against="sort"),
        Promise(million_work, "megabytes", 300, million),
        Promise(f"{million_work}, compiled", "time ratio", 1.1, million, "compiled", "ours"),
        Promise(f"{million_work}, compiled", "first call", 10, million, "compiled"),
        Promise(f"10 classes, {small_work}", "faster", 2.5, small_pools(10)),
        Promise("100 classes, pool 2,048", "faster", 6, hundred),
        Promise(large_work, "faster", 4, large + large_of_many),
        Promise(large_work, "memory ratio", 2, large_of_many),
        Promise("focal losses, 800,000 and 1,000,000 logits", "faster", 1.5, _large_focal()),
        Promise(
            "elementwise losses, and their formula in plain torch", "time ratio", 1.5, elementwise(), against="plain"
        ),
        Promise("time near-linear in the pool or the memory", "growth", 1.5, larger, smaller=smaller),
        Promise("1,000 steps with a new temperature each", "compilations", 1, steps),
        Promise(f"an accelerator's step, {small_work}", "operators", 0, operators),
    )


def _large_focal() -> tuple[Cell, ...]:
    sigmoid = tuple(Cell("sigmoid focal", shape=(n,)) for n in (800_000, 1_000_000))
    shapes = ((100_000, 8), (8_000, 100), (8, 10, 100, 100), (125_000, 8), (10_000, 100), (10, 10, 100, 100))
    return sigmoid + tuple(Cell("softmax focal", shape=shape) for shape in shapes)


def for_information() -> tuple[Cell, ...]:
    """What no promise is about, beside the sweep."""
    return ensembles(8, classes=10) + ensembles(64, classes=10)


def sweep() -> Iterator[Cell]:
    """Every ranking loss over classes, pool and positive rate: what the plot shows comes first, smaller pools first.

    With 100 classes the rates hardly differ, and the graph that is compiled is the same for every rate: one will do.
    """
    for classes in CLASSES:
        for pool in POOLS:
            for loss in RANKING:
                for rate in RATES if classes < 100 else RATES[-1:]:
                    compiled = ("compiled",) if rate == RATES[-1] else ()
                    series = ("ours", *compiled, "peer", "sort")
                    yield Cell(loss, batch=pool, classes=classes, rate=rate, series=series)


def select(rows: str, max_rows: int, *, quick: bool) -> list[Cell]:
    """The cells of a run, each once, with the series of all that ask for it; ``quick``: less, and nothing compiled."""
    asked: list[Cell] = []
    if rows != "sweep":
        asked += [cell for promise in promises() for cell in (*promise.smaller, *promise.cells)]
        asked += (*for_information(), *small_without_peer())
    if rows != "promises":
        asked += [cell for cell in sweep() if not quick or cell.classes == 1]
    cells: dict[Cell, tuple[str, ...]] = {}
    for cell in asked:
        if cell.pool <= max_rows and not (quick and cell.task == "compilations"):
            cells[cell] = tuple(dict.fromkeys((*cells.get(cell, ()), *cell.series)))
    left_out = COMPILED if quick else ()
    return [replace(cell, series=tuple(s for s in series if s not in left_out)) for cell, series in cells.items()]
