"""Training with what `eval` hands down: the checkpoint scorer, and the teacher.

A teacher is a classifier of real images that guides the training of a generator.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eval import selection
from eval.protocols import PROTOCOLS, TEACHER, protocol_for
from eval.real_classifier import real_classifier
from synth.data import ImageSet
from synth.families import Teacher
from synth.recipes import RecipeBase
from synth.runs import Run, RunConfig
from synth.trackers import Note, ignore
from synth.training import MakeTeacher, Saved, plan_run, train_run


def plan_training(
    recipe: RecipeBase,
    dataset_key: str,
    images: ImageSet,
    length: int | None,
    seed: int,
    precision: str,
    device: torch.device,
    tick: int | None = None,
    select: bool = False,
) -> RunConfig:
    """`plan_run`, with the protocols of the scorer and of the teacher."""
    scorer = selection.SELECTION.name if select else None
    teacher = protocol_for(TEACHER, images.side).name
    return plan_run(
        recipe, dataset_key, images, length, seed, precision, device, tick, scorer, teacher
    )


def train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    cache: Path | None = None,
    note: Note = ignore,
    saved: Saved | None = None,
) -> None:
    """`train_run`, with the scorer and the teacher that the run's configuration may ask for.

    cache: of classifiers of real images; None is the user's. saved: see `train_run`.
    """
    scorer, teacher = selection.checkpoint_scorer(run, device), teacher_maker(run, device, cache)
    train_run(run, images, device, scorer, teacher, note, saved)


def teacher_maker(run: Run, device: torch.device, cache: Path | None = None) -> MakeTeacher:
    """Trains the fixed classifier with augmentation on the images that the run learns from, and on
    no others."""

    def make(images: ImageSet) -> Teacher:
        protocol = PROTOCOLS.find(run.config.teacher or TEACHER)  # older runs say none
        classifier = real_classifier(images, protocol, device, run.config.precision, cache)

        def logits(shown: Tensor) -> Tensor:
            found: Tensor = classifier((shown + 1) / 2)
            return found

        return logits

    return make
