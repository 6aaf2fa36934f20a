"""Augmentation: what does a set add to real training images?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from eval.metrics import Column, Metric, Subject
from synth.data import ImageSet

PLAIN_UNION = """The naive augmentation score of Ravuri & Vinyals 2019 (arXiv:1905.10887): the
classifier trains on the plain union of both sets, for the number of steps of the protocol."""
GAIN = """this accuracy minus that with the real images alone, in points, with its 95 % interval
over generator runs and classifier seeds"""


def score_with(subject: Subject, real: ImageSet) -> list[float]:
    """Accuracies by classifier seed after training on the union of `real` and the set."""
    labels = torch.cat([real.require_labels(), subject.images.require_labels()])
    images = torch.cat([real.images, subject.images.images])
    return subject.score(replace(real, images=images, labels=labels))


def mean_of(part: str) -> Callable[[Any], float | None]:
    """The mean of the accuracies under this key. A record can hold one part without the other."""
    return lambda found: mean(found[part]) if part in found else None


# Random labels and copies of real images add nothing to real images.
def applies_to(entry: Any) -> bool:
    return bool(entry.labels != "random" and entry.kind != "copier")


METRIC = Metric(
    name="augmentation",
    key="augmentation",
    doc=f"""{PLAIN_UNION} The gain is over the baseline *real*. This metric trains one more
    classifier per seed.""",
    columns=(
        Column(
            "augmented",
            "with real %",
            "%",
            "accuracy after training on the set and the real training split",
            mean_of("all"),
        ),
        Column("augmented_gain", "gain", "points", GAIN, "all", "real"),
    ),
    compute=lambda subject: {"all": score_with(subject, subject.real.train)},
    position=60,
    default=False,
    feature_space=None,
    applies_to=applies_to,
)
