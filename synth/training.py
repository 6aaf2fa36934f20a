"""Training a run: one linear loop over the steps of its family's trainer."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from synth.base.errors import SynthError, UsageError
from synth.base.progress import progress_bar, say
from synth.checkpoints import load_tensors, save_tensors
from synth.data import ImageSet, split_validation
from synth.families import Trainer
from synth.ops.acceleration import choose_precision
from synth.recipes import RecipeBase
from synth.runs import Run, RunConfig, checkpoint_name
from synth.visuals import draw_losses, save_grid

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

TICKS = 16  # about so many checkpoints in a run
COLUMNS = 10  # images per class in the sample grid
Progress = Callable[[int], None]  # is told the images shown so far
ScoreCheckpoint = Callable[[Path, ImageSet], float]  # weights, validation part → accuracy


class Interrupted(SynthError):
    """The user stopped the run; it was saved and can be resumed."""

    exit_code = 130


# Before anything is written


def plan_run(
    recipe: RecipeBase,
    dataset_key: str,
    images: ImageSet,
    total_images: int | None,
    seed: int,
    precision: str,
    device: torch.device,
    images_per_tick: int | None = None,
    select: str | None = None,
) -> RunConfig:
    """The complete configuration of a run.

    total_images: the recipe's own length if None. precision: `auto` times steps of this recipe.
    select: name of the protocol that scores the checkpoints, if any. Raises `SynthError` when these
    images cannot train this recipe.
    """
    check_trainable(recipe, images, select is not None)
    total_images = recipe.total_images if total_images is None else total_images
    config = RunConfig(
        recipe=recipe,
        dataset=images.name,
        dataset_key=dataset_key,
        fingerprint=images.fingerprint,
        training_size=len(images),
        classes=images.classes,
        total_images=total_images,
        images_per_tick=images_per_tick or default_tick(total_images),
        seed=seed,
        precision="fp32",
        select=select,
    )

    precisions = config.family.precisions
    if len(precisions) == 1:
        return replace(config, precision=precisions[0])

    def prepare(candidate: str) -> Callable[[], None]:
        candidate_config = replace(config, precision=candidate)
        return config.family.make_trainer(candidate_config, images, None, device).step

    chosen, reason = choose_precision(precision, prepare, device)
    say(f"precision {chosen}: {reason}")
    return replace(config, precision=chosen)


def default_tick(total_images: int) -> int:
    """A sixteenth of the run, to the next power of two in thousands: 64k for a million."""
    thousands = max(1, total_images // TICKS // 1000)
    return 1000 << (thousands - 1).bit_length()


def check_trainable(recipe: RecipeBase, images: ImageSet, select: bool = False) -> None:
    """Raises `SynthError` when these images cannot train this recipe, or, with `select`, cannot
    score its checkpoints."""
    if select and not recipe.conditional:
        raise UsageError(
            f"--select cas: {recipe.name} is unconditional, and its images have no labels to "
            "train a classifier with; leave it out, or take a conditional recipe"
        )
    training, heldout = _parts(recipe, images, select)
    if recipe.conditional:
        training.require_labels()
    if select and heldout is not None:
        heldout.require_labels()
    if heldout is not None and not len(heldout):
        raise SynthError(
            f"{images.name}: too few images to keep a tenth of them for held-out losses; add "
            "images, or --set training.heldout_every=0"
        )
    if len(training) < recipe.batch:
        raise SynthError(
            f"{images.name}: {len(training)} training images are fewer than the batch of "
            f"{recipe.batch}; add images"
        )


def _parts(recipe: RecipeBase, images: ImageSet, select: bool) -> tuple[ImageSet, ImageSet | None]:
    """What the generator learns from, and the part that is kept from it, where one is used."""
    return split_validation(images) if select or recipe.keeps_heldout else (images, None)


def check_same_images(run: Run, images: ImageSet) -> None:
    """Raises `SynthError` unless these are the images that the run was trained on."""
    if images.fingerprint != run.config.fingerprint:
        raise SynthError(
            f"{run.folder}: was trained on other images ({run.config.dataset}, "
            f"{run.config.fingerprint[:12]}) than {images.name} ({images.fingerprint[:12]}); "
            "give the --data-root that it was trained on, with its images as they were"
        )


# The loop


def train_run(
    run: Run,
    images: ImageSet,
    device: torch.device,
    score_checkpoint: ScoreCheckpoint | None = None,
) -> None:
    """Trains a run to its end with a progress bar, from its last checkpoint; see `train`."""
    check_same_images(run, images)
    shown = 0
    with progress_bar(f"train {run.folder.name}", run.config.total_images, "images") as advance:

        def progress(now: int) -> None:
            nonlocal shown
            advance(now - shown)
            shown = now

        train(run, images, device, progress, score_checkpoint)
    if run.config.select:
        best = run.best_checkpoint()
        accuracy = 100 * run.validation_scores()[best]
        say(f"{run.folder}: {best} is the best on the validation part ({accuracy:.2f} %)")


def train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    progress: Progress = lambda shown: None,
    score_checkpoint: ScoreCheckpoint | None = None,
) -> None:
    """Trains the run to its length, from its last checkpoint where it has one.

    A run that selects its checkpoint never learns from the validation part. It needs
    `score_checkpoint`, which scores each tick's weights on that part, and follows from these two
    alone. So a run that was killed makes the same choice as one that was not.

    Raises `SynthError` when a loss stops being finite (the last good checkpoint stays) or another
    process is training the run, and `Interrupted` after Ctrl-C, once everything is saved.
    """
    if run.config.select and score_checkpoint is None:
        raise ValueError(f"{run.folder}: selects its checkpoint, and nothing is given to score it")
    try:
        with FileLock(run.folder / ".lock", timeout=0):
            _train(run, images, device, progress, score_checkpoint)
    except Timeout as error:
        raise SynthError(f"{run.folder}: is being trained by another process") from error


def _train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    progress: Progress,
    score_checkpoint: ScoreCheckpoint | None,
) -> None:
    # What is trained on what
    config, recipe, batch = run.config, run.config.recipe, run.config.recipe.batch
    check_trainable(recipe, images, config.select is not None)
    training, heldout = _parts(recipe, images, config.select is not None)
    scorer = score_checkpoint if config.select else None
    trainer = config.family.make_trainer(config, training, heldout, device)
    step = _restore(run, trainer)
    run.rewind_log(step * batch)
    last_step = math.ceil(config.total_images / batch)
    tick_steps = max(1, round(config.images_per_tick / batch))
    progress(step * batch)

    with _interruptible() as interrupted:
        tick_start, tick_time = step, time.perf_counter()
        while step < last_step:
            trainer.step()
            step += 1
            if step % tick_steps and step < last_step and not interrupted():
                if step % 16 == 0:
                    progress(step * batch)
                continue

            # A tick: weights, samples, log, and last the state, so that a kill between is safe
            values, state = trainer.log_values(), trainer.state()
            if not _finite(values, state):
                raise SynthError(
                    f"{run.folder}: losses or weights are no longer finite in the tick that ends "
                    f"at {step * batch:,} images; the checkpoint before it is kept; "
                    "try another --seed or --precision fp32"
                )
            seconds = time.perf_counter() - tick_time
            _write_samples(run, trainer, step * batch)
            scored: dict[str, float] = {}
            # No score where Ctrl-C stops: a stopped run has the candidates of one that was not.
            planned = step % tick_steps == 0 or step >= last_step
            if scorer is not None and heldout is not None and planned:
                weights = run.keep_checkpoint(step * batch)
                scored["validation_accuracy"] = scorer(weights, heldout)
            run.append_log(
                {
                    "images": step * batch,
                    **values,
                    **scored,
                    "images_per_second": round((step - tick_start) * batch / seconds, 1),
                    "memory_mib": memory_mib(device),
                }
            )
            if step >= last_step or interrupted() or seconds > 10:
                draw_losses(run.read_log(), run.folder / "losses.png")
            save_tensors(run.state, state, {"step": step})
            progress(min(step * batch, config.total_images))
            if interrupted() and step < last_step:
                raise Interrupted(
                    f"stopped at {step * batch:,} of {config.total_images:,} images; go on with: "
                    f"synth train --resume --run {run.folder}"
                )
            tick_start, tick_time = step, time.perf_counter()


def _finite(values: dict[str, Any], state: dict[str, torch.Tensor]) -> bool:
    numbers = np.concatenate([np.ravel(value) for value in values.values()])
    tensors = all(bool(tensor.isfinite().all()) for tensor in state.values())
    return bool(np.isfinite(numbers).all()) and tensors


def _write_samples(run: Run, trainer: Trainer, shown: int) -> None:
    """Writes the weights to sample from, and the sample grid: ten of each class in a row, in ten
    rows or more, or a hundred without classes."""
    sampler = trainer.sampler()
    save_tensors(run.weights, sampler.tensors(), {"config": run.config.to_json(), "images": shown})
    classes = sampler.classes or 1
    labels = torch.arange(max(classes, COLUMNS)).repeat_interleave(COLUMNS) % classes
    samples = sampler(labels, np.random.default_rng([run.config.seed, *b"grid"]))
    save_grid(samples, run.folder / "samples" / f"{checkpoint_name(shown)}.png", COLUMNS)


def _restore(run: Run, trainer: Trainer) -> int:
    """Loads the last checkpoint, if any; returns the number of steps taken."""
    if not run.state.exists():
        return 0
    tensors, metadata = load_tensors(run.state)
    try:
        step = int(metadata["step"])
        trainer.load_state(tensors, step)
        return step
    except (KeyError, ValueError, RuntimeError) as error:
        raise SynthError(f"{run.state}: does not fit the run's configuration ({error})") from error


def memory_mib(device: torch.device) -> int | None:
    """Peak memory so far: the GPU's, or the process's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the loop to save and stop; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
