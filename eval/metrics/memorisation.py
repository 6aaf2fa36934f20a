"""Memorisation: does a generator return its training images?

Everything is measured against held-out real images: what they do, an honest generator may do. They
must share nothing with the training images: for SVHN, be digits of other houses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom, mannwhitneyu
from torch import Tensor

from eval.metrics import Column, Metric, Subject
from synth.data import unit_from_uint8

NEIGHBOURS = 50  # Carlini et al. 2023
QUANTILE = 0.001  # of held-out images are near copies by definition
LEVEL = 1e-6  # chance that exchangeable images are flagged
EXCESS = 10  # a flag needs so many times the expected share
QUERIES, REFERENCES = 1000, 8192  # rows compared at once: 100 MB of pixels


@dataclass(frozen=True)
class Memorisation:
    """How near N synthetic and M held-out images lie to training images; see `memorisation`."""

    distances: np.ndarray  # float32 (N,), to the nearest training image
    held_out_distances: np.ndarray  # float32 (M,)
    nearest: np.ndarray  # int64 (N,), index of that training image
    ratios: np.ndarray  # float32 (N,) in [0, 1], 0 for an exact copy
    threshold: float  # a near copy's ratio is at most this
    near_copies: int
    expected_share: float  # of near copies, when synthetic images are like held-out ones
    p_value: float  # of at least so many near copies, then
    closer: float  # chance that a synthetic image is nearer to training than a held-out one is

    @property
    def share(self) -> float:
        """Of near copies among the synthetic images, in [0, 1]."""
        return self.near_copies / len(self.ratios)

    @property
    def flagged(self) -> bool:
        """More near copies than chance gives, and than a small mismatch of distributions does."""
        return self.p_value < LEVEL and self.share >= EXCESS * self.expected_share


def memorisation(training: Tensor, held_out: Tensor, synthetic: Tensor) -> Memorisation:
    """Compares synthetic with held-out real images by their distances to the training images.

    Each is either uint8 images (N, 3, 32, 32), compared as pixels in [0, 1], or float features
    (N, D); distances are Euclidean. `training` is what the generator was trained on.

    The *ratio* of an image is its distance to the nearest training image over the mean distance
    to its 50 nearest (after Carlini et al. 2023, arXiv:2301.13188, section 5.1, who find extracted
    training images of CIFAR-10 by it). A plain distance would call every smooth image a copy:
    those are near to everything. Where Carlini et al. fix the threshold by hand, here it is
    calibrated as Meehan et al. 2020 (arXiv:2004.05675) calibrate distances, on held-out real
    images: a *near copy* has a ratio no greater than the j-th smallest of M held-out images, with
    j = 0.001 (M + 1), at least 1. So a share j / (M + 1) of near copies is what no memorisation
    gives, near duplicates among real images included.

    The p-value is of the one-sided binomial test, with the uncertainty of the threshold in it:
    the number of exchangeable images below an order statistic is beta-binomial(N; j, M + 1 - j).
    A generator's images are never quite exchangeable with real ones, and in a large set a small
    mismatch is significant. A flag therefore needs p < 1e-6 and ten times the expected share. For
    scale: cdcgan and dcgan after 1 M images had 1.1 and 0.7 times of it (svhn-part, pixels,
    50,000 images, held out: its 8,000 test images).

    `closer` is the U statistic of Meehan et al. 2020 as a probability: 0.5 for images
    like held-out ones, more for nearer ones. Nothing hangs on it, since smooth images raise it.
    """
    queried = [_nearest(training, images) for images in (held_out, synthetic)]
    (held_out_distances, held_out_ratios, _), (distances, ratios, nearest) = queried
    rank = max(1, round(QUANTILE * (len(held_out_ratios) + 1)))
    threshold = np.sort(held_out_ratios)[rank - 1]
    copies = int(((ratios <= threshold) & (ratios < 1)).sum())  # 1: as near as all the others
    chance = betabinom(len(ratios), rank, len(held_out_ratios) + 1 - rank)
    tail = chance.pmf(np.arange(copies, len(ratios) + 1))  # sf is 1 - cdf: no small number
    wins = mannwhitneyu(held_out_distances, distances, method="asymptotic").statistic
    return Memorisation(
        distances=distances,
        held_out_distances=held_out_distances,
        nearest=nearest,
        ratios=ratios,
        threshold=float(threshold),
        near_copies=copies,
        expected_share=rank / (len(held_out_ratios) + 1),
        p_value=min(1.0, float(tail.sum())),
        closer=float(wins) / (len(distances) * len(held_out_distances)),
    )


def _nearest(training: Tensor, queries: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the nearest training image, its ratio and its index: three times (N,)."""
    parts = [_nearest_of_block(training, block) for block in queries.split(QUERIES)]
    distances, ratios, nearest = (
        torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)
    )
    return distances, ratios, nearest


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
    # The matrix product above leaves a copy at about 0.01 rather than at 0.
    distances = (rows - _rows(training[index[:, 0]])).norm(dim=1)
    mean = torch.cat([distances[:, None], best[:, 1:]], 1).mean(1)
    ratios = torch.where(
        mean > 0, distances / mean, 1
    )  # nearest of 50 duplicates: nothing singular
    return distances, ratios.clamp(max=1), index[:, 0]


def _rows(images: Tensor) -> Tensor:
    """uint8 images (N, …) → pixels in [0, 1], float32 (N, D); features stay as they are."""
    rows = unit_from_uint8(images) if images.dtype == torch.uint8 else images.float()
    return rows.flatten(1)


def closest_pairs(training: Tensor, synthetic: Tensor, count: int) -> np.ndarray:
    """Indices (count, 2) of synthetic and training image, the least ratio first."""
    _, ratios, nearest = _nearest(training, synthetic)
    order = np.argsort(ratios, kind="stable")[:count]
    return np.stack([order, nearest[order]], axis=1)


def near_copies(subject: Subject) -> dict[str, dict[str, Any]]:
    """What `memorisation` finds in pixels and in features; the test split is held out."""
    train, test = subject.real.features()
    pixels = (each.images for each in (subject.real.train, subject.real.test, subject.images))
    found = {
        "pixels": memorisation(*pixels),
        "features": memorisation(train, test, subject.features()),
    }
    return {space: {name: getattr(m, name) for name in KEPT} for space, m in found.items()}


def _flag(found: list[dict[str, Any]]) -> str | None:
    spaces = {space for copies in found for space in copies if copies[space]["flagged"]}
    return f"near copies ({', '.join(sorted(spaces, reverse=True))})" if spaces else None


KEPT = ("share", "expected_share", "p_value", "closer", "flagged")  # in a record
DOC = "share of images that stand out as near to one training image, relative to its neighbours"

METRIC = Metric(
    name="memorisation",
    key="memorisation",
    doc="""An image is a near copy if its distance to the nearest training image, over the mean
    distance to the 50 nearest (after Carlini et al. 2023, arXiv:2301.13188), is as small as that of
    the least 0.1 % of held-out real images: the test split. So 0.1 % is what an honest generator
    has. **flag**: p < 1e-6 against that, and ten times the expected share, in either space.""",
    columns=tuple(
        Column(f"near_copies_{space}", f"near copies, {space} %", "%", DOC, f"{space}.share")
        for space in ("pixels", "features")
    ),
    compute=near_copies,
    position=40,
    flag=_flag,
)
