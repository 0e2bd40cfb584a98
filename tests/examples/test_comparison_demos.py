"""The demos that compare losses run, and all that they print comes from their runs."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = {
    "compare_demo": "--seeds 2 --total-epochs 4 --warmup-epochs 2 --blend-epochs 1 --queue-size 128",
    "focal_demo": "--seeds 2 --total-epochs 3 --data generated --batch-size 256 --lr 0.03",
    "coverage_at_budget_demo": "--seeds 2 --total-epochs 3 --warmup-epochs 1 --blend-epochs 1 --batch-size 2000",
}
NAMES = {
    "compare_demo": ["warmup-only", "AP-only", "warmup+blend"],
    "focal_demo": ["BCE", "BCE + pos_weight", "focal alpha+gamma", "focal gamma only"],
    "coverage_at_budget_demo": [
        "weighted CE",
        "Smooth-AP",
        *(f"{surrogate} {positives}" for surrogate in ("trapezoid", "pairwise") for positives in ("pool", "live")),
    ],
}


@dataclass(frozen=True)
class Demo:
    """A demo, and what it gave and printed in this process with its quick flags."""

    name: str
    module: ModuleType
    flags: list[str]
    runs: list[Any]
    printed: str

    @property
    def metrics(self) -> list[str]:
        return ["AUCPR", "coverage at 50 bps"] if self.name == "coverage_at_budget_demo" else ["AUCPR"]

    def figures(self, contender: str, metric: str) -> np.ndarray[Any, Any]:
        """Metric by seed and epoch."""
        return np.array([run.figures[metric] for run in self.runs if run.contender == contender])


@pytest.fixture(scope="module", params=QUICK)
def demo(request: pytest.FixtureRequest) -> Demo:
    return run_quickly(request.param)


@functools.cache
def run_quickly(name: str) -> Demo:
    return run_here(name, *QUICK[name].split())


def run_here(name: str, *flags: str) -> Demo:
    module = importlib.import_module(name)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runs = module.main(list(flags))
    return Demo(name, module, list(flags), runs, printed.getvalue())


def tables_of(printed: str) -> dict[str, list[list[str]]]:
    """The tables' lines by metric."""
    tables: dict[str, list[list[str]]] = {}
    for line in printed.splitlines():
        if title := re.match(r"test (.*), mean over the 2 seeds 0 to 1$", line):
            rows = tables[title[1]] = []
        elif re.match(r"^\s+\d+  ", line):
            rows.append(line.split())
    return tables


@pytest.mark.exhaustive
def test_command_prints_what_this_process_prints_and_draws_a_picture(demo: Demo, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    command = [sys.executable, str(EXAMPLES / f"{demo.name}.py"), *demo.flags, "--plot", str(picture)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{demo.printed}\nsaved {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "100%" in finished.stderr  # the progress bar


def test_every_contender_has_a_run_on_every_seed(demo: Demo) -> None:
    assert [(run.seed, run.contender) for run in demo.runs] == [
        (seed, name) for seed in (0, 1) for name in NAMES[demo.name]
    ]


def test_tables_hold_the_means_of_the_runs(demo: Demo) -> None:
    tables = tables_of(demo.printed)
    assert list(tables) == demo.metrics
    for metric, rows in tables.items():
        means = [demo.figures(name, metric).mean(0) for name in NAMES[demo.name]]
        assert [[float(cell) for cell in row[2:]] for row in rows] == [
            pytest.approx(line, abs=5.1e-5) for line in np.transpose(means)
        ]
        assert [row[:2] for row in rows] == [
            [str(number), epoch.phase] for number, epoch in enumerate(demo.runs[-1].history)
        ]
        assert f"{'epoch':>5}  {'phase':<8}  " + "  ".join(f"{name:>6}" for name in NAMES[demo.name]) in demo.printed


def test_aucpr_is_that_of_the_epochs_and_better_than_chance(demo: Demo) -> None:
    for run in demo.runs:
        assert run.figures["AUCPR"] == [epoch.aucpr for epoch in run.history]
        assert run.figures["AUCPR"][-1] > 2 * 0.03  # at most 3 percent are positive


def test_summary_is_that_of_the_runs(demo: Demo) -> None:
    """Scipy's test of paired samples is the oracle of the intervals."""
    baseline, *others = NAMES[demo.name]
    for metric in demo.metrics:
        summary = demo.printed.split(f"\nfinal test {metric} ")[1]
        final = {name: demo.figures(name, metric)[:, -1] for name in NAMES[demo.name]}
        for name, values in final.items():
            printed = re.search(rf"^{re.escape(name)} +([\d.]+) +([\d.]+)$", summary, re.M)
            assert printed is not None
            assert float(printed[1]) == pytest.approx(values.mean(), abs=5.1e-5)
            assert float(printed[2]) == pytest.approx(values.std(ddof=1), abs=5.1e-5)
        for name in others:
            printed = re.search(rf"^{re.escape(name)} - {baseline}: (\S+) ± (\S+) over 2 seeds: (.*)$", summary, re.M)
            assert printed is not None
            interval = stats.ttest_rel(final[name], final[baseline]).confidence_interval(0.95)
            assert float(printed[1]) == pytest.approx((interval.low + interval.high) / 2, abs=5.1e-5)
            assert float(printed[2]) == pytest.approx((interval.high - interval.low) / 2, abs=5.1e-5)
            sign = int(interval.low > 0) - int(interval.high < 0)
            assert printed[3] == ["no difference that these seeds can show", "higher", "lower"][sign]


def test_one_seed_is_no_evidence(demo: Demo, tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    alone = run_here(demo.name, *demo.flags, "--seeds", "1", "--seed", "1", "--plot", str(picture))
    assert alone.runs == [run for run in demo.runs if run.seed == 1]
    assert "test AUCPR, seed 1\n" in alone.printed
    assert "which cannot show how much of it is chance" in alone.printed
    assert not re.search(r"±|nan|higher|lower", alone.printed)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("difference", "margin", "words"),
    [
        (0.012, 0.02, "+0.0120 ± 0.0200 over 5 seeds: no difference that these seeds can show"),
        (0.02, 0.012, "+0.0200 ± 0.0120 over 5 seeds: higher"),
        (-0.02, 0.012, "-0.0200 ± 0.0120 over 5 seeds: lower"),
        (0.0, 0.0, "+0.0000 ± 0.0000 over 5 seeds: no difference that these seeds can show"),
        (float("nan"), float("nan"), "nan: a run has diverged"),
    ],
)
def test_words_claim_no_more_than_the_interval(difference: float, margin: float, words: str) -> None:
    from comparison import Summary, in_words

    assert in_words(Summary("contender", 0.5, 0.1, difference, margin), 5) == words


def test_contenders_start_from_the_same_weights_and_see_the_same_batches() -> None:
    from comparison import Contender, compare

    module = importlib.import_module("coverage_at_budget_demo")
    seen: dict[str, list[Tensor]] = {}

    class Recorder(nn.Module):
        """Remembers its inputs, and wastes random numbers as a loss might."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.calls = seen.setdefault(name, [])
            torch.rand(len(name))

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            self.calls.append(torch.cat([logits.detach(), targets.to(logits.dtype)], dim=1))
            torch.rand(len(self.calls))
            return logits.sum() * 0

    def contender(name: str) -> Contender:
        loss = SmoothAPLoss(1, queue_size=0)
        return Contender(name, lambda args, data: LossWarmupWrapper(Recorder(name), loss, warmup_epochs=2))

    flags = [*QUICK["coverage_at_budget_demo"].split(), "--lr", "1e-30", "--total-epochs", "2"]
    runs = compare(module.load, [contender("one"), contender("another")], module.parse_args(flags), {})
    assert len(seen["one"]) == 2 * 2 * 10  # seeds, epochs, batches
    assert all(torch.equal(one, other) for one, other in zip(seen["one"], seen["another"], strict=True))
    assert not torch.equal(seen["one"][0], seen["one"][10])  # another order in the second epoch
    assert not torch.equal(seen["one"][0], seen["one"][20])  # another start on the second seed
    assert runs[0].history == runs[1].history


@pytest.mark.parametrize("name", QUICK)
def test_help_shows_flags_and_defaults(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(name).parse_args(["--help"])
    printed = capsys.readouterr().out
    schedule = ("warmup-epochs", "blend-epochs", "total-epochs", "temp-start", "temp-end")
    training = ("pos-rate", "batch-size", "queue-size", "lr", "seed", "seeds", "plot")
    assert all(f"--{flag} " in printed for flag in (*schedule, *training))
    assert "--loss" not in printed  # the contenders decide it
    assert importlib.import_module(name).__doc__ in printed


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("compare_demo", ("--seeds", "0"), "expected --seeds of at least 1, got 0"),
        ("compare_demo", ("--total-epochs", "0"), "expected --total-epochs of at least 1, got 0"),
        ("compare_demo", ("--plot", "no/such/a.png"), "expected --plot in a folder that exists, got no/such/a.png"),
        ("focal_demo", ("--seeds", "-1"), "expected --seeds of at least 1, got -1"),
        ("focal_demo", ("--gamma", "-1"), "expected --gamma of at least 0 and finite, got -1.0"),
        ("focal_demo", ("--gamma", "nan"), "expected --gamma of at least 0 and finite, got nan"),
        ("focal_demo", ("--alpha", "1.5"), "expected --alpha between 0 and 1, got 1.5"),
        ("focal_demo", ("--alpha", "nan"), "expected --alpha between 0 and 1, got nan"),
        ("coverage_at_budget_demo", ("--lr", "0"), "expected --lr above 0 and finite, got 0.0"),
        ("coverage_at_budget_demo", ("--pos-rate", "0"), "expected --pos-rate between 0 and 1, got 0.0"),
    ],
)
def test_bad_flags_say_what_was_expected(
    name: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(name).main(flags)
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out


@pytest.mark.parametrize("rate", ["0.0001", "0.9999"])
def test_impossible_positive_rate_says_what_is_there(rate: str) -> None:
    with pytest.raises(SystemExit, match=rf"--pos-rate {rate} needs \d+ positives; 20000 rows allow 4 to 19900"):
        importlib.import_module("coverage_at_budget_demo").main(["--pos-rate", rate])


def test_compare_demo_trains_what_toy_demo_trains() -> None:
    toy = importlib.import_module("toy_demo")
    runs = {run.contender: run.history for run in run_quickly("compare_demo").runs[3:]}
    flags = [*QUICK["compare_demo"].removeprefix("--seeds 2").split(), "--seed", "1"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert runs["warmup-only"] == toy.main([*flags, "--loss", "bce"])
        assert runs["warmup+blend"] == toy.main([*flags, "--loss", "smooth-ap"])
        assert runs["AP-only"] == toy.main([*flags, "--warmup-epochs", "0", "--blend-epochs", "0"])
    blended, warmed_up = runs["warmup+blend"], runs["warmup-only"]
    assert [epoch.phase for epoch in blended] == ["warm-up", "warm-up", "blend", "main"]
    assert [epoch.aucpr for epoch in blended[:2]] == [epoch.aucpr for epoch in warmed_up[:2]]
    assert blended[2].loss != warmed_up[2].loss


def test_focal_demo_takes_gamma_and_alpha() -> None:
    """Without focus, ``gamma`` only is BCE, and ``alpha`` of a half is half of it."""
    flags = (*QUICK["focal_demo"].split(), "--seeds", "1", "--gamma", "0", "--alpha", "0.5")
    losses = {run.contender: [epoch.loss for epoch in run.history] for run in run_here("focal_demo", *flags).runs}
    assert losses["focal gamma only"] == losses["BCE"]
    assert losses["focal alpha+gamma"][0] == pytest.approx(losses["BCE"][0] / 2, rel=0.05)
    assert losses["BCE + pos_weight"][0] > 1.2 * losses["BCE"][0]


def test_focal_demo_warms_up_on_bce() -> None:
    flags = (*QUICK["focal_demo"].split(), "--seeds", "1", "--warmup-epochs", "2")
    first, *others = (run.history for run in run_here("focal_demo", *flags).runs)
    assert all(history[:2] == first[:2] for history in others)
    assert all(history[2].loss != first[2].loss for history in others)


def test_weighted_bce_gives_both_labels_the_same_weight() -> None:
    from comparison import WeightedBCE
    from toy_demo import Split

    labels = torch.tensor([1, 0, 0, 0, 0])
    loss_fn = WeightedBCE(Split(torch.zeros(5, 1), labels, torch.zeros(5, 1), labels))
    logits = torch.randn(5, 1)
    terms = SigmoidFocalLoss(alpha=-1, gamma=0, reduction="none")(logits, labels[:, None])
    torch.testing.assert_close(loss_fn(logits, labels[:, None]), (4 * terms[0] + terms[1:].sum()).squeeze() / 5)


def test_coverage_is_the_share_of_positives_in_the_budget() -> None:
    from comparison import compare

    module = importlib.import_module("coverage_at_budget_demo")
    args = module.parse_args([*QUICK["coverage_at_budget_demo"].split(), "--seeds", "1"])

    def share_of_positives_in_top_200(scores: Tensor, labels: Tensor) -> Tensor:
        assert len(scores) == 40_000
        return labels[scores.topk(200).indices].sum() / labels.sum()

    metrics = {"coverage": module.COVERAGE, "top": share_of_positives_in_top_200}
    figures = compare(module.load, module.CONTENDERS[:2], args, metrics)[1].figures
    assert figures["coverage"] == pytest.approx(figures["top"])
    assert figures["coverage"][-1] > 0.05  # chance is 0.005


def test_hard_negatives_crowd_the_top() -> None:
    module = importlib.import_module("coverage_at_budget_demo")
    data = module.load(Namespace(seed=3, pos_rate=0.005))
    assert [int(labels.sum()) for labels in (data.train_labels, data.test_labels)] == [100, 200]
    others = data.test_features[400:].mean(0)
    direction = data.test_features[:200].mean(0) - others
    positives, hard, easy = (data.test_features @ direction).split([200, 200, 39_600])
    assert (positives < hard.median()).float().mean() > 0.7
    assert (easy < positives.median()).float().mean() > 0.98


def test_trapezoid_lets_its_thresholds_follow_the_scores() -> None:
    module = importlib.import_module("coverage_at_budget_demo")
    args = module.parse_args([])
    data = module.load(args)
    configs = {c.name: getattr(c.build(args, data).main_loss, "config", None) for c in module.CONTENDERS}
    for name in ("trapezoid pool", "trapezoid live", "pairwise pool", "pairwise live"):
        assert f"{configs[name].surrogate} {configs[name].pos_numerator}" == name
        assert configs[name].beta == 0.005
        assert configs[name].threshold_gradient == ("implicit" if "trapezoid" in name else "stop")
