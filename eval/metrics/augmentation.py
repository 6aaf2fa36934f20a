"""Augmentation: what does a set add to real training images?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from eval.metrics import Column, Metric, Subject
from synth.data import TENTH, first_of_each_class


def augmentation(subject: Subject) -> dict[str, list[float]]:
    """Accuracies by classifier seed after training on the union of real and synthetic images.

    all: with the whole real training split. tenth: with the first tenth of each of its classes.
    """
    real, found = subject.real.train, {}
    for name, part in (("all", real), ("tenth", first_of_each_class(real, TENTH))):
        labels = torch.cat([part.require_labels(), subject.images.require_labels()])
        images = torch.cat([part.images, subject.images.images])
        found[name] = subject.score(replace(real, images=images, labels=labels))
    return found


def _mean(part: str) -> Callable[[Any], float]:
    return lambda found: mean(found[part])


ALL = "accuracy after training on the set and the real training split"
PART = "accuracy after training on the set and the first tenth of each class of that split"
GAIN = """this accuracy minus that with the real images alone, in points, with its 95 % interval
over generator runs and classifier seeds"""

METRIC = Metric(
    name="augmentation",
    key="augmentation",
    doc="""The naive augmentation score of Ravuri & Vinyals 2019 (arXiv:1905.10887): the classifier
    trains on the plain union of both sets, for the number of steps of the protocol. The gains are
    over the baselines *real* and *real, a tenth*. The generator (and the labeller of pseudo-labels)
    learned from the whole training split in both cases. The second gain is therefore the value of a
    set to a user who has few real images, not the value of a generator that was trained on few.
    This metric trains two more classifiers per seed.""",
    columns=(
        Column("augmented", "with real %", "%", ALL, _mean("all")),
        Column("augmented_gain", "gain", "points", GAIN, "all", "real"),
        Column("augmented_tenth", "with a tenth %", "%", PART, _mean("tenth")),
        Column("augmented_tenth_gain", "gain on it", "points", GAIN, "tenth", "real-tenth"),
    ),
    compute=augmentation,
    position=60,
    default=False,
    feature_space=None,
    # Random labels and copies of real images add nothing to real images.
    applies_to=lambda entry: entry.labels != "random" and entry.kind != "copier",
)
