"""Memorisation: does a generator return its training images?

All metrics here compare synthetic with held-out real images. The held-out images must share nothing
with the training images: for SVHN, they must show other houses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import betabinom, mannwhitneyu
from torch import Tensor

from eval.metrics import Column, Metric, Subject
from synth.data import unit_from_uint8

NEIGHBOURS = 50  # Carlini et al. 2023
QUANTILE = 0.001  # this share of held-out images are near copies by definition
LEVEL = 1e-6  # a flag needs a smaller p-value
EXCESS = 10  # and at least this many times the expected share
QUERIES, REFERENCES = 1000, 8192  # rows compared at once: 100 MB of pixels


# Training images and N queries → distances, ratios and indices (N,) of the nearest
Nearest = Callable[[Tensor, Tensor], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Memorisation(NamedTuple):
    """How near synthetic images are to training images; see `memorisation`."""

    share: float  # of near copies among the synthetic images, in [0, 1]
    expected_share: float  # the same, if synthetic images were like held-out ones
    p_value: float  # the probability of this share or a larger one in that case
    closer: float  # probability that a synthetic image is nearer than a held-out one, 0.5 if alike
    flagged: bool


def memorisation(
    training: Tensor, held_out: Tensor, synthetic: Tensor, nearest: Nearest | None = None
) -> Memorisation:
    """Compares synthetic with held-out real images by their distances to the training images.

    Each is either uint8 images (N, 3, 32, 32), compared as pixels in [0, 1], or float features
    (N, D). Distances are Euclidean. `training` is what the generator was trained on.

    The *ratio* of an image is its distance to the nearest training image over the mean distance
    to its 50 nearest (Carlini et al. 2023, arXiv:2301.13188, section 5.1). A plain distance would
    call every smooth image a copy, because smooth images are near to everything. Carlini et al.
    choose the threshold by hand. Here held-out real images set it, as in Meehan et al. 2020
    (arXiv:2004.05675): a *near copy* has a ratio no greater than the j-th smallest of M held-out
    images, with j = 0.001 (M + 1), at least 1. Without memorisation the expected share of near
    copies is therefore j / (M + 1).

    The p-value is one-sided. The number of N exchangeable images below an order statistic is
    beta-binomial(N; j, M + 1 - j), which includes the uncertainty of the threshold. Synthetic
    images are never quite exchangeable with real ones, so a flag also needs ten times the expected
    share. cdcgan and dcgan had 1.1 and 0.7 times that share after 1 M images (svhn-part, pixels,
    50,000 images, held out: its 8,000 test images).

    nearest: by default `nearest_training`.

    `closer` is the U statistic of Meehan et al. as a probability. Smooth images raise it, so it is
    not part of the flag.
    """
    nearest = nearest or nearest_training
    held_out_distances, held_out_ratios, _ = nearest(training, held_out)
    distances, ratios, _ = nearest(training, synthetic)
    rank = max(1, round(QUANTILE * (len(held_out_ratios) + 1)))
    threshold = np.sort(held_out_ratios)[rank - 1]
    copies = int(((ratios <= threshold) & (ratios < 1)).sum())  # 1: as near as all the others
    chance = betabinom(len(ratios), rank, len(held_out_ratios) + 1 - rank)
    tail = chance.pmf(np.arange(copies, len(ratios) + 1))  # sf = 1 - cdf loses small values
    p_value = min(1.0, float(tail.sum()))
    wins = mannwhitneyu(held_out_distances, distances, method="asymptotic").statistic
    share, expected = copies / len(ratios), rank / (len(held_out_ratios) + 1)
    return Memorisation(
        share=share,
        expected_share=expected,
        p_value=p_value,
        closer=float(wins) / (len(distances) * len(held_out_distances)),
        flagged=p_value < LEVEL and share >= EXCESS * expected,
    )


def nearest_training(
    training: Tensor, queries: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest training image of each of N queries, as in `memorisation`.

    Returns its distance, float32 (N,), its ratio, float32 (N,) in [0, 1], and its index, int64
    (N,). The ratio of an exact copy is 0.
    """
    blocks = [_nearest_of_block(training, rows) for rows in queries.split(QUERIES)]
    distances, ratios, nearest = map(torch.cat, zip(*blocks, strict=True))
    return distances.cpu().numpy(), ratios.cpu().numpy(), nearest.cpu().numpy()


def _nearest_of_block(training: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = _rows(queries)
    best = torch.empty(len(rows), 0, device=rows.device)
    index = best.long()
    for start in range(0, len(training), REFERENCES):
        found = torch.cdist(rows, _rows(training[start : start + REFERENCES]))
        candidates = torch.arange(start, start + found.shape[1], device=rows.device)
        best = torch.cat([best, found], 1)
        index = torch.cat([index, candidates.expand(len(rows), -1)], 1)
        best, order = best.topk(min(NEIGHBOURS, best.shape[1]), largest=False)
        index = index.gather(1, order)
    # cdist uses a matrix product, which gives a copy a distance of about 0.01 instead of 0.
    distances = (rows - _rows(training[index[:, 0]])).norm(dim=1)
    mean = torch.cat([distances[:, None], best[:, 1:]], 1).mean(1)
    # Where all 50 neighbours are duplicates at distance 0, no single one was copied.
    ratios = torch.where(mean > 0, distances / mean, 1)
    return distances, ratios.clamp(max=1), index[:, 0]


def _rows(images: Tensor) -> Tensor:
    """uint8 images (N, …) → pixels in [0, 1], float32 (N, D); features stay as they are."""
    rows = unit_from_uint8(images) if images.dtype == torch.uint8 else images.float()
    return rows.flatten(1)


def closest_pairs(training: Tensor, synthetic: Tensor, count: int) -> np.ndarray:
    """Indices (count, 2) of synthetic and training image, by ascending ratio."""
    _, ratios, nearest = nearest_training(training, synthetic)
    order = np.argsort(ratios, kind="stable")[:count]
    return np.stack([order, nearest[order]], axis=1)


def near_copies(subject: Subject) -> dict[str, dict[str, Any]]:
    """`memorisation` in pixels and in features; the test split is the held-out part."""
    real = subject.real
    spaces = {
        "pixels": (real.train.images, real.test.images, subject.images.images),
        "features": (*real.features(), subject.features()),
    }

    def compare(space: str, train: Tensor, held_out: Tensor, synthetic: Tensor) -> Memorisation:
        def nearest(training: Tensor, queries: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            find = partial(nearest_training, training, queries)
            return real.once(f"nearest, {space}", find) if queries is held_out else find()

        return memorisation(train, held_out, synthetic, nearest)

    return {space: compare(space, *images)._asdict() for space, images in spaces.items()}


def _flag(found: list[dict[str, Any]]) -> str | None:
    spaces = {space for copies in found for space in copies if copies[space]["flagged"]}
    return f"near copies ({', '.join(sorted(spaces, reverse=True))})" if spaces else None


DOC = "share of images that are unusually near to one training image, relative to its neighbours"

METRIC = Metric(
    name="memorisation",
    key="memorisation",
    doc="""The ratio of an image is its distance to the nearest training image over the mean
    distance to the 50 nearest (after Carlini et al. 2023, arXiv:2301.13188). An image is a near
    copy if its ratio is among the smallest 0.1 % of the ratios of held-out real images (the test
    split). A generator that memorises nothing therefore has about 0.1 % of near copies. **flag**:
    p < 1e-6 under that assumption, and at least ten times the expected share, in pixels or in
    features.""",
    columns=tuple(
        Column(f"near_copies_{space}", f"near copies, {space} %", "%", DOC, f"{space}.share")
        for space in ("pixels", "features")
    ),
    compute=near_copies,
    position=40,
    flag=_flag,
)
