"""The labeller: the fixed classifier, trained on real images, labels a generator's images."""

from __future__ import annotations

from pathlib import Path

import torch

from eval.classifier_training import choose_classifier_precision, predict
from eval.protocols import PROTOCOLS, Protocol
from eval.real_classifier import real_classifier
from synth.data import ImageSet, load_training_images
from synth.generation import Labeller
from synth.runs import Run
from synth.training import check_same_images

LABELLER_PROTOCOL = "fixed-v1"


def train_labeller(
    real: ImageSet, protocol: Protocol, device: torch.device, precision: str = "auto"
) -> Labeller:
    """The fixed classifier, trained on the real training split by the protocol with seed 0."""
    precision, _ = choose_classifier_precision(precision, device)
    classifier = real_classifier(real, protocol, device, precision)
    return lambda images: predict(classifier, images).argmax(1)


def labeller_for(run: Run, data_root: Path | None, device: torch.device) -> Labeller:
    """The labeller of `--label-with classifier`, trained on the images that the run was, and in the
    run's precision, so that the set follows from what its manifest says."""
    real = load_training_images(run.config.dataset_key, data_root)
    check_same_images(run, real)
    return train_labeller(real, PROTOCOLS.find(LABELLER_PROTOCOL), device, run.config.precision)
