"""The baselines that stand beside every score, in one table: sets to train on that need no run.

Those that need one (an unconditional generator with pseudo-labels or random labels) are ordinary
synthetic sets; `eval.evaluate` has them made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from synth.base.registry import Registry
from synth.data import TENTH, ImageSet, first_of_each_class

PCA_COMPONENTS = 100


def real_same_size(real: ImageSet, per_class: int) -> ImageSet:
    """A balanced part of the real training split with `per_class` images of each class.

    Where a class has fewer, all of it is taken as often as it goes, and the rest is drawn.
    """
    random = np.random.default_rng([0, *b"same size"])

    def pick(members: np.ndarray) -> np.ndarray:
        whole, rest = divmod(per_class, len(members))
        drawn = random.choice(members, rest, replace=False)
        return np.concatenate([np.tile(members, whole), drawn])

    return _of_each_class(real, pick)


def train_copy(real: ImageSet, per_class: int) -> ImageSet:
    """Real training images drawn with replacement, `per_class` of each class.

    What a generator would return that had learned its training images by heart: its score is high,
    and `eval.metrics.memorisation` must catch it.
    """
    random = np.random.default_rng([0, *b"copier"])
    return _of_each_class(real, lambda members: random.choice(members, per_class))


def _of_each_class(real: ImageSet, pick: Callable[[np.ndarray], np.ndarray]) -> ImageSet:
    """The images that `pick` takes from each class. It maps indices to indices."""
    labels = real.require_labels()
    members = (np.flatnonzero(labels.numpy() == label) for label in range(len(real.classes)))
    chosen = torch.from_numpy(np.concatenate([pick(indices) for indices in members]))
    return replace(real, images=real.images[chosen], labels=labels[chosen])


def pca_gaussian(real: ImageSet, per_class: int) -> ImageSet:
    """Samples of one Gaussian per class, in the space of the first 100 principal components.

    The plainest class-conditional generator: scikit-learn's PCA of the training pixels, then the
    mean and covariance of each class; samples are mapped back to pixels and clipped.
    """
    labels = real.require_labels().numpy()
    pixels = real.images.flatten(1).numpy().astype(np.float32)
    components = min(PCA_COMPONENTS, len(pixels) - 1)
    pca = PCA(components, svd_solver="covariance_eigh").fit(pixels)
    codes = pca.transform(pixels)
    random = np.random.default_rng([0, *b"pca"])
    images: list[Tensor] = []
    for label in range(len(real.classes)):
        members = codes[labels == label].astype(np.float64)
        covariance = np.cov(members, rowvar=False) if len(members) > 1 else np.eye(components)
        samples = random.multivariate_normal(
            members.mean(0), np.atleast_2d(covariance), per_class, method="eigh"
        )
        restored = pca.inverse_transform(samples.astype(np.float32))
        images.append(torch.from_numpy(restored.round().clip(0, 255).astype(np.uint8)))
    drawn = torch.cat(images).view(-1, *real.images.shape[1:])
    made = torch.arange(len(real.classes)).repeat_interleave(per_class)
    return replace(real, images=drawn, labels=made)


# The table


@dataclass(frozen=True)
class Baseline:
    """A row to read the others by; it follows from the real training split."""

    name: str  # as it stands in the leaderboard
    build: Callable[[ImageSet, int], ImageSet]  # real training split, images per class → the set
    metrics: frozenset[str] | None = None  # those that mean something for it; None: all
    calibrates: bool = False  # True: its metrics are distances between its own parts
    balanced: bool = True  # False: it has a size of its own, whatever is asked for
    streams: bool = False  # True: it stands beside protocols that draw fresh samples, too
    needs: str | None = None  # a metric without which it tells nothing
    shown: bool = False  # True: its samples may be shown; real images may not


# The key is the `kind` in records.
BASELINES: Registry[Baseline] = Registry(
    "baseline",
    "eval.baselines",
    {
        "real": Baseline(
            "real",
            lambda real, per_class: real,
            metrics=frozenset({"fidelity", "inception"}),
            calibrates=True,
            balanced=False,
            streams=True,
        ),
        "real-same-size": Baseline("real, same size", real_same_size, metrics=frozenset()),
        "pca-gaussian": Baseline("PCA + Gaussian per class", pca_gaussian, shown=True),
        "copier": Baseline("copier", train_copy),
        "real-tenth": Baseline(
            "real, a tenth",
            lambda real, per_class: first_of_each_class(real, TENTH),
            metrics=frozenset(),
            balanced=False,
            needs="augmentation",
        ),
    },
)
