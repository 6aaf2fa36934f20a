"""A trained generator → images, balanced over the classes, each with a seed of its own.

Image i of class c depends on (seed, c, i) alone: latents come from one random stream per class, and
the network always sees full chunks of `CHUNK` images, so that not even the rounding depends on how
many images are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synth.base.errors import SynthError, UsageError
from synth.base.files import portable, read_json, sha256
from synth.base.progress import progress_bar
from synth.data import SIZE
from synth.environment import describe_environment
from synth.families import Sampler
from synth.provenance import Manifest, Provenance
from synth.runs import Run, load_generator
from synth.synthetic_set import write_synthetic

CHUNK = 250
MOST = 10_000_000  # images per class
TRIES = 50  # candidates per image wanted, before a class counts as one that the generator lacks
Labeller = Callable[[Tensor], Tensor]  # uint8 (N, 3, 32, 32) → int64 (N,)
Progress = Callable[[int], None]  # is told how many more images there are


class ShortClass(SynthError):
    """An unconditional generator hardly makes a class."""


@dataclass(frozen=True)
class Generated:
    """What a generator makes: `count` images, class by class, made as they are asked for."""

    make_chunks: Callable[[], Iterator[np.ndarray]]  # uint8 (n, 32, 32, 3), the same every time
    count: int
    labels: np.ndarray | None  # int64 (count,), or None where unlabelled
    candidates: int  # how many images are made to get these

    @cached_property
    def images(self) -> np.ndarray:
        """All of them at once: uint8 (count, 32, 32, 3)."""
        return np.concatenate(list(self.make_chunks()))


def generate(
    sampler: Sampler,
    classes: int,
    per_class: int,
    seed: int,
    progress: Progress = lambda more: None,
) -> Generated:
    """`per_class` images of each class. An unconditional generator's are unlabelled.

    Raises `UsageError` for more classes than a conditional generator was trained on.
    """
    check_count(per_class)
    if sampler.classes and classes > sampler.classes:
        raise UsageError(f"classes {classes}: this generator knows {sampler.classes}")

    def make_chunks() -> Iterator[np.ndarray]:
        for label in range(classes):
            chunks = stream_images(sampler, label, seed)
            for at in range(0, per_class, CHUNK):
                count = min(CHUNK, per_class - at)
                yield _channels_last(next(chunks)[:count])
                progress(count)

    made = np.repeat(np.arange(classes, dtype=np.int64), per_class)
    labels = made if sampler.classes else None
    return Generated(make_chunks, classes * per_class, labels, classes * per_class)


def generate_labelled(
    sampler: Sampler,
    labeller: Labeller,
    classes: tuple[str, ...],
    per_class: int,
    seed: int,
    progress: Progress = lambda more: None,
) -> Generated:
    """`per_class` images of each class from an unconditional generator: the first that `labeller`
    puts there, in the order they are made. All of them are held in memory, 3 KB each.

    Raises `ShortClass` when a class stays short after `TRIES` candidates per image wanted.
    """
    check_count(per_class)
    images = np.empty((len(classes), per_class, SIZE, SIZE, 3), np.uint8)
    filled = [0] * len(classes)
    candidates = 0
    for chunk in stream_images(sampler, 0, seed):
        candidates += len(chunk)
        assigned = labeller(chunk)
        for label in range(len(classes)):
            room = per_class - filled[label]
            found = _channels_last(chunk[assigned == label])[:room]
            images[label, filled[label] : filled[label] + len(found)] = found
            filled[label] += len(found)
            progress(len(found))
        if min(filled) == per_class:
            break
        if candidates >= TRIES * per_class * len(classes):
            short = int(np.argmin(filled))
            raise ShortClass(
                f"class {classes[short]} stays short: {filled[short]:,} of {per_class:,} images "
                f"after {candidates:,} tries; the generator hardly makes it: train longer, or ask "
                "for fewer with --per-class"
            )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), per_class)
    return Generated(lambda: iter(images), len(labels), labels, candidates)


def generate_as(
    sampler: Sampler,
    classes: tuple[str, ...],
    per_class: int,
    seed: int,
    label_with: str | None,
    labeller: Labeller | None = None,
    progress: Progress = lambda more: None,
) -> Generated:
    """The images of a synthetic set: with the generator's own labels, if any, or with those of
    `label_with`: `random`, or `classifier`, which is the labeller."""
    if label_with == "classifier":
        if labeller is None:
            raise ValueError("label_with classifier: needs a labeller")
        return generate_labelled(sampler, labeller, classes, per_class, seed, progress)
    made = generate(sampler, len(classes), per_class, seed, progress)
    if label_with == "random":
        made = replace(made, labels=np.repeat(np.arange(len(classes)), per_class))
    return made


def stream_images(sampler: Sampler, label: int, seed: int) -> Iterator[Tensor]:
    """Endless chunks, uint8 (CHUNK, 3, 32, 32) on the CPU, of one class's stream."""
    labels = torch.full((CHUNK,), label)
    random = np.random.default_rng([seed, label])
    while True:
        yield sampler(labels, random)


def fresh_batch(
    sampler: Sampler, classes: int, count: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images uint8 (count, 3, 32, 32) of labels int64 (count,) drawn uniformly, both on the CPU."""
    labels = torch.from_numpy(random.integers(classes, size=count))
    return sampler(labels, random), labels


def _channels_last(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def check_count(per_class: int) -> None:
    """Raises `UsageError` unless so many images of each class can be made."""
    if not 1 <= per_class <= MOST:
        raise UsageError(f"--per-class {per_class}: must be from 1 to {MOST:,}")


def generate_set(
    run: Run,
    per_class: int,
    seed: int,
    root: Path,
    device: torch.device,
    label_with: str | None = None,
    make_labeller: Callable[[], Labeller] | None = None,
    labeller_protocol: str | None = None,
    format: str = "npz",
    checkpoint: str | None = None,
) -> Path:
    """Writes a synthetic set from a run into `root`; returns its folder.

    label_with: None, `random`, or `classifier`, which needs the two that follow it. format: a name
    in `synth.formats.FORMATS`. checkpoint: see `Run.find_checkpoint`.
    """
    check_count(per_class)
    config, classes = run.config, run.config.classes
    if config.recipe.conditional and label_with is not None:
        raise UsageError(f"--label-with {label_with}: {run.folder} is conditional")
    sampler = load_generator(run.find_checkpoint(checkpoint), device)
    labeller = make_labeller() if make_labeller and label_with == "classifier" else None
    protocol = labeller_protocol if labeller else None
    environment = describe_environment(device)
    slug = f"{config.slug}-{label_with}" if label_with else config.slug
    with progress_bar(
        f"generate from {run.folder.name}", per_class * len(classes), "images"
    ) as bar:
        made = generate_as(sampler, classes, per_class, seed, label_with, labeller, bar)
        provenance = replace(
            describe_provenance(run, seed, label_with, protocol, checkpoint),
            config=config.to_json(),
            training_environment=read_json(run.folder / "environment.json"),
            generation_environment=environment,
            training_log=run.read_log(),
        )
        manifest = Manifest(
            **vars(provenance),
            format=format,
            sha256="",  # known once the images are written
            classes=classes,
            dataset=config.dataset,
            dataset_key=config.dataset_key,
            candidates=made.candidates,
            commit=environment["commit"],
            command=environment["command"],
        )
        return write_synthetic(root, slug, made.make_chunks(), made.count, made.labels, manifest)


def describe_provenance(
    run: Run,
    seed: int,
    label_with: str | None,
    labeller: str | None,
    checkpoint: str | None = None,
) -> Provenance:
    """What follows from the run and from what is asked of it, before anything is generated.

    A run that selects its checkpoint learned from fewer images. Its sets say how theirs was chosen,
    and how long the run went on.
    """
    config, weights = run.config, run.find_checkpoint(checkpoint)
    return Provenance(
        recipe=config.recipe.name,
        conditional=config.recipe.conditional,
        labels=label_with or ("conditional" if config.recipe.conditional else "none"),
        labeller=labeller,
        images_shown=run.images_shown(weights),
        training_seed=config.seed,
        generation_seed=seed,
        trained_on=config.fingerprint,
        run=portable(run.folder),
        checkpoint=sha256(weights),
        chosen=(checkpoint or run.default_checkpoint) if config.select else None,
        run_length=config.total_images if config.select else None,
    )
