"""The making stages joined: images → a run → a synthetic set; `scoring.py` has it judged.

Each stage writes one folder or file and can be run again from the one before it. The two modules
are the only ones that know both sides, `synth` (makes) and `eval` (judges).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.classifier import choose_classifier_precision, predict
from eval.judge import Judge
from eval.protocol import (
    SELECTION,
    MakeBatches,
    Protocol,
    find_protocol,
    score,
    stream_batches,
)
from eval.real_classifier import real_classifier
from synth.data import ImageSet, load_training_images
from synth.environment import describe_environment
from synth.errors import SynthError, UsageError
from synth.files import portable, read_json, sha256
from synth.generation import check_count, fresh_batch, generate_as
from synth.progress import progress_bar, say
from synth.recipes import Recipe
from synth.runs import Run, RunConfig, all_runs, load_generator
from synth.synthetic import Format, write_synthetic
from synth.training import ScoreCheckpoint, check_trainable, choose_training_precision, train

TICKS = 16  # about so many checkpoints in a run
LABELLER_PROTOCOL = "fixed-v1"
Labeller = Callable[[Tensor], Tensor]


# Training


def plan_run(
    recipe: Recipe,
    source: str,
    images: ImageSet,
    length: int | None,
    seed: int,
    precision: str,
    device: torch.device,
    tick: int | None = None,
    select: bool = False,
) -> RunConfig:
    """The resolved configuration of a run, before anything is written."""
    check_trainable(recipe, images, select)
    length = recipe.training.images if length is None else length
    chosen, reason = choose_training_precision(precision, recipe, len(images.classes), device)
    say(f"precision {chosen}: {reason}")
    return RunConfig(
        recipe=recipe,
        dataset=images.name,
        source=source,
        fingerprint=images.fingerprint,
        training_size=len(images),
        classes=images.classes,
        images=length,
        tick=tick or default_tick(length),
        seed=seed,
        precision=chosen,
        select=SELECTION.name if select else None,
    )


def default_tick(length: int) -> int:
    """A sixteenth of the run, to the next power of two in thousands: 64k for a million."""
    thousands = max(1, length // TICKS // 1000)
    return 1000 << (thousands - 1).bit_length()


def train_run(run: Run, images: ImageSet, device: torch.device) -> None:
    """Trains a run to its end, from its last checkpoint."""
    check_same_images(run, images)
    if run.config.select not in (None, SELECTION.name):
        raise SynthError(
            f"{run.folder}: selects its checkpoint by {run.config.select}, and this version of "
            f"synth by {SELECTION.name}; train it anew"
        )
    shown = 0
    with progress_bar(f"train {run.folder.name}", run.config.images, "images") as advance:

        def progress(now: int) -> None:
            nonlocal shown
            advance(now - shown)
            shown = now

        train(run, images, device, progress, checkpoint_scorer(run, device))
    if run.config.select:
        best = run.best_checkpoint()
        accuracy = 100 * run.validation_scores()[best]
        say(f"{run.folder}: {best} is the best on the validation part ({accuracy:.2f} %)")


def checkpoint_scorer(run: Run, device: torch.device) -> ScoreCheckpoint:
    """CAS of a run's weights on a labelled part, by the protocol `SELECTION`.

    It follows from the weights and the part: the classifier's seed and the samples' are fixed,
    and the precision is the run's.
    """

    def score_checkpoint(weights: Path, validation: ImageSet) -> float:
        batches = sample_batches(SELECTION, weights, len(validation.classes), device)
        result = score(SELECTION, batches, validation, device, run.config.precision)
        return result.seeds[0].accuracy

    return score_checkpoint


def sample_batches(
    protocol: Protocol, weights: Path, classes: int, device: torch.device
) -> MakeBatches:
    """Fresh samples of a generator, for a streaming protocol."""
    generator = load_generator(weights, device)
    return stream_batches(
        protocol, lambda count, random: fresh_batch(generator, classes, count, random)
    )


def check_same_images(run: Run, images: ImageSet) -> None:
    if images.fingerprint != run.config.fingerprint:
        raise SynthError(
            f"{run.folder}: was trained on other images ({run.config.dataset}, "
            f"{run.config.fingerprint[:12]}) than {images.name} ({images.fingerprint[:12]}); "
            "give the --data-root that it was trained on, with its images as they were"
        )


# Generation


def generate_set(
    run: Run,
    per_class: int,
    seed: int,
    root: Path,
    device: torch.device,
    label_with: str | None = None,
    make_labeller: Callable[[], Labeller] | None = None,
    labeller_protocol: str | None = None,
    form: Format = "npz",
    checkpoint: str | None = None,
) -> Path:
    """Writes a synthetic set from a run into `root`; returns its folder.

    label_with: None, `random`, or `classifier`, which needs the two that follow it.
    checkpoint: see `Run.find_checkpoint`.
    """
    check_count(per_class)
    config, classes = run.config, run.config.classes
    if config.recipe.conditional and label_with is not None:
        raise UsageError(f"--label-with {label_with}: {run.folder} is conditional")
    generator = load_generator(run.find_checkpoint(checkpoint), device)
    labeller = make_labeller() if make_labeller and label_with == "classifier" else None
    environment = describe_environment(device)
    slug = f"{config.slug}-{label_with}" if label_with else config.slug
    with progress_bar(
        f"generate from {run.folder.name}", per_class * len(classes), "images"
    ) as bar:
        made = generate_as(generator, classes, per_class, seed, label_with, labeller, bar)
        origin = {
            **describe_origin(
                run, seed, label_with, labeller_protocol if labeller else None, checkpoint
            ),
            "candidates": made.candidates,
            "commit": environment["commit"],
            "command": environment["command"],
            "environment": environment,
            "training_environment": read_json(run.folder / "environment.json"),
            "config": read_json(run.folder / "config.json"),
            "training_log": run.read_log(),
        }
        return write_synthetic(
            root, slug, made.make_chunks(), made.count, made.labels, origin, form
        )


def describe_origin(
    run: Run,
    seed: int,
    label_with: str | None,
    labeller: str | None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """The part of a manifest that follows from the run and from what is asked of it.

    A run that selects its checkpoint learned from less: its sets say how theirs was chosen, and
    how long the run went on.
    """
    config, weights = run.config, run.find_checkpoint(checkpoint)
    chosen = checkpoint or run.default_checkpoint
    return {
        "classes": list(config.classes),
        "labels": label_with or ("conditional" if config.recipe.conditional else "none"),
        "labeller": labeller,
        "seed": seed,
        "recipe": config.recipe.name,
        "conditional": config.recipe.conditional,
        "dataset": config.dataset,
        "source": config.source,
        "trained_on": config.fingerprint,
        "training_seed": config.seed,
        "images_shown": run.images_shown(weights),
        "chosen": chosen if config.select else None,
        "run_length": config.images if config.select else None,
        "run": portable(run.folder),
        "checkpoint": sha256(weights),
    }


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
    real = load_training_images(run.config.source, data_root)
    check_same_images(run, real)
    return train_labeller(real, find_protocol(LABELLER_PROTOCOL), device, run.config.precision)


# Found or made


def find_or_train(
    recipe: Recipe,
    source: str,
    judge: Judge,
    length: int | None,
    seed: int,
    precision: str,
    runs: Path,
    select: bool = False,
) -> Run:
    """The run of this recipe, data, length, seed and selection: found, resumed or made."""
    images = judge.train
    select = select and recipe.conditional
    selection = SELECTION.name if select else None
    wanted = (recipe, images.fingerprint, length or recipe.training.images, seed, selection)
    for run in reversed(all_runs(runs)):
        config = run.config
        known = config.recipe, config.fingerprint, config.images, config.seed, config.select
        if known == wanted:
            break
    else:
        config = plan_run(
            recipe, source, images, length, seed, precision, judge.device, select=select
        )
        run = Run.create(runs, config, describe_environment(judge.device))
    if not run.finished():
        train_run(run, images, judge.device)
        say(f"trained {run.folder}")
    return run
