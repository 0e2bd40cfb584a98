"""``missed_recall`` against its definition, on the CPU and as on an accelerator, and the thresholds that follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imbalanced_losses.kernels import missed_recall as module
from imbalanced_losses.kernels.missed_recall import missed_recall
from imbalanced_losses.kernels.quantile import masked_quantile


@pytest.fixture(params=["eager", "positives alone", "blocks", "as on an accelerator", "expression"])
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name in ("positives alone", "blocks"):
        monkeypatch.setattr(module, "PACKED_FROM", 1)
    if name == "blocks":
        monkeypatch.setattr(module, "RECALL_CHUNK", 1)
    if name == "as on an accelerator":
        monkeypatch.setattr("imbalanced_losses.dispatch._is_host_tensor", lambda _: False)
    if name == "expression":
        monkeypatch.setattr(module, "is_plain_eager", lambda: False)
    return name


def inputs(knots: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, thresholds, positives, weights, temperatures. Class 1 has no positive."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 30, generator=generator, dtype=dtype)
    thresholds = torch.randn(3, knots, generator=generator, dtype=dtype)
    positive = torch.rand(3, 30, generator=generator) < 0.4
    positive[1] = False
    weight = torch.rand(3, 30, generator=generator, dtype=dtype)
    return scores, thresholds, positive, weight, torch.tensor([0.1, 1.0, 10.0], dtype=dtype)


def rows(scores: Tensor, thresholds: Tensor, temperature: Tensor) -> Tensor:
    """The misses ``[C, M]``: torch's own trapezoid over thresholds of equal distance in the false-positive rate."""
    misses = torch.sigmoid((thresholds[:, :, None] - scores[:, None]) / temperature[:, None, None])
    k = thresholds.shape[1]
    return misses[:, 0] if k == 1 else torch.trapezoid(misses, dx=1 / (k - 1), dim=1)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("knots", [1, 2, 5])
def test_values_and_derivatives(knots: int) -> None:
    scores, thresholds, positive, weight, temperature = inputs(knots)
    scores.requires_grad_()
    mass = (positive * weight).sum(-1)
    share = positive * weight / (mass + (mass == 0))[:, None]
    miss = rows(scores, thresholds, temperature)
    expected = (miss * share).sum(-1), (miss.square() * share).sum(-1), mass
    actual = missed_recall(scores, thresholds, positive, weight, temperature)
    torch.testing.assert_close(actual, expected)
    assert [t.requires_grad for t in actual] == [True, False, False]

    def value(scores: Tensor) -> Tensor:
        return missed_recall(scores, thresholds, positive, weight, temperature)[0]

    assert torch.autograd.gradcheck(value, scores, check_batched_grad=True)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("knots", [1, 2, 5])
def test_second_derivatives(knots: int) -> None:
    """Those of the expression, whichever evaluator was used."""
    scores, *rest = inputs(knots)
    assert torch.autograd.gradgradcheck(lambda s: missed_recall(s, *rest)[0], scores.requires_grad_())


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_thresholds_follow_by_the_share_of_the_density(scale: float, counted: bool) -> None:
    """By autograd through the definition, with the thresholds' own gradient shared out by ``k_j / sum k``."""
    scores, _, positive, weight, temperature = inputs()
    temperature = temperature * scale
    reference = scores < 0.8
    reference[2] = False
    counts = 1 + weight.flip(1) if counted else None
    thresholds = masked_quantile(scores, reference, (0.9, 0.5), "linear")
    leaf = scores.clone().requires_grad_()
    total, *_ = missed_recall(leaf, thresholds, positive, weight, temperature, reference, counts)
    (actual,) = torch.autograd.grad(total.sum(), leaf)

    moved, held = scores.clone().requires_grad_(), thresholds.clone().requires_grad_()
    mass = (positive * weight).sum(-1, keepdim=True)
    value = (rows(moved, held, temperature) * positive * weight / (mass + (mass == 0))).sum()
    by_scores, by_thresholds = torch.autograd.grad(value, (moved, held))
    x = (scores[:, None] - thresholds[:, :, None]) / temperature[:, None, None]
    density = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)
    density = density if counts is None else density + counts.log()[:, None]
    share = density.masked_fill(~reference[:, None], -torch.inf).softmax(-1).nan_to_num()
    torch.testing.assert_close(actual, by_scores + (by_thresholds[:, :, None] * share).sum(1))


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("is_positive", [False, True])
def test_a_score_that_is_not_finite_spoils_its_class_alone(bad: float, is_positive: bool) -> None:
    scores, thresholds, positive, weight, temperature = inputs()
    expected = missed_recall(scores, thresholds, positive, weight, temperature)[0]
    scores[2, int((positive[2] == is_positive).nonzero()[0])] = bad
    scores.requires_grad_()
    value = missed_recall(scores, thresholds, positive, weight, temperature)[0]
    torch.testing.assert_close(value[:2], expected[:2])
    assert value[2].isnan()
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert gradient[:2].isfinite().all()
    assert gradient[2].isnan().all()


def test_blocks_of_classes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pools take some classes at a time, small ones all of them."""
    sizes: list[int] = []
    whole = module._with_gradient

    def recorded(scores: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        sizes.append(scores.numel())
        return whole(scores, *rest)

    monkeypatch.setattr(module, "_with_gradient", recorded)
    for chunk, expected in ((91, [90]), (70, [60, 30]), (1, [30, 30, 30])):
        monkeypatch.setattr(module, "RECALL_CHUNK", chunk)
        sizes.clear()
        missed_recall(inputs()[0].requires_grad_(), *inputs()[1:])
        assert sizes == expected


def test_under_transforms() -> None:
    arguments = inputs()
    expected = missed_recall(*arguments)[0]

    def each(*one: Tensor) -> Tensor:
        return missed_recall(*(t[None] for t in one))[0][0]

    torch.testing.assert_close(torch.vmap(each)(*arguments), expected)
    compiled = torch.compile(lambda *a: missed_recall(*a)[0], fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), expected)
    gradient = torch.func.grad(lambda *a: missed_recall(*a)[0].sum())
    leaf = arguments[0].clone().requires_grad_()
    (eager,) = torch.autograd.grad(missed_recall(leaf, *arguments[1:])[0].sum(), leaf)
    torch.testing.assert_close(gradient(*arguments), eager)
