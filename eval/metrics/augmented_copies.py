"""Augmented copies: does a set hold training images that were moved, recoloured or inverted?

The near copies of `memorisation` must lie close to a training image. An augmented copy often does
not. So this metric also looks at views of each training image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.metrics import Column, Metric, Subject
from eval.metrics.memorisation import NEIGHBOURS, memorisation
from synth.data import ImageSet, unit_from_uint8
from synth.ops.augment import augment, draw_numbers
from synth.ops.policies import POLICIES

POLICY = "geometry-colour-v1"
VIEWS = 16  # of each training image, and as many of its inverse
PER_CLASS = 500  # images of the set, and of the held-out ones, that are looked at
BLOCK = 4096  # training images whose views are compared at once


def nearest_view(training: Tensor, queries: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`nearest_training`, where the distance to a training image is that to the nearest of its
    views: the image itself and `VIEWS` random changes of it, and the inverses of all these.

    Images are uint8 (N, 3, H, W).
    """
    rows, random = unit_from_uint8(queries).flatten(1), torch.Generator().manual_seed(0)
    best, index = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(training), BLOCK):
        squares = _nearest_squares(rows, unit_from_uint8(training[start : start + BLOCK]), random)
        candidates = torch.arange(start, start + squares.shape[1]).expand(len(rows), -1)
        best, index = torch.cat([best, squares], 1), torch.cat([index, candidates], 1)
        best, order = best.topk(min(NEIGHBOURS, best.shape[1]), largest=False)
        index = index.gather(1, order)
    distances = best.clamp(min=0).sqrt()
    nearest, mean = distances[:, 0], distances.mean(1)
    ratios = torch.where(mean > 0, nearest / mean, 1)
    return nearest.numpy(), ratios.numpy(), index[:, 0].numpy()


def _nearest_squares(rows: Tensor, images: Tensor, random: torch.Generator) -> Tensor:
    """Squared distances (Q, N) of queries (Q, D) to the nearest view of each image (N, 3, H, W)."""
    squares = torch.full((len(rows), len(images)), torch.inf)
    own, sums = rows.square().sum(1, keepdim=True), rows.sum(1, keepdim=True)
    for view in range(1 + VIEWS):
        numbers = draw_numbers(len(images), random)
        changed = augment(images, POLICIES.find(POLICY), numbers) if view else images
        # |q - v|² = q² + v² - 2qv, and with 1 - v in place of v it needs the same product
        views = changed.flatten(1)
        products = rows @ views.T
        squares = squares.minimum(own + views.square().sum(1) - 2 * products)
        squares = squares.minimum(own + (1 - views).square().sum(1) - 2 * (sums - products))
    return squares


def augmented_copies(subject: Subject) -> dict[str, Any]:
    """`memorisation` by `nearest_view`, for the first images of each class."""
    held_out, synthetic = _first(subject.real.test), _first(subject.images)
    return memorisation(subject.real.train.images, held_out, synthetic, nearest_view)._asdict()


def _first(images: ImageSet) -> Tensor:
    labels = images.require_labels()
    kept = [(labels == label).nonzero().flatten()[:PER_CLASS] for label in labels.unique()]
    return images.images[torch.cat(kept)]


def _flag(found: list[dict[str, Any]]) -> str | None:
    return "augmented copies" if any(each["flagged"] for each in found) else None


DOC = "share of images that are unusually near to a view of one training image"

METRIC = Metric(
    name="augmented-copies",
    key="augmented_copies",
    doc=f"""As near copies in pixels, with {VIEWS} views of each training image, changed at random
    by `{POLICY}`, and all inverses. The distance to a training image is that to its nearest view.
    The first {PER_CLASS} images of each class are looked at, of the set and of the test split. A
    few views find a part of the copies alone. **flag**: as for near copies.""",
    columns=(Column("augmented_copies", "augmented copies %", "%", DOC, "share"),),
    compute=augmented_copies,
    position=45,
    default=False,
    feature_space=None,
    flag=_flag,
)
