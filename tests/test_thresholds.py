"""Thresholds against a search over all of them in exact arithmetic, scikit-learn, SciPy's bootstrap and coverage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor

from imbalanced_losses import metrics, thresholds
from imbalanced_losses.thresholds import OperatingPoint, _operating_point

IGNORE = -100
RATES = ("recall", "precision", "alert_rate", "false_positive_rate")

GOALS: dict[str, Callable[..., OperatingPoint]] = {
    "budget": partial(thresholds.for_alert_budget, budget=0.2),
    "fpr": partial(thresholds.for_alert_budget, budget=0.2, budget_basis="fpr"),
    "recall": partial(thresholds.for_recall_floor, min_recall=0.7),
    "precision": partial(thresholds.for_precision_floor, min_precision=0.6),
    "cost": partial(thresholds.for_expected_cost, cost_fn=5, cost_fp=1, cost_tp=0.5),
}
every_goal = pytest.mark.parametrize("choose", GOALS.values(), ids=GOALS.keys())


# --- the search -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A binary problem with ties, ignored rows, weights (0 among them) and a cost of each kind for each row."""

    scores: Tensor
    targets: Tensor
    weight: Tensor
    costs: Tensor
    """``[3, N]``: false negative, false positive, true positive."""

    @property
    def arguments(self) -> tuple[Tensor, Tensor]:
        return self.scores, self.targets

    @property
    def counted(self) -> Tensor:
        return (self.targets != IGNORE) & (self.weight > 0)


@st.composite
def problems(draw: st.DrawFn, max_size: int = 14) -> Problem:
    labels = draw(st.lists(st.sampled_from(draw(st.sampled_from(LABELS))), min_size=1, max_size=max_size))
    n = len(labels)
    dtype = draw(st.sampled_from((torch.float64, torch.float32, torch.float16, torch.bfloat16)))
    largest = torch.finfo(dtype).max
    tied = st.integers(-3, 3).map(float)
    finite = st.floats(-largest, largest, allow_subnormal=False)
    scores = draw(st.lists(draw(st.sampled_from((tied, finite))), min_size=n, max_size=n))
    eighths = draw(st.sampled_from((st.just(8), st.integers(0, 40))))
    weight = draw(st.lists(eighths, min_size=n, max_size=n))
    costs = draw(st.lists(st.integers(0, 20), min_size=3 * n, max_size=3 * n))
    problem = Problem(
        scores=torch.tensor(scores, dtype=torch.float64).to(dtype),
        targets=torch.tensor(labels),
        weight=torch.tensor(weight) / 8,
        costs=torch.tensor(costs).reshape(3, n) / 4,
    )
    if not problem.counted.any():
        return dataclasses.replace(problem, targets=torch.zeros(n, dtype=torch.int64), weight=torch.ones(n))
    return problem


LABELS = ((0, 0, 0, 1, IGNORE), (0, 1), (0,), (1,), (1, IGNORE))


@dataclass(frozen=True)
class Alerts:
    """What one threshold finds, exactly."""

    rows: list[bool]
    tp: Fraction
    fp: Fraction
    fn: Fraction
    tn: Fraction
    total_cost: Fraction

    @property
    def rates(self) -> dict[str, Fraction]:
        def share(part: Fraction, whole: Fraction) -> Fraction:
            return part / whole if whole else Fraction(0)

        n = self.tp + self.fp + self.fn + self.tn
        return {
            "recall": share(self.tp, self.tp + self.fn),
            "precision": share(self.tp, self.tp + self.fp),
            "alert_rate": share(self.tp + self.fp, n),
            "false_positive_rate": share(self.fp, self.fp + self.tn),
            "cost": share(self.total_cost, n),
        }


def all_alerts(problem: Problem) -> list[Alerts]:
    """Of each possible threshold, the highest first."""
    kept = problem.counted
    scores, labels = problem.scores[kept].tolist(), problem.targets[kept].tolist()
    weights = list(map(Fraction, problem.weight[kept].tolist()))
    costs = [tuple(map(Fraction, row)) for row in problem.costs[:, kept].T.tolist()]
    found = []
    for threshold in [math.inf, *sorted(set(scores), reverse=True)]:
        sums = {(label, alert): Fraction(0) for label in (0, 1) for alert in (False, True)}
        total_cost = Fraction(0)
        for score, label, weight, (fn, fp, tp) in zip(scores, labels, weights, costs, strict=True):
            alert = score >= threshold
            sums[label, alert] += weight
            total_cost += weight * {(1, False): fn, (0, True): fp, (1, True): tp, (0, False): 0}[label, alert]
        rows = [score >= threshold for score in scores]
        found.append(Alerts(rows, sums[1, True], sums[0, True], sums[1, False], sums[0, False], total_cost))
    return found


def check(point: OperatingPoint, problem: Problem, best: Alerts | None, with_cost: bool = False) -> None:
    """The threshold has the best alerts, and reports them; ``None`` stands for a goal that nothing can meet."""
    expected = best or all_alerts(problem)[0]
    kept = problem.scores[problem.counted]
    assert point.threshold.dtype == problem.scores.dtype
    assert (kept >= point.threshold).tolist() == expected.rows
    for name in (*RATES, "cost") if with_cost else RATES:
        assert getattr(point, name).item() == pytest.approx(float(expected.rates[name]), abs=1e-14)
    assert (point.cost is not None) == with_cost
    assert point.n_positive.item() == ((problem.targets == 1) & problem.counted).sum()


def has_positives(options: list[Alerts]) -> bool:
    return options[-1].tp > 0


percents = st.integers(0, 100)


@given(problems(), percents)
def test_alert_budget_is_the_largest_affordable_set_of_alerts(problem: Problem, percent: int) -> None:
    options = all_alerts(problem)
    affordable = [o for o in options if o.rates["alert_rate"] <= Fraction(percent, 100)]
    best = affordable[-1] if has_positives(options) else None
    point = thresholds.for_alert_budget(*problem.arguments, percent / 100, sample_weight=problem.weight)
    check(point, problem, best)
    assert point.reached.item() == has_positives(options)


@given(problems(), percents)
def test_budget_of_false_positives_is_the_largest_affordable_set_of_alerts(problem: Problem, percent: int) -> None:
    options = all_alerts(problem)
    affordable = [o for o in options if o.rates["false_positive_rate"] <= Fraction(percent, 100)]
    is_known = has_positives(options) and options[-1].fp > 0
    point = thresholds.for_alert_budget(*problem.arguments, percent / 100, "fpr", sample_weight=problem.weight)
    check(point, problem, affordable[-1] if is_known else None)
    assert point.reached.item() == is_known


@given(problems(), percents)
def test_recall_floor_is_the_smallest_set_of_alerts_that_finds_enough(problem: Problem, percent: int) -> None:
    options = all_alerts(problem)
    enough = [o for o in options if o.rates["recall"] >= Fraction(percent, 100)]
    best = enough[0] if has_positives(options) else None
    point = thresholds.for_recall_floor(*problem.arguments, percent / 100, sample_weight=problem.weight)
    check(point, problem, best)
    assert point.reached.item() == has_positives(options)


@given(problems(), percents)
def test_precision_floor_is_the_highest_recall_or_else_the_highest_precision(problem: Problem, percent: int) -> None:
    options = all_alerts(problem)
    enough = [o for o in options[1:] if o.rates["precision"] >= Fraction(percent, 100)]
    if not has_positives(options):
        best = None
    elif enough:
        best = max(enough, key=lambda o: o.tp)  # the first of several: the fewest alerts
    else:
        best = max(options[1:], key=lambda o: (o.rates["precision"], o.tp))
    point = thresholds.for_precision_floor(*problem.arguments, percent / 100, sample_weight=problem.weight)
    check(point, problem, best)
    assert point.reached.item() == (has_positives(options) and bool(enough))


@given(problems())
def test_expected_cost_is_the_lowest_of_all(problem: Problem) -> None:
    options = all_alerts(problem)
    best = min(options, key=lambda o: o.total_cost) if has_positives(options) else None  # the first: fewest alerts
    names = ("cost_fn", "cost_fp", "cost_tp")
    costs = dict(zip(names, problem.costs, strict=True))
    point = thresholds.for_expected_cost(*problem.arguments, **costs, sample_weight=problem.weight)
    check(point, problem, best, with_cost=True)
    assert point.reached.item() == has_positives(options)


@settings(max_examples=40)
@given(problems(), st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_a_number_is_the_cost_of_every_row(problem: Problem, quarters: list[int]) -> None:
    fn, fp, tp = (k / 4 for k in quarters)
    rows = dataclasses.replace(problem, costs=torch.tensor([[fn], [fp], [tp]]).expand_as(problem.costs))
    options = all_alerts(rows)
    best = min(options, key=lambda o: o.total_cost) if has_positives(options) else None
    point = thresholds.for_expected_cost(
        *problem.arguments, cost_fn=fn, cost_fp=torch.tensor(fp), cost_tp=tp, sample_weight=problem.weight
    )
    check(point, rows, best, with_cost=True)


def test_costs_that_are_equal_but_for_rounding_are_equal() -> None:
    """Eight alerts that cost 0.1 each to find a positive whose miss costs 0.8."""
    scores, targets = torch.arange(9.0, 0, -1), torch.tensor([0] * 8 + [1])
    assert thresholds.for_expected_cost(scores, targets, cost_fn=0.8, cost_fp=0.1).threshold == torch.inf


def test_numbers_are_costs_in_float64() -> None:
    """Float32 rounds 0.1 and 0.3. First no alert pays, then alerts on all rows do."""
    scores, targets = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 1, 0, 1])
    missed = thresholds.for_expected_cost(scores, targets, cost_fn=0.1, cost_fp=1e6)
    alerts = thresholds.for_expected_cost(scores, targets, cost_fn=1e6, cost_fp=0.1, cost_tp=0.3)
    assert missed.cost.item() == pytest.approx(0.2 / 4, abs=1e-15)
    assert alerts.cost.item() == pytest.approx((0.1 * 2 + 0.3 * 2) / 4, abs=1e-9)


# --- the threshold itself ---------------------------------------------------------------------------------------------


@every_goal
@given(problem=problems())
def test_the_threshold_lies_midway_between_two_scores(choose, problem: Problem) -> None:
    kept = problem.scores[problem.counted].double()
    point = choose(*problem.arguments, sample_weight=problem.weight)
    threshold = point.threshold.double().item()
    above, below = kept[kept >= threshold], kept[kept < threshold]
    if len(above) == 0:
        assert threshold == math.inf
    elif len(below) == 0:
        assert threshold == -math.inf
    else:
        middle = (above.min() / 2 + below.max() / 2).to(problem.scores.dtype)
        assert threshold in (middle, above.min())  # the latter where the dtype has no number between the two
        assert threshold == middle or torch.nextafter(below.max().to(middle), middle + math.inf) >= above.min()


@every_goal
def test_rounding_of_a_score_does_not_change_the_alerts(choose) -> None:
    scores, targets = sample(400)
    threshold = choose(scores, targets).threshold
    for factor in (1 - 1e-6, 1 + 1e-6):
        assert torch.equal(scores * factor >= threshold, scores >= threshold)


# --- oracles ----------------------------------------------------------------------------------------------------------


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    labels = [0, 1, *draw(st.lists(st.sampled_from((0, 0, 1)), max_size=40))]
    n = len(labels)
    scores = draw(st.lists(st.integers(-8, 8), min_size=n, max_size=n))
    weight = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    return torch.tensor(scores).double(), torch.tensor(labels), torch.tensor(weight) / 8


@given(weighted_rows(), percents)
def test_floors_are_points_of_scikit_learns_curve(rows, percent: int) -> None:
    scores, targets, weight = rows
    floor = percent / 100
    precision, recall, cuts = precision_recall_curve(targets, scores, sample_weight=weight)
    precision, recall = precision[:-1], recall[:-1]  # without the point at infinity
    point = thresholds.for_recall_floor(scores, targets, floor, sample_weight=weight)
    if percent > 0:
        highest = np.flatnonzero(recall >= floor - 1e-12)[-1]
        assert (point.recall, point.precision) == pytest.approx((recall[highest], precision[highest]), abs=1e-12)
        assert torch.equal(scores >= point.threshold, scores >= cuts[highest])
    point = thresholds.for_precision_floor(scores, targets, floor, sample_weight=weight)
    enough = precision >= floor - 1e-12
    assert point.reached == enough.any()
    if enough.any():
        assert point.recall == pytest.approx(recall[enough].max(), abs=1e-12)
    else:
        assert point.precision == pytest.approx(precision.max(), abs=1e-12)


@given(weighted_rows(), percents)
def test_budget_of_false_positives_is_a_point_of_scikit_learns_roc_curve(rows, percent: int) -> None:
    scores, targets, weight = rows
    fpr, tpr, _ = roc_curve(targets, scores, sample_weight=weight, drop_intermediate=False)
    point = thresholds.for_alert_budget(scores, targets, percent / 100, "fpr", sample_weight=weight)
    affordable = fpr <= percent / 100 + 1e-12
    reached = point.false_positive_rate, point.recall
    assert reached == pytest.approx((fpr[affordable].max(), tpr[affordable].max()), abs=1e-12)


@pytest.mark.parametrize("basis", ["population", "fpr"])
@given(rows=weighted_rows(), percent=percents)
def test_recall_within_a_budget_is_the_metric(basis: str, rows, percent: int) -> None:
    scores, targets, _ = rows
    expected = metrics.coverage_at_budget(scores, targets, percent / 100, basis)
    actual = thresholds.for_alert_budget(scores, targets, percent / 100, basis).recall
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_shares_of_whole_rows_are_met_in_full() -> None:
    """0.29 * 100 is 28.999999999999996, and 0.07 * 100 is 7.000000000000001."""
    scores, ones = torch.arange(100.0), torch.ones(100, dtype=torch.int64)
    for percent in range(101):
        share = percent / 100
        assert thresholds.for_alert_budget(scores, ones, share).alert_rate.item() == share
        assert thresholds.for_recall_floor(scores, ones, share).recall.item() == share
        tied, targets = torch.zeros(100), (scores < percent).long()
        assert thresholds.for_precision_floor(tied, targets, share).reached == (percent > 0)


# --- invariances ------------------------------------------------------------------------------------------------------


@every_goal
@settings(max_examples=40)
@given(problem=problems(), times=st.lists(st.integers(0, 3), min_size=14, max_size=14))
def test_a_weight_is_a_number_of_rows(choose, problem: Problem, times: list[int]) -> None:
    counts = torch.tensor(times[: len(problem.scores)])
    counts[problem.counted.nonzero()[0]] = 1
    repeated = choose(problem.scores.repeat_interleave(counts), problem.targets.repeat_interleave(counts))
    weighted = choose(*problem.arguments, sample_weight=counts)
    for name in ("threshold", *RATES, "reached"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name), rtol=0, atol=1e-14)


@every_goal
def test_order_of_rows_and_ignored_rows_do_not_matter(choose) -> None:
    scores, targets = sample(300)
    expected = choose(scores, targets, n_bootstrap=50, generator=seeded(1))
    order = torch.randperm(300)
    scores, targets = scores[order].repeat_interleave(2), targets[order].repeat_interleave(2)
    scores[::2], targets[::2] = math.nan, IGNORE
    assert_same(choose(scores, targets, n_bootstrap=50, generator=seeded(1)), expected)


@every_goal
@pytest.mark.parametrize("multilabel", [False, True])
def test_classes_are_problems_of_their_own(choose, multilabel: bool) -> None:
    scores = torch.randn(200, 3).round(decimals=1)
    targets = torch.randint(0, 2, (200, 3)) if multilabel else torch.randint(0, 3, (200,))
    targets[torch.rand(targets.shape) < 0.1] = IGNORE
    weight = torch.rand(200)
    point = choose(scores, targets, multilabel=multilabel, sample_weight=weight)
    for c in range(3):
        labels = targets[:, c] if multilabel else torch.where(targets == IGNORE, IGNORE, (targets == c).long())
        alone = choose(scores[:, c], labels, sample_weight=weight)
        assert_same(alone, dataclasses.replace(point, **{name: value[c] for name, value in fields(point).items()}))


def test_costs_of_classes() -> None:
    scores, targets = torch.randn(100, 3), torch.randint(0, 3, (100,))
    costs = torch.rand(100, 3)
    point = thresholds.for_expected_cost(scores, targets, cost_fn=costs, cost_fp=0.3)
    alone = [
        thresholds.for_expected_cost(scores[:, c], (targets == c).long(), cost_fn=costs[:, c], cost_fp=0.3)
        for c in range(3)
    ]
    assert torch.equal(point.threshold, torch.stack([a.threshold for a in alone]))
    torch.testing.assert_close(point.cost, torch.stack([a.cost for a in alone]))


@every_goal
def test_shapes_and_dtypes(choose) -> None:
    scores, targets = sample(50)
    column = choose(scores[:, None], targets[:, None], sample_weight=torch.ones(50, 1), n_bootstrap=3)
    assert {value.shape for value in fields(column).values()} == {()}
    assert {value.shape for value in column.intervals.values()} == {(2,)}
    label = choose(scores[:, None], targets[:, None], multilabel=True, n_bootstrap=3)
    assert {value.shape for value in fields(label).values()} == {(1,)}
    classes = choose(torch.randn(50, 3), torch.randint(0, 3, (50,)), n_bootstrap=3)
    assert {value.shape for value in fields(classes).values()} == {(3,)}
    assert {value.shape for value in classes.intervals.values()} == {(2, 3)}
    assert {getattr(classes, name).dtype for name in RATES} == {torch.float64}


@every_goal
def test_carries_no_gradient_and_changes_nothing(choose) -> None:
    scores, targets = sample(50)
    scores.requires_grad_()
    before = scores.detach().clone(), targets.clone()
    point = choose(scores, targets, n_bootstrap=2)
    assert not any(value.requires_grad for value in (*fields(point).values(), *point.intervals.values()))
    assert torch.equal(scores, before[0])
    assert torch.equal(targets, before[1])


# --- little evidence --------------------------------------------------------------------------------------------------


@every_goal
def test_a_class_without_positives_has_no_alerts_and_says_so(choose) -> None:
    scores, targets = torch.randn(60, 4), torch.tensor([0, 1, 2] * 20)
    targets[3] = IGNORE  # leaves 19 positives of class 0
    point = choose(scores, targets, n_bootstrap=20)
    assert point.threshold[3] == math.inf
    assert point.n_positive.tolist() == [19, 20, 20, 0]
    assert point.few_positives.tolist() == [True, False, False, True]
    assert not point.reached[3]
    assert not any(value.isnan().any() for value in (*fields(point).values(), *point.intervals.values()))
    assert all(getattr(point, name)[3] == 0 for name in RATES)


@every_goal
def test_a_label_without_rows(choose) -> None:
    targets = torch.tensor([[1, IGNORE]] * 5 + [[0, IGNORE]] * 5)
    point = choose(torch.randn(10, 2), targets, multilabel=True, n_bootstrap=5)
    assert (point.threshold[1], point.reached[1], point.n_positive[1]) == (math.inf, False, 0)
    assert not any(value.isnan().any() for value in (*fields(point).values(), *point.intervals.values()))


@every_goal
def test_a_perfect_ranking_needs_no_false_alert(choose) -> None:
    targets = torch.tensor([1] * 5 + [0] * 45)
    scores = 1.0 * targets + torch.linspace(0.1, 0, 50)
    point = choose(scores, targets)
    assert point.reached
    if choose is GOALS["recall"]:
        assert point.recall == 0.8
    else:
        assert point.recall == 1
    if choose not in (GOALS["budget"], GOALS["fpr"]):  # these spend what they have
        assert point.precision == 1


def test_best_precision_below_the_floor_is_that_of_the_highest_recall() -> None:
    scores, targets = torch.tensor([3.0, 3.0, 2.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0, 0])
    point = thresholds.for_precision_floor(scores, targets, min_precision=0.6)  # one of two, or two of four
    assert (point.threshold, point.precision, point.recall, point.reached) == (1.5, 0.5, 1, False)


def test_tied_rows_that_do_not_fit_are_no_alerts() -> None:
    scores, targets = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1, 0, 0, 0])
    point = thresholds.for_alert_budget(scores, targets, budget=0.5)
    assert (point.threshold, point.alert_rate, point.reached) == (math.inf, 0, True)


def test_values_that_no_cost_needs_are_not_looked_at() -> None:
    scores, targets = torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.tensor([1, 0, 1, IGNORE])
    nan = math.nan
    losses, reviews = torch.tensor([9.0, nan, 4.0, nan]), torch.tensor([nan, 2.0, nan, nan])
    point = thresholds.for_expected_cost(scores, targets, cost_fn=losses, cost_fp=reviews)
    assert (point.threshold, point.cost.item()) == (-math.inf, pytest.approx(2 / 3))


# --- bootstrap --------------------------------------------------------------------------------------------------------


def sample(n: int, prevalence: float = 0.2, shift: float = 1.5) -> tuple[Tensor, Tensor]:
    """Negatives are standard normal; positives are shifted."""
    targets = (torch.rand(n) < prevalence).long()
    return torch.randn(n) + shift * targets, targets


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(point: OperatingPoint) -> dict[str, Tensor]:
    values = {field.name: getattr(point, field.name) for field in dataclasses.fields(point)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def assert_same(actual: OperatingPoint, expected: OperatingPoint) -> None:
    torch.testing.assert_close(fields(actual), fields(expected), rtol=0, atol=1e-14)
    torch.testing.assert_close(actual.intervals, expected.intervals, rtol=0, atol=1e-14)


@every_goal
def test_intervals_are_reproducible_and_ordered(choose, monkeypatch) -> None:
    scores, targets = sample(300)
    draw = partial(choose, scores, targets, n_bootstrap=100)
    first = draw(generator=seeded(3))
    assert set(first.intervals) == {"threshold", *RATES} | ({"cost"} if choose is GOALS["cost"] else set())
    assert all(low < high for low, high in first.intervals.values())
    monkeypatch.setattr(_operating_point, "CHUNK_ELEMENTS", 7 * 300)  # 14 chunks of 7 and one of 2
    assert_same(draw(generator=seeded(3)), first)
    other = draw(generator=seeded(4))
    assert not torch.equal(other.intervals["recall"], first.intervals["recall"])
    narrow = draw(generator=seeded(3), confidence=0.5)
    for name, (low, high) in narrow.intervals.items():
        assert first.intervals[name][0] < low <= high < first.intervals[name][1]
    torch.manual_seed(5)
    without_generator = draw()
    torch.manual_seed(5)
    assert_same(draw(), without_generator)
    assert choose(scores, targets).intervals == {}


def test_an_interval_between_two_ranks_is_the_wider_one() -> None:
    """Of 11 resamples, ranks 0.5 and 9.5 are the ends at 90 %: no interval covers less than it says."""
    ends = _operating_point._percentiles(torch.arange(11.0)[None], 0.9)
    assert ends.tolist() == [[0.0], [10.0]]


@every_goal
def test_intervals_of_few_rows_are_shares(choose) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        intervals = choose(*sample(10, prevalence=0.4), n_bootstrap=50).intervals
        for name in intervals.keys() - {"threshold", "cost"}:
            assert 0 <= intervals[name][0] <= intervals[name][1] <= 1


def rates_of(alerts: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Written anew in NumPy; the costs are those of ``GOALS``."""
    tp, fp, fn = (x.sum(-1) for x in (alerts & labels, alerts & ~labels, labels & ~alerts))
    n = labels.shape[-1]
    return {
        "recall": tp / labels.sum(-1),
        "precision": tp / alerts.sum(-1),
        "alert_rate": (tp + fp) / n,
        "false_positive_rate": fp / (~labels).sum(-1),
        "cost": (5 * fn + fp + 0.5 * tp) / n,
    }


@every_goal
def test_intervals_of_rates_are_scipys_shifted_by_the_optimism(choose) -> None:
    """5 % of a width is the noise of SciPy's percentiles, 10 % that of the optimism of 400 resamples."""
    scores, targets = sample(400)
    point = choose(scores, targets, n_bootstrap=4000, generator=seeded(0))
    labels = targets.numpy().astype(bool)
    optimism = []
    for _ in range(400):
        rows = torch.randint(400, (400,))
        threshold = choose(scores[rows], targets[rows]).threshold
        there, here = ((scores[i] >= threshold).numpy() for i in (rows, slice(None)))
        rates, original = rates_of(there, labels[rows]), rates_of(here, labels)
        optimism.append([rates[name] - original[name] for name in rates])
    shifts = dict(zip(rates, np.mean(optimism, 0), strict=True))
    for name in point.intervals.keys() - {"threshold"}:
        oracle = scipy.stats.bootstrap(
            ((scores >= point.threshold).numpy(), labels),
            lambda alerts, labels, axis=-1, name=name: rates_of(alerts, labels)[name],
            paired=True,
            n_resamples=4000,
            method="percentile",
            rng=0,
        ).confidence_interval
        ends, width = point.intervals[name].numpy(), oracle.high - oracle.low
        assert ends[1] - ends[0] == pytest.approx(width, abs=0.05 * width)
        assert ends == pytest.approx(np.array([oracle.low, oracle.high]) - shifts[name], abs=0.15 * width)


def test_interval_of_the_threshold_is_of_thresholds_chosen_anew() -> None:
    """A budget's threshold is a quantile of the scores, so that SciPy knows how it varies."""
    scores, targets = sample(400)
    point = thresholds.for_alert_budget(scores, targets, 0.2, n_bootstrap=4000, generator=seeded(0))
    oracle = scipy.stats.bootstrap(
        (scores.double().numpy(),),
        lambda x, axis=-1: np.quantile(x, 0.8, axis=axis),
        n_resamples=4000,
        method="percentile",
        rng=0,
    ).confidence_interval
    width = float(oracle.high - oracle.low)
    assert point.intervals["threshold"].tolist() == pytest.approx([oracle.low, oracle.high], abs=0.1 * width)


@every_goal
def test_intervals_cover_what_the_threshold_reaches_on_new_rows(choose) -> None:
    """90 of 100 times for a confidence of 90 %; 200 problems are uncertain by 2 % (one standard deviation)."""
    prevalence, shift, n_problems = 0.1, 1.5, 200
    normal = torch.distributions.Normal(0.0, 1.0)
    covered: dict[str, int] = {}
    for seed in range(n_problems):
        torch.manual_seed(seed)
        point = choose(*sample(600, prevalence, shift), n_bootstrap=200, confidence=0.9)
        recall, fpr = (1 - normal.cdf(point.threshold - mean) for mean in (shift, 0))
        tp, fp, fn = prevalence * recall, (1 - prevalence) * fpr, prevalence * (1 - recall)
        truth = {
            "recall": recall,
            "false_positive_rate": fpr,
            "alert_rate": tp + fp,
            "precision": tp / (tp + fp),
            "cost": 5 * fn + fp + 0.5 * tp,
        }
        for name in point.intervals.keys() - {"threshold"}:
            low, high = point.intervals[name]
            covered[name] = covered.get(name, 0) + bool(low <= truth[name] <= high)
    assert all(0.82 * n_problems <= count <= 0.97 * n_problems for count in covered.values()), covered


# --- arguments --------------------------------------------------------------------------------------------------------

BAD_CALLS = [
    ("budget", {"scores": [0.5]}, TypeError, "scores to be a Tensor, got list"),
    ("budget", {"scores": torch.zeros(4).long()}, TypeError, "floating-point scores, got torch.int64"),
    ("budget", {"scores": torch.zeros(4, 1, 1)}, ValueError, r"scores of shape \[N\] or \[N, C\], got \[4, 1, 1\]"),
    ("budget", {"scores": torch.tensor([0, math.nan, math.inf, 0])}, ValueError, "finite scores, got 2 .* nan"),
    ("budget", {"targets": torch.zeros(5).long()}, ValueError, r"targets of shape \[4\], got \[5\]"),
    ("budget", {"targets": torch.full((4,), 2)}, ValueError, r"labels in \{0, 1\} .* got 2"),
    ("budget", {"targets": torch.full((4,), IGNORE)}, ValueError, "at least one held-out row .* got 4 rows"),
    ("budget", {"scores": torch.zeros(0), "targets": torch.zeros(0)}, ValueError, "at least one .* got 0 rows"),
    ("budget", {"sample_weight": torch.zeros(4)}, ValueError, "at least one held-out row"),
    ("budget", {"sample_weight": -torch.ones(4)}, ValueError, "finite sample_weight >= 0, got -1"),
    ("budget", {"budget": 1.5}, ValueError, r"budget in \[0, 1\], got 1.5"),
    ("budget", {"budget_basis": "rows"}, ValueError, "budget_basis to be one of .* got 'rows'"),
    ("budget", {"multilabel": 1}, TypeError, "multilabel to be True or False, got 1"),
    ("budget", {"n_bootstrap": -1}, ValueError, "n_bootstrap to be at least 0, got -1"),
    ("budget", {"n_bootstrap": 0.5}, TypeError, "n_bootstrap to be an int, got 0.5"),
    ("budget", {"confidence": 95}, ValueError, "confidence strictly between 0 and 1, got 95"),
    ("recall", {"min_recall": -0.1}, ValueError, r"min_recall in \[0, 1\], got -0.1"),
    ("recall", {"min_recall": math.nan}, ValueError, r"min_recall in \[0, 1\], got nan"),
    ("precision", {"min_precision": "high"}, TypeError, "min_precision to be a number, got 'high'"),
    ("cost", {"cost_fn": -1}, ValueError, "cost_fn to be a finite number of at least 0, got -1"),
    ("cost", {"cost_fp": None}, TypeError, "cost_fp to be a number, got None"),
    ("cost", {"cost_tp": torch.ones(3)}, ValueError, r"cost_tp of shape \[4\]"),
    ("cost", {"cost_fn": torch.tensor([math.inf, 1, 1, 1])}, ValueError, "finite cost_fn >= 0, got inf"),
    ("cost", {"cost_fp": torch.tensor([1.0, -2, 1, 1])}, ValueError, "finite cost_fp >= 0, got -2"),
]


@pytest.mark.parametrize(("goal", "change", "error", "message"), BAD_CALLS)
def test_says_what_was_expected_and_what_came(goal, change, error, message) -> None:
    arguments = {"scores": torch.zeros(4), "targets": torch.tensor([1, 0, 1, 0])} | change
    with pytest.raises(error, match=message):
        GOALS[goal](**arguments)
