"""Calibration: scikit-learn, SciPy and the papers' formulas as oracles; a fit leaves out what it should."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from imbalanced_losses.calibration import PlattScaling, TemperatureScaling, prior_shift
from imbalanced_losses.calibration._fitting import fit_platt, fit_temperature
from tests.default_dtype import default_dtype

SEEDS = st.integers(0, 10**6)


def binary_rows(seed: int = 0, n: int = 400, rate: float = 0.1, scale: float = 4.0) -> tuple[Tensor, Tensor]:
    """Overconfident, shifted logits and 0/1 labels, both labels among them."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, generator=generator) < rate).long()
    targets[:2] = torch.tensor([0, 1])
    return scale * (torch.randn(n, generator=generator) + 1.5 * targets) + 7, targets


def class_rows(seed: int = 0, n: int = 300, c: int = 4, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def weights_for(n: int, seed: int = 0) -> Tensor:
    return 3 * torch.rand(n, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def _float64_buffers() -> Any:
    with default_dtype(torch.float64):
        yield


def platt_reference(z: Tensor, y: Tensor, w: Tensor | None = None) -> tuple[float, float]:
    """Scale and shift by SciPy, from Platt's formulas row by row."""
    rows = list(zip(z.double().tolist(), y.tolist(), [1.0] * len(z) if w is None else w.double().tolist(), strict=True))
    ones, zeros = (sum(weight for _, label, weight in rows if label == kind) for kind in (1, 0))
    mean = sum(score for score, _, _ in rows) / len(rows)
    spread = math.sqrt(sum((score - mean) ** 2 for score, _, _ in rows) / len(rows))

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros(2)
        for score, label, weight in rows:
            x = (score - mean) / spread
            target = (ones + 1) / (ones + 2) if label == 1 else 1 / (zeros + 2)
            margin = point[0] * x + point[1]
            value += weight * (np.logaddexp(0, margin) - target * margin)
            gradient += weight * (1 / (1 + np.exp(-margin)) - target) * np.array([x, 1])
        return value, gradient

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope, offset = found.x
    return slope / spread, offset - slope / spread * mean


class Scores(ClassifierMixin, BaseEstimator):
    """A classifier for scikit-learn whose decision function is its input."""

    def fit(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Scores:
        self.classes_ = np.unique(y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return (x[:, 0] > 0).astype(int)

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0]


@pytest.mark.usefixtures("_float64_buffers")
class TestPlattIsTheOracles:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_scipy_on_the_papers_formula(self, seed: int, weighted: bool) -> None:
        z, y = binary_rows(seed, rate=(0.5, 0.1, 0.02)[seed % 3])
        weight = weights_for(len(z)) if weighted else None
        platt = PlattScaling().fit(z, y, sample_weight=weight)
        assert (platt.scale.item(), platt.shift.item()) == pytest.approx(platt_reference(z, y, weight), rel=1e-6)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_scikit_learns_calibrated_classifier(self, weighted: bool) -> None:
        z, y = binary_rows(n=2000)
        weight = weights_for(len(z)) if weighted else None
        x = z.double().numpy()[:, None]
        sigmoid = CalibratedClassifierCV(Scores(), method="sigmoid", ensemble=False, cv=2)  # one fit on all rows
        sigmoid.fit(x, y.numpy(), sample_weight=None if weight is None else weight.double().numpy())
        ours = PlattScaling().fit(z, y, sample_weight=weight)(z.double()).sigmoid()
        # scikit-learn stops its L-BFGS early
        assert ours.tolist() == pytest.approx(sigmoid.predict_proba(x)[:, 1].tolist(), abs=1e-4)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_logistic_regression_on_rows_split_by_their_smoothed_label(self, weighted: bool) -> None:
        z, y = binary_rows(n=500)
        weight = (weights_for(len(z)) if weighted else torch.ones(len(z))).double().numpy()
        x, labels = z.double().numpy(), y.numpy()
        ones, zeros = weight[labels == 1].sum(), weight[labels == 0].sum()
        smoothed = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
        regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
        regression.fit(
            np.concatenate([x, x])[:, None],
            np.repeat([1, 0], len(x)),
            sample_weight=np.concatenate([weight * smoothed, weight * (1 - smoothed)]),
        )
        platt = PlattScaling().fit(z, y, sample_weight=torch.from_numpy(weight))
        assert platt.scale.item() == pytest.approx(regression.coef_.item(), rel=1e-6)
        assert platt.shift.item() == pytest.approx(regression.intercept_.item(), rel=1e-6)

    @given(seed=SEEDS, factor=st.sampled_from([1e-8, 1e-3, 1.0, 1e4, 1e8]), offset=st.sampled_from([-1e3, 0.0, 1e3]))
    def test_does_not_depend_on_the_units_of_the_scores(self, seed: int, factor: float, offset: float) -> None:
        z, y = binary_rows(seed, n=40)
        z = z.double()
        expected = PlattScaling().fit(z, y)(z)
        moved = factor * (z + offset)
        torch.testing.assert_close(PlattScaling().fit(moved, y)(moved), expected, rtol=1e-6, atol=1e-6)

    @given(seed=SEEDS)
    def test_the_gradient_is_zero_and_the_mean_is_the_smoothed_share(self, seed: int) -> None:
        z, y = binary_rows(seed, n=30)
        platt = PlattScaling().fit(z, y)
        ones = int(y.sum())
        targets = torch.where(y == 1, (ones + 1) / (ones + 2), 1 / (len(y) - ones + 2))
        scale, shift = platt.scale.clone().requires_grad_(), platt.shift.clone().requires_grad_()
        x = (z - z.mean()) / z.std()
        loss = F.binary_cross_entropy_with_logits(scale * z.std() * x + (shift + scale * z.mean()), targets)
        gradient = torch.autograd.grad(loss, [scale, shift])
        torch.testing.assert_close(gradient[1], torch.zeros(1), atol=1e-10, rtol=0)
        torch.testing.assert_close(gradient[0] / z.abs().max(), torch.zeros(1), atol=1e-10, rtol=0)


class TestPlatt:
    def test_several_labels_are_the_columns_alone(self) -> None:
        columns = [binary_rows(seed, rate=rate) for seed, rate in enumerate((0.5, 0.1, 0.02))]
        logits, targets = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
        targets[:50, 0], targets[350:, 2] = -100, -100
        platt = PlattScaling(3).fit(logits, targets)
        assert platt.fitted.tolist() == [True] * 3
        for column in range(3):
            kept = targets[:, column] != -100
            alone = PlattScaling().fit(logits[kept, column], targets[kept, column])
            torch.testing.assert_close(platt(logits)[:, column], alone(logits[:, column]))

    @pytest.mark.parametrize("as_column", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("target_dtype", [torch.bool, torch.float32, torch.uint8, torch.int64])
    def test_dtypes_and_shapes(self, dtype: torch.dtype, target_dtype: torch.dtype, as_column: bool) -> None:
        z, y = binary_rows()
        z, y = z.to(dtype), y.to(target_dtype)
        expected = PlattScaling().fit(z.double(), y.long())
        platt = PlattScaling().fit(*((z[:, None], y[:, None]) if as_column else (z, y)))
        torch.testing.assert_close(platt.scale, expected.scale)
        calibrated = platt(z[:, None]) if as_column else platt(z)
        assert calibrated.shape == ((len(z), 1) if as_column else (len(z),))
        assert calibrated.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    @given(seed=SEEDS)
    def test_integer_weights_are_repetitions(self, seed: int) -> None:
        z, y = binary_rows(seed, n=30)
        repeats = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(seed))
        repeats[:2] = 1
        weighted = PlattScaling().fit(z, y, sample_weight=repeats)
        repeated = PlattScaling().fit(z.repeat_interleave(repeats), y.repeat_interleave(repeats))
        torch.testing.assert_close(weighted.state_dict(), repeated.state_dict(), rtol=1e-5, atol=1e-5)

    @given(seed=SEEDS)
    def test_the_order_of_rows_is_irrelevant(self, seed: int) -> None:
        z, y = binary_rows(seed, n=30)
        order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
        expected = PlattScaling().fit(z, y).state_dict()
        torch.testing.assert_close(PlattScaling().fit(z[order], y[order]).state_dict(), expected, rtol=1e-5, atol=1e-5)

    def test_rows_that_do_not_count(self) -> None:
        z, y = binary_rows()
        expected = PlattScaling().fit(z, y)
        for ignore_index, added, weight in ((-100, -100, 1.0), (7, 7, 1.0), (-100, 1, 0.0)):
            logits = torch.cat([torch.tensor([math.nan, math.inf, 1e30]), z])
            targets = torch.cat([torch.tensor([added] * 3), y])
            weights = torch.cat([torch.full((3,), weight), torch.ones(len(z))])
            platt = PlattScaling(ignore_index=ignore_index).fit(logits, targets, sample_weight=weights)
            torch.testing.assert_close(platt.state_dict(), expected.state_dict())

    def test_a_class_without_both_labels_stays_the_identity_and_says_so(self) -> None:
        z, y = binary_rows(n=100)
        logits = torch.stack([z, z, z, z], 1)
        targets = torch.stack([y, torch.zeros(100).long(), torch.ones(100).long(), torch.full((100,), -100)], 1)
        platt = PlattScaling(4)
        with pytest.warns(UserWarning, match=r"got none for class \[1, 2, 3\]: it stays as it is") as caught:
            platt.fit(logits, targets)
        assert caught[0].filename == __file__
        assert platt.fitted.tolist() == [True, False, False, False]
        assert torch.equal(platt(logits)[:, 1:], logits[:, 1:])
        torch.testing.assert_close(platt(logits)[:, 0], PlattScaling().fit(z, y)(z))

    @pytest.mark.parametrize("n", [0, 1])
    def test_too_few_rows(self, n: int) -> None:
        with pytest.warns(UserWarning, match="expected held-out rows of both labels"):
            platt = PlattScaling().fit(torch.zeros(n), torch.ones(n).long())
        assert not platt.fitted.any()

    def test_a_new_fit_forgets_the_old_one(self) -> None:
        platt = PlattScaling().fit(*binary_rows(1))
        with pytest.warns(UserWarning, match="expected held-out rows of both labels"):
            platt.fit(torch.randn(5), torch.zeros(5))
        assert (platt.scale.item(), platt.shift.item(), platt.fitted.item()) == (1, 0, False)

    def test_separable_rows_have_a_finite_fit(self) -> None:
        z, y = torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([0, 0, 1, 1])
        probabilities = PlattScaling().fit(z, y)(z).sigmoid()
        # a smoothed label is 3/4, and the fit is symmetric
        assert probabilities.sum().item() == pytest.approx(2, abs=1e-5)
        assert 0.5 < probabilities[2] < 0.75 < probabilities[3] < 1

    @pytest.mark.parametrize("constant", [0.0, 3.0, -1e6, 0.1])
    def test_scores_that_do_not_vary_get_the_smoothed_share(self, constant: float) -> None:
        z, y = torch.full((10,), constant), torch.tensor([1] * 2 + [0] * 8)
        platt = PlattScaling().fit(z, y)
        expected = (2 * 3 / 4 + 8 * 1 / 10) / 10
        assert platt.scale.item() == 1
        assert platt(z.double()).sigmoid().tolist() == pytest.approx(
            [expected] * 10, rel=0.02 if constant < -1 else 1e-5
        )

    def test_scores_that_rank_the_wrong_way_round_get_a_negative_scale(self) -> None:
        z, y = binary_rows(n=2000)
        forwards, backwards = PlattScaling().fit(z, y), PlattScaling().fit(-z, y)
        torch.testing.assert_close(backwards.scale, -forwards.scale)
        torch.testing.assert_close(backwards.shift, forwards.shift)

    def test_a_device_without_float64(self) -> None:
        """The fit is in float32 there, whose rounding must end it."""
        z, y = binary_rows(n=1000)
        rows = z[None], y[None] == 1, torch.ones(1, len(z))
        (scale, shift), expected = fit_platt(*rows), PlattScaling().fit(z, y)
        assert scale.dtype == torch.float32
        torch.testing.assert_close((scale, shift), (expected.scale, expected.shift), rtol=1e-3, atol=1e-3)
        z, y = class_rows(n=1000)
        gaps = z - z.gather(1, y[:, None])
        expected_temperature = TemperatureScaling().fit(z, y).temperature.item()
        assert fit_temperature(gaps, torch.ones(1000)) == pytest.approx(expected_temperature, rel=1e-3)

    @pytest.mark.parametrize("power", [1, 3, 5])
    def test_scores_with_heavy_tails(self, power: int) -> None:
        """Outliers by orders of magnitude: the gradient of the loss along both axes is still zero."""
        generator = torch.Generator().manual_seed(power)
        normal = torch.randn(2, 500, generator=generator, dtype=torch.float64)
        z = (normal[0] / normal[1]) ** power
        y = torch.rand(500, generator=generator) < 0.1
        scale, shift = fit_platt(z[None], y[None], torch.ones(1, 500, dtype=torch.float64))
        ones = int(y.sum())
        targets = torch.where(y, z.new_tensor((ones + 1) / (ones + 2)), 1 / z.new_tensor(502 - ones))
        residual = (scale * z + shift).sigmoid() - targets
        assert residual.mean().abs() < 1e-9
        assert (residual * z / z.abs().max()).mean().abs() < 1e-9

    def test_many_rows_and_very_few_positives(self) -> None:
        z, y = binary_rows(n=200_000, rate=1e-4)
        platt = PlattScaling().fit(z, y)
        weight_of_rows = platt(z.double()).sigmoid().sum().item()
        ones = y.sum().item()
        zeros = len(y) - ones
        assert weight_of_rows == pytest.approx(ones * (ones + 1) / (ones + 2) + zeros / (zeros + 2), rel=1e-4)

    @pytest.mark.parametrize(
        ("logits", "targets", "options", "error", "message"),
        [
            (torch.zeros(3).long(), torch.zeros(3), {}, TypeError, "expected floating-point logits, got torch.int64"),
            ([0.5], torch.zeros(1), {}, TypeError, "expected logits to be a Tensor, got list"),
            (torch.zeros(3, 2), torch.zeros(3, 2), {}, ValueError, r"expected logits of shape \[N, 1\], got \[3, 2\]"),
            (torch.zeros(3), torch.zeros(2), {}, ValueError, r"expected targets of shape \[3\], got \[2\]"),
            (torch.zeros(2), torch.tensor([0, 2]), {}, ValueError, r"expected labels in \{0, 1\} or .*, got 2"),
            (torch.tensor([0, math.nan]), torch.tensor([0, 1]), {}, ValueError, "expected finite logits, got 1 that"),
            (torch.zeros(2, device="meta"), torch.zeros(2), {}, ValueError, "expected logits on cpu like the module"),
            (
                torch.zeros(2),
                torch.tensor([0, 1]),
                {"sample_weight": torch.tensor([1.0, -1.0])},
                ValueError,
                "expected finite sample_weight >= 0, got -1.0",
            ),
        ],
    )
    def test_refuses_bad_rows_and_stays_as_it_was(
        self, logits: Any, targets: Tensor, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        platt = PlattScaling().fit(*binary_rows())
        before = copy.deepcopy(platt.state_dict())
        with pytest.raises(error, match=message):
            platt.fit(logits, targets, **options)
        torch.testing.assert_close(platt.state_dict(), before, rtol=0, atol=0)

    def test_refuses_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match="expected num_classes to be at least 1, got 0"):
            PlattScaling(0)
        with pytest.raises(TypeError, match="expected ignore_index to be an int"):
            PlattScaling(ignore_index=0.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"expected logits of shape \[N, 1\], got \[2, 3\]"):
            PlattScaling()(torch.zeros(2, 3))

    def test_class_ids_are_told_to_become_labels(self) -> None:
        with pytest.raises(ValueError, match=r"\[5, 3\], got \[5\]: for class ids pass .*one_hot\(targets, 3\)"):
            PlattScaling(num_classes=3).fit(torch.randn(5, 3), torch.arange(5) % 3)


class TestTemperature:
    @pytest.mark.usefixtures("_float64_buffers")
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("scale", [1e-6, 0.2, 5.0, 1e6])
    def test_is_the_minimum_of_the_cross_entropy(self, scale: float, weighted: bool) -> None:
        z, y = class_rows(scale=1.0)
        weight = weights_for(len(y)) if weighted else torch.ones(len(y))

        def loss(log_temperature: float) -> float:
            total = 0.0
            for row, label, w in zip(
                (z / math.exp(log_temperature)).tolist(), y.tolist(), weight.tolist(), strict=True
            ):
                total += w * (np.logaddexp.reduce(row) - row[label])
            return total

        expected = scale * math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
        scaling = TemperatureScaling().fit(scale * z, y, sample_weight=weight if weighted else None)
        assert scaling.temperature.item() == pytest.approx(expected, rel=1e-6)
        assert scaling.fitted

    def test_two_classes_are_a_binary_fit_without_shift(self) -> None:
        z, y = class_rows(c=2)
        regression = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, solver="newton-cholesky")
        regression.fit((z[:, 1] - z[:, 0]).double().numpy()[:, None], y.numpy())
        assert TemperatureScaling().fit(z, y).temperature.item() == pytest.approx(1 / regression.coef_.item(), rel=1e-5)

    def test_dense_predictions_are_rows(self) -> None:
        z, y = class_rows(n=2 * 5 * 6)
        dense = z.reshape(2, 5, 6, 4).movedim(-1, 1)
        ids, weight = y.reshape(2, 5, 6), torch.tensor([1.0, 3.0])
        scaling = TemperatureScaling().fit(dense, ids, sample_weight=weight)
        expected = TemperatureScaling().fit(z, y, sample_weight=weight.repeat_interleave(30))
        torch.testing.assert_close(scaling.temperature, expected.temperature)
        assert scaling(dense.half()).dtype == torch.float32
        torch.testing.assert_close(scaling(dense), dense / expected.temperature)

    def test_rows_that_do_not_count(self) -> None:
        z, y = class_rows()
        logits = torch.cat([torch.full((2, 4), math.nan), z])
        expected = TemperatureScaling().fit(z, y).temperature
        ignored = TemperatureScaling(ignore_index=9).fit(logits, torch.cat([torch.tensor([9, 9]), y]))
        weights = torch.cat([torch.zeros(2), torch.ones(len(z))])
        weightless = TemperatureScaling().fit(logits, torch.cat([torch.tensor([0, 1]), y]), sample_weight=weights)
        torch.testing.assert_close(ignored.temperature, expected)
        torch.testing.assert_close(weightless.temperature, expected)

    @pytest.mark.parametrize("case", ["right", "wrong", "no better than chance", "empty", "constant"])
    def test_stays_the_identity_where_no_temperature_is_best(self, case: str) -> None:
        z, y = {
            "right": (torch.tensor([[2.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 1])),
            "wrong": (torch.tensor([[2.0, 0.0], [0.0, 0.1]]), torch.tensor([1, 0])),
            "no better than chance": (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])),
            "empty": (torch.zeros(0, 2), torch.zeros(0).long()),
            "constant": (torch.zeros(4, 3), torch.arange(4) % 3),
        }[case]
        scaling = TemperatureScaling()
        with pytest.warns(UserWarning, match=f"got {len(y)} for which no temperature is best: it stays 1"):
            scaling.fit(z, y)
        assert not scaling.fitted
        assert torch.equal(scaling(z), z)

    @pytest.mark.parametrize(
        ("logits", "targets", "error", "message"),
        [
            (torch.zeros(3), torch.zeros(3).long(), ValueError, r"several classes, got shape \[3\]: use PlattScaling"),
            (torch.zeros(3, 1), torch.zeros(3).long(), ValueError, r"several classes, got shape \[3, 1\]: use PlattSc"),
            (torch.zeros(3, 2), torch.zeros(3), TypeError, "expected integer class ids as targets, got torch.float32"),
            (torch.zeros(2, 2), torch.tensor([0, 2]), ValueError, r"expected class ids in \[0, 2\) or .*, got 2"),
            (
                torch.tensor([[0, math.inf]]),
                torch.tensor([0]),
                ValueError,
                "expected finite logits, got 1 that are not",
            ),
        ],
    )
    def test_refuses_bad_rows_and_stays_as_it_was(
        self, logits: Tensor, targets: Tensor, error: type[Exception], message: str
    ) -> None:
        scaling = TemperatureScaling().fit(*class_rows())
        before = scaling.temperature.clone()
        with pytest.raises(error, match=message):
            scaling.fit(logits, targets)
        assert torch.equal(scaling.temperature, before)


FITTED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "platt": lambda: (PlattScaling().fit(*binary_rows()), binary_rows()[0][:, None]),
    "temperature": lambda: (TemperatureScaling().fit(*class_rows()), class_rows()[0]),
}


@pytest.mark.parametrize("name", FITTED)
class TestLifeOfTheModule:
    def test_saved_copied_and_pickled(self, name: str) -> None:
        module, logits = FITTED[name]()
        loaded = type(module)()
        loaded.load_state_dict(module.state_dict())
        for twin in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(logits), module(logits))
            assert twin.fitted.all()
        assert list(module.parameters()) == []

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_a_cast_to_half_keeps_its_precision(self, name: str, dtype: torch.dtype) -> None:
        module, logits = FITTED[name]()
        expected = module(logits)
        assert torch.equal(module.to(dtype)(logits), expected)
        assert torch.equal(module.double().half()(logits), expected)

    def test_made_on_meta(self, name: str) -> None:
        module, logits = FITTED[name]()
        with torch.device("meta"):
            other = type(module)()
        other.to_empty(device="cpu").reset_parameters()
        assert torch.equal(other(logits), logits)
        assert not other.fitted.any()
        assert module.to("meta")(logits.to("meta")).shape == logits.shape

    def test_compiled_mapped_and_differentiated(self, name: str) -> None:
        module, logits = FITTED[name]()
        expected = module(logits)
        torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(logits), expected)
        half = logits.reshape(2, -1, logits.shape[1])
        torch.testing.assert_close(torch.func.vmap(module)(half).flatten(0, 1), expected)
        (gradient,) = torch.autograd.grad(module(logits.requires_grad_()).sum(), logits)
        scale = module.scale if isinstance(module, PlattScaling) else 1 / module.temperature  # type: ignore[operator]
        torch.testing.assert_close(gradient, scale.expand_as(logits))

    def test_no_warning_when_all_is_well(self, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FITTED[name]()


def bayes(likelihoods: list[float], prior: list[float]) -> list[float]:
    joint = [share * likelihood for share, likelihood in zip(prior, likelihoods, strict=True)]
    return [value / sum(joint) for value in joint]


class TestPriorShift:
    @settings(max_examples=50)
    @given(
        likelihoods=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5),
        data=st.data(),
    )
    def test_posteriors_of_one_prior_become_those_of_another(
        self, likelihoods: list[float], data: st.DataObject
    ) -> None:
        c = len(likelihoods)
        shares = st.lists(st.floats(1e-3, 1), min_size=c, max_size=c)
        train, deploy = data.draw(shares), data.draw(shares)
        logits = torch.tensor([bayes(likelihoods, train)], dtype=torch.float64).log()
        expected = bayes(likelihoods, deploy)
        assert prior_shift(logits, train, deploy).softmax(1)[0].tolist() == pytest.approx(expected, rel=1e-9)
        if c == 2:
            logit = logits[:, 1] - logits[:, 0]
            for z in (logit, logit[:, None]):
                for of_train, of_deploy in ((train, deploy), (train[1] / sum(train), deploy[1] / sum(deploy))):
                    shifted = prior_shift(z, of_train, of_deploy)
                    assert shifted.shape == z.shape
                    assert shifted.sigmoid().item() == pytest.approx(expected[1], rel=1e-9)

    def test_saerens_formula_on_probabilities(self) -> None:
        """Equation 2.4: the posteriors times the ratio of the priors, normalised."""
        p = torch.rand(6, 3).softmax(1)
        train, deploy = [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]
        expected = []
        for row in p.tolist():
            raw = [deploy[c] / train[c] * row[c] for c in range(3)]
            expected.append([value / sum(raw) for value in raw])
        torch.testing.assert_close(prior_shift(p.log(), train, deploy).softmax(1), torch.tensor(expected))

    def test_multilabel_shifts_each_label_by_its_own_log_odds(self) -> None:
        z, train, deploy = torch.randn(5, 2), torch.tensor([0.5, 0.1]), torch.tensor([0.01, 0.2])
        shifted = prior_shift(z, train, deploy, multilabel=True)
        for column in range(2):
            alone = prior_shift(z[:, column], train[column], deploy[column])
            torch.testing.assert_close(shifted[:, column], alone)
            odds = [share / (1 - share) for share in (deploy[column].item(), train[column].item())]
            torch.testing.assert_close(alone, z[:, column] + math.log(odds[0] / odds[1]))

    def test_undersampled_negatives(self) -> None:
        """One of ten negatives kept: the odds of a positive are ten times too high."""
        z = torch.randn(5)
        torch.testing.assert_close(prior_shift(z, [100, 50], [1000, 50]), z - math.log(10))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dense_and_dtypes(self, dtype: torch.dtype) -> None:
        z = torch.randn(2, 3, 4, 5).to(dtype)
        shifted = prior_shift(z, [6, 3, 1], np.array([1, 1, 2]))
        assert shifted.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        expected = torch.tensor([0.25 / 0.6, 0.25 / 0.3, 0.5 / 0.1], dtype=torch.float64).log()
        torch.testing.assert_close((shifted - z)[1, :, 2, 3].double(), expected, rtol=0, atol=1e-6)

    def test_transforms(self) -> None:
        z, train, deploy = torch.randn(4, 6, 3), torch.tensor([6.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 2.0])
        expected = torch.stack([prior_shift(rows, train, deploy) for rows in z])
        torch.testing.assert_close(torch.func.vmap(lambda rows: prior_shift(rows, train, deploy))(z), expected)
        compiled = torch.compile(prior_shift, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(z[0], train, deploy), expected[0])
        torch.testing.assert_close(compiled(z[0], (6, 3, 1), (1, 1, 2)), expected[0])
        assert prior_shift(z[0].to("meta"), [6, 3, 1], [1, 1, 2]).shape == (6, 3)
        gradient = torch.func.grad(lambda rows: prior_shift(rows, train, deploy).sum())(z[0])
        assert torch.equal(gradient, torch.ones(6, 3))

    @pytest.mark.parametrize(
        ("logits", "train", "deploy", "error", "message"),
        [
            (torch.zeros(2), 0.0, 0.1, ValueError, "expected train_prior with a class above 0"),
            (torch.zeros(2), 0.5, 1.0, ValueError, "expected deploy_prior strictly between 0 and 1, got 1.0"),
            (torch.zeros(2), [1, 0], [1, 1], ValueError, "expected train_prior above 0, got 0.0: use a small share"),
            (torch.zeros(2, 3), [1, 1, 1], [1, 0, 1], ValueError, "expected deploy_prior above 0, got 0.0"),
            (torch.zeros(2, 3), [1, 1], [1, 1, 1], ValueError, r"expected train_prior of shape \[3\], got \[2\]"),
            (
                torch.zeros(2, 3),
                torch.tensor([1.0, 0, 1]),
                [1, 1, 1],
                ValueError,
                "expected train_prior above 0, got 0",
            ),
            (torch.zeros(2, 3), "even", [1, 1, 1], TypeError, "expected train_prior to be a sequence of numbers"),
            (torch.zeros(2).long(), 0.5, 0.1, ValueError, "expected floating-point logits .*, got torch.int64"),
            (torch.tensor(0.5), 0.5, 0.1, ValueError, r"expected floating-point logits .*, got torch.float32 \[\]"),
            (0.5, 0.5, 0.1, TypeError, "expected logits to be a Tensor, got float"),
        ],
    )
    def test_errors(self, logits: Any, train: Any, deploy: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            prior_shift(logits, train, deploy)


def test_a_calibrator_that_a_loader_made_on_meta_is_the_identity() -> None:
    """`from_pretrained` fills what the checkpoint lacks with memory of any content, and marks the module."""
    with torch.device("meta"):
        calibrators = nn.ModuleList([PlattScaling(2), TemperatureScaling()])
    calibrators.to_empty(device="cpu")
    for calibrator, logits in zip(calibrators, (torch.randn(4, 2), torch.randn(4, 3)), strict=True):
        for buffer in calibrator.buffers():
            buffer.fill_(1 if buffer.dtype == torch.bool else 7)
        calibrator._is_hf_initialized = True  # type: ignore[assignment]
        assert not calibrator.fitted.any()
        assert torch.equal(calibrator(logits), logits)


def test_temperature_scaling_refuses_predictions() -> None:
    with pytest.raises(TypeError, match=r"expected floating-point logits, got torch\.int64"):
        TemperatureScaling()(torch.tensor([[1, 2, 3]]))
