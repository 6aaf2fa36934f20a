"""The score of a training set: the accuracy of a classifier on the real test split.

The classifier is scored after the last step of its training (CAS: Ravuri & Vinyals 2019,
arXiv:1905.10887). Nothing is chosen by looking at the test split.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor

from eval.classifier_training import Batches, predict, shuffled_batches, train_classifier
from eval.classifiers import Classifier
from eval.protocols import Protocol
from synth.base.errors import SynthError
from synth.base.schema import Number, Proportion, Whole
from synth.data import ImageSet

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class SeedScore:
    """The results of one classifier on the test split."""

    seed: Whole
    accuracy: Proportion
    balanced_accuracy: Proportion  # mean of the recalls
    recalls: list[Proportion]  # per class
    confusion: list[list[Whole]]  # true class × predicted class
    calibration_error: Proportion  # see `expected_calibration_error`
    seconds: Number


@dataclass(frozen=True)
class Score:
    """All classifiers of one evaluation. Columns are the images of the test split, in its order."""

    seeds: list[SeedScore]
    predictions: np.ndarray  # uint8 (seeds, N); uint16 with more than 256 classes
    correct: np.ndarray  # bool (seeds, N)


MakeBatches = Callable[[int], Batches]  # classifier seed → its training batches


def disk_batches(protocol: Protocol, images: ImageSet, device: torch.device) -> MakeBatches:
    """Batches of a finished set. The classifier's seed shuffles it in every pass."""
    labels = images.require_labels()
    return lambda seed: shuffled_batches(images.images, labels, protocol.batch, seed, device)


def stream_batches(
    protocol: Protocol, draw: Callable[[int, np.random.Generator], tuple[Tensor, Tensor]]
) -> MakeBatches:
    """Batches of fresh samples. `draw(count, random)` returns uint8 images and their labels."""

    def make(seed: int) -> Batches:
        random = np.random.default_rng([seed, *b"stream"])
        while True:
            yield draw(protocol.batch, random)

    return make


def score(
    protocol: Protocol,
    make_batches: MakeBatches,
    test: ImageSet,
    device: torch.device,
    precision: str,
    seeds: int | None = None,
    progress: Callable[[int], None] = lambda steps: None,
    known: Callable[[int], Classifier] | None = None,
) -> Score:
    """Trains one classifier per seed. Scores each of them on the whole test split.

    known: seed → the classifier that training it here would give.
    """
    truth, classes = test.require_labels(), len(test.classes)
    results, predictions = [], []
    for seed in range(protocol.seeds if seeds is None else seeds):
        start = time.perf_counter()
        if known is not None:
            classifier = known(seed)
        else:
            classifier = train_classifier(
                protocol, make_batches(seed), classes, seed, device, precision, progress
            )
        probabilities = predict(classifier, test.images)
        if not torch.isfinite(probabilities).all():
            raise SynthError(f"classifier seed {seed}: its outputs are not finite")
        results.append(measure(seed, probabilities, truth, time.perf_counter() - start))
        predictions.append(probabilities.argmax(1).numpy())
    predicted = np.stack(predictions).astype(np.min_scalar_type(classes - 1))
    return Score(results, predicted, predicted == truth.numpy())


def measure(seed: int, probabilities: Tensor, truth: Tensor, seconds: float) -> SeedScore:
    """The results of one classifier, from its class probabilities (N, K) and the labels (N,)."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    table = confusion_matrix(truth.numpy(), predicted.numpy(), labels=range(classes))
    recalls = table.diagonal() / table.sum(1)
    return SeedScore(
        seed=seed,
        accuracy=float(table.trace() / table.sum()),
        balanced_accuracy=float(recalls.mean()),
        recalls=recalls.tolist(),
        confusion=table.tolist(),
        calibration_error=expected_calibration_error(probabilities.numpy(), truth.numpy()),
        seconds=round(seconds, 2),
    )


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean distance between confidence and accuracy over bins of confidence, weighted by the
    number of images in each bin (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(truth))
