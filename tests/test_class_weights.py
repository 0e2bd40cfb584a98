"""Class weights and the first bias: scikit-learn, the papers' formulas, and what they are for as oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from imbalanced_losses import SigmoidFocalLoss, SoftmaxFocalLoss, class_weights, pos_weight, prior_bias_
from tests.default_dtype import default_dtype

SCHEMES = ("balanced", "sqrt", "effective")
COUNTS = st.lists(st.integers(0, 10**7), min_size=1, max_size=6)
SEEN = st.lists(st.integers(1, 10**7), min_size=1, max_size=6)
BETAS = st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999])


def reference(counts: list[float], scheme: str, beta: float) -> list[float]:
    """The formulas of the docstring, one class at a time."""
    seen = [n for n in counts if n > 0]
    weights = []
    for n in counts:
        if n == 0:
            weights.append(1.0)
        elif scheme == "effective":
            effective = [(1 - np.power(beta, m, dtype=np.float64)) / (1 - beta) for m in seen]
            own = (1 - np.power(beta, n, dtype=np.float64)) / (1 - beta)
            weights.append(len(seen) * (1 / own) / sum(1 / e for e in effective))
        else:
            balanced = sum(seen) / (len(seen) * n)
            weights.append(balanced if scheme == "balanced" else math.sqrt(balanced))
    return weights


class TestClassWeights:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @given(counts=COUNTS, beta=BETAS)
    def test_are_the_formulas(self, scheme: Any, counts: list[float], beta: float) -> None:
        weights = class_weights(counts, scheme, beta)
        assert weights.dtype == torch.float32
        assert weights.tolist() == pytest.approx(reference(counts, scheme, beta), rel=1e-6)

    @given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
    def test_balanced_is_scikit_learns(self, counts: list[int]) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
        assert class_weights(counts).tolist() == pytest.approx(expected.tolist(), rel=1e-6)

    def test_effective_number_by_hand(self) -> None:
        # E = 1, 1.5, 1.75 of 1, 2, 3 rows at beta = 1/2
        inverse = [1, 1 / 1.5, 1 / 1.75]
        expected = [3 * value / sum(inverse) for value in inverse]
        assert class_weights([1, 2, 3], "effective", beta=0.5).tolist() == pytest.approx(expected)

    @given(counts=SEEN)
    def test_limits_of_beta(self, counts: list[int]) -> None:
        n = len(counts)
        assert class_weights(counts, "effective", beta=0).tolist() == pytest.approx([1] * n)
        balanced = class_weights(counts)
        nearly = class_weights(counts, "effective", beta=1 - 1e-12)
        assert nearly.tolist() == pytest.approx((n * balanced / balanced.sum()).tolist(), rel=1e-3)

    @given(counts=SEEN)
    def test_balanced_has_a_mean_row_weight_of_one_and_equal_classes(self, counts: list[int]) -> None:
        totals = torch.tensor(counts).double() * class_weights(counts).double()
        assert totals.tolist() == pytest.approx([sum(counts) / len(counts)] * len(counts), rel=1e-6)

    @pytest.mark.parametrize("scheme", SCHEMES)
    @given(counts=SEEN, data=st.data())
    def test_a_class_without_rows_is_neutral(self, scheme: Any, counts: list[int], data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(counts)))
        weights = class_weights([*counts[:place], 0, *counts[place:]], scheme).tolist()
        assert weights.pop(place) == 1
        assert weights == class_weights(counts, scheme).tolist()

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_no_rows_at_all(self, scheme: Any) -> None:
        assert class_weights([0, 0], scheme).tolist() == [1, 1]
        assert class_weights(torch.zeros(0), scheme).tolist() == []

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize("counts", [[1e-320, 1.0], [1e300, 1e-300], [1e-45, 1e-45], [2**62, 1]])
    def test_finite_whatever_the_counts(self, scheme: Any, counts: list[float]) -> None:
        assert class_weights(counts, scheme).isfinite().all()
        assert pos_weight(*counts, scheme).isfinite()

    @pytest.mark.parametrize("scheme", SCHEMES)
    @pytest.mark.parametrize(
        "as_given",
        [tuple, np.array, torch.tensor, lambda v: torch.tensor(v).half(), lambda v: torch.tensor(v, dtype=torch.uint8)],
    )
    def test_kinds_of_counts(self, scheme: Any, as_given: Callable[[list[int]], Any]) -> None:
        assert torch.equal(class_weights(as_given([120, 30, 0]), scheme), class_weights([120, 30, 0], scheme))

    def test_follow_the_default_dtype(self) -> None:
        for default, expected in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
            with default_dtype(default):
                assert class_weights([9, 1]).dtype == pos_weight(9, 1).dtype == expected

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_mapped_compiled_and_on_meta(self, scheme: Any) -> None:
        counts = torch.tensor([[90, 10, 0], [5, 5, 5]])
        expected = torch.stack([class_weights(row, scheme) for row in counts])
        mapped = torch.func.vmap(lambda row: class_weights(row, scheme))(counts)
        torch.testing.assert_close(mapped, expected)
        compiled = torch.compile(class_weights, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(counts[0], scheme), expected[0])
        assert class_weights(counts[0].to("meta"), scheme).shape == (3,)

    def test_weighted_cross_entropy_counts_classes_the_same(self) -> None:
        """With weights per row of 1/n_c the mean over rows is the mean over classes of the class's mean."""
        targets = torch.tensor([0] * 6 + [1] * 3 + [2])
        logits = torch.randn(10, 3)
        rows = F.cross_entropy(logits, targets, reduction="none")
        expected = torch.stack([rows[targets == c].mean() for c in range(3)]).mean()
        weights = class_weights(targets.bincount())
        torch.testing.assert_close(F.cross_entropy(logits, targets, weight=weights), expected)
        # the rows' mean weight is 1, so that the focal losses' mean, which does not divide by weights, agrees
        torch.testing.assert_close(SoftmaxFocalLoss(alpha=weights, gamma=0)(logits, targets), expected)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([1, -1],), ValueError, r"expected finite counts >= 0, got -1"),
            ((None,), TypeError, r"expected counts to be a number, a sequence of numbers or a Tensor, got None"),
            (("ab",), TypeError, r"expected counts to be a number, a sequence of numbers or a Tensor, got 'ab'"),
            (({1: 2},), TypeError, r"expected counts to be a number, a sequence of numbers or a Tensor, got \{1: 2\}"),
            (([1, math.nan],), ValueError, r"expected finite counts >= 0, got nan"),
            ((torch.tensor([1.0, math.inf]),), ValueError, r"expected finite counts >= 0, got inf"),
            ((torch.ones(2, 2),), ValueError, r"expected counts of shape \[C\], got \[2, 2\]"),
            ((3,), ValueError, r"expected counts of shape \[C\], got \[\]"),
            ((["many"],), TypeError, "expected every count in counts to be a number, got 'many'"),
            (("many",), TypeError, "expected counts to be a number, a sequence of numbers or a Tensor, got 'many'"),
            ((torch.tensor([True]),), TypeError, "expected counts of a real dtype, got torch.bool"),
            (([1, 2], "inverse"), ValueError, "expected scheme to be one of 'balanced', 'sqrt', 'effective'"),
            (([1, 2], "effective", 1.0), ValueError, r"expected beta in \[0, 1\), got 1.0"),
            (([1, 2], "balanced", -0.1), ValueError, r"expected beta in \[0, 1\), got -0.1"),
        ],
    )
    def test_errors(self, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            class_weights(*arguments)


class TestPosWeight:
    @pytest.mark.parametrize("scheme", SCHEMES)
    @given(pairs=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=5), beta=BETAS)
    def test_is_the_ratio_of_the_class_weights(self, scheme: Any, pairs: list[tuple[int, int]], beta: float) -> None:
        expected = []
        for ones, zeros in pairs:
            weight_of_zero, weight_of_one = reference([zeros, ones], scheme, beta)
            expected.append(weight_of_one / weight_of_zero)
        ones, zeros = zip(*pairs, strict=True)
        assert pos_weight(ones, zeros, scheme, beta).tolist() == pytest.approx(expected, rel=1e-6)

    def test_balanced_is_negatives_over_positives(self) -> None:
        assert torch.equal(pos_weight(torch.tensor([1, 4]), torch.tensor([9, 6])), torch.tensor([9.0, 1.5]))

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_without_one_of_the_labels_it_is_neutral(self, scheme: Any) -> None:
        assert pos_weight([0, 10, 0], [10, 0, 0], scheme).tolist() == [1, 1, 1]

    def test_numbers_give_one_number_that_losses_take(self) -> None:
        logits, labels = torch.randn(20), (torch.arange(20) < 4).float()
        weight = pos_weight(4, 16)
        assert weight.shape == ()
        bce = nn.BCEWithLogitsLoss(pos_weight=weight)(logits, labels)
        focal = SigmoidFocalLoss(alpha=weight / (1 + weight), gamma=0)(logits, labels)
        torch.testing.assert_close(focal, bce / (1 + weight))
        rows = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        torch.testing.assert_close(bce / 2, (rows[:4].mean() + rows[4:].mean()) * 16 / 20 / 2)

    def test_mapped_and_compiled(self) -> None:
        ones, zeros = torch.tensor([[1, 5], [3, 0]]), torch.tensor([[9, 5], [7, 10]])
        expected = pos_weight(ones, zeros)
        torch.testing.assert_close(torch.func.vmap(pos_weight)(ones, zeros), expected)
        compiled = torch.compile(pos_weight, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(ones, zeros), expected)

    @pytest.mark.parametrize(
        ("ones", "zeros", "error", "message"),
        [
            ([1, 2], [1], ValueError, r"expected negatives of shape \[2\] like positives, got \[1\]"),
            ([1], -2, ValueError, "expected finite negatives >= 0, got -2"),
            (torch.ones(1), torch.ones(1, device="meta"), ValueError, "expected negatives on cpu like positives"),
            (None, 1, TypeError, "expected positives to be a number, a sequence of numbers or a Tensor, got None"),
        ],
    )
    def test_errors(self, ones: Any, zeros: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            pos_weight(ones, zeros)


class Sharded(nn.Module):
    """A bias like that of FSDP2: a DTensor."""

    def __init__(self) -> None:
        super().__init__()
        mesh = init_device_mesh("cpu", (1,))
        self.bias = nn.Parameter(distribute_tensor(torch.ones(2), mesh))


class TestPriorBias:
    @given(counts=st.lists(st.integers(1, 1000), min_size=2, max_size=6))
    def test_softmax_starts_at_the_shares(self, counts: list[int]) -> None:
        layer = nn.Linear(4, len(counts))
        weight = layer.weight.clone()
        assert prior_bias_(layer, counts) is layer
        shares = [n / sum(counts) for n in counts]
        assert layer.bias.softmax(0).tolist() == pytest.approx(shares, rel=1e-5)
        assert layer.bias.tolist() == pytest.approx([math.log(share) for share in shares], rel=1e-5, abs=1e-6)
        assert torch.equal(layer.weight, weight)
        assert layer.bias.requires_grad

    @pytest.mark.parametrize("counts", [[97, 3], 0.03, [0.03], torch.tensor(0.03), np.array([97, 3]), [0.97, 0.03]])
    def test_binary(self, counts: Any) -> None:
        assert prior_bias_(nn.Linear(4, 1), counts).bias.tolist() == pytest.approx([math.log(3 / 97)])

    def test_multilabel(self) -> None:
        shares = torch.tensor([0.5, 0.2, 0.01])
        layer = prior_bias_(nn.Linear(4, 3), shares, multilabel=True)
        assert layer.bias.tolist() == pytest.approx([0, math.log(1 / 4), math.log(1 / 99)], abs=1e-6)

    @pytest.mark.parametrize("multilabel", [False, True])
    def test_cross_entropy_has_no_gradient_along_the_bias(self, multilabel: bool) -> None:
        """What it is for: the first steps do not go into the base rates."""
        layer = nn.Linear(4, 3)
        nn.init.zeros_(layer.weight)
        targets = torch.tensor([0] * 16 + [1] * 3 + [2])
        labels = F.one_hot(targets).float()
        prior_bias_(layer, labels.mean(0) if multilabel else targets.bincount(), multilabel=multilabel)
        logits = layer(torch.randn(20, 4))
        loss = F.binary_cross_entropy_with_logits(logits, labels) if multilabel else F.cross_entropy(logits, targets)
        loss.backward()
        torch.testing.assert_close(layer.bias.grad, torch.zeros(3), atol=1e-7, rtol=0)

    def test_a_class_without_rows_starts_at_a_finite_bias(self) -> None:
        lowest = math.log(1e-6)
        assert prior_bias_(nn.Linear(2, 3), [99, 0, 1]).bias.tolist() == pytest.approx(
            [math.log(0.99), lowest, math.log(0.01)], rel=1e-5
        )
        assert prior_bias_(nn.Linear(2, 1), [5, 0]).bias.item() == pytest.approx(lowest, rel=1e-5)
        assert prior_bias_(nn.Linear(2, 1), [0, 5]).bias.item() == pytest.approx(-lowest, rel=1e-5)
        assert prior_bias_(nn.Linear(2, 1), 0.0).bias.item() == pytest.approx(lowest, rel=1e-5)
        layer = prior_bias_(nn.Linear(2, 2), torch.zeros(2), multilabel=True)
        assert layer.bias.tolist() == pytest.approx([lowest] * 2, rel=1e-5)
        for layer in (nn.Linear(2, 1), nn.Linear(2, 2)):
            with pytest.raises(ValueError, match="expected counts with a class above 0"):
                prior_bias_(layer, [0, 0])
        layer = prior_bias_(nn.Linear(2, 2), [0, 1], multilabel=True)
        assert layer.bias.tolist() == pytest.approx([lowest, -lowest], rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        layer = prior_bias_(nn.Linear(4, 2, dtype=dtype), [1, 10**9])
        assert layer.bias.dtype == dtype
        expected = torch.tensor([math.log(1e-6), math.log1p(-1e-9)], dtype=torch.float64).to(dtype)
        torch.testing.assert_close(layer.bias, expected, check_dtype=True)

    @pytest.mark.parametrize("layer", [nn.Conv2d(3, 2, 1), nn.Conv1d(3, 2, 3), nn.Bilinear(2, 2, 2)])
    def test_other_layers(self, layer: nn.Module) -> None:
        assert prior_bias_(layer, [3, 1]).bias.tolist() == pytest.approx([math.log(0.75), math.log(0.25)])

    def test_a_default_device_is_none_of_its_business(self) -> None:
        layer = nn.Linear(4, 2)
        with torch.device("meta"):
            prior_bias_(layer, [3, 1])
        assert layer.bias.tolist() == pytest.approx([math.log(0.75), math.log(0.25)])

    @pytest.mark.parametrize(
        ("layer", "error", "message"),
        [
            (nn.Linear(2, 2, bias=False), ValueError, "expected a layer with a parameter `bias`, got Linear without"),
            (nn.Sequential(nn.Linear(2, 2)), ValueError, "got Sequential without: pass the last layer itself"),
            (nn.Linear(2, 2, device="meta"), ValueError, r"got one on meta: call prior_bias_ after layer.to_empty\(\)"),
            (nn.LazyLinear(2), ValueError, "got a lazy one: pass a batch through the model first"),
            (torch.ones(2), TypeError, "expected layer to be an nn.Module, got Tensor"),
        ],
    )
    def test_refuses_other_layers(self, layer: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            prior_bias_(layer, [1, 1])

    def test_refuses_a_parametrized_bias(self) -> None:
        layer = nn.Linear(2, 2)
        nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
        with pytest.raises(ValueError, match="expected a layer with a parameter `bias`"):
            prior_bias_(layer, [1, 1])

    def test_refuses_a_sharded_bias(self, one_rank: None) -> None:
        with pytest.raises(TypeError, match="got a DTensor: call prior_bias_ before the model is sharded"):
            prior_bias_(Sharded(), [1, 1])

    @pytest.mark.parametrize(
        ("outputs", "counts", "multilabel", "error", "message"),
        [
            (3, [1, 1], False, ValueError, "expected 3 counts, one for each output of the layer, got 2"),
            (3, 0.1, True, ValueError, "expected 3 counts, one for each output of the layer, got 1"),
            (1, [1, 1, 1], False, ValueError, "expected 1 share or 2 counts, got 3"),
            (1, 30, False, ValueError, r"expected the share of positives in \[0, 1\], got 30.0: divide the number"),
            (2, [0.5, 3], True, ValueError, r"expected the share of positives in \[0, 1\], got 3.0"),
            (2, [0, 0], False, ValueError, "expected counts with a class above 0"),
            (2, [1, -1], False, ValueError, "expected every weight in counts to be a finite number of at least 0"),
            (2, [1, math.nan], False, ValueError, "expected every weight in counts to be a finite number"),
            (2, "many", False, TypeError, "expected counts to be a sequence of numbers, got 'many'"),
            (2, [1, 1], 1, TypeError, "expected multilabel to be True or False, got 1"),
        ],
    )
    def test_refuses_other_counts(
        self, outputs: int, counts: Any, multilabel: Any, error: type[Exception], message: str
    ) -> None:
        layer = nn.Linear(2, outputs)
        before: Tensor = layer.bias.detach().clone()
        with pytest.raises(error, match=message):
            prior_bias_(layer, counts, multilabel=multilabel)
        assert torch.equal(layer.bias, before)


@pytest.fixture
def one_rank(tmp_path: Any) -> Any:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
