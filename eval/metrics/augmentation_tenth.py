"""Augmentation of a tenth: what does a set add to few real training images?"""

from __future__ import annotations

from eval.metrics import Column, Metric
from eval.metrics.augmentation import GAIN, PLAIN_UNION, applies_to, mean_of, score_with
from synth.data import TENTH, first_of_each_class

METRIC = Metric(
    name="augmentation-tenth",
    key="augmentation",
    doc=f"""{PLAIN_UNION} The real images are the first tenth of each class. The gain is over the
    baseline *real, a tenth*. The generator (and the labeller of pseudo-labels) learned from the
    whole training split. The gain is therefore the value of a set to a user who has few real
    images, not the value of a generator that was trained on few. This metric trains one more
    classifier per seed.""",
    columns=(
        Column(
            "augmented_tenth",
            "with a tenth %",
            "%",
            "accuracy after training on the set and the first tenth of each class of that split",
            mean_of("tenth"),
        ),
        Column("augmented_tenth_gain", "gain on it", "points", GAIN, "tenth", "real-tenth"),
    ),
    compute=lambda subject: {
        "tenth": score_with(subject, first_of_each_class(subject.real.train, TENTH))
    },
    position=61,
    default=False,
    feature_space=None,
    applies_to=applies_to,
    formerly="augmentation",
)
