"""Training with what `eval` hands down: the checkpoint scorer, and the teacher.

A teacher is a classifier of real images that guides the training of a generator.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eval import selection
from eval.protocols import PROTOCOLS
from eval.real_classifier import real_classifier
from synth.data import ImageSet
from synth.families import Teacher
from synth.runs import Run
from synth.training import MakeTeacher, train_run

TEACHER_PROTOCOL = "augmented-v1"


def train(run: Run, images: ImageSet, device: torch.device, cache: Path | None = None) -> None:
    """`train_run`, with the scorer and the teacher that the run's configuration may ask for.

    cache: of classifiers of real images; None is the user's.
    """
    scorer, teacher = selection.checkpoint_scorer(run, device), teacher_maker(run, device, cache)
    train_run(run, images, device, scorer, teacher)


def teacher_maker(run: Run, device: torch.device, cache: Path | None = None) -> MakeTeacher:
    """Trains the fixed classifier with augmentation on the images that the run learns from, and on
    no others."""

    def make(images: ImageSet) -> Teacher:
        protocol = PROTOCOLS.find(TEACHER_PROTOCOL)
        classifier = real_classifier(images, protocol, device, run.config.precision, cache)

        def logits(shown: Tensor) -> Tensor:
            found: Tensor = classifier((shown + 1) / 2)
            return found

        return logits

    return make
