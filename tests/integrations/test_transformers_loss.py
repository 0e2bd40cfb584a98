"""``compute_loss_func``: which rows reach the loss, and how the micro-batches of a step add up in a real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput, TokenClassifierOutput

from imbalanced_losses import SigmoidFocalLoss, SmoothAPLoss, SoftmaxFocalLoss
from imbalanced_losses.integrations.transformers import LossWarmupCallback, compute_loss_func
from tests.integrations.transformers_runs import (
    TOKENS,
    VOCABULARY,
    Rows,
    digits,
    make_network,
    make_trainer,
    sentences,
    tiny_bert,
    without_dropout,
)

LABELS = torch.tensor([[0, 2, -100], [1, -100, 2]])
MULTILABEL = torch.tensor([[[1, 0, 1], [0, 0, -100]], [[-100, -100, -100], [1, 1, 1]]])
LOGITS = torch.linspace(-2, 2, 24).reshape(2, 3, 4).sin()


class Sum(nn.Module):
    """Tells what it got."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.logits, self.targets = logits, targets
        return logits.sum()


# --- what the loss gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs",
    [LOGITS, (LOGITS, None), [LOGITS], {"hidden_states": None, "logits": LOGITS}, TokenClassifierOutput(logits=LOGITS)],
    ids=["tensor", "tuple", "list", "dict", "ModelOutput"],
)
def test_logits_are_found(outputs: Any) -> None:
    loss = compute_loss_func(SoftmaxFocalLoss())(outputs, LABELS)
    torch.testing.assert_close(loss, SoftmaxFocalLoss()(LOGITS.reshape(6, 4), LABELS.reshape(6)))


@pytest.mark.parametrize("make_labels", [Tensor.long, Tensor.float], ids=["integers", "floats"])
@pytest.mark.parametrize(
    ("logits", "labels", "rows", "targets"),
    [
        (LOGITS, LABELS, LOGITS.reshape(6, 4)[[0, 1, 3, 5]], LABELS.reshape(6)[[0, 1, 3, 5]]),
        (LOGITS[0], LABELS[1], LOGITS[0, ::2], LABELS[1, ::2]),
        (LOGITS[0, :, :1], LABELS[1], LOGITS[0, ::2, :1], LABELS[1, ::2, None]),
        (LOGITS[0, :, :1], LABELS[1, :, None], LOGITS[0, ::2, :1], LABELS[1, ::2, None]),
        (LOGITS[0, :, 0], LABELS[1], LOGITS[0, ::2, :1], LABELS[1, ::2, None]),
        (LOGITS[..., 0], LABELS, LOGITS[..., 0], LABELS),
        (
            LOGITS[:, :2, :3],
            MULTILABEL,
            LOGITS[:, :2, :3].reshape(4, 3)[[0, 1, 3]],
            MULTILABEL.reshape(4, 3)[[0, 1, 3]],
        ),
        (LOGITS[0], torch.full((3,), -100), LOGITS[0, :0], LABELS[0, :0]),
    ],
    ids=["[B, T, C]", "[B, C]", "[B, 1] of [B]", "[B, 1]", "[B]", "multi-label", "[B, T, C] multi-label", "none left"],
)
def test_rows_with_a_label_reach_the_loss(
    logits: Tensor, labels: Tensor, rows: Tensor, targets: Tensor, make_labels: Callable[[Tensor], Tensor]
) -> None:
    loss_fn = Sum()
    compute_loss_func(loss_fn)({"logits": logits}, make_labels(labels))
    assert torch.equal(loss_fn.logits, rows)
    assert torch.equal(loss_fn.targets, make_labels(targets))


@pytest.mark.parametrize("label_shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("loss_fn", [SmoothAPLoss(1, queue_size=0), SigmoidFocalLoss()], ids=["ranking", "focal"])
def test_one_column_takes_every_kind_of_label(
    loss_fn: nn.Module, dtype: torch.dtype, label_shape: tuple[int, ...]
) -> None:
    """Labels of -100 too, which the focal loss by itself takes for a mistake."""
    logits, labels = torch.randn(6, 1), torch.tensor([1, 0, -100, 0, 1, 0])
    loss = compute_loss_func(loss_fn)({"logits": logits}, labels.to(dtype).reshape(label_shape))
    kept = labels != -100
    assert torch.equal(loss, loss_fn(logits[kept], labels[kept, None]))


def test_multilabel_elements_are_ignored_by_the_loss() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, -100], [0, 1, 1], [-100] * 3, [1, -100, 0]])
    kept = labels != -100
    focal = compute_loss_func(SigmoidFocalLoss(ignore_index=-100))(logits, labels.float())
    torch.testing.assert_close(focal, SigmoidFocalLoss()(logits[kept], labels[kept].float()))
    ranking = SmoothAPLoss(3, queue_size=0, multilabel=True)
    assert torch.equal(compute_loss_func(ranking)(logits, labels), ranking(logits, labels))
    with pytest.raises(ValueError, match="-100"):
        compute_loss_func(SigmoidFocalLoss())(logits, labels.float())


def test_padding_does_not_enter_the_queue() -> None:
    loss_fn = SmoothAPLoss(num_classes=4, queue_size=8)
    compute_loss_func(loss_fn)({"logits": LOGITS}, LABELS)
    assert loss_fn.queue_state.targets[:5].tolist() == [0, 2, 1, 2, -100]


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (
            {"hidden_states": LOGITS, "loss": 0},
            LABELS,
            "expected logits in what the model returns, got hidden_states, loss",
        ),
        (LOGITS, None, "expected labels in the batch, got None"),
        (LOGITS, LABELS[:, :2], r"expected labels of shape \[2, 3\] or \[2, 3, 4\], got \[2, 2\]"),
    ],
)
def test_bad_batches_say_what_was_expected(outputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_loss_func(SoftmaxFocalLoss())(outputs, labels)


def test_a_loss_of_several_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a loss of one value, got shape \[4\]: set its reduction"):
        compute_loss_func(SoftmaxFocalLoss(reduction="none"))(LOGITS, LABELS)


# --- labels of language models ----------------------------------------------------------------------------------------

TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2}
SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 2}
CAUSAL: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=8, n_layer=1, n_head=2, eos_token_id=0)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, **SIZES)),
}
ALIGNED: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "token classification": lambda: tiny_bert("token", num_labels=VOCABULARY),
}


def texts() -> tuple[Tensor, Tensor]:
    """Tokens, and labels of which some are padding."""
    tokens = torch.randint(VOCABULARY, (6, TOKENS), generator=torch.Generator().manual_seed(4))
    labels = tokens.clone()
    labels[0, 2:] = labels[3, 4:] = -100
    return tokens, labels


def cross_entropy(**settings: Any) -> Any:
    return compute_loss_func(SoftmaxFocalLoss(gamma=0), **settings)


@pytest.mark.parametrize("name", [*CAUSAL, *ALIGNED])
@pytest.mark.parametrize("items", [None, 50])
def test_the_loss_is_the_models_own(name: str, items: int | None) -> None:
    model = (CAUSAL | ALIGNED)[name]().eval()
    tokens, labels = texts()
    outputs = model(input_ids=tokens, labels=labels, **({"num_items_in_batch": items} if name in CAUSAL else {}))
    loss = cross_entropy()(outputs, labels, num_items_in_batch=items if name in CAUSAL else None)
    torch.testing.assert_close(loss, outputs.loss)


@pytest.mark.parametrize("shift", [None, True, False])
def test_shift_labels_says_it_for_outputs_of_any_kind(shift: bool | None) -> None:
    logits, labels = torch.randn(2, 3, 4), LABELS
    loss = cross_entropy(shift_labels=shift)((logits,), labels)
    shifted = shift is True
    expected = nn.functional.cross_entropy(
        (logits[:, :-1] if shifted else logits).reshape(-1, 4), (labels[:, 1:] if shifted else labels).reshape(-1)
    )
    torch.testing.assert_close(loss, expected)


def test_shift_labels_overrules_what_is_recognised() -> None:
    model, (tokens, labels) = CAUSAL["llama"]().eval(), texts()
    outputs = model(input_ids=tokens)
    expected = nn.functional.cross_entropy(outputs.logits.reshape(-1, VOCABULARY), labels.reshape(-1))
    torch.testing.assert_close(cross_entropy(shift_labels=False)(outputs, labels), expected)


@pytest.mark.parametrize("shape", [(6,), (3, 2)])
def test_rows_without_a_sequence_are_not_shifted(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected logits \[B, T, C\] and labels \[B, T\] with shift_labels=True"):
        cross_entropy(shift_labels=True)(torch.randn(6, 4), torch.zeros(shape, dtype=torch.long))


def test_a_text_of_one_token_is_zero() -> None:
    loss = cross_entropy(shift_labels=True)(torch.randn(2, 1, 4, requires_grad=True), torch.tensor([[1], [2]]))
    assert loss.item() == 0
    loss.backward()


def text_rows() -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": label} for row, label in zip(*texts(), strict=True)]


def train_one_step(folder: Path, model: Any, loss: Callable[..., Tensor] | None, micro_batches: int) -> Trainer:
    """One optimizer step over all texts."""
    size = {"per_device_train_batch_size": 6 // micro_batches, "gradient_accumulation_steps": micro_batches}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    arguments = TrainingArguments(str(folder), **SGD, **size, **quiet, use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=text_rows(), eval_dataset=text_rows(), compute_loss_func=loss)
    trainer.train()
    return trainer


def test_a_causal_model_trains_as_with_its_own_loss(tmp_path: Path) -> None:
    """Micro-batches with as many sentences, but not as many labels."""
    ends = []
    for loss in (None, cross_entropy()):
        torch.manual_seed(0)
        model = without_dropout(CAUSAL["llama"]())
        train_one_step(tmp_path, model, loss, micro_batches=3)
        ends.append(model.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-6)


class Tagger(nn.Module):
    """Not of Transformers: nothing says what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.embedding(input_ids)}


class Shares:
    """By what each micro-batch's loss was multiplied, and how many labels it had."""

    def __init__(self, compute_loss: Callable[..., Tensor]) -> None:
        self.compute_loss = compute_loss
        self.shares: list[float] = []
        self.labels: list[Tensor] = []

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        loss = self.compute_loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        self.shares.append(float(loss.detach() / self.compute_loss(outputs, labels).detach()))
        self.labels.append(labels)
        return loss


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("shift", [None, True, False])
@pytest.mark.parametrize(
    "make_model", [*CAUSAL.values(), ALIGNED["token classification"], Tagger], ids=[*CAUSAL, "bert", "plain module"]
)
def test_shares_of_a_step_add_up_to_one(
    make_model: Any, shift: bool | None, micro_batches: int, tmp_path: Path
) -> None:
    """Whether the Trainer counts the labels at position 0 follows from the model's class, not from the loss."""
    recorded = Shares(cross_entropy(shift_labels=shift))
    trainer = train_one_step(tmp_path, make_model(), recorded, micro_batches)
    assert len(recorded.shares) == micro_batches
    assert sum(recorded.shares) == pytest.approx(1)
    first = int(trainer._loss_shifts_labels)
    items = [int((labels[:, first:] != -100).sum()) for labels in recorded.labels]
    assert recorded.shares == pytest.approx([count / sum(items) for count in items])
    del recorded.shares[:]
    trainer.evaluate()
    assert recorded.shares == pytest.approx([1.0])


def test_a_trainer_that_has_no_rule_counts_all_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of Transformers 5.0."""

    def count_all(self: Trainer, batches: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        self.__dict__.pop("_loss_shifts_labels", None)
        return torch.stack([batch["labels"].ne(-100).sum() for batch in batches]).sum()

    monkeypatch.setattr(Trainer, "_get_num_items_in_batch", count_all)
    recorded = Shares(cross_entropy())
    train_one_step(tmp_path, CAUSAL["llama"](), recorded, micro_batches=3)
    assert sum(recorded.shares) == pytest.approx(1)


def test_logits_of_virtual_tokens_are_left_out_as_the_error_says() -> None:
    """Prompt tuning puts tokens without a label before the text."""
    outputs, labels = CausalLMOutput(logits=torch.randn(2, 5, 4)), torch.tensor([[0, 2, -100], [1, 3, 2]])
    compute_loss = cross_entropy()
    with pytest.raises(ValueError, match=r"got \[2, 3\]: for prompt tuning .*outputs.logits = outputs.logits\[:, 2:\]"):
        compute_loss(outputs, labels)
    expected = compute_loss(CausalLMOutput(logits=outputs.logits[:, 2:]), labels)
    outputs.logits = outputs.logits[:, 2:]
    assert torch.equal(compute_loss(outputs, labels), expected)


def test_a_decoder_on_its_own_is_not_shifted_if_told() -> None:
    """It returns what other causal language models return, but its own loss does not shift."""
    size = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    model = BartForCausalLM(BartConfig(vocab_size=VOCABULARY, **size, **TOKEN_IDS)).eval()
    tokens, labels = texts()
    outputs = model(input_ids=tokens, labels=labels)
    torch.testing.assert_close(cross_entropy(shift_labels=False)(outputs, labels), outputs.loss)


# --- the share of a step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [8, torch.tensor(8), torch.tensor(8.0), torch.tensor([[4], [4]])])
def test_a_loss_counts_by_its_share_of_the_steps_items(items: Any) -> None:
    """The last one is what the Trainer passes under ``nn.DataParallel``."""
    compute_loss = compute_loss_func(SoftmaxFocalLoss())
    assert torch.equal(compute_loss(LOGITS, LABELS, num_items_in_batch=items), compute_loss(LOGITS, LABELS) / 2)


def test_a_step_without_items_is_zero() -> None:
    loss = compute_loss_func(SoftmaxFocalLoss())(LOGITS, torch.full((2, 3), -100), num_items_in_batch=torch.tensor(0))
    assert loss.item() == 0


# --- in a Trainer -----------------------------------------------------------------------------------------------------


SGD = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "num_train_epochs": 1, "max_steps": 1}


def gradient_of_one_step(
    folder: Path, loss_fn: nn.Module, model: nn.Module, rows: Rows, **settings: Any
) -> list[Tensor]:
    """SGD at a rate of 1 takes a step of the gradient."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer, _ = make_trainer(folder, loss_fn, model, rows, **(SGD | settings))
    trainer.train()
    return [start - parameter.detach() for start, parameter in zip(before, model.parameters(), strict=True)]


def assert_gradient(model: nn.Module, gradient: list[Tensor]) -> None:
    assert any(bool(part.abs().max() > 1e-4) for part in gradient)
    for parameter, part in zip(model.parameters(), gradient, strict=True):
        expected = torch.zeros_like(part) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)


def test_accumulated_ranking_losses_are_the_mean_over_micro_batches(tmp_path: Path) -> None:
    rows = digits(0, 16)
    loss_fn, model = SmoothAPLoss(1, queue_size=32, temperature=1.0), without_dropout(make_network())
    gradient = gradient_of_one_step(tmp_path, loss_fn, model, rows)

    plain_loss, plain_model = SmoothAPLoss(1, queue_size=32, temperature=1.0), without_dropout(make_network())
    for batch in (rows.order[:8], rows.order[8:]):
        (plain_loss(plain_model(rows.features[batch]).logits, rows.labels[batch]) / 2).backward()
    assert_gradient(plain_model, gradient)
    for name, value in plain_loss.state_dict().items():
        assert torch.equal(loss_fn.state_dict()[name], value), name


def test_accumulated_focal_means_are_that_of_one_large_batch(tmp_path: Path) -> None:
    """Of 12 rows, in micro-batches of 8 and 4."""
    rows = digits(0, 12)
    model, plain_model = without_dropout(make_network()), without_dropout(make_network())
    gradient = gradient_of_one_step(tmp_path, SigmoidFocalLoss(), model, rows)
    SigmoidFocalLoss()(plain_model(rows.features).logits, rows.labels[:, None]).backward()
    assert_gradient(plain_model, gradient)


def test_token_classification_means_over_the_tokens_that_count(tmp_path: Path) -> None:
    """Micro-batches have as many sentences, but not as many labels."""
    labels = torch.randint(3, (16, TOKENS), generator=torch.Generator().manual_seed(2))
    labels[:8, 1:] = -100
    labels[3] = -100
    rows = sentences(labels)
    model, plain_model = (tiny_bert("token", num_labels=3) for _ in range(2))
    gradient = gradient_of_one_step(tmp_path, SoftmaxFocalLoss(), model, rows)
    assert len({int((labels[batch] != -100).sum()) for batch in (rows.order[:8], rows.order[8:])}) == 2
    logits = plain_model(input_ids=rows.features).logits
    SoftmaxFocalLoss()(logits.reshape(-1, 3), labels.reshape(-1)).backward()
    assert_gradient(plain_model, gradient)


@pytest.mark.parametrize(
    ("num_labels", "multilabel"), [(1, False), (3, False), (3, True)], ids=["binary", "classes", "multi-label"]
)
def test_bert_trains_and_evaluates_with_a_ranking_loss(num_labels: int, multilabel: bool, tmp_path: Path) -> None:
    shape = (16, num_labels) if multilabel else (16,)
    labels = torch.randint(2 if multilabel or num_labels == 1 else 3, shape, generator=torch.Generator().manual_seed(3))
    rows = sentences(labels.float() if multilabel else labels)
    loss_fn = SmoothAPLoss(num_labels, queue_size=32, temperature=1.0, multilabel=multilabel)
    model = tiny_bert("sequence", num_labels=num_labels)
    trainer, recorder = make_trainer(tmp_path, loss_fn, model, rows, eval_dataset=rows, num_train_epochs=2)
    trainer.train()
    queue = loss_fn.queue_state.targets.clone()
    metrics = trainer.evaluate()
    assert len(recorder.losses) == 4
    assert all(0 < loss.item() < 1 for loss in recorder.losses)
    assert metrics["eval_loss"] == pytest.approx(torch.stack(recorder.eval_losses).mean().item())
    assert torch.equal(loss_fn.queue_state.targets, queue)


def test_a_function_is_refused_before_any_step() -> None:
    function = nn.functional.cross_entropy
    for take in (compute_loss_func, LossWarmupCallback):
        with pytest.raises(TypeError, match=r"expected loss_fn to be an nn\.Module, got function"):
            take(function)
