"""The baselines that stand beside every score, in one table: sets to train on that need no run.

Those that need one (an unconditional generator with pseudo-labels or random labels) are ordinary
synthetic sets; `eval.evaluate` has them made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from eval.protocols import Protocol
from synth.base.registry import Registry
from synth.data import SIZE, TENTH, ImageSet, first_of_each_class, uint8_from_unit, unit_from_uint8
from synth.generation import Classify, ShortClass
from synth.ops.augment import augment, draw_numbers
from synth.ops.policies import POLICIES

PCA_COMPONENTS = 100
POLICY = "digits-v1"  # of the augmented real images
BLOCK = 1000  # images augmented at once
TRIES = 50  # samples of PCA per image, before synth gives up on a class


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


def real_augmented(real: ImageSet, per_class: int) -> ImageSet:
    """Real training images drawn with replacement, each changed at random by the policy `POLICY`.

    What a user of the real images would do instead of training a generator. `memorisation` must
    catch it, too.
    """
    copies, policy = train_copy(real, per_class), POLICIES.find(POLICY)
    random = torch.Generator().manual_seed(0)
    images = [
        uint8_from_unit(augment(unit_from_uint8(part), policy, draw_numbers(len(part), random)))
        for part in copies.images.split(BLOCK)
    ]
    return replace(copies, images=torch.cat(images))


def no_generator(real: ImageSet, per_class: int, teacher: Classify) -> ImageSet:
    """The images of `real_augmented`, labelled by the teacher."""
    return _relabel(real_augmented(real, per_class), teacher)


def pca_gaussian(real: ImageSet, per_class: int) -> ImageSet:
    """Samples of one Gaussian per class, in the space of the first 100 principal components.

    The plainest class-conditional generator: scikit-learn's PCA of the training pixels, then the
    mean and covariance of each class; samples are mapped back to pixels and clipped.
    """
    draw = _pca_sampler(real, np.random.default_rng([0, *b"pca"]))
    classes = range(len(real.classes))
    return _of_classes(real, [draw(label, per_class) for label in classes])


def pca_relabelled(real: ImageSet, per_class: int, teacher: Classify) -> ImageSet:
    """The images of `pca_gaussian`, labelled by the teacher."""
    return _relabel(pca_gaussian(real, per_class), teacher)


def pca_filtered(real: ImageSet, per_class: int, teacher: Classify) -> ImageSet:
    """Samples as in `pca_gaussian`, without those that the teacher takes for another class.

    Raises `ShortClass` if a class is not full after `TRIES` samples per image.
    """
    draw = _pca_sampler(real, np.random.default_rng([0, *b"pca filtered"]))
    found = []
    for label, name in enumerate(real.classes):
        kept = torch.empty(0, *real.images.shape[1:], dtype=torch.uint8)
        for _ in range(TRIES):
            made = draw(label, per_class)
            kept = torch.cat([kept, made[teacher(made).argmax(1) == label]])[:per_class]
            if len(kept) == per_class:
                break
        else:
            raise ShortClass(f"the teacher takes too few samples of PCA for class {name}")
        found.append(kept)
    return _of_classes(real, found)


def _pca_sampler(real: ImageSet, random: np.random.Generator) -> Callable[[int, int], Tensor]:
    """(class, count) → images uint8 (count, 3, 32, 32) of that class's Gaussian."""
    labels = real.require_labels().numpy()
    pixels = real.images.flatten(1).numpy().astype(np.float32)
    components = min(PCA_COMPONENTS, len(pixels) - 1)
    # Beyond 32×32 the covariance of all pixels would take minutes and gigabytes
    solver = "covariance_eigh" if real.side <= SIZE else "randomized"
    pca = PCA(components, svd_solver=solver, random_state=0).fit(pixels)
    codes = pca.transform(pixels)

    def draw(label: int, count: int) -> Tensor:
        members = codes[labels == label].astype(np.float64)
        covariance = np.cov(members, rowvar=False) if len(members) > 1 else np.eye(components)
        samples = random.multivariate_normal(
            members.mean(0), np.atleast_2d(covariance), count, method="eigh"
        )
        restored = pca.inverse_transform(samples.astype(np.float32))
        images = torch.from_numpy(restored.round().clip(0, 255).astype(np.uint8))
        return images.view(-1, *real.images.shape[1:])

    return draw


def _of_classes(real: ImageSet, images: Sequence[Tensor]) -> ImageSet:
    """Images of class 0, 1, … as one set."""
    counts = torch.tensor([len(of_class) for of_class in images])
    labels = torch.arange(len(images)).repeat_interleave(counts)
    return replace(real, images=torch.cat(list(images)), labels=labels)


def _relabel(images: ImageSet, teacher: Classify) -> ImageSet:
    """Raises `ShortClass` if the teacher leaves a class without an image."""
    labels = teacher(images.images).argmax(1)
    counts = labels.bincount(minlength=len(images.classes))
    if not counts.all():
        name = images.classes[int(counts.argmin())]
        raise ShortClass(f"the teacher takes no image for class {name}")
    return replace(images, labels=labels)


# The table


@dataclass(frozen=True)
class Baseline:
    """A row to read the others by; it follows from the real training split."""

    name: str  # as it stands in the leaderboard
    build: Callable[..., ImageSet]  # real training split, images per class → the set
    needs_teacher: bool = False  # True: the teacher is a third argument of `build`
    by_teacher: bool = False  # True: its classifiers are trained as the teacher is
    metrics: frozenset[str] | None = None  # those that mean something for it; None: all
    calibrates: bool = False  # True: its metrics are distances between its own parts
    balanced: bool = True  # False: it has a size of its own, whatever is asked for
    streams: bool = False  # True: it stands beside protocols that draw fresh samples, too
    needs: str | None = None  # a metric without which it tells nothing
    shown: bool = False  # True: its samples may be shown; real images may not

    def stands_beside(self, protocol: Protocol, metrics: Sequence[str]) -> bool:
        """True if it says something in a table of this protocol with these metrics."""
        if self.by_teacher and protocol.teacher in (None, protocol.name):  # the same as *real*
            return False
        if self.needs_teacher and protocol.teacher is None:
            return False
        needed = self.needs is None or self.needs in metrics
        return needed and (protocol.data == "disk" or self.streams)


# The key is the `kind` in records.
BASELINES: Registry[Baseline] = Registry(
    "baseline",
    "eval.baselines",
    Baseline,
    {
        "real": Baseline(
            "real",
            lambda real, per_class: real,
            metrics=frozenset({"fidelity", "inception"}),
            calibrates=True,
            balanced=False,
            streams=True,
        ),
        "real-augmented": Baseline("real + augmentation", real_augmented),
        "teacher": Baseline(
            "teacher",
            lambda real, per_class: real,
            by_teacher=True,
            metrics=frozenset(),
            balanced=False,
            streams=True,
        ),
        "no-generator": Baseline(
            "no generator, labels of the teacher",
            no_generator,
            needs_teacher=True,
            metrics=frozenset(),
        ),
        "real-same-size": Baseline("real, same size", real_same_size, metrics=frozenset()),
        "pca-gaussian": Baseline("PCA + Gaussian per class", pca_gaussian, shown=True),
        "pca-filtered": Baseline(
            "PCA + Gaussian, filtered by the teacher",
            pca_filtered,
            needs_teacher=True,
            metrics=frozenset(),
        ),
        "pca-relabelled": Baseline(
            "PCA + Gaussian, labels of the teacher",
            pca_relabelled,
            needs_teacher=True,
            metrics=frozenset(),
        ),
        "copier": Baseline("copier", train_copy, needs="memorisation"),
        "real-tenth": Baseline(
            "real, a tenth",
            lambda real, per_class: first_of_each_class(real, TENTH),
            metrics=frozenset(),
            balanced=False,
            needs="augmentation-tenth",
        ),
    },
)
