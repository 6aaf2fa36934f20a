"""Augmentation: what does a set add to real images?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import torch

from eval.baselines import TENTH, first_of_each_class
from eval.metrics import Column, Metric, Subject
from synth.data import ImageSet


def augmentation(subject: Subject) -> dict[str, list[float]]:
    """Accuracies by classifier seed, trained on real and synthetic images together.

    all: with the whole real training split. tenth: with the first tenth of each of its classes.
    Both sets are joined and shuffled as the protocol does; no share is set aside for real images.
    """
    real = subject.real.train
    parts = {"all": real, "tenth": first_of_each_class(real, TENTH)}
    return {name: subject.score(_union(part, subject.images)) for name, part in parts.items()}


def _union(real: ImageSet, images: ImageSet) -> ImageSet:
    return replace(
        real,
        images=torch.cat([real.images, images.images]),
        labels=torch.cat([real.require_labels(), images.require_labels()]),
    )


def _mean(part: str) -> Callable[..., float]:
    return lambda found, _: mean(found[part])


def _gain(part: str, kind: str) -> Callable[..., float | None]:
    """Over the baseline of this kind, where it has been scored."""
    return lambda found, scores: mean(found[part]) - scores[kind] if kind in scores else None


ALL = "accuracy when trained on the set and on the real training split"
PART = "accuracy when trained on the set and on the first tenth of each class of that split"
GAIN = "what this adds to those real images alone, in points"

METRIC = Metric(
    name="augmentation",
    key="augmentation",
    doc="""The naive augmentation score of Ravuri & Vinyals 2019 (arXiv:1905.10887): the plain union
    of both sets, and the protocol's own number of steps. The gains are over *real* and over *real,
    a tenth*. The generator (and the labeller of pseudo-labels) learned from the whole training
    split all the same. So this is what a set is worth to somebody who has it and few real images,
    and not what a generator gives that was trained on few. It trains twice as many classifiers
    again.""",
    columns=(
        Column("augmented", "with real %", "%", ALL, _mean("all")),
        Column("augmented_gain", "gain", "points", GAIN, _gain("all", "real")),
        Column("augmented_tenth", "with a tenth %", "%", PART, _mean("tenth")),
        Column("augmented_tenth_gain", "gain on it", "points", GAIN, _gain("tenth", "real-tenth")),
    ),
    compute=augmentation,
    position=60,
    default=False,
    feature_space=None,
    # Random labels, and real images again, add nothing to real ones.
    applies_to=lambda entry: entry.labels != "random" and entry.kind != "copier",
)
