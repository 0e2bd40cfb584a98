"""Well-known mistakes in inputs: what comes of them, and the settings and inputs that the message asks for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

N = 8
LABELS = torch.arange(N) % 2
IDS = torch.arange(N) % 3
WIDE = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
COLUMN, PAIR = WIDE[:, :1], WIDE[:, :2]
ONE_HOT = F.one_hot(IDS, 3)
IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
MASKS = torch.arange(32).reshape(2, 4, 4) % 3

Inputs = tuple[Tensor, Tensor]
Mistake = tuple[str, dict[str, Any], Inputs, type[Exception], str, tuple[dict[str, Any], Inputs]]
MULTI = {"num_classes": 3}
SEVERAL = {"num_classes": 3, "multilabel": True}
BINARY = {"num_classes": 1}

# settings, inputs, what comes of them, and the settings and inputs that the message asks for
RANKING: list[Mistake] = [
    (
        "one-hot",
        MULTI,
        (WIDE, ONE_HOT),
        ValueError,
        r"targets.argmax\(1\), .*multilabel=True",
        (MULTI, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot floats",
        MULTI,
        (WIDE, ONE_HOT.float()),
        TypeError,
        r"targets.argmax\(1\), .*multilabel=True",
        (SEVERAL, (WIDE, ONE_HOT.float())),
    ),
    (
        "one-hot flags",
        MULTI,
        (WIDE, ONE_HOT.bool()),
        TypeError,
        r"targets.int\(\).argmax\(1\), .*multilabel=True",
        (SEVERAL, (WIDE, ONE_HOT.bool())),
    ),
    (
        "two logits",
        BINARY,
        (PAIR, LABELS),
        ValueError,
        r"logits\[:, 1\] - logits\[:, 0\]",
        (BINARY, (PAIR[:, 1] - PAIR[:, 0], LABELS)),
    ),
    (
        "one-hot of two",
        BINARY,
        (COLUMN, F.one_hot(LABELS)),
        ValueError,
        r"use targets\[:, 1\]",
        (BINARY, (COLUMN, F.one_hot(LABELS)[:, 1])),
    ),
    ("one logit", {"num_classes": 2}, (COLUMN, LABELS), ValueError, "num_classes=1", (BINARY, (COLUMN, LABELS))),
    (
        "one logit a row",
        {"num_classes": 2},
        (COLUMN[:, 0], LABELS),
        ValueError,
        "num_classes=1",
        (BINARY, (COLUMN[:, 0], LABELS)),
    ),
    ("ids for labels", SEVERAL, (WIDE, IDS), ValueError, "for class ids use multilabel=False", (MULTI, (WIDE, IDS))),
    (
        "ids [N, 1]",
        SEVERAL,
        (WIDE, IDS[:, None]),
        ValueError,
        "for class ids use multilabel=False",
        (MULTI, (WIDE, IDS[:, None])),
    ),
    ("float ids", MULTI, (WIDE, IDS.float()), TypeError, r"targets.long\(\)", (MULTI, (WIDE, IDS.float().long()))),
    (
        "integer logits",
        BINARY,
        (COLUMN.long(), LABELS),
        TypeError,
        r"pass raw scores, not predictions .*\.float\(\)",
        (BINARY, (COLUMN.long().float(), LABELS)),
    ),
    (
        "sequences",
        MULTI,
        (WIDE.reshape(2, 4, 3), IDS.reshape(2, 4)),
        ValueError,
        r"logits.flatten\(0, -2\) with class ids targets.flatten\(\)",
        (MULTI, (WIDE.reshape(2, 4, 3).flatten(0, -2), IDS.reshape(2, 4).flatten())),
    ),
    (
        "sequences of several labels",
        SEVERAL,
        (WIDE.reshape(2, 4, 3), ONE_HOT.reshape(2, 4, 3)),
        ValueError,
        r"logits.flatten\(0, -2\) .*with multilabel=True, targets.flatten\(0, -2\)",
        (SEVERAL, (WIDE.reshape(2, 4, 3).flatten(0, -2), ONE_HOT.reshape(2, 4, 3).flatten(0, -2))),
    ),
    (
        "images",
        MULTI,
        (IMAGES, MASKS),
        ValueError,
        r"logits.movedim\(1, -1\).flatten\(0, -2\) with class ids targets.flatten\(\)",
        (MULTI, (IMAGES.movedim(1, -1).flatten(0, -2), MASKS.flatten())),
    ),
    (
        "images of several labels",
        SEVERAL,
        (IMAGES, (IMAGES > 0).long()),
        ValueError,
        r"with multilabel=True, targets.movedim\(1, -1\).flatten\(0, -2\)",
        (SEVERAL, (IMAGES.movedim(1, -1).flatten(0, -2), (IMAGES > 0).long().movedim(1, -1).flatten(0, -2))),
    ),
    (
        "two logits of one-hot labels",
        BINARY,
        (PAIR, F.one_hot(LABELS)),
        ValueError,
        r"logits\[:, 1\] - logits\[:, 0\], and for one-hot labels targets\[:, 1\]",
        (BINARY, (PAIR[:, 1] - PAIR[:, 0], F.one_hot(LABELS)[:, 1])),
    ),
    (
        "labels [N, 1, 1]",
        BINARY,
        (COLUMN, LABELS[:, None, None]),
        ValueError,
        r"use targets.flatten\(\)$",
        (BINARY, (COLUMN, LABELS[:, None, None].flatten())),
    ),
    (
        "float ids [1, N]",
        MULTI,
        (WIDE, IDS[None].float()),
        TypeError,
        r"use targets.flatten\(\).long\(\)$",
        (MULTI, (WIDE, IDS[None].float().flatten().long())),
    ),
    (
        "masks of 255",
        BINARY,
        (COLUMN, 255 * LABELS.to(torch.uint8)),
        ValueError,
        r"targets / 255; .*ignore_index=255$",
        (BINARY, (COLUMN, 255 * LABELS.to(torch.uint8) / 255)),
    ),
    (
        "-100 beside another id to ignore",
        {**MULTI, "ignore_index": -1},
        (WIDE, torch.where(IDS == 0, -100, IDS)),
        ValueError,
        "ignore_index=-100$",
        ({**MULTI, "ignore_index": -100}, (WIDE, torch.where(IDS == 0, -100, IDS))),
    ),
    (
        "labels -1 and 1",
        BINARY,
        (COLUMN, 2 * LABELS - 1),
        ValueError,
        r"\(targets > 0\).long\(\); .*ignore_index=-1",
        (BINARY, (COLUMN, (2 * LABELS - 1 > 0).long())),
    ),
    (
        "float labels -1 and 1",
        BINARY,
        (COLUMN, 2.0 * LABELS - 1),
        ValueError,
        r"\(targets > 0\).long\(\)",
        (BINARY, (COLUMN, (2 * LABELS - 1 > 0).long())),
    ),
    (
        "several labels -1 and 1",
        SEVERAL,
        (WIDE, 2 * ONE_HOT - 1),
        ValueError,
        r"\(targets > 0\).long\(\)",
        (SEVERAL, (WIDE, ONE_HOT)),
    ),
    (
        "an id to ignore",
        MULTI,
        (WIDE, IDS - 1),
        ValueError,
        "ignore_index=-1$",
        ({**MULTI, "ignore_index": -1}, (WIDE, IDS - 1)),
    ),
]

SOFTMAX: list[Mistake] = [
    (
        "one-hot",
        {},
        (WIDE, ONE_HOT),
        ValueError,
        r"targets.argmax\(1\), .*SigmoidFocalLoss",
        ({}, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot floats",
        {},
        (WIDE, ONE_HOT.float()),
        TypeError,
        r"targets.argmax\(1\), .*SigmoidFocalLoss",
        ({}, (WIDE, ONE_HOT.argmax(1))),
    ),
    (
        "one-hot images",
        {},
        (torch.randn(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).long()),
        ValueError,
        r"targets.argmax\(1\)",
        ({}, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long())),
    ),
    ("ids [N, 1]", {}, (WIDE, IDS[:, None]), ValueError, r"targets.squeeze\(1\)", ({}, (WIDE, IDS))),
    (
        "masks [N, 1, H, W]",
        {},
        (torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)),
        TypeError,
        r"targets.squeeze\(1\).long\(\)",
        ({}, (torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long())),
    ),
    ("float ids", {}, (WIDE, IDS.float()), TypeError, r"targets.long\(\)", ({}, (WIDE, IDS))),
    (
        "one-hot flags",
        {},
        (WIDE, ONE_HOT.bool()),
        TypeError,
        r"targets.int\(\).argmax\(1\)",
        ({}, (WIDE, ONE_HOT.bool().int().argmax(1))),
    ),
    (
        "float ids [N, 1]",
        {},
        (WIDE, IDS[:, None].float()),
        TypeError,
        r"targets.squeeze\(1\).long\(\)$",
        ({}, (WIDE, IDS[:, None].float().squeeze(1).long())),
    ),
    (
        "classes last",
        {},
        (IMAGES.movedim(1, -1), MASKS),
        ValueError,
        r"logits.movedim\(-1, 1\)$",
        ({}, (IMAGES.movedim(1, -1).movedim(-1, 1), MASKS)),
    ),
    (
        "sequences of float ids",
        {},
        (WIDE.reshape(2, 4, 3), IDS.reshape(2, 4).float()),
        TypeError,
        r"logits.movedim\(-1, 1\) and targets.long\(\)$",
        ({}, (WIDE.reshape(2, 4, 3).movedim(-1, 1), IDS.reshape(2, 4).float().long())),
    ),
    ("one logit a row", {}, (COLUMN[:, 0], LABELS), ValueError, "SigmoidFocalLoss", ({}, (PAIR, LABELS))),
    ("integer logits", {}, (WIDE.long(), IDS), TypeError, "pass raw scores, not predictions", ({}, (WIDE, IDS))),
    ("an id to ignore", {}, (WIDE, IDS - 1), ValueError, "ignore_index=-1$", ({"ignore_index": -1}, (WIDE, IDS - 1))),
]

SIGMOID: list[Mistake] = [
    (
        "class ids",
        {},
        (WIDE, IDS),
        ValueError,
        r"for class ids use SoftmaxFocalLoss, or make labels with one_hot\(targets, 3\)",
        ({}, (WIDE, F.one_hot(IDS, 3))),
    ),
    (
        "two logits",
        {},
        (PAIR, LABELS),
        ValueError,
        r"one logit, logits\[:, 1\] - logits\[:, 0\]",
        ({}, (PAIR[:, 1] - PAIR[:, 0], LABELS)),
    ),
    (
        "masks",
        {},
        (IMAGES, MASKS),
        ValueError,
        r"one_hot\(targets, 3\).movedim\(-1, 1\)$",
        ({}, (IMAGES, F.one_hot(MASKS, 3).movedim(-1, 1))),
    ),
    (
        "masks beside classes that are last",
        {},
        (IMAGES.movedim(1, -1), MASKS),
        ValueError,
        r"SoftmaxFocalLoss\(...\)\(logits.movedim\(-1, 1\), targets\), .*one_hot\(targets, 3\)$",
        ({}, (IMAGES.movedim(1, -1), F.one_hot(MASKS, 3))),
    ),
    (
        "float ids",
        {},
        (WIDE, IDS.float()),
        ValueError,
        r"one_hot\(targets.long\(\), 3\)$",
        ({}, (WIDE, F.one_hot(IDS.float().long(), 3))),
    ),
    (
        "labels in another layout",
        {},
        (IMAGES, (IMAGES > 0).movedim(1, -1)),
        ValueError,
        r"targets.movedim\(-1, 1\)$",
        ({}, (IMAGES, (IMAGES > 0).movedim(1, -1).movedim(-1, 1))),
    ),
    (
        "logits in another layout",
        {},
        (IMAGES.movedim(1, -1), IMAGES > 0),
        ValueError,
        r"targets.movedim\(1, -1\)$",
        ({}, (IMAGES.movedim(1, -1), (IMAGES > 0).movedim(1, -1))),
    ),
    (
        "labels [N, 1]",
        {},
        (COLUMN[:, 0], LABELS[:, None]),
        ValueError,
        r"targets.squeeze\(-1\)$",
        ({}, (COLUMN[:, 0], LABELS[:, None].squeeze(-1))),
    ),
    (
        "labels [B, T] beside one logit",
        {},
        (COLUMN.reshape(2, 4, 1), LABELS.reshape(2, 4)),
        ValueError,
        r"targets.unsqueeze\(-1\)$",
        ({}, (COLUMN.reshape(2, 4, 1), LABELS.reshape(2, 4).unsqueeze(-1))),
    ),
    (
        "-100",
        {},
        (COLUMN[:, 0], torch.where(IDS == 0, -100, LABELS)),
        ValueError,
        "ignore_index=-100$",
        ({"ignore_index": -100}, (COLUMN[:, 0], torch.where(IDS == 0, -100, LABELS))),
    ),
    (
        "255",
        {},
        (COLUMN[:, 0], torch.where(IDS == 0, 255, LABELS)),
        ValueError,
        "ignore_index=255$",
        ({"ignore_index": 255}, (COLUMN[:, 0], torch.where(IDS == 0, 255, LABELS))),
    ),
    (
        "masks of 255",
        {},
        (COLUMN[:, 0], 255 * LABELS),
        ValueError,
        "targets / 255;",
        ({}, (COLUMN[:, 0], 255 * LABELS / 255)),
    ),
    ("labels [N]", {}, (COLUMN, LABELS), ValueError, r"targets.unsqueeze\(1\)", ({}, (COLUMN, LABELS.unsqueeze(1)))),
    (
        "labels -1 and 1",
        {},
        (COLUMN, (2 * LABELS - 1)[:, None]),
        ValueError,
        r"\(targets > 0\).long\(\)",
        ({}, (COLUMN, LABELS[:, None])),
    ),
    (
        "integer logits",
        {},
        (WIDE.long(), ONE_HOT),
        TypeError,
        "pass raw scores, not predictions",
        ({}, (WIDE, ONE_HOT)),
    ),
]
