"""Does a generator return its training images? Distances to them, near copies, diversity.

Everything is measured against held-out real images: what they do, an honest generator may do. They
must share nothing with the training images: for SVHN, be digits of other houses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import betabinom, mannwhitneyu
from torch import Tensor

from synth.data import unit_from_uint8

NEIGHBOURS = 50  # Carlini et al. 2023
QUANTILE = 0.001  # of held-out images are near copies by definition
LEVEL = 1e-6  # chance that exchangeable images are flagged
EXCESS = 10  # a flag needs so many times the expected share
QUERIES, REFERENCES = 1000, 8192  # rows compared at once: 100 MB of pixels
BANDWIDTH_IMAGES = 2000  # of each class, enough for a median


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

    def closest_pairs(self, count: int) -> np.ndarray:
        """Indices (count, 2) of synthetic and training image, the least ratio first."""
        order = np.argsort(self.ratios, kind="stable")[:count]
        return np.stack([order, self.nearest[order]], axis=1)


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


def within_class_bandwidths(rows: Tensor, labels: Tensor) -> np.ndarray:
    """What counts as alike within each class: half the median distance of two of its real images.

    rows: uint8 (N, 3, 32, 32) or float (N, D); labels: int64 (N,). Returns float64 (K,). For
    `within_class_diversity`. Raises ValueError where a class has no two different images.
    """
    bandwidths = []
    for label in range(int(labels.max()) + 1):
        members = _rows(rows[labels == label][:BANDWIDTH_IMAGES]).double()
        distances = torch.pdist(members).cpu().numpy()
        if not len(distances) or not np.median(distances):
            raise ValueError(f"class {label}: no two different images to set its bandwidth by")
        bandwidths.append(np.median(distances) / 2)
    return np.array(bandwidths)


def within_class_diversity(rows: Tensor, labels: Tensor, bandwidths: np.ndarray) -> np.ndarray:
    """The number of modes in each class, float64 (K,) in [1, images of the class]; nan if empty.

    The Rényi kernel entropy score of order 2 (Jalali, Li & Farnia 2023, "An Information-Theoretic
    Evaluation of Generative Models in Learning Multi-modal Distributions", NeurIPS; the Vendi
    score of order 2 of Pasarkar & Dieng 2023, arXiv:2310.12952): 1 / mean k(x, y)² over all pairs,
    with the kernel exp(-|x - y|² / 2σ²). A class that has collapsed onto m images scores at most
    m. The mean distance within a class would hardly show it (ten images have 9/10 of it); nor
    does the first-order score with a cosine kernel, since images of a class point the same way.
    σ is the class's of `within_class_bandwidths`, from real images: what is measured stands next
    to the real images' own diversity at the same σ. Wrong labels raise it: a class of mixed
    contents has more modes.

    rows: uint8 (N, 3, 32, 32) or float (N, D); labels: int64 (N,) in 0..K-1.
    """
    counts = []
    for label, bandwidth in enumerate(bandwidths):
        members = _rows(rows[labels == label]).double() / bandwidth
        alike = sum(
            float(torch.cdist(block, members).square_().neg_().exp_().sum())
            for block in members.split(QUERIES)
        )
        counts.append(len(members) ** 2 / alike if alike else np.nan)
    return np.array(counts)


def _rows(images: Tensor) -> Tensor:
    """uint8 images (N, …) → pixels in [0, 1], float32 (N, D); features stay as they are."""
    rows = unit_from_uint8(images) if images.dtype == torch.uint8 else images.float()
    return rows.flatten(1)
