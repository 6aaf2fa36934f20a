"""More than one number: the figures of a labelled set besides its accuracy, by named groups.

`Metrics` is the schema, and its comments the definitions; a record carries one. A group that was
not asked for, or that means nothing for an entry, is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eval.baselines import first_of_each_class, halves
from eval.classifiers import FixedClassifier
from eval.metrics.distances import features, fid, kid, manifolds, statistics
from eval.metrics.neighbours import (
    Memorisation,
    memorisation,
    within_class_bandwidths,
    within_class_diversity,
)
from synth.base.errors import UsageError
from synth.base.progress import say
from synth.data import ImageSet

GROUPS = ("cas", "gan-test", "augmentation", "fidelity", "memorisation", "diversity")
DEFAULT = tuple(name for name in GROUPS if name != "augmentation")  # that trains twice as much
INCEPTION = "inception"  # a group of its own, for a feature space that costs more
TENTH = 0.1
KID_SUBSET = 1000  # of the smaller set, where that has fewer

Extractor = Callable[[Tensor], Tensor]  # uint8 (N, 3, 32, 32) → float (N, D)
Accuracies = Callable[[ImageSet], list[float]]  # of the protocol's seeds, trained on this set


@dataclass(frozen=True)
class Augmentation:
    """Accuracies by classifier seed, trained on real and synthetic images together.

    The naive augmentation score of Ravuri & Vinyals 2019 (arXiv:1905.10887): the plain union of
    both sets, shuffled as the protocol does, its own number of steps; no share is set aside for
    the real images. To be read against *real* (all) and *real, a tenth* (tenth).
    """

    all: list[float]  # with the whole real training split
    tenth: list[float]  # with the first tenth of each of its classes


@dataclass(frozen=True)
class Fidelity:
    """The set against the real training split, in one feature space."""

    fid: float | None = None  # Heusel et al. 2017, arXiv:1706.08500
    kid: float | None = None  # Bińkowski et al. 2018, arXiv:1801.01401
    kid_std: float | None = None  # over its subsets
    precision: float | None = None  # Kynkäänniemi et al. 2019, arXiv:1904.06991
    recall: float | None = None
    density: float | None = None  # Naeem et al. 2020, arXiv:2002.09797
    coverage: float | None = None


@dataclass(frozen=True)
class NearCopies:
    """Nearness to training images, in pixels or features; see `memorisation`."""

    share: float  # of near copies in the set
    expected_share: float  # of near copies among real images that were not trained on
    p_value: float  # of so large a share, were the set like those
    closer: float  # chance to lie nearer to training images than those do
    flagged: bool


@dataclass(frozen=True)
class Diversity:
    """Modes within a class, in the classifier's features; see `within_class_diversity`."""

    mean: float  # over the classes
    real: float  # the real training split's, at the same bandwidths
    per_class: list[float]
    real_per_class: list[float]


@dataclass(frozen=True)
class Calibration:
    """Distances between real images, to read FID and KID by; `halves` says how they are cut.

    The classifier's feature space knows the training split, both halves alike, and not the test
    split.
    """

    fid_halves: float
    kid_halves: float
    kid_halves_std: float
    fid_test: float  # training split against test split
    kid_test: float
    kid_test_std: float


@dataclass(frozen=True)
class Metrics:
    """The figures of one set. Feature space: the fixed classifier's (64 units before its last
    layer, trained on the real training split with seed 0), under "classifier"; torch-fidelity's
    Inception (2,048), under "inception"."""

    seconds: dict[str, float]  # by group that was measured
    gan_test: float | None = None  # accuracy on the set of the classifier trained on real images:
    # Shmelkov et al. 2018, arXiv:1807.09499; are the labels right?
    augmentation: Augmentation | None = None
    fidelity: dict[str, Fidelity] | None = None  # by feature space
    memorisation: dict[str, NearCopies] | None = None  # "pixels", "features"; test split held out
    diversity: Diversity | None = None
    calibration: dict[str, Calibration] | None = None  # of the reference *real* alone

    @property
    def groups(self) -> list[str]:
        """Those that were measured."""
        return [name for name in (*GROUPS, INCEPTION) if name in self.seconds]

    @property
    def flags(self) -> list[str]:
        """The spaces in which the set holds more near copies than chance and mismatch give."""
        found = self.memorisation or {}
        return [space for space, copies in found.items() if copies.flagged]

    @staticmethod
    def from_json(value: dict[str, Any] | None) -> Metrics | None:
        """The inverse of `dataclasses.asdict`. Raises TypeError for an unknown field."""
        if value is None:
            return None

        def by_space(kind: Any, key: str) -> Any:
            spaces = value.get(key)
            return spaces and {space: kind(**figures) for space, figures in spaces.items()}

        augmentation, diversity = value.get("augmentation"), value.get("diversity")
        return Metrics(
            **{
                **value,
                "augmentation": augmentation and Augmentation(**augmentation),
                "fidelity": by_space(Fidelity, "fidelity"),
                "memorisation": by_space(NearCopies, "memorisation"),
                "diversity": diversity and Diversity(**diversity),
                "calibration": by_space(Calibration, "calibration"),
            }
        )

    def updated(self, newer: Metrics | None) -> Metrics:
        """These figures, with those of `newer` in place of them where it has some."""
        if newer is None:
            return self
        changes: dict[str, Any] = {}
        for name, value in vars(newer).items():
            known = getattr(self, name)
            if isinstance(value, dict):
                changes[name] = {**(known or {}), **value}
            elif value is not None:
                changes[name] = value
        return replace(self, **changes)


def parse_groups(text: str, feature_space: str = "classifier") -> tuple[str, ...]:
    """`all`, or names from `GROUPS` with commas between them; the accuracy is always there.

    feature_space: `inception` adds fidelity in that space, as a group of that name.
    """
    names = GROUPS if text.strip() == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            near = get_close_matches(name, GROUPS) or GROUPS
            raise UsageError(f"--metrics {name}: unknown; did you mean {' or '.join(near)}?")
    if feature_space not in ("classifier", INCEPTION):
        raise UsageError(f"--feature-space {feature_space}: choose classifier or {INCEPTION}")
    if feature_space == INCEPTION and "fidelity" not in names:
        raise UsageError(f"--feature-space {INCEPTION}: goes with --metrics fidelity")
    chosen = tuple(group for group in GROUPS if group == "cas" or group in names)
    return (*chosen, INCEPTION) if feature_space == INCEPTION else chosen


class _Space(NamedTuple):
    """The real images in one feature space."""

    extract: Extractor
    train: Tensor
    test: Tensor


@dataclass(frozen=True)
class RealSide:
    """What sets are measured against: the real splits, and what is seen of them only once."""

    train: ImageSet
    test: ImageSet  # held out; what is measured against it chooses nothing
    classifier: FixedClassifier  # trained on `train`
    inception: Extractor | None = None  # a second feature space

    @cached_property
    def own(self) -> _Space:
        return self._space(lambda images: features(self.classifier, images))

    @cached_property
    def others(self) -> dict[str, _Space]:
        """Inception's space, where there is one."""
        return {} if self.inception is None else {INCEPTION: self._space(self.inception)}

    def _space(self, extract: Extractor) -> _Space:
        return _Space(extract, extract(self.train.images), extract(self.test.images))


def measure(
    images: ImageSet,
    real: RealSide,
    groups: Sequence[str],
    accuracies: Accuracies,
    show: Callable[[Memorisation], None] = lambda found: None,
) -> Metrics:
    """The figures of `groups` (without `cas`) of a labelled set.

    `accuracies` trains and scores the protocol's classifiers on a set; `show` is told of the near
    copies in pixels. A set too small for a figure goes without it.
    """
    labels = images.require_labels()
    start = time.perf_counter()
    needed = {"gan-test", "fidelity", "memorisation", "diversity"} & set(groups)
    seen = real.own.extract(images.images) if needed else torch.empty(0)
    work: dict[str, tuple[str, Callable[[], Any]]] = {
        "gan-test": ("gan_test", lambda: gan_test(real.classifier, seen, labels)),
        "augmentation": ("augmentation", lambda: _augmentation(images, real.train, accuracies)),
        "fidelity": ("fidelity", lambda: {"classifier": fidelity(real.own.train, seen)}),
        INCEPTION: ("fidelity", lambda: {INCEPTION: _inception_fidelity(images, real)}),
        "memorisation": ("memorisation", lambda: _memorisation(images, seen, real, show)),
        "diversity": ("diversity", lambda: _diversity(seen, labels, real)),
    }
    seconds = {"features": time.perf_counter() - start}
    figures: dict[str, Any] = {}
    for group in groups:
        if group in work:
            start = time.perf_counter()
            name, compute = work[group]
            found = _unless_too_small(group, compute)
            known = figures.get(name)  # fidelity, in the other space
            figures[name] = {**known, **found} if known and found else found or known
            seconds[group] = time.perf_counter() - start
    return Metrics({name: round(value, 2) for name, value in seconds.items()}, **figures)


def calibrate(real: RealSide) -> Metrics:
    """What a record of the real training split carries: distances between real images."""
    start = time.perf_counter()
    first = halves(real.train)

    def between(space: _Space) -> Calibration:
        parts = (space.train[first], space.train[~first]), (space.train, space.test)
        fids = [fid(statistics(a), statistics(b)) for a, b in parts]
        kids = [kid(a, b, subset_size=_subset(a, b)) for a, b in parts]
        return Calibration(fids[0], *kids[0], fids[1], *kids[1])

    spaces = {"classifier": real.own, **real.others}
    found = _unless_too_small(
        "calibration", lambda: {name: between(space) for name, space in spaces.items()}
    )
    seconds = round(time.perf_counter() - start, 2)  # of all spaces together
    groups = ("fidelity", *real.others)
    return Metrics(dict.fromkeys(groups, seconds), calibration=found)


def gan_test(classifier: FixedClassifier, seen: Tensor, labels: Tensor) -> float:
    """Share of labels that the classifier gives too; `seen`: (N, 64), from `features`."""
    last = classifier.head[-1]
    with torch.inference_mode():
        guesses = last(seen.to(next(last.parameters()).device)).argmax(1).cpu()
    return float((guesses == labels).double().mean())


def fidelity(real: Tensor, synthetic: Tensor) -> Fidelity:
    """All six figures, from features (N, D) and (M, D)."""
    distance = fid(statistics(real), statistics(synthetic))
    kernel = kid(real, synthetic, subset_size=_subset(real, synthetic))
    return Fidelity(distance, *kernel, *manifolds(real, synthetic))


def _inception_fidelity(images: ImageSet, real: RealSide) -> Fidelity:
    space = real.others[INCEPTION]
    return fidelity(space.train, space.extract(images.images))


def _subset(real: Tensor, synthetic: Tensor) -> int:
    return min(KID_SUBSET, len(real), len(synthetic))


def _augmentation(images: ImageSet, real: ImageSet, accuracies: Accuracies) -> Augmentation:
    tenth = first_of_each_class(real, TENTH)
    return Augmentation(accuracies(_union(real, images)), accuracies(_union(tenth, images)))


def _union(real: ImageSet, images: ImageSet) -> ImageSet:
    return replace(
        real,
        images=torch.cat([real.images, images.images]),
        labels=torch.cat([real.require_labels(), images.require_labels()]),
    )


def _memorisation(
    images: ImageSet, seen: Tensor, real: RealSide, show: Callable[[Memorisation], None]
) -> dict[str, NearCopies]:
    pixels = memorisation(real.train.images, real.test.images, images.images)
    show(pixels)
    found = {"pixels": pixels, "features": memorisation(real.own.train, real.own.test, seen)}
    return {
        space: NearCopies(m.share, m.expected_share, m.p_value, m.closer, bool(m.flagged))
        for space, m in found.items()
    }


def _diversity(seen: Tensor, labels: Tensor, real: RealSide) -> Diversity:
    truth = real.train.require_labels()
    bandwidths = within_class_bandwidths(real.own.train, truth)
    found, own = (
        within_class_diversity(rows, targets, bandwidths)
        for rows, targets in ((seen, labels), (real.own.train, truth))
    )
    return Diversity(float(found.mean()), float(own.mean()), found.tolist(), own.tolist())


def _unless_too_small(group: str, compute: Callable[[], Any]) -> Any:
    """What `compute` gives, or None: metrics raise ValueError where images are too few."""
    try:
        return compute()
    except ValueError as error:
        say(f"no figures of {group}: {error}")
        return None
