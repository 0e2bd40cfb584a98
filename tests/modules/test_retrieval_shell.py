"""The retrieval losses as modules: equal to the functions, with a memory that lives as the ranking losses' queue."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from imbalanced_losses import LossWarmupWrapper, RecallAtKLoss, RetrievalAPLoss, stack_states
from imbalanced_losses.modules._runs import warn_of_invalid_epoch
from tests.losses.retrieval_cases import CASES, IGNORE, SIZE, Case, batch

Shell = RetrievalAPLoss | RecallAtKLoss
every_case = pytest.mark.parametrize("case", CASES, ids=str)
one_of_each = pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=str)


def shell_of(case: Case, queue_size: int = 12, **changes: Any) -> Shell:
    kind = RecallAtKLoss if case.name.startswith("recall") else RetrievalAPLoss
    return kind(**{"embedding_size": SIZE, "queue_size": queue_size, "temperature": 0.05, **case.options, **changes})


def step(loss_fn: Callable[..., Tensor], seed: int, **options: Any) -> tuple[Tensor, Tensor]:
    embeddings, labels = batch(seed=seed, dtype=torch.float32)
    loss = loss_fn(embeddings.requires_grad_(), labels, **options)
    return loss.detach(), torch.autograd.grad(loss.nansum(), embeddings)[0]


@every_case
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_shell_and_function_agree_to_the_bit(case: Case, reduction: str) -> None:
    loss_fn = shell_of(case, reduction=reduction)
    state = copy.deepcopy(loss_fn.queue_state)
    for seed in range(4):
        embeddings, labels = batch(seed=seed, dtype=torch.float32)
        leaf, weight = embeddings.clone().requires_grad_(), torch.rand(9)
        expected, state = case.function(leaf, labels, state, loss_fn.config, sample_weight=weight)
        gradient = torch.autograd.grad(expected.nansum(), leaf)[0]
        found = step(loss_fn, seed, sample_weight=weight)
        assert_close(found, (expected.detach(), gradient), rtol=0, atol=0, equal_nan=True)
        for name in ("logits", "targets", "sample_weight", "cursor"):
            assert torch.equal(getattr(loss_fn.queue_state, name), getattr(state, name))


@one_of_each
def test_the_memory_stops_in_eval_and_when_told(case: Case) -> None:
    loss_fn = shell_of(case)
    step(loss_fn, 0)
    before = copy.deepcopy(loss_fn.state_dict())
    step(loss_fn, 1, update_queue=False)
    step(loss_fn.eval(), 1)
    assert_close(loss_fn.state_dict(), before, rtol=0, atol=0)
    loss_fn.update_queue_in_eval = True
    step(loss_fn, 1)
    assert not torch.equal(loss_fn.queue_logits, before["queue_logits"])
    loss_fn.reset_queue()
    assert (loss_fn.queue_targets == IGNORE).all()


@one_of_each
def test_a_resumed_run_is_an_uninterrupted_one(case: Case) -> None:
    through, first = shell_of(case), shell_of(case)
    expected = [step(through, seed) for seed in range(4)]
    for seed in range(2):
        step(first, seed)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = shell_of(case)
    resumed.load_state_dict(torch.load(file))
    assert_close([step(resumed, seed) for seed in (2, 3)], expected[2:], rtol=0, atol=0)


@one_of_each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies(case: Case, copied: Callable[[Shell], Shell]) -> None:
    loss_fn = shell_of(case)
    step(loss_fn, 0)
    twin = copied(loss_fn)
    assert twin.config == loss_fn.config
    assert_close(step(twin, 1), step(loss_fn, 1), rtol=0, atol=0)
    step(twin, 2)
    assert not torch.equal(twin.queue_logits, loss_fn.queue_logits)


@one_of_each
def test_casts_and_meta(case: Case) -> None:
    loss_fn = shell_of(case)
    assert loss_fn.half().queue_logits.dtype == torch.float32
    embeddings, labels = batch(dtype=torch.float16)
    assert loss_fn(embeddings, labels).dtype == torch.float32
    assert loss_fn.double()(*batch()).dtype == torch.float64
    with torch.device("meta"):
        made = shell_of(case)
    made = made.to_empty(device="cpu")
    made.reset_parameters()
    assert_close(step(made, 0), step(shell_of(case), 0), rtol=0, atol=0)


@one_of_each
def test_settings(case: Case) -> None:
    loss_fn = shell_of(case)
    assert loss_fn.similarity == "cosine"
    loss_fn.similarity = "dot"
    loss_fn.temperature = 0.3
    assert_close(step(loss_fn, 0), step(shell_of(case, similarity="dot", temperature=0.3), 0), rtol=0, atol=0)
    assert "embedding_size=5" in repr(loss_fn)
    for name, value in {"embedding_size": 4, "ignore_index": -1, "queue_size": 3}.items():
        with pytest.raises(AttributeError, match=name):
            setattr(loss_fn, name, value)
    with pytest.raises(ValueError, match="expected similarity"):
        loss_fn.similarity = "l2"


@one_of_each
def test_errors_leave_the_memory(case: Case) -> None:
    loss_fn = shell_of(case)
    step(loss_fn, 0)
    before = copy.deepcopy(loss_fn.state_dict())
    embeddings, labels = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match="finite sample_weight >= 0, got -1"):
        loss_fn(embeddings, labels, sample_weight=-torch.ones(9))
    with pytest.raises(ValueError, match=r"embeddings of shape \[N, 5\]"):
        loss_fn(embeddings[:, 1:], labels)
    with pytest.raises(TypeError, match="integer class ids"):
        loss_fn(embeddings, labels.double())
    assert_close(loss_fn.state_dict(), before, rtol=0, atol=0)


@one_of_each
def test_without_a_queue(case: Case) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    assert_close(shell_of(case, queue_size=0)(embeddings, labels), case.call(embeddings, labels))


@one_of_each
def test_one_column(case: Case) -> None:
    loss_fn = shell_of(case, embedding_size=1, similarity="dot")
    for _ in range(2):
        loss = loss_fn(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([5, 5, 9]))
    assert loss.isfinite()
    assert loss_fn.queue_targets[:6].tolist() == [5, 5, 9, 5, 5, 9]


@one_of_each
def test_the_wrapper_drives_the_temperature(case: Case) -> None:
    def pull_together(embeddings: Tensor, labels: Tensor) -> Tensor:
        return embeddings.square().mean()

    loss_fn = LossWarmupWrapper(pull_together, shell_of(case), warmup_epochs=1, temp_start=0.5, temp_end=0.1)
    embeddings, labels = batch(dtype=torch.float32)
    loss_fn.on_train_epoch_start(0)
    assert_close(loss_fn(embeddings, labels), embeddings.square().mean())
    loss_fn.on_train_epoch_start(1)
    loss_fn.on_train_batch_start(0)
    assert_close(loss_fn(embeddings, labels), case.call(embeddings, labels, temperature=0.5))


@one_of_each
def test_an_epoch_without_positives_warns_once(case: Case) -> None:
    loss_fn = shell_of(case, queue_size=0)
    embeddings, labels = batch(dtype=torch.float32)
    loss_fn(embeddings, torch.arange(9))
    with pytest.warns(UserWarning, match="expected a query with a positive"):
        warn_of_invalid_epoch(loss_fn)
    loss_fn(embeddings, torch.arange(9))
    warn_of_invalid_epoch(loss_fn)
    other = shell_of(case, queue_size=0)
    other(embeddings, torch.arange(9))
    other(embeddings, labels)
    warn_of_invalid_epoch(other)


@one_of_each
def test_an_ensemble_by_vmap(case: Case) -> None:
    loss_fn = shell_of(case)
    members = [copy.deepcopy(dict(loss_fn.named_buffers())) for _ in range(3)]
    buffers = {name: torch.stack([member[name] for member in members]) for name in members[0]}
    rows = [batch(seed=seed, dtype=torch.float32) for seed in range(3)]
    embeddings, labels = (torch.stack([row[i] for row in rows]) for i in range(2))

    def call(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(loss_fn, state, (x, y))

    losses = torch.func.vmap(call)(buffers, embeddings, labels)
    for i in range(3):
        single = shell_of(case)
        assert_close(losses[i], single(*rows[i]))
        assert torch.equal(buffers["queue_logits"][i], single.queue_logits)
    assert stack_states([loss_fn.queue_state]).logits.shape == (1, 12, SIZE)


@one_of_each
def test_compiled(case: Case) -> None:
    loss_fn, eager = shell_of(case), shell_of(case)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        assert_close(step(compiled, seed), step(eager, seed))
    assert_close(loss_fn.queue_logits, eager.queue_logits)


@one_of_each
def test_a_checkpointed_call_is_refused(case: Case) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    loss_fn = shell_of(case)
    model = nn.Linear(SIZE, SIZE)
    loss = torch.utils.checkpoint.checkpoint(lambda x: loss_fn(model(x), labels), embeddings, use_reentrant=False)
    with pytest.raises(RuntimeError, match="outside activation checkpointing"):
        loss.backward()
