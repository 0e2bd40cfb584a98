"""Retrieval of unseen classes: train embeddings on some digits, and search among digits that were never seen.

    python examples/retrieval_demo.py --plot retrieval_demo.png

The data are scikit-learn's handwritten digits, each at a random place of a larger canvas, so that two images of a digit
may have few pixels in common. Seven random digits train the network, the other three are the test. Each test image is a
query against all others; the metrics are mean average precision (mAP), recall@1 and MAP@R. Every loss starts from the
same weights and sees the same batches. The baselines are a triplet loss and a normalised softmax (cosine similarity to
a learned vector per class). No setting was tuned per loss. The table also has the raw pixels and the untrained network.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from imbalanced_losses import RecallAtKLoss, RetrievalAPLoss
from imbalanced_losses.retrieval_metrics import map_at_r, mean_average_precision, recall_at_k

CLASSES = 10
TRAIN_CLASSES = 7
CANVAS = 12  # pixels; a digit has 8
EMBEDDING_SIZE = 32


class Split(NamedTuple):
    """Digits [N, 8, 8] to train on, placed images [N, 144] to test, class ids [N]; the parts share no class."""

    train_digits: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Scores(NamedTuple):
    """Metrics on the unseen classes."""

    mean_average_precision: float
    recall_at_1: float
    map_at_r: float


class TripletLoss(nn.Module):
    """Mean of the hinge over all triplets of a batch that violate the margin, on unit vectors."""

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Give the loss."""
        unit = F.normalize(embeddings)
        distances = 2 - 2 * unit @ unit.mT  # squared
        same = labels[:, None] == labels
        positive = same & ~torch.eye(len(labels), dtype=torch.bool)
        hinge = (distances[:, :, None] - distances[:, None, :] + self.margin).relu()
        hinge = torch.where(positive[:, :, None] & ~same[:, None, :], hinge, 0)
        return hinge.sum() / (hinge > 0).sum().clamp_min(1)


class NormalizedSoftmax(nn.Module):
    """Cross-entropy of the cosine similarities to one learned vector per class."""

    def __init__(self, scale: float = 16.0) -> None:
        super().__init__()
        self.scale = scale
        self.vectors = nn.Parameter(torch.randn(CLASSES, EMBEDDING_SIZE))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Give the loss."""
        cosines = F.normalize(embeddings) @ F.normalize(self.vectors).mT
        return F.cross_entropy(self.scale * cosines, labels)


def losses_of(args: argparse.Namespace) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each loss, by name."""
    memory = {"embedding_size": EMBEDDING_SIZE, "queue_size": args.queue_size}
    return {
        "triplet": TripletLoss,
        "normalised softmax": NormalizedSoftmax,
        "RetrievalAPLoss": lambda: RetrievalAPLoss(**memory, temperature=args.temperature),
        'RetrievalAPLoss, "sup", calibrated': lambda: RetrievalAPLoss(
            **memory, temperature=args.temperature, surrogate="sup", calibration_weight=0.5
        ),
        "RecallAtKLoss": lambda: RecallAtKLoss(**memory, k=(1, 2, 4, 8), temperature=args.temperature),
    }


def place(digits: Tensor, generator: torch.Generator) -> Tensor:
    """Put each of the digits [N, 8, 8] at a random place of an empty canvas, and return images [N, 144]."""
    n, _, size = digits.shape
    images = torch.zeros(n, CANVAS, CANVAS)
    top, left = torch.randint(0, CANVAS - size + 1, (2, n, 1), generator=generator) + torch.arange(size)
    images[torch.arange(n)[:, None, None], top[:, :, None], left[:, None, :]] = digits
    return images.flatten(1)


def load_data(seed: int) -> Split:
    """Split the digits by class, and place those of the test."""
    images, labels = load_digits(return_X_y=True)
    seen = np.isin(labels, np.random.default_rng(seed).permutation(CLASSES)[:TRAIN_CLASSES])
    digits, ids = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 8, 8), torch.tensor(labels)
    mask = torch.tensor(seen)
    placed = place(digits[~mask], torch.Generator().manual_seed(seed))
    return Split(digits[mask], ids[mask], placed, ids[~mask])


def make_model() -> nn.Module:
    """Make a small convolutional network; torch's seed determines the weights."""
    return nn.Sequential(
        nn.Unflatten(1, (1, CANVAS, CANVAS)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (CANVAS // 2) ** 2, EMBEDDING_SIZE),
    )


def train(make_loss: Callable[[], nn.Module], data: Split, seed: int, args: argparse.Namespace) -> nn.Module:
    """Train a network with one loss."""
    torch.manual_seed(seed)
    model = make_model()
    loss_fn = make_loss()
    optimizer = torch.optim.AdamW([*model.parameters(), *loss_fn.parameters()], lr=args.lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        for rows in torch.split(order, args.batch_size):
            loss = loss_fn(model(place(data.train_digits[rows], generator)), data.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def evaluate(embed: Callable[[Tensor], Tensor], data: Split) -> Scores:
    """Search each unseen image among the others."""
    rows = embed(data.test_images), data.test_labels
    return Scores(*(metric(*rows).item() for metric in (mean_average_precision, recall_at_k, map_at_r)))


def print_table(results: dict[str, list[Scores]]) -> None:
    """Print the mean over the seeds, and how far mAP is from that of the pixels, with its standard error."""
    baseline = [scores.mean_average_precision for scores in results["pixels"]]
    print(f"\n{'loss':<36}{'mAP':>8}{'recall@1':>10}{'MAP@R':>8}   gain in mAP over the pixels")
    for name, runs in results.items():
        means = np.mean(runs, axis=0)
        gains = np.array([scores.mean_average_precision for scores in runs]) - baseline
        error = f" +- {gains.std(ddof=1) / math.sqrt(len(runs)):.4f}" if len(runs) > 1 else ""
        print(f"{name:<36}{means[0]:>8.4f}{means[1]:>10.4f}{means[2]:>8.4f}   {gains.mean():+.4f}{error}")


@torch.no_grad()
def save_plot(path: Path, model: nn.Module, data: Split, n_queries: int = 6, n_neighbours: int = 8) -> None:
    """Draw some unseen queries and their nearest neighbours; a red frame marks another class."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    unit = F.normalize(model(data.test_images))
    queries = torch.linspace(0, len(unit) - 1, n_queries).long()
    similarities = (unit[queries] @ unit.mT).scatter(1, queries[:, None], -math.inf)
    nearest = similarities.topk(n_neighbours).indices
    figure, axes = plt.subplots(n_queries, n_neighbours + 1, figsize=(9, 6.4), layout="constrained")
    for query, keys, row in zip(queries.tolist(), nearest.tolist(), axes, strict=True):
        for index, ax in zip([query, *keys], row, strict=True):
            ax.imshow(data.test_images[index].reshape(CANVAS, CANVAS), cmap="gray_r")
            ax.set(xticks=[], yticks=[])
            is_right = data.test_labels[index] == data.test_labels[query]
            colour = "black" if index == query else "tab:green" if is_right else "tab:red"
            ax.spines[:].set(color=colour, linewidth=3)
    axes[0, 0].set_title("query")
    axes[0, 1].set_title("nearest neighbours", loc="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="splits of the classes (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows in a step (default %(default)s)")
    parser.add_argument("--queue-size", type=int, default=256, help="past embeddings (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.05, help="temperature (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of AdamW (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw nearest neighbours of unseen digits")
    args = parser.parse_args(argv)
    for name, minimum in {"seeds": 1, "epochs": 1, "batch_size": 2, "queue_size": 0}.items():
        if getattr(args, name) < minimum:
            parser.error(f"expected --{name.replace('_', '-')} of at least {minimum}, got {getattr(args, name)}")
    for name in ("temperature", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"expected --{name} above 0 and finite, got {getattr(args, name)}")
    if args.plot and (not args.plot.parent.is_dir() or args.plot.suffix != ".png"):
        parser.error(f"expected --plot FILE.png in a folder that exists, got {args.plot}")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, list[Scores]]:
    """Run the demo and return the scores of each loss and seed."""
    args = parse_args(argv)
    losses = losses_of(args)
    results: dict[str, list[Scores]] = {name: [] for name in ("pixels", "network, not trained", *losses)}
    with tqdm(total=args.seeds * len(losses), unit="run") as progress:
        for seed in range(args.seeds):
            data = load_data(seed)
            results["pixels"].append(evaluate(lambda images: images, data))
            torch.manual_seed(seed)
            results["network, not trained"].append(evaluate(make_model(), data))
            for name, make_loss in losses.items():
                progress.set_description(name)
                model = train(make_loss, data, seed, args)
                results[name].append(evaluate(model, data))
                if args.plot and seed == 0 and name == "RetrievalAPLoss":
                    save_plot(args.plot, model, data)
                progress.update()
    print_table(results)
    if args.plot:
        print(f"\nsaved {args.plot}")
    return results


if __name__ == "__main__":
    main()
