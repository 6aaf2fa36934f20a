"""Training a run: one loop over the steps of its family's trainer."""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from synth.base.errors import SynthError, UsageError
from synth.base.locks import clear_leftovers, exclusive
from synth.base.progress import progress_bar, say
from synth.base.schema import dump
from synth.checkpoints import load_tensors, read_count, save_tensors
from synth.data import ImageSet, split_validation
from synth.environment import describe_environment
from synth.families import FAMILIES, Teacher, Trainer
from synth.ops.native import describe_kernels
from synth.ops.parallel import is_first, processes, started, total_count
from synth.ops.probe import choose_precision
from synth.recipes import RecipeBase
from synth.runs import Run, RunConfig, checkpoint_name
from synth.trackers import Note, ignore
from synth.visuals import draw_losses, save_grid

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

COLUMNS = 10  # in the sample grid
WORDS = ("name", "source", "assumed")  # in a recipe, for people
MakeTeacher = Callable[[ImageSet], Teacher]
ScoreCheckpoint = Callable[[Path, ImageSet], float]  # weights, validation part → accuracy
Saved = Callable[[], object]


class Interrupted(SynthError):
    """The user stopped the run. It was saved and can be resumed."""

    exit_code = 130


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
    teacher: str | None = None,
) -> RunConfig:
    """The complete configuration of a run. Writes nothing.

    recipe: it is fitted to the images' size. total_images: None takes the recipe's length.
    precision: `auto` times some steps. images_per_tick: None gives about 16 ticks. select: the
    protocol that scores checkpoints, or None. teacher: the protocol of the teacher, for a recipe
    that needs one. Raises `SynthError` if these images cannot train this recipe.
    """
    recipe = recipe.fitted(images.side, images.grey)
    training_parts(recipe, images, select is not None)  # raises if they cannot train it
    check_shares(recipe, started())
    total_images = recipe.total_images if total_images is None else total_images
    sixteenth = max(1, total_images // 16_000)  # in thousands of images
    default_tick = 1000 << (sixteenth - 1).bit_length()  # rounds up to a power of two
    config = RunConfig(
        recipe=recipe,
        dataset=images.name,
        dataset_key=dataset_key,
        fingerprint=images.fingerprint,
        training_size=len(images),
        classes=images.classes,
        total_images=total_images,
        images_per_tick=images_per_tick or default_tick,
        seed=seed,
        precision="fp32",
        select=select,
        teacher=teacher if recipe.needs_teacher else None,
    )
    precisions = config.family.precisions
    if len(precisions) == 1:
        return replace(config, precision=precisions[0])

    def prepare(candidate: str) -> Callable[[], None]:
        candidate_config = replace(config, precision=candidate)
        return config.family.make_trainer(candidate_config, images, None, device).step

    built = {key: value for key, value in dump(recipe).items() if key not in WORDS}
    work = f"training {json.dumps(built)}, {len(images.classes)} classes"
    chosen, reason = choose_precision(precision, prepare, device, work)
    say(f"precision {chosen}: {reason}")
    return replace(config, precision=chosen)


def training_parts(
    recipe: RecipeBase, images: ImageSet, select: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """The images that the generator learns from, and the held-out part if the run uses one.

    Raises `SynthError` if these images cannot train this recipe, or cannot score its checkpoints
    for `select`.
    """
    if select and not recipe.conditional:
        raise UsageError(
            f"--select cas: {recipe.name} is unconditional, and a classifier cannot be trained on "
            "images without labels; leave out --select, or choose a conditional recipe"
        )
    uses_heldout = select or recipe.keeps_heldout
    training, heldout = split_validation(images) if uses_heldout else (images, None)
    if recipe.conditional:
        training.require_labels()
    if heldout is not None and select:
        heldout.require_labels()
    if heldout is not None and not len(heldout):
        raise SynthError(
            f"{images.name}: too few images to hold out a tenth of them; add images, or use "
            "--set training.heldout_every=0"
        )
    if len(training) < recipe.batch:
        raise SynthError(
            f"{images.name}: {len(training)} training images are fewer than the batch of "
            f"{recipe.batch}; add images"
        )
    return training, heldout


def check_same_images(run: Run, images: ImageSet) -> None:
    """Raises `SynthError` unless these are the images that the run was trained on."""
    if images.fingerprint != run.config.fingerprint:
        raise SynthError(
            f"{run.folder}: was trained on other images, {run.config.dataset} "
            f"({run.config.fingerprint[:12]}), and not on {images.name} "
            f"({images.fingerprint[:12]}); give the --data-root of the training"
        )


def train_run(
    run: Run,
    images: ImageSet,
    device: torch.device,
    score_checkpoint: ScoreCheckpoint | None = None,
    make_teacher: MakeTeacher | None = None,
    note: Note = ignore,
    saved: Saved | None = None,
) -> None:
    """Trains the run to its length. Starts from its last checkpoint if there is one.

    make_teacher: real images that the generator learns from → the teacher, for a recipe that needs
    one. note: is given each line of the log. saved: is called when the state of a tick is on disk;
    the training waits for it.

    A run that selects its checkpoint does not learn from the validation part. It needs
    `score_checkpoint`, which scores the weights of each tick on that part. The score must depend
    on these two alone, so that a resumed run selects the same checkpoint.

    Raises `SynthError` if the run was trained on other images, or if a loss or weight is not
    finite, and `Busy` if another process trains it. Raises `Interrupted` after Ctrl-C, when all is
    saved.

    In `parallel.joined` the processes share each batch, and the first one writes all files.
    """
    check_same_images(run, images)
    check_shares(run.config.recipe, processes())
    if run.config.select and score_checkpoint is None:
        raise ValueError(f"{run.folder}: selects its checkpoint, and nothing is given to score it")
    if run.config.recipe.needs_teacher and make_teacher is None:
        raise ValueError(f"{run.folder}: needs a teacher, and nothing is given to make it")
    if is_first():
        clear_leftovers(run.folder.parent, depth=2)  # of processes that were killed
    lock = exclusive(run.folder / ".lock", f"training of {run.folder}")
    with lock if is_first() else nullcontext():
        _train(run, images, device, score_checkpoint, make_teacher, note, saved)
    if run.config.select and is_first():
        best = run.best_checkpoint()
        accuracy = 100 * run.validation_scores()[best]
        say(f"{run.folder}: {best} is the best on the validation part ({accuracy:.2f} %)")


def check_shares(recipe: RecipeBase, count: int) -> None:
    """Raises `UsageError` unless `count` processes can train the recipe together."""
    if count > 1 and not FAMILIES.find(recipe.family).shares_batches:
        raise UsageError(
            f"torchrun: {recipe.name} is of the family {recipe.family}, which trains in one "
            "process; start synth train without torchrun"
        )
    if recipe.batch % count:
        raise UsageError(
            f"torchrun: {count} processes cannot share batches of {recipe.batch} images equally; "
            "change --nproc-per-node, or the batch with --set"
        )


def _train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    score: ScoreCheckpoint | None,
    make_teacher: MakeTeacher | None,
    note: Note,
    saved: Saved | None,
) -> None:
    config, batch = run.config, run.config.recipe.batch
    training, heldout = training_parts(config.recipe, images, config.select is not None)
    teacher = [make_teacher(training)] if config.recipe.needs_teacher and make_teacher else []
    trainer = config.family.make_trainer(config, training, heldout, device, *teacher)
    step = _restore(run, trainer)
    if is_first():
        run.rewind_log(step * batch)
    last_step = math.ceil(config.total_images / batch)
    tick_steps = max(1, round(config.images_per_tick / batch))
    say(describe_kernels(device, config.precision))
    if step < last_step and is_first():
        run.note_start(step * batch, describe_environment(device))
    title, shown = f"train {run.folder.name}", step * batch
    bar = progress_bar(title, config.total_images, "images", shown)

    with _interruptible() as interrupted, bar as advance:
        tick_start, tick_time = step, time.perf_counter()
        while step < last_step:
            trainer.step()
            advance(min(batch, config.total_images - step * batch))
            step += 1
            stopping = total_count(interrupted()) > 0
            if step % tick_steps and step < last_step and not stopping:
                continue

            # A tick writes the weights, samples and log, and then the state. A kill between two of
            # them is safe, because a resumed run starts from the state and writes the rest again.
            values, state = trainer.log_values(), trainer.state()
            numbers = np.concatenate([np.ravel(value) for value in values.values()])
            finite = all(bool(tensor.isfinite().all()) for tensor in state.values())
            if not finite or not np.isfinite(numbers).all():
                raise SynthError(
                    f"{run.folder}: losses or weights are no longer finite in the tick that ends "
                    f"at {step * batch:,} images; the last good checkpoint is kept; "
                    "try another --seed or --precision fp32"
                )
            seconds = time.perf_counter() - tick_time
            if is_first():
                _write_samples(run, trainer, step * batch)
                line = {"images": step * batch, **values}
                # Ctrl-C adds no candidate to choose from, so that a resumed run selects the same.
                planned = step % tick_steps == 0 or step >= last_step
                if planned:
                    kept = run.keep_checkpoint(step * batch)
                    if config.select and score is not None and heldout is not None:
                        line["validation_accuracy"] = score(kept, heldout)
                line["images_per_second"] = round((step - tick_start) * batch / seconds, 1)
                line["memory_mib"] = memory_mib(device)
                run.append_log(line)
                note(line)
                if step >= last_step or stopping or seconds > 10:
                    draw_losses(run.read_log(), run.folder / "losses.png")
                save_tensors(run.state, state, {"step": step})
                if saved is not None:
                    saved()
            if stopping and step < last_step:
                raise Interrupted(
                    f"stopped at {step * batch:,} of {config.total_images:,} images; go on with: "
                    f"synth train --resume --run {shlex.quote(str(run.folder))}"
                )
            tick_start, tick_time = step, time.perf_counter()


def _write_samples(run: Run, trainer: Trainer, shown: int) -> None:
    """Writes the weights and the sample grid. A row shows ten images of one class. There are ten
    rows or more."""
    sampler = trainer.sampler()
    save_tensors(run.weights, sampler.tensors(), {"config": run.config.to_json(), "images": shown})
    classes = sampler.classes or 1
    labels = torch.arange(max(classes, COLUMNS)).repeat_interleave(COLUMNS) % classes
    samples = sampler(labels, np.random.default_rng([run.config.seed, *b"grid"]))
    save_grid(samples, run.folder / "samples" / f"{checkpoint_name(shown)}.png", COLUMNS)


def _restore(run: Run, trainer: Trainer) -> int:
    """Loads the last checkpoint, if any. Returns the number of steps taken."""
    if not run.state.exists():
        return 0
    step = read_count(run.state, "step")
    try:
        tensors, _ = load_tensors(run.state)
        trainer.load_state(tensors, step)
        return step
    except (KeyError, ValueError, RuntimeError) as error:
        raise SynthError(f"{run.state}: does not fit the run's configuration ({error})") from error


def memory_mib(device: torch.device) -> int | None:
    """Peak memory so far, of the GPU or of this process. None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that is true after Ctrl-C. A second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    main = threading.current_thread() is threading.main_thread()  # signals reach no other thread
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
