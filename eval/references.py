"""Ceilings and floors that stand beside every score: sets to train on that need no generator.

The references that need one (an unconditional generator with pseudo-labels or random labels) are
ordinary synthetic sets, which `scoring.py` has made.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from synth.data import ImageSet

PCA_COMPONENTS = 100


def real_same_size(real: ImageSet, per_class: int, seed: int = 0) -> ImageSet:
    """A balanced part of the real training split with `per_class` images of each class.

    Where a class has fewer, all of it is taken as often as it goes, and the rest is drawn.
    """
    labels = real.require_labels().numpy()
    random = np.random.default_rng([seed, *b"same size"])
    picks = []
    for label in range(len(real.classes)):
        members = np.flatnonzero(labels == label)
        whole, rest = divmod(per_class, len(members))
        picks += [np.tile(members, whole), random.choice(members, rest, replace=False)]
    order = torch.from_numpy(np.concatenate(picks))
    return ImageSet(
        real.images[order], torch.from_numpy(labels)[order], real.classes, real.name, "train"
    )


def pca_gaussian(real: ImageSet, per_class: int, seed: int = 0) -> ImageSet:
    """Samples of one Gaussian per class, in the space of the first 100 principal components.

    The plainest class-conditional generator: scikit-learn's PCA of the training pixels, then the
    mean and covariance of each class; samples are mapped back to pixels and clipped.
    """
    labels = real.require_labels().numpy()
    pixels = real.images.flatten(1).numpy().astype(np.float32)
    components = min(PCA_COMPONENTS, len(pixels) - 1)
    pca = PCA(components, svd_solver="covariance_eigh").fit(pixels)
    codes = pca.transform(pixels)
    random = np.random.default_rng([seed, *b"pca"])
    images: list[Tensor] = []
    for label in range(len(real.classes)):
        members = codes[labels == label].astype(np.float64)
        covariance = np.cov(members, rowvar=False) if len(members) > 1 else np.eye(components)
        samples = random.multivariate_normal(
            members.mean(0), np.atleast_2d(covariance), per_class, method="eigh"
        )
        restored = pca.inverse_transform(samples.astype(np.float32))
        images.append(torch.from_numpy(restored.round().clip(0, 255).astype(np.uint8)))
    return ImageSet(
        torch.cat(images).view(-1, *real.images.shape[1:]),
        torch.arange(len(real.classes)).repeat_interleave(per_class),
        real.classes,
        real.name,
        "train",
    )
