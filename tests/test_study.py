"""The study on real tables: measures, statistics, losses, training and report are right, on small synthetic inputs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn import functional

from tests.default_dtype import default_dtype

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield


def contender(name: str) -> Any:
    from study.contenders import CONTENDERS

    return next(one for one in CONTENDERS if one.name == name)


def job(name: str = "cross-entropy", model: str = "linear", **changes: Any) -> dict[str, Any]:
    """What a worker gets for the first setting of a contender."""
    one = contender(name)
    limits = {"batch": 32, "every": 10, "patience": 3, "epochs": 1, "least": 200, "most": 200}
    plain = {"seed": 0, "n_classes": 1, "budget": 0.1, "model": model, "start": "", "link": "sigmoid", "limits": limits}
    return {**plain, "contender": one.spec(), "setting": one.grid[0], **changes}


def separable(n_rows: int = 400, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two normal clusters, 10 % positive, in all three sets."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in ("train", "validation", "test"):
        targets = (torch.arange(n_rows) % 10 == 0).long()
        made[f"{name}_features"] = torch.randn(n_rows, 5, generator=generator) + targets[:, None]
        made[f"{name}_targets"] = targets
    return made


# Measures


def test_average_precision_agrees_with_scikit_learn() -> None:
    from study.loop import average_precision, ranked

    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(500, 1, generator=generator), torch.randint(2, (500,), generator=generator)
    tied = scores.round()
    for one in (scores, tied):
        assert average_precision(one, labels) == pytest.approx(average_precision_score(labels, one[:, 0]))
    logits, classes = torch.randn(300, 3, generator=generator), torch.randint(3, (300,), generator=generator)
    odds = logits.double().softmax(1).logit()
    expected = np.mean([average_precision_score(classes == k, odds[:, k]) for k in range(3)])
    assert average_precision(ranked(logits, "softmax"), classes) == pytest.approx(expected)
    torch.testing.assert_close(ranked(logits, "softmax"), odds)
    assert math.isnan(average_precision(scores * math.nan, labels))


def test_log_odds_where_probabilities_round_to_one() -> None:
    from study.loop import log_odds

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 5, generator=generator, dtype=torch.float64) * torch.logspace(-2, 3, 200)[:, None]
    logits[7] = 1.0  # no class is on top
    others = logits.unsqueeze(1).masked_fill(torch.eye(5, dtype=torch.bool), -torch.inf).logsumexp(2)
    torch.testing.assert_close(log_odds(logits), logits - others, rtol=1e-9, atol=1e-9)


def test_recall_at_the_budget_breaks_ties_by_chance() -> None:
    from study.measures import recall_at_budget

    labels = torch.tensor([[1], [0], [1], [0], [1], [0], [0], [0], [0], [1]])
    falling = torch.arange(10.0, 0, -1)[:, None]
    assert recall_at_budget(falling, labels, 0.3).item() == pytest.approx(2 / 4)
    assert recall_at_budget(torch.zeros(10, 1), labels, 0.3).item() == pytest.approx(0.3)
    # one alert is certain; the other two are among four equals, of which two are positive
    some = torch.tensor([9.0, 5, 5, 5, 5, 1, 1, 1, 1, 1])[:, None]
    assert recall_at_budget(some, labels, 0.3).item() == pytest.approx((1 + 2 * 2 / 4) / 4)


def part(targets: torch.Tensor, costs: torch.Tensor | None = None) -> Any:
    from study.parts import Part

    return Part(torch.empty(0), targets, torch.full_like(targets, -1), costs)


def test_savings_are_of_the_cheapest_threshold_on_validation() -> None:
    from study.measures import cheapest_threshold, savings

    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(60, generator=generator, dtype=torch.float64).round(decimals=1)
    targets = (torch.rand(60, generator=generator) < 0.3).long()
    costs = torch.rand(60, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0])

    def cost(threshold: float) -> float:
        pairs = zip(scores.tolist(), targets.tolist(), costs.tolist(), strict=True)
        return sum((1 - y) * false if s >= threshold else y * missed for s, y, (false, missed) in pairs)

    found = cheapest_threshold(scores, part(targets, costs))
    least = min(cost(one) for one in [*scores.tolist(), math.inf])
    assert cost(found) == pytest.approx(least)
    both = (part(targets, costs), part(targets, costs))
    worst = min(cost(-math.inf), cost(math.inf))
    assert savings(scores[:, None], scores[:, None], *both) == pytest.approx(1 - least / worst)
    never = torch.tensor([[100.0, 0.01]] * 60, dtype=torch.float64)
    assert cheapest_threshold(scores, part(targets, never)) == math.inf


def test_calibration_after_platt_scaling_ignores_the_scale_of_logits() -> None:
    from study.measures import calibrated_error
    from study.problems import PROBLEMS

    problem = next(one for one in PROBLEMS if one.name == "page blocks")
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4000, 1, generator=generator, dtype=torch.float64) * 2 - 2
    targets = (torch.rand(4000, generator=generator) < logits[:, 0].sigmoid()).long()
    sets = (part(targets[:2000]), part(targets[2000:]))
    plain = calibrated_error(logits[:2000], logits[2000:], *sets, problem)
    scaled = calibrated_error(30 * logits[:2000] + 7, 30 * logits[2000:] + 7, *sets, problem)
    assert plain < 0.03
    assert scaled == pytest.approx(plain, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    from study.measures import calibration_error

    probabilities = torch.tensor([[0.1, 0.9], [0.3, 0.9], [0.6, 0.9], [0.8, 0.9]])
    labels = torch.tensor([[0, 1], [1, 1], [1, 1], [1, 0]])
    # two bins a column: |0.2 - 0.5| and |0.7 - 1|; all 0.9, of which three quarters are positive in whatever order
    assert calibration_error(probabilities, labels, bins=2).tolist() == pytest.approx([0.3, 0.15])
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = (torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1)) < uniform).long()
    assert calibration_error(uniform, drawn).item() < 0.01


def test_measures_are_means_over_groups() -> None:
    from study.measures import ranking_measures
    from study.problems import PROBLEMS

    thinned = next(one for one in PROBLEMS if one.name == "digits 3 %")
    scores = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(1000)
    whole = part((rows < 50).long())._replace(groups=torch.where(rows < 50, rows % 2, -1))
    by_group = []
    for group in (0, 1):
        kept = (rows >= 50) | (rows % 2 == group)
        by_group.append(ranking_measures(scores[kept], part(whole.targets[kept]), thinned))
    found = ranking_measures(scores, whole, thinned)
    assert found == pytest.approx({name: (by_group[0][name] + by_group[1][name]) / 2 for name in found})


# Statistics


def test_intervals_over_splits_are_widened_for_the_rows_that_they_share() -> None:
    from study.inference import over_splits, over_tables

    ours, theirs = np.random.default_rng(0).normal(size=(2, 6))
    expected = stats.ttest_rel(ours, theirs)
    plain, widened = over_tables(list(ours - theirs)), over_splits(list(ours), list(theirs), 1 / 3)
    assert (plain.low, plain.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert plain.p == pytest.approx(expected.pvalue)
    assert widened.mean == pytest.approx(plain.mean)
    assert widened.half / plain.half == pytest.approx(math.sqrt((1 / 6 + 1 / 3) / (1 / 6)))
    assert widened.p > plain.p
    assert math.isinf(over_splits([0.5], [0.25], 1 / 3).half)


def test_holm_by_hand() -> None:
    from study.inference import holm

    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.6]) == [1.0, 1.0]


# Losses and contenders


def test_every_contender_has_four_settings_and_a_reason_for_what_it_leaves_out() -> None:
    from study.contenders import CONTENDERS, ENSEMBLES, NETWORKS

    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)
    assert set(ENSEMBLES) < set(names)
    ours = [one for one in CONTENDERS if one.series == "ours" and one.takes("MLP", "binary")]
    alone = {one.name: one.loss for one in ours if one.schedule == "alone"}
    assert {alone[name] for name in ENSEMBLES} == set(alone.values())
    for one in CONTENDERS:
        for model in one.models:
            assert len({json.dumps(setting) for setting in one.settings(model)}) == 4
        everywhere = one.models == NETWORKS and len(one.kinds) == 2
        assert bool(one.why_not) == (not everywhere)


def test_what_is_trained_with_softmax_ranks_by_log_odds() -> None:
    """Its raw logits say nothing across rows, as softmax leaves a constant of each row free."""
    from study.contenders import CONTENDERS

    of_classes = [one for one in CONTENDERS if "multiclass" in one.kinds]
    one_against_rest = {one.loss for one in of_classes if one.link("multiclass") == "sigmoid"}
    assert one_against_rest <= {"AsymmetricLoss", "SoftFBetaLoss"}
    assert {one.link("binary") for one in CONTENDERS} == {"sigmoid"}


@pytest.mark.parametrize("n_classes", [1, 3])
def test_every_loss_of_ours_is_finite_and_has_a_gradient(n_classes: int) -> None:
    from study.contenders import CONTENDERS
    from study.losses import make_loss

    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(64) % (2 if n_classes == 1 else 3)
    kind = "binary" if n_classes == 1 else "multiclass"
    tried = 0
    for one in CONTENDERS:
        if one.series != "ours" or kind not in one.kinds:
            continue
        for setting in one.grid:
            logits = torch.randn(64, n_classes, generator=generator, requires_grad=True)
            loss = make_loss(job(one.name, n_classes=n_classes, setting=setting), targets)(logits, targets)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0
            tried += 1
    assert tried > 40


def test_class_weights_reach_cross_entropy() -> None:
    from study.losses import make_loss

    logits, targets = torch.randn(8, 1), torch.tensor([1, 0, 0, 0, 0, 0, 0, 1])
    found = make_loss(job("class weights, balanced"), targets)(logits, targets)
    weighted = functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float(), pos_weight=torch.tensor(3.0))
    torch.testing.assert_close(found, weighted)
    three, classes = torch.randn(4, 3), torch.tensor([0, 0, 1, 2])
    found = make_loss(job("class weights, sqrt", n_classes=3), classes)(three, classes)
    weights = torch.tensor([2 / 3, 4 / 3, 4 / 3]).sqrt()
    torch.testing.assert_close(found, functional.cross_entropy(three, classes, weights))


def test_half_and_half_and_the_band() -> None:
    from study.losses import make_loss, ranking_options

    logits, targets = torch.randn(40, 1), (torch.arange(40) % 8 == 0).long()
    alone = make_loss(job("Smooth-AP 0.5"), targets)(logits, targets)
    plain = make_loss(job(), targets)(logits, targets)
    half = make_loss(job("Smooth-AP 0.5 + half"), targets)(logits, targets)
    torch.testing.assert_close(half, (alone + plain) / 2)
    wide = contender("pAUC pairwise, wide")
    annealed = make_loss(job("Smooth-AP 0.5, annealed"), targets)
    warm = make_loss(job("Smooth-AP 0.5"), targets)
    warm.temperature = 2.0
    torch.testing.assert_close(annealed(logits, targets), warm(logits, targets))
    betas = [ranking_options(job(wide.name, setting=one, budget=0.2))["beta"] for one in wide.grid]
    assert betas == pytest.approx([0.6, 1.0, 0.6, 1.0])
    assert ranking_options(job("recall"))["quantile"] == 0.1


def test_balanced_halves_have_gradients_of_one_norm() -> None:
    from study.losses import make_loss

    logits, targets = torch.randn(40, 1, requires_grad=True), (torch.arange(40) % 8 == 0).long()

    def gradient(name: str) -> torch.Tensor:
        return torch.autograd.grad(make_loss(job(name), targets)(logits, targets), logits)[0]

    plain, alone = gradient("cross-entropy"), gradient("Smooth-AP 0.5")
    expected = (plain + alone * plain.norm() / alone.norm()) / 2
    torch.testing.assert_close(gradient("Smooth-AP 0.5 + balanced half"), expected)


def test_bias_starts_at_the_log_odds() -> None:
    from study.losses import set_bias

    targets = (torch.arange(100) < 20).long()
    one, three = nn.Linear(2, 1), nn.Linear(2, 3)
    set_bias(one, targets, 1, "prior")
    assert one.bias.sigmoid().item() == pytest.approx(0.2)
    set_bias(three, torch.arange(100) % 3, 3, "prior")
    torch.testing.assert_close(three.bias.softmax(0), torch.tensor([0.34, 0.33, 0.33]))
    set_bias(one, targets, 1, "zero")
    assert one.bias.item() == 0


# Training


def test_rows_come_once_an_epoch_also_where_a_batch_is_larger() -> None:
    from study.loop import epochs

    drawn = list(islice(epochs(40, 8, 0), 10))
    assert all(torch.cat(drawn[5 * k : 5 * k + 5]).sort().values.equal(torch.arange(40)) for k in range(2))
    large = next(epochs(3, 8, 0))
    assert all(large[k : k + 3].sort().values.tolist() == [0, 1, 2] for k in (0, 3))
    assert len(large) == 8


def test_training_stops_and_keeps_the_best_weights() -> None:
    from study.loop import Limits, Stopper, train

    limits = Limits()
    assert (limits.steps_between(100), limits.steps_between(25_600)) == (50, 100)
    assert (limits.steps(100), limits.steps(12_800), limits.steps(90_000)) == (2_000, 3_000, 4_000)
    model, scores = nn.Linear(1, 1), iter([0.1, 0.5, 0.4, math.nan, 0.3, 0.9])

    def step(_: torch.Tensor) -> None:
        with torch.no_grad():
            model.weight += 1

    start = model.weight.item()
    found = train(model, step, iter([torch.empty(0)] * 99), 1, lambda _: next(scores), Limits(every=1, patience=3))
    assert (found["steps"], found["best"]) == (4, 0.5)
    assert model.weight.item() == start + 1
    never = Stopper(1)
    assert not never.update(math.nan, model)
    assert never.update(math.nan, model)


@pytest.mark.parametrize("name", ["cross-entropy", "Smooth-AP 0.5", "ASL"])
def test_a_fit_finds_what_separates(name: str) -> None:
    from study.loop import average_precision
    from study.train import fit

    data = separable()
    for model in ("linear", "MLP"):
        fitted, answer = fit(data, job(name, model, setting={**contender(name).grid[0], "lr": 0.03}))
        score = average_precision(fitted(data["validation_features"]).detach(), data["validation_targets"])
        assert score == pytest.approx(answer["best"])
        assert score > 0.6


def test_full_batch_lowers_the_loss_that_it_starts_from(tmp_path: Path) -> None:
    from study.losses import make_loss
    from study.train import fit

    data = separable()
    first, _ = fit(data, job())
    torch.save({"weights": first.state_dict()}, tmp_path / "start.pt")
    of_job = job("Smooth-AP, L-BFGS", start=str(tmp_path / "start.pt"))
    data["validation_features"], data["validation_targets"] = data["train_features"], data["train_targets"]
    second, answer = fit(data, of_job)
    loss_fn = make_loss(of_job, data["train_targets"])
    before, after = (loss_fn(one(data["train_features"]), data["train_targets"]).item() for one in (first, second))
    assert after < before
    assert answer["steps"] % 5 == 0


@pytest.fixture
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.mark.usefixtures("float64")
def test_members_of_an_ensemble_train_as_they_would_alone() -> None:
    """In float64, because Adam takes full-size steps along gradients that are only rounding error."""
    from study.contenders import ENSEMBLES
    from study.ensembles import fit_ensemble

    data = separable(100)
    # one validation after all steps: the ensemble and its members stop at the same one
    limits = {"batch": 20, "every": 10, "patience": 9, "epochs": 1, "least": 10, "most": 10}
    for name in ENSEMBLES:
        of_all = job(name, "ensemble", members=2, limits=limits, setting={"lr": 0.01})
        together, _ = fit_ensemble(data, of_all)
        alone = [fit_ensemble(data, {**of_all, "members": 1, "first_member": k})[0]["test"] for k in range(2)]
        torch.testing.assert_close(together["test"], (alone[0] + alone[1]) / 2, atol=1e-4, rtol=1e-4)


def test_trees_stop_at_their_best() -> None:
    from study.loop import average_precision
    from study.trees import fit_trees

    data = separable(300)
    logits, answer = fit_trees(data, job("boosted trees", "trees"))
    assert average_precision(logits["validation"], data["validation_targets"]) == pytest.approx(answer["best"])
    assert answer["best"] > 0.5
    assert answer["steps"] % 20 == 0
    of_job = job("boosted trees", "trees")
    whole = HistGradientBoostingClassifier(
        learning_rate=of_job["setting"]["lr"],
        max_leaf_nodes=int(of_job["setting"]["leaves"]),
        early_stopping=False,
        max_iter=answer["steps"],
        random_state=0,
    ).fit(data["train_features"].numpy(), data["train_targets"].numpy())
    expected = torch.tensor(whole.decision_function(data["test_features"].numpy()))
    torch.testing.assert_close(logits["test"][:, 0], expected)


# Retrieval


def test_retrieval_losses_by_loops() -> None:
    from study.retrieval import SupervisedContrastive, Triplet

    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(6, 4, generator=generator, dtype=torch.float64), [0, 0, 1, 1, 1, 2]
    z = [row / row.norm() for row in rows]
    cosine = [[float(a @ b) for b in z] for a in z]
    terms, hinges = [], []
    for i in range(6):
        same = [j for j in range(6) if j != i and labels[j] == labels[i]]
        total = sum(math.exp(cosine[i][j] / 0.2) for j in range(6) if j != i)
        if same:
            terms.append(-sum(math.log(math.exp(cosine[i][j] / 0.2) / total) for j in same) / len(same))
        farthest = min((cosine[i][j] for j in same), default=math.inf)
        hinges.append(max(0.0, max(cosine[i][j] for j in range(6) if labels[j] != labels[i]) - farthest + 0.3))
    targets = torch.tensor(labels)
    assert SupervisedContrastive(0.2)(rows, targets).item() == pytest.approx(np.mean(terms))
    assert Triplet(0.3)(rows, targets).item() == pytest.approx(np.mean(hinges))


def test_retrieval_map_is_the_package_s() -> None:
    from study.retrieval import mean_average_precision

    from imbalanced_losses import retrieval_metrics

    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(80, 5, generator=generator), torch.randint(6, (80,), generator=generator)
    expected = retrieval_metrics.mean_average_precision(embeddings, labels)
    assert mean_average_precision(embeddings, labels) == pytest.approx(expected.item(), abs=1e-6)


def test_retrieval_classes_are_unseen_and_every_loss_learns() -> None:
    from study.retrieval import balanced_batch, fit_retrieval, mean_average_precision
    from study.unseen_classes import RETRIEVAL, RETRIEVAL_DATA, make_sets

    sets = make_sets(RETRIEVAL_DATA["digits"], 0)
    rows = [torch.round(sets[f"{name}_features"] * 1e4) for name in ("train", "validation", "test")]
    assert len(torch.cat(rows)) == 1797
    assert [len(sets[f"{name}_targets"].unique()) for name in ("train", "validation", "test")] == [5, 3, 2]
    batch = sets["train_targets"][balanced_batch(sets["train_targets"], torch.Generator().manual_seed(0))]
    assert batch.bincount().tolist() == [16] * 5
    before = mean_average_precision(sets["test_features"], sets["test_targets"])
    limits = {"batch": 128, "every": 20, "patience": 9, "epochs": 1, "least": 60, "most": 60}
    for one in RETRIEVAL:
        if one.series == "ours":
            embeddings, answer = fit_retrieval(
                sets, {"seed": 0, "contender": one.spec(), "setting": one.grid[-1], "limits": limits}
            )
            assert embeddings["test"].isfinite().all()
            assert answer["best"] > before / 2


# Problems


def test_a_split_is_standardised_on_its_training_rows_and_clipped() -> None:
    from study.problems import from_columns
    from study.tables import Columns

    generator = np.random.default_rng(0)
    features = np.column_stack([generator.normal(5, 3, 1000), np.zeros(1000), generator.standard_cauchy(1000)])
    features[:, 2] *= 1e3
    labels = (np.arange(1000) % 10 == 0).astype(np.int64)
    sets = from_columns(Columns(features, labels, generator.random((1000, 2))), 0)
    assert [len(one.targets) for one in sets] == [600, 200, 200]
    assert [int(one.targets.sum()) for one in sets] == [60, 20, 20]
    train = sets.train.features
    torch.testing.assert_close(train[:, :2].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert train[:, 0].std().item() == pytest.approx(1, abs=1e-2)
    assert max(one.features.abs().max() for one in sets) == 10
    assert sets.test.costs is not None


@pytest.mark.parametrize("name", ["wine quality", "yeast", "letters"])
def test_sizes_are_those_of_the_tables(name: str) -> None:
    from study.problems import PROBLEMS, SIZES
    from study.tables import TABLES

    columns = next(one for one in TABLES if one.name == name).load()
    least = columns.labels.sum() if name != "letters" else np.bincount(columns.labels).min()
    assert SIZES[name] == (len(columns.labels), least)
    problem = next(one for one in PROBLEMS if one.name == name)
    assert problem.splits == (5 if least < 150 else 3)


def test_older_tasks_belong_to_the_half_that_is_chosen_on() -> None:
    from study.problems import BINS, PROBLEMS, bin_of

    old = [one for one in PROBLEMS if one.source == "scikit-learn"]
    assert [one.half for one in old] == ["chosen on"] * 3
    assert len(PROBLEMS) == 17
    assert {bin_of(one) for one in PROBLEMS} == set(BINS)
    sets = old[-1].make(0)
    assert sets.train.targets.dtype == torch.int64
    assert sets.train.features.abs().max() <= 10


def test_thinned_digits_have_their_rate_in_every_group_and_no_row_twice() -> None:
    from study.tasks import digits

    sets = digits(3, rate=0.03)
    for one in sets:
        assert one.groups[one.targets == 0].eq(-1).all()
        sizes = one.groups[one.targets == 1].bincount()
        assert sizes.unique().numel() == 1
        assert float(sizes[0] / (sizes[0] + (one.targets == 0).sum())) == pytest.approx(0.03, rel=0.2)
    assert sets.train.groups.max() == 0
    assert sets.test.groups.max() > 0
    rows = torch.cat([one.features for one in sets])
    assert len(rows.unique(dim=0)) == len(rows)


def test_generated_rows_are_a_function_of_their_seed() -> None:
    from study.tasks import generated

    once, again, other = generated(1), generated(1), generated(2)
    assert torch.equal(once.test.features, again.test.features)
    assert not torch.equal(once.test.features, other.test.features)
    assert [float(one.targets.float().mean()) for one in once] == pytest.approx([0.01] * 3, rel=0.05)


def test_long_tail_falls_geometrically_and_is_tested_balanced() -> None:
    from study.tasks import digits_long_tail

    sets = digits_long_tail(4)
    assert sets.train.targets.bincount().roll(-4).tolist() == np.geomspace(90, 3, 10).round().tolist()
    assert sets.test.targets.bincount().unique().numel() == 1


# Results and page


def gain_on(name: str, gain: dict[str, float]) -> float:
    """What is given, a little different on every table."""
    return gain.get(name.replace(" ", "_"), gain.get("rest", 0.0)) * (1 + len(name) / 100)


NOISE = (0.004, -0.004, 0.002, -0.002)


def results_of(**gain: float) -> dict[str, Any]:
    """Numbers in which Smooth-AP at 0.5 gains ``gain`` on a table, by four splits, with the linear model."""
    from study.measures import MEASURES
    from study.problems import PROBLEMS

    noise = np.array(NOISE)
    cells: dict[str, Any] = {}
    for one in PROBLEMS:
        ours = 0.5 + gain_on(one.name, gain) + noise
        of_problem = {"cross-entropy": np.full(4, 0.5), "Smooth-AP 0.5": ours, "ASL": np.full(4, 0.45) + noise}
        cells[one.name] = {
            name: {
                "chosen": contender(name).grid[1],
                "validation": [0.1, 0.2, 0.3, 0.4],
                "seconds": 1.5,
                "steps": 100,
                "test": {measure: list(map(float, scores)) for measure in MEASURES},
            }
            for name, scores in of_problem.items()
        }
        cells[one.name]["focal"] = {"skipped": "failed: for a reason"}
    machine = {"cpu": "abacus", "jobs": 1, "torch": "2", "packages": {"ours": "1"}}
    protocol = {"settings": 4, "limits": {"batch": 1, "every": 50, "patience": 5}}
    return {"machine": machine, "protocol": protocol, "retrieval": {}, "cells": {"linear": cells}}


def test_means_over_tables_and_counts() -> None:
    from study.results import Results

    gain = {"rest": 0.02, "page_blocks": -0.1}
    results = Results(results_of(**gain))
    problems = results.half("chosen on")
    found = results.overall("linear", "Smooth-AP 0.5", "ap", problems)
    each = [gain_on(one.name, gain) for one in problems]
    assert found.mean == pytest.approx(np.mean(each))
    assert found.high == pytest.approx(stats.ttest_1samp(each, 0).confidence_interval().high)
    assert results.counts("linear", "Smooth-AP 0.5", "ap", problems) == (len(each) - 1, 0, 1)
    # a calibration error is better when it is lower
    assert results.difference("linear", "yeast", "Smooth-AP 0.5", "ece").mean == pytest.approx(-0.021)
    assert results.best("linear", "ap", problems) == "Smooth-AP 0.5"
    assert results.best("linear", "ece", problems) == "ASL"
    assert results.best("linear", "ece", problems, ours=True) == "Smooth-AP 0.5"


def test_trees_and_ensembles_are_compared_with_a_single_mlp() -> None:
    from study.results import Results

    data = results_of(rest=0.02)
    data["cells"]["MLP"] = data["cells"]["linear"]
    of_trees = {"boosted trees": data["cells"]["linear"]["yeast"]["ASL"]}
    data["cells"]["trees"] = {"yeast": of_trees}
    data["cells"]["ensemble"] = {"yeast": {"Smooth-AP 0.5": data["cells"]["linear"]["yeast"]["ASL"]}}
    results = Results(data)
    assert results.difference("trees", "yeast", "boosted trees").mean == pytest.approx(-0.05)
    assert results.difference("ensemble", "yeast", "Smooth-AP 0.5").mean == pytest.approx(-0.071)


def holds(results: Any, contender_name: str) -> bool:
    """On the half that chose nothing, with the linear model."""
    from study.decisions import holds as recommended

    return recommended(results, "linear", contender_name, results.half("held out"))


def test_what_holds_wins_in_the_mean_of_the_other_half_and_loses_nowhere_there() -> None:
    from study.results import Results

    assert holds(Results(results_of(rest=0.02)), "Smooth-AP 0.5")
    assert not holds(Results(results_of()), "Smooth-AP 0.5")
    one_loss = results_of(rest=0.02, yeast=-0.02)
    assert not holds(Results(one_loss), "Smooth-AP 0.5")
    small_loss = results_of(rest=0.02, yeast=-0.011)
    for one in small_loss["cells"]["linear"]["yeast"].values():  # within chance
        if "test" in one:
            one["test"]["ap"] = [score + 10 * noise for score, noise in zip(one["test"]["ap"], NOISE, strict=True)]
    assert not holds(Results(small_loss), "Smooth-AP 0.5")
    # what the first half says does not count, nor do other kinds of problems
    assert not holds(Results(results_of(credit=0.9, abalone=0.9)), "Smooth-AP 0.5")
    assert holds(Results(results_of(rest=0.02, letters=-0.3)), "Smooth-AP 0.5")
    incomplete = results_of(rest=0.02)
    incomplete["cells"]["linear"]["hiva"]["Smooth-AP 0.5"] = {"skipped": "for a reason"}
    assert not holds(Results(incomplete), "Smooth-AP 0.5")


def test_what_is_trained_in_another_way_must_beat_its_control() -> None:
    from study.decisions import decisions
    from study.results import Results

    data = results_of(rest=0.02)
    name, control = "Smooth-AP, L-BFGS", "cross-entropy, L-BFGS"
    for of_problem in data["cells"]["linear"].values():
        of_problem[name] = of_problem["Smooth-AP 0.5"]
        of_problem[control] = of_problem["cross-entropy"]
    assert holds(Results(data), name)
    for of_problem in data["cells"]["linear"].values():
        of_problem[control] = of_problem["Smooth-AP 0.5"]
    assert not holds(Results(data), name)
    # the half that chooses picks it, the other one shows it level with its control
    chosen_on = {one.name for one in Results(data).half("chosen on")}
    for problem, of_problem in data["cells"]["linear"].items():
        first = of_problem.pop("Smooth-AP 0.5")
        if problem in chosen_on:
            better = {measure: [score + 0.01 for score in scores] for measure, scores in first["test"].items()}
            of_problem[name] = {**first, "test": better}
    rows = [row for row in decisions(Results(data)).splitlines() if f"| {name} |" in row]
    assert rows
    assert not any("| yes |" in row for row in rows)


def test_page_has_the_numbers(tmp_path: Path) -> None:
    from study.report import page, write_report
    from study.results import Results, dump, with_sign

    data = json.loads(dump(results_of(rest=0.02, yeast=-0.03)))
    text = page(data)
    results = Results(data)
    for half in ("chosen on", "held out"):
        found = with_sign(results.overall("linear", "Smooth-AP 0.5", "ap", results.half(half)))
        assert text.count(found) >= 2
    assert "**Not confirmed.**" in text
    assert "where it is better on 5 tables, within chance on 0 and worse on 1 (worst -3.1)" in text
    assert "failed: for a reason: focal, linear, credit;" in text
    assert "Confirmed." in page(results_of(rest=0.02))
    first = results_of(rest=0.02)
    chosen_on = {one.name for one in results.half("chosen on")}
    first["cells"]["linear"] = {name: cell for name, cell in first["cells"]["linear"].items() if name in chosen_on}
    assert "The other half has not been looked at." in page(first)
    (tmp_path / "study.json").write_text(dump(data), encoding="utf-8")
    write_report(tmp_path)
    assert (tmp_path / "study.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_not_a_number_is_null_in_the_file() -> None:
    from study.results import Results, dump

    data = results_of()
    for cell in data["cells"]["linear"]["yeast"].values():
        if "test" in cell:
            cell["test"]["savings"] = [math.nan] * 4
    text = dump(data)
    assert "NaN" not in text
    results = Results(json.loads(text))
    assert "yeast" not in {one.name for one in results.problems_of("linear", "ASL", "savings", results.problems)}


def test_the_published_page_is_what_its_numbers_say_and_whole() -> None:
    from dataclasses import asdict

    from study.contenders import CONTENDERS
    from study.driver import Protocol
    from study.problems import PROBLEMS
    from study.report import page

    numbers, text = (ROOT / "docs" / f"study.{end}" for end in ("json", "md"))
    data = json.loads(numbers.read_text(encoding="utf-8"))
    assert text.read_text(encoding="utf-8") == page(data)
    assert data["protocol"] == asdict(Protocol())
    for problem in PROBLEMS:
        for one in CONTENDERS:
            for model in (model for model in one.models if one.takes(model, problem.kind)):
                assert "test" in data["cells"][model][problem.name][one.name]


def test_the_pages_quote_what_the_study_found() -> None:
    from study.measures import TARGET
    from study.problems import BINS, bin_of
    from study.results import Results, with_sign

    results = Results(json.loads((ROOT / "docs" / "study.json").read_text(encoding="utf-8")))
    first, second = (results.half(half) for half in ("chosen on", "held out"))

    def found(model: str, name: str, measure: str = TARGET, problems: Any = second) -> str:
        return with_sign(results.overall(model, name, measure, problems))

    best = [(model, results.best(model, TARGET, first, ours=True)) for model in ("linear", "MLP", "head")]
    assert [name for _, name in best] == [
        "Smooth-AP, L-BFGS",
        "pAUC pairwise, wide after cross-entropy",
        "precision at recall",
    ]
    common = [found(model, str(name)) for model, name in best]
    many = [one for one in second if bin_of(one) == BINS[1]]
    holds = found("linear", "Smooth-AP 0.5 + half", "recall", many)
    chosen = found("linear", "Smooth-AP, L-BFGS", problems=first)
    at_recall = [
        found("linear", name, measure)
        for name in ("precision at recall", "FPR at recall")
        for measure in ("precision", TARGET)
    ]
    libauc = [found("MLP", "LibAUC pAUC, SOPA", problems=half) for half in (first, second)]
    quotes = {
        "README.md": [*common, found("trees", "boosted trees")],
        "docs/index.md": [*common, holds, chosen, found("MLP", "soft F1"), *at_recall],
        "docs/choosing.md": [
            *common,
            *(found("trees", "boosted trees", problems=half) for half in (first, second)),
            holds,
            found("linear", "Smooth-AP 0.5 + half", "recall"),
            chosen,
            *(found("MLP", name) for name in ("recall", "soft F1")),
        ],
        "docs/coming_from/libauc.md": libauc,
    }
    for page, expected in quotes.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert [one for one in expected if one not in text] == [], page


# Driver


def test_journal_resumes_its_own_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from study import journal

    path = tmp_path / "runs.jsonl"
    first = journal.Journal(path, resume=False)
    first.add("a", {"best": 1.0})
    first.add("b", {"skipped": "failed"})
    with path.open("a") as file:
        file.write('{"key": "cut o')
    assert journal.Journal(path, resume=True).runs == {"a": {"best": 1.0}}
    monkeypatch.setattr(journal, "digest", lambda: "other")
    with pytest.raises(SystemExit, match="the code has changed"):
        journal.Journal(path, resume=True)
    assert journal.Journal(path, resume=False).runs == {}
    assert path.with_suffix(".old").exists()


def test_selection_and_run_count() -> None:
    from study.run import count_runs, is_whole, make_protocol, parse_args, select

    arguments = parse_args(["--half", "chosen on", "--contenders", "Smooth-AP 0.5"])
    cells = select(arguments)
    assert {one.problem.half for one in cells} == {"chosen on"}
    assert {one.contender.name for one in cells} == {"cross-entropy", "Smooth-AP 0.5"}
    assert {one.model for one in cells} == {"linear", "MLP", "head", "ensemble"}
    assert not is_whole(arguments)
    assert is_whole(parse_args([]))
    one = [cell for cell in cells if cell.problem.name == "credit" and cell.model != "ensemble"][:1]
    assert count_runs(make_protocol(arguments), one) == 4 + 2


def test_cells_are_trained_in_a_worker_and_kept(tmp_path: Path) -> None:
    from study.contenders import BASELINE
    from study.driver import Cell, Protocol, Study
    from study.journal import Journal
    from study.loop import Limits
    from study.parts import Part, Sets
    from study.pool import WorkerPool
    from study.problems import Problem

    def make(split: int) -> Any:
        data = separable(300, split)
        costs = torch.tensor([[1.0, 5.0]]).repeat(300, 1).double()
        sets = (data[f"{name}_features"] for name in ("train", "validation", "test"))
        return Sets(*(Part(x, data["train_targets"], torch.full((300,), -1), costs) for x in sets))

    problem = Problem("synthetic", "chosen on", make, 0.1, 30, has_costs=True)
    protocol = Protocol(most_splits=2, settings=2, limits=Limits(32, 10, 2, 1, 40, 40))
    pool = WorkerPool({"ours": sys.executable, "peer": str(tmp_path / "none")})
    path = tmp_path / "runs.jsonl"
    asked = ((BASELINE, "MLP"), ("Smooth-AP 0.5", "head"), ("Smooth-AP 0.5 after cross-entropy", "linear"))
    cells = [Cell(problem, model, contender(name)) for name, model in (*asked, (BASELINE, "ensemble"))]
    try:
        study = Study(protocol, Journal(path, resume=False), tmp_path, pool)
        assert "no environment" in pool.hello()["peer"]["skipped"]
        found = [study.cell(cell) for cell in cells]
        failed = study.cell(Cell(problem, "MLP", contender("0.6.0 Smooth-AP 0.5")))
    finally:
        pool.stop()
    for cell, one in zip(cells, found, strict=True):
        assert [len(scores) for scores in one["test"].values()] == [1 if cell.model == "ensemble" else 2] * 6
        assert min(one["test"]["ap"]) > 0.3
        assert one["seconds"] > 0
    assert "no environment" in failed["skipped"]
    again = Study(protocol, Journal(path, resume=True), tmp_path, pool)
    again.end = 0
    assert [again.cell(cell) for cell in cells] == found
    assert again.cell(Cell(problem, "MLP", contender("ASL"))) == {"skipped": "the run's time was spent"}
