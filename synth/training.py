"""Training a recipe: one linear loop, counted in real images shown."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from synth.base.errors import SynthError, UsageError
from synth.base.progress import progress_bar, say
from synth.batches import Batch, draw_batches, draw_latents, example_batch, torch_random
from synth.checkpoints import load_tensors, save_tensors
from synth.data import ImageSet, split_validation, uint8_from_signed
from synth.gan import Adversaries, sampling_generator
from synth.ops.acceleration import choose_precision, fastest
from synth.recipes import Recipe
from synth.runs import Run, RunConfig, checkpoint_name
from synth.visuals import draw_losses, save_grid

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

COLUMNS = 10  # images per class in the sample grid
Progress = Callable[[int], None]  # is told the images shown so far
ScoreCheckpoint = Callable[[Path, ImageSet], float]  # weights, validation part → accuracy


TICKS = 16  # about so many checkpoints in a run


class Interrupted(SynthError):
    """The user stopped the run; it was saved and can be resumed."""

    exit_code = 130


def train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    progress: Progress = lambda shown: None,
    score_checkpoint: ScoreCheckpoint | None = None,
) -> None:
    """Trains the run to its length, from its last checkpoint where it has one.

    A run that selects its checkpoint never learns from the validation part. It needs
    `score_checkpoint`, which scores each tick's weights on that part, from these two alone: so a
    run that was killed chooses as one that was not.

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
    config, recipe = run.config, run.config.recipe
    batch = recipe.training.batch
    check_trainable(recipe, images, config.select is not None)
    images, validation = _parts(recipe, images, config.select is not None)
    scorer = score_checkpoint if config.select else None
    adversaries = Adversaries(recipe, len(config.classes), config.seed, device)
    step = _restore(run, adversaries)
    run.rewind_log(step * batch)
    last_step = math.ceil(config.images / batch)
    tick_steps = max(1, round(config.tick / batch))
    heldout_every = recipe.training.heldout_every
    heldout_losses: list[float] = []
    batches = draw_batches(recipe, images, config.seed, device, first_step=step)
    example = example_batch(recipe, len(config.classes), device)
    take_step = _fastest_step(adversaries, example, config.precision)
    progress(step * batch)

    # The loop
    with _interruptible() as interrupted:
        tick_start, tick_time = step, time.perf_counter()
        while step < last_step:
            take_step(*next(batches))
            step += 1
            if heldout_every and validation is not None and step % heldout_every == 0:
                heldout_losses.append(adversaries.loss_on(validation, step))
            if step % tick_steps and step < last_step and not interrupted():
                if step % 16 == 0:
                    progress(step * batch)
                continue

            # A tick: weights, samples, log, and last the state, so that a kill between is safe
            figures = adversaries.take_figures(step - tick_start)
            if not (all(map(math.isfinite, figures.values())) and adversaries.finite()):
                raise SynthError(
                    f"{run.folder}: losses or weights are no longer finite in the tick that ends "
                    f"at {step * batch:,} images; the checkpoint before it is kept; "
                    "try another --seed or --precision fp32"
                )
            seconds = time.perf_counter() - tick_time
            _write_samples(run, adversaries, images, step)
            scored: dict[str, float] = {}
            # Not where Ctrl-C stops: a run that was stopped has the candidates of one that was not.
            planned = step % tick_steps == 0 or step >= last_step
            if scorer is not None and validation is not None and planned:
                weights = run.keep_checkpoint(step * batch)
                scored["validation_accuracy"] = scorer(weights, validation)
            run.append_log(
                {
                    "images": step * batch,
                    **figures,
                    **({"heldout_d_losses": heldout_losses} if heldout_every else {}),
                    **scored,
                    "images_per_second": round((step - tick_start) * batch / seconds, 1),
                    "memory_mib": _memory_mib(device),
                }
            )
            if step >= last_step or interrupted() or seconds > 10:
                draw_losses(run.read_log(), run.folder / "losses.png")
            save_tensors(run.state, adversaries.state(), {"step": step})
            progress(min(step * batch, config.images))
            if interrupted() and step < last_step:
                raise Interrupted(
                    f"stopped at {step * batch:,} of {config.images:,} images; go on with: "
                    f"synth train --resume --run {run.folder}"
                )
            tick_start, tick_time, heldout_losses = step, time.perf_counter(), []


def check_trainable(recipe: Recipe, images: ImageSet, select: bool = False) -> None:
    """Raises `SynthError` when these images cannot train this recipe, or, with `select`, cannot
    score its checkpoints."""
    if select and not recipe.conditional:
        raise UsageError(
            f"--select cas: {recipe.name} is unconditional, and its images have no labels to "
            "train a classifier with; leave it out, or take a conditional recipe"
        )
    training, validation = _parts(recipe, images, select)
    if recipe.conditional:
        training.require_labels()
    if select and validation is not None:
        validation.require_labels()
    if validation is not None and not len(validation):
        raise SynthError(
            f"{images.name}: too few images to keep a tenth of them for held-out losses; add "
            "images, or --set training.heldout_every=0"
        )
    if len(training) < recipe.training.batch:
        raise SynthError(
            f"{images.name}: {len(training)} training images are fewer than the batch of "
            f"{recipe.training.batch}; add images"
        )


def _parts(recipe: Recipe, images: ImageSet, select: bool) -> tuple[ImageSet, ImageSet | None]:
    """What the networks learn from, and the validation part, kept from them, where one is used."""
    if select or recipe.training.heldout_every:
        return split_validation(images)
    return images, None


def _write_samples(run: Run, adversaries: Adversaries, images: ImageSet, step: int) -> None:
    """The weights to sample from, and the sample grid: ten of each class in a row, ten rows or
    more, or a hundred without classes."""
    recipe = run.config.recipe
    shown = step * recipe.training.batch
    generator = sampling_generator(adversaries, images, recipe)
    save_tensors(
        run.weights, generator.state_dict(), {"config": run.config.to_json(), "images": shown}
    )
    random = torch_random(run.config.seed, "grid", 0)
    classes = len(run.config.classes) if recipe.conditional else 1
    labels = torch.arange(max(classes, COLUMNS)).repeat_interleave(COLUMNS) % classes
    latent = draw_latents(recipe.generator, (len(labels),), random)
    with torch.no_grad():
        samples = generator(latent.to(adversaries.device), labels.to(adversaries.device))
    save_grid(
        uint8_from_signed(samples).cpu(),
        run.folder / "samples" / f"{checkpoint_name(shown)}.png",
        COLUMNS,
    )


def _restore(run: Run, adversaries: Adversaries) -> int:
    """Loads the last checkpoint, if any; returns the number of steps taken."""
    if not run.state.exists():
        return 0
    tensors, metadata = load_tensors(run.state)
    try:
        adversaries.load_state(tensors)
        return int(metadata["step"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise SynthError(f"{run.state}: does not fit the run's configuration ({error})") from error


def choose_training_precision(
    asked: str, recipe: Recipe, classes: int, device: torch.device
) -> tuple[str, str]:
    """Resolves `--precision auto` by timing steps of this recipe; see `choose_precision`."""
    example = example_batch(recipe, classes, device)

    def prepare(precision: str) -> Callable[[], None]:
        take_step = _fastest_step(Adversaries(recipe, classes, 0, device), example, precision)
        return lambda: take_step(*example)

    return choose_precision(asked, prepare, device)


def _fastest_step(adversaries: Adversaries, example: Batch, precision: str) -> Callable[..., None]:
    def step(*batch: Tensor) -> None:
        adversaries.step(Batch(*batch), precision)

    return fastest(step, example, lambda: {**adversaries.state(), "sums": adversaries.sums})


def _memory_mib(device: torch.device) -> int | None:
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


def plan_run(
    recipe: Recipe,
    source: str,
    images: ImageSet,
    length: int | None,
    seed: int,
    precision: str,
    device: torch.device,
    tick: int | None = None,
    select: str | None = None,
) -> RunConfig:
    """The resolved configuration of a run, before anything is written."""
    check_trainable(recipe, images, select is not None)
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
        select=select,
    )


def default_tick(length: int) -> int:
    """A sixteenth of the run, to the next power of two in thousands: 64k for a million."""
    thousands = max(1, length // TICKS // 1000)
    return 1000 << (thousands - 1).bit_length()


def train_run(
    run: Run,
    images: ImageSet,
    device: torch.device,
    score_checkpoint: ScoreCheckpoint | None = None,
) -> None:
    """Trains a run to its end, from its last checkpoint."""
    check_same_images(run, images)
    shown = 0
    with progress_bar(f"train {run.folder.name}", run.config.images, "images") as advance:

        def progress(now: int) -> None:
            nonlocal shown
            advance(now - shown)
            shown = now

        train(run, images, device, progress, score_checkpoint)
    if run.config.select:
        best = run.best_checkpoint()
        accuracy = 100 * run.validation_scores()[best]
        say(f"{run.folder}: {best} is the best on the validation part ({accuracy:.2f} %)")


def check_same_images(run: Run, images: ImageSet) -> None:
    if images.fingerprint != run.config.fingerprint:
        raise SynthError(
            f"{run.folder}: was trained on other images ({run.config.dataset}, "
            f"{run.config.fingerprint[:12]}) than {images.name} ({images.fingerprint[:12]}); "
            "give the --data-root that it was trained on, with its images as they were"
        )
