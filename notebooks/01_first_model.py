# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first model with few positives, and eight seeds at once
#
# We train a small classifier to find one rare class, first with binary cross-entropy (BCE) alone, then with a
# schedule: BCE as a warm-up, a blend, and a ranking loss in the end. Then we look at the results: a precision-recall
# curve, the scores around an alert threshold, and the same training for eight seeds in one `torch.func.vmap`, which
# runs a function for all of them in one computation.
#
# It needs the extra `demo` (`pip install '.[demo]'` in a clone), no GPU, no download, and well under a minute.

# %%
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from optree import tree_map
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from imbalanced_losses import (
    LossWarmupWrapper,
    SmoothAPConfig,
    SmoothAPLoss,
    init_queue,
    metrics,
    schedule,
    smooth_ap,
    stack_states,
)
from imbalanced_losses.plots import plot_precision_recall, plot_schedule, plot_scores

# %matplotlib inline

# %% [markdown]
# ## Data: one digit against the rest, and rare
#
# scikit-learn's handwritten digits are small and real. We look for the eights, and keep so few of them that 3 % of
# all rows are positive, in the training half and in the test half. The seed decides which rows are drawn, and which
# half they are in.

# %%
RARE_DIGIT = 8
N_POSITIVE, N_NEGATIVE = 48, 1552  # 3 %


class Split(NamedTuple):
    """Pixels [N, 64] and labels [N, 1] in {0, 1}."""

    train_pixels: Tensor
    train_labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor


def load_split(seed: int) -> Split:
    """Draw positives and negatives, half of each for training and half for the test."""
    pixels, digits = (torch.from_numpy(array).float() for array in load_digits(return_X_y=True))
    shuffled = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    is_rare = digits[shuffled] == RARE_DIGIT
    positive, negative = shuffled[is_rare][:N_POSITIVE], shuffled[~is_rare][:N_NEGATIVE]
    train, test = map(torch.cat, zip(positive.chunk(2), negative.chunk(2), strict=True))
    pixels = (pixels - pixels[train].mean(0)) / pixels[train].std(0).clamp_min(0.1)
    labels = (digits == RARE_DIGIT).float()[:, None]
    return Split(pixels[train], labels[train], pixels[test], labels[test])


split = load_split(seed=0)
for name, labels in (("training", split.train_labels), ("test", split.test_labels)):
    print(f"{name:>8}: {len(labels)} rows, {int(labels.sum())} positive")

# %% [markdown]
# ## Two losses
#
# **BCE** trains the probability of each row. **Smooth-AP** trains the *order* of the rows: it is one minus the average
# precision, with a sigmoid of width `temperature` in place of each comparison of two scores.
#
# `LossWarmupWrapper` is the schedule: BCE alone for some steps, so that the scores get a rough order. Then a blend,
# then Smooth-AP alone, with a temperature that falls. Two things to know about Smooth-AP:
#
# * The temperature is in units of the scores. Positives and negatives of a trained model are several units apart
#   here. With a temperature of 2 to 1 most pairs still have a gradient. The default, 0.01, suits cosines.
# * With 3 % positives, a batch of 32 has one on average. The loss ranks the batch together with a **queue** of past
#   rows.
#
# With `auto_step=True` the wrapper counts its own steps, so the training loop stays as it is.

# %%
BATCH_SIZE, EPOCHS = 32, 20
STEPS_PER_EPOCH = len(split.train_labels) // BATCH_SIZE
STEPS = EPOCHS * STEPS_PER_EPOCH
WARMUP_EPOCHS, BLEND_EPOCHS = 5, 4
QUEUE_SIZE = 256

phases = {
    "warmup_steps": WARMUP_EPOCHS * STEPS_PER_EPOCH,
    "blend_steps": BLEND_EPOCHS * STEPS_PER_EPOCH,
    "temp_start": 2.0,
    "temp_end": 1.0,
    "temp_decay_steps": (EPOCHS - WARMUP_EPOCHS) * STEPS_PER_EPOCH,
}
bce = nn.BCEWithLogitsLoss()
ranking = LossWarmupWrapper(bce, SmoothAPLoss(num_classes=1, queue_size=QUEUE_SIZE), **phases, auto_step=True)

# %% [markdown]
# `preview` lists what the schedule will do, before anything runs:

# %%
plan = schedule.preview(ranking.config, STEPS, steps_per_epoch=STEPS_PER_EPOCH)
print(plan)
ax = plot_schedule(plan)

# %% [markdown]
# ## Training
#
# A plain loop, the same for both losses. The seed decides the first weights and the order of the batches, so both
# losses start from the same model and see the same batches. After each epoch we score the test rows.

# %%
LEARNING_RATE, MOMENTUM = 0.05, 0.9


def make_model(seed: int) -> nn.Module:
    """A small network from pixels [N, 64] to logits [N, 1]."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def make_batches(seed: int) -> Tensor:
    """Row numbers [EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE]."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(len(split.train_labels), generator=generator) for _ in range(EPOCHS)])
    return order.view(EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE)


def train(loss_fn: nn.Module, seed: int) -> tuple[nn.Module, Tensor]:
    """The trained model, and the scores [EPOCHS, N] of the test rows after each epoch."""
    model, scores = make_model(seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for epoch in make_batches(seed):
        for rows in epoch:
            loss = loss_fn(model(split.train_pixels[rows]), split.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            scores.append(model(split.test_pixels)[:, 0])
    return model, torch.stack(scores)


bce_model, bce_scores = train(bce, seed=0)
ranking_model, ranking_scores = train(ranking, seed=0)

# %% [markdown]
# ## Before and after
#
# The precision-recall curves when the warm-up ends, at the end of the schedule, and of BCE alone after as many steps.
# The test half has few positives, and each is a visible step of a curve: a difference of one or two steps means
# nothing.

# %%
ax = plot_precision_recall(ranking_scores[WARMUP_EPOCHS - 1], split.test_labels, label="after the warm-up")
ax = plot_precision_recall(ranking_scores[-1], split.test_labels, label="BCE, then Smooth-AP", ax=ax)
ax = plot_precision_recall(bce_scores[-1], split.test_labels, label="BCE alone", ax=ax)

# %% [markdown]
# ## Scores and an alert threshold
#
# Say that 3 % of all cases can be reviewed. This budget gives a threshold on the scores: 3 % of the rows are at or
# above it. The recall at that threshold is the share of the positives that the review finds.
#
# A ranking loss trains the order of the scores only. Their sigmoid is not a probability. If you need probabilities,
# [calibrate](../docs/calibration.md) the scores on held-out rows.

# %%
BUDGET = 0.03
_, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for ax, name, scores in zip(
    axes, ("BCE alone", "BCE, then Smooth-AP"), (bce_scores[-1], ranking_scores[-1]), strict=True
):
    threshold = scores.quantile(1 - BUDGET, interpolation="higher")
    plot_scores(scores, split.test_labels, threshold=threshold, ax=ax).set_title(name)
    recall = metrics.recall_at_quantile(scores, split.test_labels, quantile=BUDGET)
    print(f"{name:>20}: recall {recall:.3f} within the budget")

# %% [markdown]
# ## What the loss saw
#
# `diagnostics()` describes the last step: the weight and the temperature of the schedule; the loss of each class, and
# whether the class was valid, that is whether it had a positive and a negative; the gap between the smooth loss and the
# exact one on the same rows; the number of positives in the batch; how full the queue is, and how many steps ago its
# oldest row came.

# %%
for name, value in ranking.diagnostics().items():
    print(f"{name:>16}: {value.tolist()}")

# %% [markdown]
# ## Eight seeds at once
#
# One run says little. The pure function `smooth_ap` takes the queue as an argument and returns a new one. So models,
# queues and optimizer states of eight runs are tensors with one more axis, and `vmap` maps the training step over it.
# Each member of this ensemble has its own seed: its own rows, first weights and batches.
#
# The preview from above has the weight and the temperature of each step. We need no more of the schedule.

# %%
SEEDS = range(8)
skeleton = make_model(0)  # functional_call fills in the members' parameters
ap_config = SmoothAPConfig(num_classes=1)


def bce_loss(parameters, queue, pixels, labels, main_weight, temperature):
    """The warm-up: leaves the queue as it is."""
    return bce(functional_call(skeleton, parameters, pixels), labels), queue


def blended_loss(parameters, queue, pixels, labels, main_weight, temperature):
    """From the blend on; at weight 1 it is Smooth-AP alone."""
    logits = functional_call(skeleton, parameters, pixels)
    main, queue = smooth_ap(logits, labels, queue, ap_config, temperature=temperature)
    return schedule.blend(bce(logits, labels), main, main_weight), queue


def gradient_of(loss):
    """Gradient and new queue of every member; weight and temperature are the same for all."""
    return vmap(grad(loss, has_aux=True), in_dims=(0, 0, 0, 0, None, None))


@vmap
def score(parameters, pixels):
    """Logits of every member for its own rows."""
    return functional_call(skeleton, parameters, pixels)[:, 0]


# %% [markdown]
# SGD with momentum takes two lines: `tree_map` applies a function to each parameter.

# %%
splits = Split(*map(torch.stack, zip(*map(load_split, SEEDS), strict=True)))  # [8, N, ...]
batches = torch.stack([make_batches(seed) for seed in SEEDS], dim=2).flatten(0, 1)  # [STEPS, 8, BATCH_SIZE]
member = torch.arange(len(SEEDS))[:, None]


def train_ensemble(plan: schedule.Preview) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters [8, ...] and the scores [EPOCHS, 8, N] of the test rows after each epoch."""
    parameters = tree_map(Tensor.detach, stack_module_state([make_model(seed) for seed in SEEDS])[0])
    velocity = tree_map(torch.zeros_like, parameters)
    queues = stack_states([init_queue(QUEUE_SIZE, num_classes=1)] * len(SEEDS))
    scores = []
    for step, rows in enumerate(batches):
        gradients = gradient_of(bce_loss if plan.phase[step] == 0 else blended_loss)
        pixels, labels = splits.train_pixels[member, rows], splits.train_labels[member, rows]
        gradient, queues = gradients(parameters, queues, pixels, labels, plan.main_weight[step], plan.temperature[step])
        velocity = tree_map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
        parameters = tree_map(lambda p, v: p - LEARNING_RATE * v, parameters, velocity)
        if (step + 1) % STEPS_PER_EPOCH == 0:
            scores.append(score(parameters, splits.test_pixels))
    return parameters, torch.stack(scores)


warmup_only = schedule.preview(schedule.ScheduleConfig(warmup_steps=STEPS), STEPS)
bce_members, bce_runs = train_ensemble(warmup_only)
ranking_members, ranking_runs = train_ensemble(plan)

# %% [markdown]
# Member 0 has the seed of the models that we trained alone, with modules and a torch optimizer. It is the same model:

# %%
for alone, members in ((bce_model, bce_members), (ranking_model, ranking_members)):
    difference = max((members[name][0] - value).abs().max() for name, value in alone.named_parameters())
    print(f"largest difference of a parameter: {difference:.0e}")
    assert difference < 1e-4

# %% [markdown]
# ## Which one is better?
#
# Average precision on the test rows, over the epochs: the line is the mean over the seeds, the band one standard
# deviation to each side.

# %%
average_precision = vmap(vmap(metrics.average_precision), in_dims=(0, None))
ap = {
    "BCE alone": average_precision(bce_runs, splits.test_labels),  # [EPOCHS, 8]
    "BCE, then Smooth-AP": average_precision(ranking_runs, splits.test_labels),
}

_, ax = plt.subplots(layout="constrained")
for (name, values), color in zip(ap.items(), ("#0072B2", "#D55E00"), strict=True):
    mean, spread = values.mean(1), values.std(1)
    epochs = torch.arange(1, EPOCHS + 1)
    ax.plot(epochs, mean, color=color, label=name)
    ax.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
ax.axvline(WARMUP_EPOCHS, color="0.4", linestyle=":", label="end of the warm-up")
ax.set(xlabel="epoch", ylabel="average precision on the test rows", xticks=range(0, EPOCHS + 1, 5))
legend = ax.legend(loc="lower right")

# %% [markdown]
# At the end, seed by seed. Rows, first weights and batches of a seed are the same for both losses, so the difference
# within a seed says more than that of the means.

# %%
final = torch.stack([values[-1] for values in ap.values()])
final = torch.cat([final, final[1:] - final[:1]])  # [3, 8]
print(f"{'seed':>18}{'BCE':>10}{'ranking':>10}{'difference':>12}")
for seed, row in zip(SEEDS, final.T.tolist(), strict=True):
    print("{:>18}{:>10.3f}{:>10.3f}{:>+12.3f}".format(seed, *row))
print("{:>18}{:>10.3f}{:>10.3f}{:>+12.3f}".format("mean", *final.mean(1).tolist()))
print("{:>18}{:>10.3f}{:>10.3f}{:>12.3f}".format("standard deviation", *final.std(1).tolist()))
print(f"standard error of the mean difference: {final[2].std() / len(SEEDS) ** 0.5:.3f}")

# %% [markdown]
# How to read it: if the mean difference is within two standard errors of zero, these seeds show no difference. A larger
# one holds for these data, this model, this learning rate and this number of epochs. Neither loss is tuned with care:
# a few settings were tried, on other seeds. And all seeds draw their test rows from the same few digits.
#
# If the order is nearly right already, a ranking loss can gain little. To find out whether it gains something on your
# data, compare in the same way: with a tuned BCE, the same splits and seeds, and the difference within each pair.
# [The study](../docs/study.md) does so on 14 real tables.
#
# **To try next:** `RecallAtQuantileLoss(threshold_gradient="implicit")` optimises recall at the alert budget,
# `PAUCAtBudgetLoss(surrogate="pairwise")` at a budget of false alerts. Each can replace `SmoothAPLoss`. A smaller
# `N_POSITIVE` makes the task harder.
