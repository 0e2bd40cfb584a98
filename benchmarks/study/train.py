"""Train models in any of the environments: a process that answers one line of JSON with one line of JSON.

    {"do": "hello", "series": "ours"}      -> {"package": "0.1.0", "torch": "2.13.0"}
    {"do": "train", "data": "FILE", "output": "FILE", "model": "MLP", "contender": {...}, "setting": {...}, ...}
        -> {"seconds": 1.2, "steps": 800, "best": 0.5}
        The best model's validation and test logits [N, C] are in the output file; ``"keep": true`` adds its weights
        and the features before its last layer, which are the data of a head.
    {"do": "ensemble", "members": 8, ...}  -> {"seconds": 3.4, "steps": 800, "best": 0.5}
    {"do": "retrieval", ...}               -> the same; embeddings of the test classes are in the output file

``"start"`` is a file with weights to begin from.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))  # as a script: the other environments find nothing else of ours

from study.loop import Limits, Stopper, Watch, average_precision, epochs, ranked, train
from study.losses import Job, make_loss, set_bias

__all__ = ["HIDDEN", "PACKAGES", "Data", "Worker", "fit", "full_batch", "make_model"]

Data = dict[str, Tensor]
Answer = dict[str, Any]

SETS = ("train", "validation", "test")
HIDDEN = 64
PACKAGES = {"ours": "imbalanced-losses", "peer": "imbalanced-losses", "libauc": "libauc", "trees": "scikit-learn"}
LBFGS_ROUNDS, LBFGS_ITERATIONS = 20, 5


def make_model(name: str, n_features: int, job: Job) -> nn.Sequential:
    """A linear model, also on frozen features, or two hidden layers; the same weights for all of a split."""
    torch.manual_seed(job["seed"])
    last = nn.Linear(HIDDEN if name == "MLP" else n_features, job["n_classes"])
    if name != "MLP":
        nn.init.zeros_(last.weight)  # nothing to break the symmetry of
        return nn.Sequential(last)
    return nn.Sequential(nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last)


def last_layer(model: nn.Sequential) -> nn.Linear:
    """The layer of the logits."""
    layer = model[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def watch_of(data: Data, link: str) -> Watch:
    """Average precision on validation."""

    def watch(model: nn.Module) -> float:
        with torch.no_grad():
            return average_precision(ranked(model(data["validation_features"]), link), data["validation_targets"])

    return watch


def fit(data: Data, job: Job) -> tuple[nn.Sequential, Answer]:
    """A trained model and what it took."""
    contender = job["contender"]
    features, targets = data["train_features"], data["train_targets"]
    if contender["series"] == "libauc":  # it expects the positives first
        order = targets.argsort(descending=True, stable=True)
        features, targets = features[order], targets[order]
    model = make_model(job["model"], features.shape[1], job)
    set_bias(last_layer(model), targets, job["n_classes"], contender["start"])
    if job["start"]:
        model.load_state_dict(torch.load(job["start"])["weights"])
    watch = watch_of(data, job["link"])
    if contender["full_batch"]:
        return model, full_batch(model, features, targets, job, watch)
    step, rows = _stepper(model, features, targets, job)
    return model, train(model, step, rows, len(features), watch, Limits(**job["limits"]))


def _stepper(
    model: nn.Sequential, features: Tensor, targets: Tensor, job: Job
) -> tuple[Callable[[Tensor], None], Iterator[Tensor]]:
    batch = job["limits"]["batch"]
    if job["contender"]["series"] == "libauc":
        from study.libauc_parts import make_parts

        loss_fn, optimizer, rows = make_parts(job, model, targets, batch)
    else:
        plain, rows = make_loss(job, targets), epochs(len(features), batch, job["seed"])
        optimizer = torch.optim.Adam(model.parameters(), lr=job["setting"]["lr"], fused=True)

        def loss_fn(logits: Tensor, of_batch: Tensor, _: Tensor) -> Tensor:
            return plain(logits, of_batch)

    def step(numbers: Tensor) -> None:
        loss = loss_fn(model(features[numbers]), targets[numbers], numbers)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step, rows


def full_batch(model: nn.Sequential, features: Tensor, targets: Tensor, job: Job, watch: Watch) -> Answer:
    """L-BFGS with strong Wolfe line search on all training rows, in rounds; validation keeps the best round."""
    begin = time.process_time()
    loss_fn, stopper = make_loss(job, targets), Stopper(Limits(**job["limits"]).patience)
    stopper.update(watch(model), model)
    stopper.since = 0
    options: dict[str, Any] = {"max_iter": LBFGS_ITERATIONS, "history_size": 20, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(model.parameters(), **options)
    rounds = 0

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = job["setting"]["decay"] * last_layer(model).weight.square().sum()
        loss: Tensor = loss_fn(model(features), targets) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for rounds in range(1, LBFGS_ROUNDS + 1):  # noqa: B007
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        if stopper.update(watch(model), model):
            break
    model.load_state_dict(stopper.weights)
    return {"seconds": time.process_time() - begin, "steps": rounds * LBFGS_ITERATIONS, "best": stopper.best}


def outputs(model: nn.Sequential, data: Data, *, keep: bool) -> dict[str, Any]:
    """Logits of the held-out sets and, if asked for, what a head or a fine-tuning starts from."""
    with torch.no_grad():
        found: dict[str, Any] = {name: model(data[f"{name}_features"]) for name in ("validation", "test")}
        if keep:
            body = model[:-1]
            found["weights"] = model.state_dict()
            found["features"] = {f"{name}_features": body(data[f"{name}_features"]) for name in SETS}
    return found


class Worker:
    """Answers requests; keeps the data of the last job."""

    def __init__(self) -> None:
        self.path, self.data = "", Data()

    def answer(self, request: Job) -> Answer:
        """Do what is asked."""
        if request["do"] == "hello":
            return hello(request["series"])
        if request["data"] != self.path:
            self.path, self.data = request["data"], torch.load(request["data"])
        if request["do"] == "retrieval":
            from study.retrieval import fit_retrieval

            logits, answer = fit_retrieval(self.data, request)
        elif request["do"] == "ensemble":
            from study.ensembles import fit_ensemble

            logits, answer = fit_ensemble(self.data, request)
        elif request["contender"]["series"] == "trees":
            from study.trees import fit_trees

            logits, answer = fit_trees(self.data, request)
        else:
            model, answer = fit(self.data, request)
            logits = outputs(model, self.data, keep=request["keep"])
        torch.save(logits, request["output"])
        return answer


def hello(series: str) -> Answer:
    """Versions, once the package has been imported."""
    if series == "libauc":
        import libauc.losses
        import libauc.optimizers
        import libauc.sampler  # noqa: F401
    elif series != "trees":
        import imbalanced_losses  # noqa: F401
    return {"package": version(PACKAGES[series]), "torch": torch.__version__}


def main() -> None:
    """Answer line by line until stdin ends; what libraries print goes to stderr."""
    from study.libauc_parts import Absent

    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.meta_path.insert(0, Absent())
    worker = Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:  # whatever a package raises is a result; the driver records it
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
