"""Diversity: how many modes does each class of a set have?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.metrics import Column, Metric, Subject

BLOCK = 1000  # rows compared at once
BANDWIDTH_IMAGES = 2000  # of each class; enough for a median


def within_class_bandwidths(rows: Tensor, labels: Tensor) -> np.ndarray:
    """The kernel width of each class: half the median distance of two of its real images.

    rows: float (N, D); labels: int64 (N,). Returns float64 (K,) for `within_class_diversity`.
    Raises ValueError if a class has no two different images.
    """
    bandwidths = []
    for label in range(int(labels.max()) + 1):
        members = rows[labels == label][:BANDWIDTH_IMAGES].double()
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
    m. Mean distances and the first-order score with a cosine kernel hardly show such a collapse.

    rows: float (N, D); labels: int64 (N,) in 0..K-1; bandwidths: σ by class, from real images.
    """
    counts = []
    for label, bandwidth in enumerate(bandwidths):
        members = rows[labels == label].double() / bandwidth
        alike = sum(
            float(torch.cdist(block, members).square_().neg_().exp_().sum())
            for block in members.split(BLOCK)
        )
        counts.append(len(members) ** 2 / alike if alike else np.nan)
    return np.array(counts)


def diversity(subject: Subject) -> dict[str, Any]:
    """Modes in the set and in the real training split with the same kernel: mean, by class."""
    real, truth = subject.real.features()[0], subject.real.train.require_labels()
    bandwidths = within_class_bandwidths(real, truth)
    labels = subject.images.require_labels()
    found = within_class_diversity(subject.features(), labels, bandwidths)
    own = within_class_diversity(real, truth, bandwidths)
    return {
        "mean": float(found.mean()),
        "real": float(own.mean()),
        "per_class": found.tolist(),
        "real_per_class": own.tolist(),
    }


DOC = """modes of a class, mean over classes. The best value is that of real images. Fewer modes
are a sign of collapsed classes. More modes are a sign of wrong labels or noise, not of a better
set"""

METRIC = Metric(
    name="diversity",
    key="diversity",
    doc="""Rényi kernel entropy of order 2 with a Gaussian kernel, whose width is half the median
    distance of two real images of the class (Jalali, Li & Farnia 2023).""",
    columns=(
        Column("diversity", "diversity", "{:.1f}", DOC, "mean", real="real_diversity"),
        Column("real_diversity", "real's diversity", "{:.1f}", "that of real images", "real"),
    ),
    compute=diversity,
    position=50,
)
