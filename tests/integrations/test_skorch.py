"""skorch and scikit-learn: a net trains as a plain loop does, and state of a loss stays within one fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.utils.class_weight import compute_class_weight
from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
from skorch.helper import SliceDict
from torch import Tensor, nn

from imbalanced_losses import (
    LogitAdjustedLoss,
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    class_weights,
)
from imbalanced_losses.calibration import PlattScaling


class Model(nn.Module):
    """The same weights each time; takes sample weights for the loss along with the features."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(6, outputs)

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


class WeightedNet(NeuralNetBinaryClassifier):  # type: ignore[misc]
    """As in docs/scikit_learn.md."""

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Any, *args: Any, **kwargs: Any) -> Tensor:  # noqa: N803
        weight, targets = (tensor.to(y_pred.device) for tensor in (X["sample_weight"], y_true))
        return self.criterion_(y_pred, targets, sample_weight=weight)  # type: ignore[no-any-return]


class Ranker(NeuralNetBinaryClassifier):  # type: ignore[misc]
    """As in docs/scikit_learn.md."""

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        return self.forward(X).double().numpy()  # type: ignore[no-any-return]


def two_columns(logits: Tensor) -> Tensor:
    p = logits.double().sigmoid()
    return torch.stack([1 - p, p], 1)


def warmup(temperature: float = 0.5) -> LossWarmupWrapper:
    main = SmoothAPLoss(num_classes=1, queue_size=50)
    ends = {"temp_start": temperature, "temp_end": temperature}
    return LossWarmupWrapper(SigmoidFocalLoss(), main, warmup_steps=3, blend_steps=2, auto_step=True, **ends)


RANKING = {"num_classes": 1, "queue_size": 50}
CRITERIA: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "SmoothAP": (SmoothAPLoss, RANKING),
    "recall": (RecallAtQuantileLoss, RANKING | {"quantile": 0.2, "threshold_gradient": "implicit"}),
    "pAUC": (PAUCAtBudgetLoss, RANKING | {"beta": 0.3}),
    "focal": (SigmoidFocalLoss, {"alpha": 0.7}),
    "logit-adjusted": (LogitAdjustedLoss, {"priors": "stream", "num_classes": 1}),
    "warm-up": (warmup, {}),
}


def rows(n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = (rng.random(n) < 0.2).astype(np.int64)
    return (rng.normal(size=(n, 6)) + 0.5 * y[:, None]).astype(np.float32), y


def make_net(cls: type, criterion: Any, arguments: dict[str, Any], **options: Any) -> Any:
    settings = {"optimizer": torch.optim.SGD, "lr": 0.5, "max_epochs": 2, "batch_size": 16, "train_split": None}
    for_criterion = {f"criterion__{key}": value for key, value in arguments.items()}
    shown = {"predict_nonlinearity": two_columns, "verbose": 0}
    return cls(Model, criterion=criterion, **(settings | shown | for_criterion | options))


def train(x: np.ndarray, y: np.ndarray, loss_fn: nn.Module, epochs: int = 2) -> Model:
    """The plain loop: batches of 16 in order."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(epochs):
        for features, targets in zip(torch.from_numpy(x).split(16), torch.from_numpy(y).split(16), strict=True):
            optimizer.zero_grad()
            loss_fn(model(features).squeeze(1), targets).backward()
            optimizer.step()
    return model


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize("name", CRITERIA)
class TestEveryLoss:
    def test_trains_as_a_plain_loop_and_each_fit_starts_anew(self, name: str) -> None:
        criterion, arguments = CRITERIA[name]
        x, y = rows()
        loss_fn = criterion(**arguments)
        expected = train(x, y, loss_fn)
        net = make_net(NeuralNetBinaryClassifier, criterion, arguments)
        for _ in range(2):
            net.fit(x, y)
            assert equal_states(net.module_, expected)
            assert equal_states(net.criterion_, loss_fn)
        assert not equal_states(net.module_, Model())

    def test_validation_leaves_the_state_as_it_is(self, name: str) -> None:
        criterion, arguments = CRITERIA[name]
        x, y = rows()
        loss_fn = criterion(**arguments)
        expected = train(x[:100], y[:100], loss_fn)

        def split(dataset: Any, y: Any = None, **kwargs: Any) -> Any:
            return torch.utils.data.Subset(dataset, range(100)), torch.utils.data.Subset(dataset, range(100, 150))

        net = make_net(NeuralNetBinaryClassifier, criterion, arguments, train_split=split).fit(x, y)
        assert equal_states(net.module_, expected)
        assert equal_states(net.criterion_, loss_fn)
        assert np.isfinite(net.history[:, "valid_loss"]).all()

    def test_cloned_and_pickled(self, name: str) -> None:
        criterion, arguments = CRITERIA[name]
        x, y = rows()
        net = make_net(NeuralNetBinaryClassifier, criterion, arguments).fit(x, y)
        loaded = pickle.loads(pickle.dumps(net))
        assert equal_states(loaded.criterion_, net.criterion_)
        assert np.array_equal(loaded.predict_proba(x), net.predict_proba(x))
        cloned = clone(net)
        assert not hasattr(cloned, "criterion_")
        assert equal_states(cloned.fit(x, y).criterion_, net.criterion_)


def test_an_instance_carries_its_queue_from_one_fit_to_the_next() -> None:
    """Why the page says to pass the class. It fails once skorch copies an instance: change the page then."""
    x, y = rows()
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=1024)
    net = make_net(NeuralNetBinaryClassifier, loss_fn, {})
    net.fit(x, y)
    assert net.criterion_ is loss_fn
    once = loss_fn.diagnostics()["queue_fill"].item()
    net.fit(x, y)
    assert loss_fn.diagnostics()["queue_fill"].item() > once


def test_grid_search_scores_are_those_of_plain_loops() -> None:
    x, y = rows()
    net = make_net(NeuralNetBinaryClassifier, SmoothAPLoss, RANKING)
    folds = KFold(3)
    grid = {"criterion__temperature": [0.05, 5.0], "criterion__queue_size": [0, 50]}
    search = GridSearchCV(net, grid, scoring="average_precision", cv=folds).fit(x, y)
    for settings, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        expected = []
        options = {key.removeprefix("criterion__"): value for key, value in settings.items()}
        for fitted_on, held_out in folds.split(x):
            model = train(x[fitted_on], y[fitted_on], SmoothAPLoss(num_classes=1, **options))
            with torch.no_grad():
                scores = model(torch.from_numpy(x[held_out])).squeeze(1).double().numpy()
            expected.append(average_precision_score(y[held_out], scores))
        assert score == pytest.approx(np.mean(expected))
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert search.best_estimator_.criterion_.temperature == search.best_params_["criterion__temperature"]


def test_grid_search_over_losses() -> None:
    x, y = rows()
    net = make_net(NeuralNetBinaryClassifier, SigmoidFocalLoss, {})
    grid = [{"criterion": [warmup], "criterion__temperature": [0.5, 1.0]}, {"criterion": [SigmoidFocalLoss]}]
    search = GridSearchCV(net, grid, scoring="average_precision", cv=2, error_score="raise").fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_high_scores_are_not_tied() -> None:
    """Why the page's function goes to float64: a float32 sigmoid is 1 from 17 on."""
    logits = torch.tensor([18.0, 19.0, 30.0])
    assert len(set(logits.sigmoid().tolist())) == 1
    assert len(set(two_columns(logits)[:, 1].tolist())) == 3
    assert two_columns(logits).sum(1).tolist() == [1, 1, 1]


def test_class_weights_are_scikit_learns_and_train_as_weighted_cross_entropy() -> None:
    x, _ = rows()
    y = np.random.default_rng(1).choice(3, size=len(x), p=[0.8, 0.15, 0.05])
    weights = compute_class_weight("balanced", classes=np.arange(3), y=y)
    softmax = {"predict_nonlinearity": partial(torch.softmax, dim=1), "batch_size": -1, "module__outputs": 3}
    alpha = {"alpha": class_weights(np.bincount(y)), "gamma": 0.0}
    focal = make_net(NeuralNetClassifier, SoftmaxFocalLoss, alpha, **softmax).fit(x, y)
    weight = {"weight": torch.from_numpy(weights).float()}
    plain = make_net(NeuralNetClassifier, nn.CrossEntropyLoss, weight, **softmax).fit(x, y)
    unweighted = make_net(NeuralNetClassifier, nn.CrossEntropyLoss, {}, **softmax).fit(x, y)
    torch.testing.assert_close(focal.module_.state_dict(), plain.module_.state_dict())
    assert np.abs(focal.predict_proba(x) - unweighted.predict_proba(x)).max() > 0.05
    assert clone(focal).fit(x, y).predict(x).tolist() == focal.predict(x).tolist()


@pytest.mark.parametrize("name", ["focal", "SmoothAP"])
def test_sample_weights_reach_the_loss(name: str) -> None:
    criterion, arguments = CRITERIA[name]
    x, y = rows(60)
    weight = np.random.default_rng(2).integers(0, 3, size=60).astype(np.float32)
    net = make_net(WeightedNet, criterion, arguments, batch_size=-1).fit(SliceDict(x=x, sample_weight=weight), y)
    expected, loss_fn = Model(), criterion(**arguments)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        logits = expected(torch.from_numpy(x)).squeeze(1)
        loss_fn(logits, torch.from_numpy(y), sample_weight=torch.from_numpy(weight)).backward()
        optimizer.step()
    assert equal_states(net.module_, expected)
    plain = make_net(NeuralNetBinaryClassifier, criterion, arguments, batch_size=-1).fit(x, y)
    assert not equal_states(net.module_, plain.module_)
    assert net.predict_proba(SliceDict(x=x)).shape == (60, 2)


def test_calibrated_classifier_is_platt_scaling_of_the_held_out_logits() -> None:
    x, y = rows(400)
    net = make_net(Ranker, SmoothAPLoss, RANKING | {"temperature": 0.5})
    calibrated = CalibratedClassifierCV(net, method="sigmoid", cv=3, ensemble=False).fit(x, y)
    held_out = cross_val_predict(net, x, y, method="decision_function", cv=3)
    platt = PlattScaling().fit(torch.from_numpy(held_out), torch.from_numpy(y))
    logits = torch.from_numpy(net.fit(x, y).decision_function(x))
    expected = platt(logits).sigmoid().numpy()
    assert calibrated.predict_proba(x)[:, 1] == pytest.approx(expected, abs=1e-4)


def test_the_state_of_the_loss_can_be_saved(tmp_path: Path) -> None:
    x, y = rows()
    net = make_net(NeuralNetBinaryClassifier, SmoothAPLoss, RANKING).fit(x, y)
    net.save_params(f_criterion=tmp_path / "criterion.pt")
    other = clone(net).initialize()
    assert not equal_states(other.criterion_, net.criterion_)
    other.load_params(f_criterion=tmp_path / "criterion.pt")
    assert equal_states(other.criterion_, net.criterion_)
