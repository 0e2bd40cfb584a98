"""The outcome study: its measures, statistics and choices are right, it runs and resumes, and docs/ is what it says."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def task(name: str) -> Any:
    from outcome.tasks import TASKS

    return next(one for one in TASKS if one.name == name)


@pytest.fixture(scope="module")
def published() -> Any:
    return json.loads((ROOT / "docs" / "outcome.json").read_text(encoding="utf-8"))


def test_page_is_what_its_numbers_say(published: Any) -> None:
    from outcome import report

    assert (ROOT / "docs" / "outcome.md").read_text(encoding="utf-8") == report.page(published)
    assert (ROOT / "docs" / "outcome.json").stat().st_size < 1e6


def test_the_whole_study_is_published(published: Any) -> None:
    from outcome.contenders import CONTENDERS
    from outcome.run import Protocol
    from outcome.tasks import TASKS

    assert published["protocol"] == asdict(Protocol())
    assert published["protocol"]["seeds"] >= 10
    asked = {task.name: [one for one in CONTENDERS if one.takes(task.kind, task.name)] for task in TASKS}
    for task, contenders in asked.items():
        for one in contenders:
            assert len(published["cells"][task][one.name]["test"]["ap"]) == published["protocol"]["seeds"]


def test_readme_says_how_often_the_recipe_wins(published: Any) -> None:
    from outcome.contenders import RECIPE
    from outcome.results import Results

    counts = Results(published).counts(RECIPE)
    for page in (ROOT / "README.md", ROOT / "docs" / "choosing.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert f"wins on {counts['win']} of {sum(counts.values())} imbalanced tasks, ties on {counts['tie']}" in text
        assert ("loses on none" in text) == (counts["loss"] == 0)


def test_guide_says_how_the_recipe_compares_with_logit_adjustment(published: Any) -> None:
    from outcome.contenders import RECIPE
    from outcome.results import Results

    text = " ".join((ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").split())
    counts = Results(published).counts(RECIPE, other="logit-adjusted")
    assert f"above it beyond chance on {counts['win']} tasks and below it on {counts['loss']}" in text


@pytest.fixture(scope="module")
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 1,000 rows, 5 % positive."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(1000) < 50).long()
    return torch.randn(1000, 1, generator=generator) + 2 * labels[:, None], labels


def split(labels: torch.Tensor, groups: torch.Tensor | None = None) -> Any:
    from outcome.tasks import Split

    return Split(torch.empty(0), labels, torch.full((len(labels),), -1) if groups is None else groups)


def test_measures_agree_with_scikit_learn(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    from outcome.measures import measure
    from outcome.tasks import Task

    logits, labels = scored
    budget = 0.05
    found = measure(logits, split(labels), Task("", lambda _: None, budget, "ap"), "sigmoid")
    assert found["ap"] == pytest.approx(average_precision_score(labels, logits[:, 0]), abs=1e-5)
    # scikit-learn scales to [0.5, 1] after McClish; ours is the mean true positive rate
    least, most = budget**2 / 2, budget
    area = least + (2 * roc_auc_score(labels, logits[:, 0], max_fpr=budget) - 1) * (most - least)
    assert found["pauc"] == pytest.approx(area / budget, abs=1e-5)
    top = logits[:, 0].argsort(descending=True)
    assert found["recall"] == pytest.approx(float(labels[top[:50]].sum()) / 50, abs=1e-6)
    assert found["coverage"] == pytest.approx(float(labels[top[:5]].sum()) / 50, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    from outcome.measures import calibration_error

    probabilities = torch.tensor([[0.1, 0.9], [0.3, 0.9], [0.6, 0.9], [0.8, 0.9]])
    labels = torch.tensor([[0, 1], [1, 1], [1, 1], [1, 0]])
    # two bins a column: |0.2 - 0.5| and |0.7 - 1|; all 0.9, of which three quarters are positive in whatever order
    assert calibration_error(probabilities, labels, bins=2).tolist() == pytest.approx([0.3, 0.15])
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = (torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1)) < uniform).long()
    assert calibration_error(uniform, drawn).item() < 0.01


def test_measures_are_means_over_groups_and_classes(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    from outcome.measures import measure
    from outcome.tasks import Task

    logits, labels = scored
    binary = Task("", lambda _: None, 0.05, "ap")
    groups = torch.where(torch.arange(1000) < 50, torch.arange(1000) % 2, -1)
    by_group = [
        measure(logits[part], split(labels[part]), binary, "sigmoid")
        for part in ((labels == 0) | (groups == group) for group in (0, 1))
    ]
    found = measure(logits, split(labels, groups), binary, "sigmoid")
    assert found == pytest.approx({name: (by_group[0][name] + by_group[1][name]) / 2 for name in found})

    three = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(300) % 3
    multiclass = Task("", lambda _: None, 0.3, "ap", "multiclass", 3)
    for link, scores in (("sigmoid", three), ("softmax", three.softmax(1))):
        one_by_one = [average_precision_score(classes == k, scores[:, k]) for k in range(3)]
        assert measure(three, split(classes), multiclass, link)["ap"] == pytest.approx(np.mean(one_by_one), abs=1e-5)


def test_what_softmax_leaves_free_changes_no_measure() -> None:
    from outcome.measures import measure
    from outcome.tasks import Task

    logits, shift = torch.randn(300, 3, dtype=torch.float64), 10 * torch.randn(300, 1, dtype=torch.float64)
    rows, multiclass = split(torch.arange(300) % 3), Task("", lambda _: None, 0.3, "ap", "multiclass", 3)
    found = measure(logits + shift, rows, multiclass, "softmax")
    assert found == pytest.approx(measure(logits, rows, multiclass, "softmax"))
    assert found["ap"] != pytest.approx(measure(logits + shift, rows, multiclass, "sigmoid")["ap"])


def test_softmax_models_rank_also_where_probabilities_round_to_one() -> None:
    from outcome.measures import measure
    from outcome.tasks import Task
    from study.loop import log_odds

    logits = torch.randn(50, 4, dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits).sigmoid(), logits.softmax(1))
    # class 0 wins every row, most clearly its own; each class has its positives in its upper half
    gaps = torch.arange(50.0, 150.0)
    certain = torch.stack([gaps, torch.zeros(100), torch.zeros(100)], 1)
    assert certain.log_softmax(1)[:, 0].unique().numel() == 1
    targets = torch.where(gaps >= 100, 0, torch.arange(100) % 2 + 1)
    assert log_odds(certain)[:, 0].unique().numel() == 100
    found = measure(certain, split(targets), Task("", lambda _: None, 0.5, "recall", "multiclass", 3), "softmax")
    assert found["recall"] == 1


def test_coverage_needs_one_row_of_budget(scored: tuple[torch.Tensor, torch.Tensor]) -> None:
    from outcome.measures import coverage

    logits, labels = scored
    assert not coverage(logits[:200], labels[:200], multilabel=False).isnan()
    assert coverage(logits[:199], labels[:199], multilabel=False).isnan()


def test_settings_are_chosen_by_their_mean() -> None:
    from outcome.comparison import best_setting

    assert best_setting([[0.1, 0.9], [0.6, 0.6], [0.5, 0.7], [1.0, math.nan]]) == 1
    assert best_setting([[math.nan]] * 4) == 0
    # equals are told apart by the next scores
    assert best_setting([[0.5], [0.8], [0.8], [0.7]], [[0.9], [0.1], [0.2], [0.9]]) == 2


def test_paired_differences_have_students_interval() -> None:
    from outcome.comparison import paired

    one, other = np.random.default_rng(0).normal(size=(2, 10))
    found = paired(one, other)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((one - other).mean())
    assert paired([0.5], [0.25]) == (0.25, math.inf)


@pytest.mark.parametrize(
    ("mean", "half", "lower_is_better", "expected"),
    [
        (0.2, 0.1, False, "win"),
        (0.1, 0.2, False, "tie"),
        (-0.2, 0.1, False, "loss"),
        (-0.2, 0.1, True, "win"),
        (0.2, 0.1, True, "loss"),
        (0.0, 0.0, False, "tie"),
        (math.nan, math.nan, False, "loss"),
    ],
)
def test_verdicts(mean: float, half: float, lower_is_better: bool, expected: str) -> None:
    from outcome.comparison import Difference, verdict

    assert verdict(Difference(mean, half), lower_is_better=lower_is_better) == expected


def study(**better: float) -> dict[str, Any]:
    """Results of the baseline and of the recipe, which is ``better`` on some tasks, by three seeds."""
    from outcome.contenders import BASELINE, CONTENDERS, recipe_for
    from outcome.measures import MEASURES
    from outcome.tasks import TASKS

    def cell(scores: list[float]) -> dict[str, Any]:
        test = dict.fromkeys(MEASURES, scores)
        return {"chosen": 1, "validation": [0.1, 0.3, 0.2, 0.0], "milliseconds": 1.0, "test": test}

    noise = (0.01, -0.01, 0.0)
    cells = {
        one.name: {
            BASELINE: cell([0.5] * 3),
            recipe_for(one.kind, one.budget): cell([0.5 + better.get(one.name, 0.0) + e for e in noise]),
            CONTENDERS[-1].name: {"skipped": "no environment"},
        }
        for one in TASKS
    }
    machine = {"date": "2000-01-01", "cpu": "abacus", "cores": 1, "jobs": 1, "system": "Linux", "python": "3.10"}
    versions = {"torch": "2.8", "packages": {"ours": "1", "peer": "2", "libauc": "3"}}
    protocol = {"first_seed": 0, "seeds": 3, "tuning_seeds": 2, "steps": 10, "batch": 64}
    return {"machine": {**machine, **versions}, "protocol": protocol, "cells": cells}


def test_every_question_is_answered_from_all_contenders() -> None:
    from outcome.contenders import CONTENDERS
    from outcome.findings import in_detail, in_short
    from outcome.results import Results
    from outcome.tasks import TASKS

    data = study()
    for one in TASKS:
        plain = data["cells"][one.name]["cross-entropy"]
        for i, contender in enumerate(CONTENDERS):
            if contender.takes(one.kind, one.name):
                scores = {name: [value + i / 100 for value in values] for name, values in plain["test"].items()}
                data["cells"][one.name][contender.name] = {**plain, "test": scores}
    results = Results(data)
    text = in_short(results) + in_detail(results)
    for heading in (
        "The recipe",
        "What to start from",
        "Try first what is cheap:",
        "Where our ranking losses win and lose",
        "Which loss to start from.",
        "Defaults.",
        "Temperature.",
        "Band.",
        "Schedule.",
        "Threshold gradient.",
        "Queue.",
        "Other packages:",
        "Who tries all of our ranking losses",
        "The price.",
    ):
        assert f"**{heading}**" in text
    assert "0.6.0 pAUC" in text
    assert text.count("LibAUC AP, SOAP against cross-entropy +0.") == 1
    assert "nan" not in text


def test_a_part_of_the_study_makes_a_page() -> None:
    from outcome import report
    from outcome.contenders import WIDE_MIX

    data = study(**{"digits 1 %": 0.1})
    for of_task in data["cells"].values():
        of_task.pop(WIDE_MIX, None)
    text = report.page(data)
    assert "That is open, as tasks are missing. It wins 1," in text
    assert "positives in a batch on average: alone +0." in text
    assert "and for several labels: " not in text


def criterion(**better: float) -> tuple[bool, str]:
    from outcome import report
    from outcome.findings import meets_criterion
    from outcome.results import Results, dump

    data = json.loads(dump(study(**better)))
    return meets_criterion(Results(data)), report.page(data)


def test_criterion_needs_half_of_the_tasks_and_no_loss() -> None:
    from outcome.tasks import TASKS

    imbalanced = [one.name for one in TASKS if one.imbalanced]
    half = imbalanced[: -(-len(imbalanced) // 2)]
    met, page = criterion(**dict.fromkeys(half, 0.1))
    assert met
    assert f"It does. It wins {len(half)}, ties {len(imbalanced) - len(half)} and loses 0" in page
    assert "Missing rows" in page
    met, page = criterion(**dict.fromkeys(half[1:], 0.1))
    assert not met
    assert "**It does not.**" in page
    met, page = criterion(**dict.fromkeys(half, 0.1), **{imbalanced[-1]: -0.1})
    assert not met
    assert f"Loses: {imbalanced[-1]} (-0.100" in page
    # the balanced task has no say
    assert criterion(**dict.fromkeys(half, 0.1), wine=-0.1)[0]


def test_mean_over_tasks_is_paired_by_seed() -> None:
    from outcome.contenders import RECIPE
    from outcome.results import Results

    results = Results(study(**{"digits 1 %": 0.12}))
    n_tasks = len(results.tasks_of(RECIPE))
    found = results.over_tasks(RECIPE)
    assert found.mean == pytest.approx(0.12 / n_tasks)
    # the same noise on every task: averaging over tasks does not make it smaller
    assert found.half == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3))


def test_not_a_number_is_null_in_the_file() -> None:
    from outcome.results import Results, dump

    data = study()
    for cell in data["cells"]["wine"].values():
        if "test" in cell:
            cell["test"]["coverage"] = [math.nan] * 3
    text = dump(data)
    assert "NaN" not in text
    assert math.isnan(Results(json.loads(text)).mean("wine", "cross-entropy", "coverage"))


def test_every_contender_has_four_settings_and_a_reason_for_what_it_leaves_out() -> None:
    from outcome.contenders import BASELINE, CONTENDERS, WIDE, WIDE_ADJUSTED, WIDE_MIX

    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)
    assert {BASELINE, WIDE, WIDE_MIX, WIDE_ADJUSTED} <= set(names)
    for one in CONTENDERS:
        assert len({json.dumps(setting) for setting in one.grid}) == 4
        assert bool(one.why_not) == (set(one.kinds) < {"binary", "multiclass", "multilabel"} or bool(one.tasks))


@pytest.mark.parametrize(("name", "rate"), [("digits 3 %", 0.03), ("digits 1 %", 0.01), ("breast cancer 10 %", 0.1)])
def test_thinned_tasks_have_their_rate_in_every_set(name: str, rate: float) -> None:
    data = task(name).make(3)
    for part in data:
        negatives = (part.targets == 0).sum()
        assert part.groups[part.targets == 0].eq(-1).all()
        sizes = part.groups[part.targets == 1].bincount()
        assert sizes.unique().numel() == 1
        assert float(sizes[0] / (sizes[0] + negatives)) == pytest.approx(rate, rel=0.2)
    assert data.train.groups.max() == 0
    assert data.test.groups.max() > 0


def test_no_row_is_in_two_sets() -> None:
    data = task("digits 3 %").make(0)
    rows = torch.cat([part.features for part in data])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(
    "name",
    ["generated 1 %", "generated 1 %, noise", "contested top 1 %", "generated, long tail", "multi-label, rare labels"],
)
def test_tasks_are_functions_of_their_seed(name: str) -> None:
    once, again, other = task(name).make(1), task(name).make(1), task(name).make(2)
    assert all(torch.equal(a, b) for one, two in zip(once, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(once.train.features, other.train.features)
    torch.testing.assert_close(once.train.features.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(once.train.features.std(0), torch.ones(20), atol=1e-3, rtol=0)


def test_label_noise_is_not_in_the_test_set() -> None:
    clean, noisy = task("generated 1 %").make(0), task("generated 1 %, noise").make(0)
    assert torch.equal(clean.test.targets, noisy.test.targets)
    changed = (clean.train.targets != noisy.train.targets).float().mean()
    assert float(changed) == pytest.approx(0.005, abs=0.002)


def test_long_tail_falls_geometrically_and_is_tested_balanced() -> None:
    data = task("generated, long tail").make(4)
    sizes = data.train.targets.bincount().roll(-4)
    assert sizes.tolist() == np.geomspace(1000, 10, 10).round().tolist()
    assert data.test.targets.bincount().unique().numel() == 1


def job(**changes: Any) -> dict[str, Any]:
    contender = {"series": "ours", "loss": "CrossEntropy", "options": {}, "schedule": None}
    plain = {"kind": "binary", "n_classes": 1, "budget": 0.05, "seed": 0, "steps": 20, "batch": 8}
    return {**plain, "contender": contender, "setting": {"lr": 0.01}, **changes}


def test_weighted_and_adjusted_cross_entropy() -> None:
    from outcome.train import CrossEntropy

    logits = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0])
    plain = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(CrossEntropy(job(), labels, weighting=1.0)(logits, labels), plain)
    shifted = functional.binary_cross_entropy_with_logits(logits[:, 0] - math.log(3), labels.float())
    torch.testing.assert_close(CrossEntropy(job(), labels, adjustment=1.0)(logits, labels), shifted)

    classes, three = torch.tensor([0, 0, 1, 2]), torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    of_classes = job(kind="multiclass", n_classes=3)
    weighted = functional.cross_entropy(three, classes, torch.tensor([2 / 3, 4 / 3, 4 / 3]))
    torch.testing.assert_close(CrossEntropy(of_classes, classes, weighting=1.0)(three, classes), weighted)
    prior = torch.tensor([0.5, 0.25, 0.25]).log()
    adjusted = functional.cross_entropy(three + prior, classes)
    torch.testing.assert_close(CrossEntropy(of_classes, classes, adjustment=1.0)(three, classes), adjusted)


def test_batches_take_every_row_once_an_epoch() -> None:
    from outcome.train import batches

    drawn = list(batches(40, job()))
    assert [len(batch) for batch in drawn] == [8] * 20
    assert all(torch.cat(drawn[5 * k : 5 * k + 5]).sort().values.equal(torch.arange(40)) for k in range(4))


def test_scores_become_probabilities_as_the_loss_reads_them() -> None:
    from outcome.contenders import CONTENDERS, WIDE, WIDE_ADJUSTED, WIDE_MIX

    links = {one.name: one.link("multiclass") for one in CONTENDERS}
    for name in ("cross-entropy", "logit-adjusted", "focal, softmax", "Smooth-AP + mix", WIDE_MIX, WIDE_ADJUSTED):
        assert links[name] == "softmax"
    for name in ("focal, sigmoid", "Smooth-AP", "Smooth-AP + warm-up", WIDE):
        assert links[name] == "sigmoid"
    assert {one.link(kind) for one in CONTENDERS for kind in ("binary", "multilabel")} == {"sigmoid"}


def test_budget_and_band_reach_the_loss() -> None:
    from outcome.train import ranking_loss

    def options(loss: str, **own: Any) -> Any:
        return ranking_loss(job(contender={"loss": loss}), own).config

    assert options("RecallAtQuantileLoss").quantile == 0.05
    assert options("PAUCAtBudgetLoss").beta == 0.05
    assert options("PAUCAtBudgetLoss", band=3.0, temperature=2.0).beta == pytest.approx(0.15)
    assert options("PAUCAtBudgetLoss", band=30.0).beta == 1.0


def test_half_is_half_cross_entropy_from_the_first_step() -> None:
    from outcome.contenders import CONTENDERS, WIDE, WIDE_ADJUSTED, WIDE_MIX
    from outcome.train import CrossEntropy, make_loss

    of_name = {one.name: one for one in CONTENDERS}
    classes = torch.arange(40) % 10 % 3
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    parts = {
        name: make_loss(
            job(kind="multiclass", n_classes=3, contender=of_name[name].spec(), setting=of_name[name].grid[0]), classes
        )(logits, classes, torch.arange(40))
        for name in (WIDE, WIDE_MIX, WIDE_ADJUSTED)
    }
    for name, adjustment in ((WIDE_MIX, 0.0), (WIDE_ADJUSTED, 1.0)):
        other = CrossEntropy(job(kind="multiclass", n_classes=3), classes, adjustment=adjustment)(logits, classes)
        torch.testing.assert_close(parts[name], (parts[WIDE] + other) / 2)


def test_contenders_start_from_the_same_weights() -> None:
    from outcome.train import make_model

    one, two, other = make_model(3, job()), make_model(3, job(setting={"lr": 1.0})), make_model(3, job(seed=1))
    assert torch.equal(one[0].weight, two[0].weight)  # type: ignore[index]
    assert not torch.equal(one[0].weight, other[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_every_contender_of_ours_trains(kind: str) -> None:
    from outcome.contenders import CONTENDERS
    from outcome.train import train

    generator = torch.Generator().manual_seed(0)
    n_classes = 1 if kind == "binary" else 3
    targets = torch.arange(64) % 3 if kind == "multiclass" else (torch.arange(64) % 8 == 0).long()
    if kind == "multilabel":
        targets = torch.stack([targets.roll(k) for k in range(3)], 1).float()
    data = {"train_features": torch.randn(64, 5, generator=generator), "train_targets": targets}
    for one in CONTENDERS:
        if one.series == "ours" and kind in one.kinds:
            asked = job(kind=kind, n_classes=n_classes, contender=one.spec(), setting=one.grid[0], steps=6)
            model, seconds = train(data, asked)
            assert seconds > 0
            assert all(parameter.isfinite().all() for parameter in model.parameters()), one.name


@pytest.mark.parametrize(
    ("loss", "optimizer", "expected"),
    [
        ("AUCMLoss", "PESG", {"version": "v2"}),
        ("APLoss", "SOAP", {"data_len": 40, "gamma": 0.9}),
        ("pAUC_CVaR_Loss", "SOPA", {"data_len": 40, "pos_len": 10, "num_neg": 4, "beta": 0.3}),
    ],
)
def test_libauc_gets_its_optimizer_its_sampler_and_positives_first(
    monkeypatch: pytest.MonkeyPatch, loss: str, optimizer: str, expected: dict[str, Any]
) -> None:
    """On a stand-in for the package, which is in an environment of its own."""
    from outcome.train import train

    made: dict[str, Any] = {}
    batches_seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class FakeLoss:
        def __init__(self, data_len: int | None = None, pos_len: int | None = None, **options: Any) -> None:
            found = {"data_len": data_len, "pos_len": pos_len, **options}
            made["loss"] = {name: value for name, value in found.items() if value is not None}

        def __call__(self, scores: torch.Tensor, labels: torch.Tensor, rows: Any = None) -> torch.Tensor:
            assert scores.min() >= 0
            assert scores.max() <= 1
            assert (rows is None) == (loss == "AUCMLoss")
            batches_seen.append((labels, rows))
            return functional.mse_loss(scores, labels.float())

    class FakeOptimizer(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float, **options: Any) -> None:
            super().__init__(parameters, lr)
            made["optimizer"] = {"lr": lr, **options}

    class FakeSampler:
        def __init__(self, rows: Any, batch: int, labels: Any, sampling_rate: float, random_seed: int) -> None:
            assert labels.tolist() == [1] * 10 + [0] * 30
            self.rows = [k % 10 if k % 2 else 10 + k for k in range(3 * batch)]
            made["sampler"] = (len(rows), batch, sampling_rate, random_seed)

        def __iter__(self) -> Iterator[int]:
            return iter(self.rows)

    package = types.ModuleType("libauc")
    package.losses = types.SimpleNamespace(**{loss: FakeLoss})  # type: ignore[attr-defined]
    package.optimizers = types.SimpleNamespace(**{optimizer: FakeOptimizer})  # type: ignore[attr-defined]
    package.sampler = types.SimpleNamespace(DualSampler=FakeSampler)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "libauc", package)

    labels = (torch.arange(40) % 4 == 0).long()
    setting = {"lr": 0.05, **{name: value for name, value in expected.items() if name in ("gamma", "beta")}}
    contender = {"series": "libauc", "loss": loss, "options": {}, "schedule": None}
    model, _ = train(
        {"train_features": torch.randn(40, 5), "train_targets": labels}, job(contender=contender, setting=setting)
    )
    assert made["loss"] == expected
    assert made["optimizer"]["lr"] == 0.05
    assert made["sampler"] == (40, 8, 0.5, 0)
    assert len(batches_seen) == 20
    assert all(float(of_batch.float().mean()) == 0.5 for of_batch, _ in batches_seen)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def run_study(folder: Path, *flags: str) -> dict[str, Any]:
    """The cells of a run of two contenders, one of which has no environment."""
    from outcome.run import main

    asked = ["--quick", "--steps", "3", "--tasks", "digits 3 %", "--contenders", "Smooth-AP", "LibAUC AP, SOAP"]
    main([*asked, "--output", str(folder), "--journal", str(folder / "runs.jsonl"), *flags])
    cells: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))["cells"]["digits 3 %"]
    return cells


@pytest.mark.exhaustive
def test_a_run_writes_a_page_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = run_study(tmp_path, "--minutes", "0")
    assert late["Smooth-AP"] == {"skipped": "the run's time was spent"}
    assert late["LibAUC AP, SOAP"]["skipped"].startswith("no environment")

    cells = run_study(tmp_path)
    assert len(cells["Smooth-AP"]["validation"]) == 4
    assert all(len(scores) == 2 for scores in cells["Smooth-AP"]["test"].values())
    assert "LibAUC AP, SOAP, digits 3 %: no environment" in (tmp_path / "outcome.md").read_text(encoding="utf-8")
    assert (tmp_path / "outcome_ap.png").read_bytes().startswith(b"\x89PNG")

    # a run that is there is not made again; one that failed or was cut off is made as it was before
    journal = tmp_path / "runs.jsonl"
    head, *runs = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    runs[0]["result"]["seconds"] = 123.0
    failed = {"key": runs[-2]["key"], "result": {"skipped": "failed: no answer within 300 s"}}
    lines = [json.dumps(line) + "\n" for line in (head, *runs[:-2], failed, runs[-1])]
    journal.write_text("".join(lines)[:-20], encoding="utf-8")
    capsys.readouterr()
    resumed = run_study(tmp_path, "--resume")
    assert "100%" in capsys.readouterr().err
    again = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    assert again[:-2] == [head, *runs[:-2]]
    assert {run["key"] for run in again[-2:]} == {run["key"] for run in runs[-2:]}
    assert {name: cell.get("test") for name, cell in resumed.items()} == {
        name: cell.get("test") for name, cell in cells.items()
    }


def test_a_journal_is_of_one_code_and_is_not_lost(tmp_path: Path) -> None:
    from outcome.run import Journal

    path = tmp_path / "runs.jsonl"
    Journal(path, resume=False).add("a", {"seconds": 1.0})
    assert Journal(path, resume=True).runs == {"a": {"seconds": 1.0}}
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace('"code": "', '"code": "other'), encoding="utf-8")
    with pytest.raises(SystemExit, match="the code has changed"):
        Journal(path, resume=True)
    assert Journal(path, resume=False).runs == {}
    assert path.with_suffix(".old").read_text(encoding="utf-8").splitlines()[1:] == kept.splitlines()[1:]


def test_only_the_whole_study_goes_into_the_docs() -> None:
    from outcome.run import is_whole, parse_args

    assert is_whole(parse_args(["--resume", "--minutes", "1", "--jobs", "4"]))
    for flags in (["--quick"], ["--tasks", "wine"], ["--first-seed", "100"], ["--seeds", "3"], ["--steps", "5"]):
        assert not is_whole(parse_args(flags))
