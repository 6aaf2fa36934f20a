"""A trained generator → a balanced set of images.

Image i of class c depends on (seed, c, i) alone. Each class has its own random stream of latents.
The network always gets full chunks of `CHUNK` images, because rounding can depend on batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synth.augment import NUMBERS, augment
from synth.base.errors import SynthError, UsageError
from synth.base.files import portable, read_json, sha256
from synth.base.progress import progress_bar
from synth.data import SIZE, uint8_from_unit, unit_from_uint8
from synth.environment import describe_environment
from synth.families import Sampler
from synth.policies import POLICIES, Policy
from synth.provenance import Manifest, Provenance
from synth.runs import Run, load_generator
from synth.synthetic_set import Generated, write_synthetic

CHUNK = 250
MOST = 10_000_000  # images per class
TRIES = 50  # candidates per image, before synth gives up on a class
LABEL_WITH = ("classifier", "random")  # labels that an unconditional generator's images can get
Labeller = Callable[[Tensor], Tensor]  # uint8 (N, 3, 32, 32) → int64 (N,)
Progress = Callable[[int], None]  # takes the number of new images


class ShortClass(SynthError):
    """An unconditional generator makes too few images of a class."""


def generate(
    sampler: Sampler,
    classes: int,
    per_class: int,
    seed: int,
    progress: Progress = lambda more: None,
    policy: str | None = None,
) -> Generated:
    """`per_class` images of each class. Those of an unconditional generator have no labels.

    Raises `UsageError` if a conditional generator was trained on fewer classes.
    """
    check_count(per_class)
    if sampler.classes and classes > sampler.classes:
        raise UsageError(f"classes {classes}: this generator knows {sampler.classes}")

    def make_chunks() -> Iterator[np.ndarray]:
        for label in range(classes):
            chunks = stream_images(sampler, label, seed, policy)
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
    policy: str | None = None,
) -> Generated:
    """`per_class` images of each class from an unconditional generator. They are the first ones
    that `labeller` assigns to the class. All are held in memory, 3 KB each.

    Raises `ShortClass` if a class is not full after `TRIES` candidates per image.
    """
    images = np.empty((len(classes), per_class, SIZE, SIZE, 3), np.uint8)
    filled = [0] * len(classes)
    candidates = 0
    for chunk in stream_images(sampler, 0, seed, policy):
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
                f"after {candidates:,} tries; train the generator longer, or use a smaller "
                "--per-class"
            )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), per_class)
    return Generated(lambda: iter(images), len(labels), labels, candidates)


def stream_images(
    sampler: Sampler, label: int, seed: int, policy: str | None = None
) -> Iterator[Tensor]:
    """Endless chunks of images of one class: uint8 (CHUNK, 3, 32, 32) on the CPU.

    policy: a name in `POLICIES`, to augment each image by random numbers of its own.
    """
    labels = torch.full((CHUNK,), label)
    random = np.random.default_rng([seed, label])
    other_random = np.random.default_rng([seed, label, *b"augmentation"])
    chosen = None if policy is None else POLICIES.find(policy)
    while True:
        images = sampler(labels, random)
        if chosen is not None:
            numbers = torch.from_numpy(other_random.random((CHUNK, NUMBERS), np.float32) * 2 - 1)
            changed = augment(unit_from_uint8(images), chosen, numbers)
            images = uint8_from_unit(changed)
        yield images


def fresh_batch(
    sampler: Sampler, classes: int, count: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images uint8 (count, 3, 32, 32) and uniform labels int64 (count,), both on the CPU."""
    labels = torch.from_numpy(random.integers(classes, size=count))
    return sampler(labels, random), labels


def _channels_last(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def check_count(per_class: int) -> None:
    """Raises `UsageError` if `per_class` is out of range."""
    if not 1 <= per_class <= MOST:
        raise UsageError(f"--per-class {per_class}: must be from 1 to {MOST:,}")


def generate_set(
    run: Run,
    provenance: Provenance,
    per_class: int,
    root: Path,
    device: torch.device,
    labeller: Labeller | None = None,
    format: str = "npz",
) -> Path:
    """Writes the synthetic set that `provenance` describes into `root`. Returns its folder.

    provenance: from `describe_provenance`. labeller: gives the labels, if they are `classifier`.
    format: a name in `FORMATS`. Raises `UsageError` for a wrong argument.
    """
    check_count(per_class)
    config, labels, seed = run.config, provenance.labels, provenance.generation_seed or 0
    policy = provenance.augmentation
    sampler = load_generator(run.find_checkpoint(provenance.chosen), device)
    assert (labeller is not None) == (labels == "classifier")
    environment = describe_environment(device)
    slug = f"{config.slug}-{labels}" if labels in LABEL_WITH else config.slug
    count, title = per_class * len(config.classes), f"generate from {run.folder.name}"
    with progress_bar(title, count, "images") as advance:
        if labeller is None:
            made = generate(sampler, len(config.classes), per_class, seed, advance, policy)
        else:
            made = generate_labelled(
                sampler, labeller, config.classes, per_class, seed, advance, policy
            )
        if labels == "random":
            made = replace(made, labels=np.repeat(np.arange(len(config.classes)), per_class))
        manifest = Manifest(
            **provenance.description(),
            config=config.to_json(),
            training_environment=read_json(run.folder / "environment.json"),
            generation_environment=environment,
            training_log=run.read_log(),
            format=format,
            sha256="",  # `write_synthetic` fills it in
            classes=config.classes,
            dataset=config.dataset,
            dataset_key=config.dataset_key,
            candidates=made.candidates,
            commit=environment["commit"],
            command=environment["command"],
        )
        return write_synthetic(root, slug, made, manifest)


def describe_provenance(
    run: Run,
    seed: int,
    labels: str | None = None,
    labeller: str | None = None,
    checkpoint: str | None = None,
    augmentation: str | None = None,
) -> Provenance:
    """What is known of a synthetic set before it is generated.

    labels: None keeps the generator's labels, if any. `random` gives random labels. `classifier`
    gives those of a classifier, trained by the protocol `labeller`. checkpoint: see
    `Run.find_checkpoint`. augmentation: a name in `POLICIES`, or None. Raises `UsageError` if the
    run has labels of its own, or no such checkpoint.

    A run that selects its checkpoint learned from fewer images. So its sets say how the checkpoint
    was chosen, and the length of the run.
    """
    config, conditional = run.config, run.config.recipe.conditional
    if conditional and labels in LABEL_WITH:
        raise UsageError(f"--label-with {labels}: {run.folder} is conditional")
    if augmentation is not None and POLICIES.find(augmentation) == Policy():
        augmentation = None
    weights = run.find_checkpoint(checkpoint)
    return Provenance(
        recipe=config.recipe.name,
        conditional=conditional,
        labels=labels or ("conditional" if conditional else "none"),
        labeller=labeller if labels == "classifier" else None,
        images_shown=run.images_shown(weights),
        training_seed=config.seed,
        generation_seed=seed,
        augmentation=augmentation,
        trained_on=config.fingerprint,
        run=portable(run.folder),
        checkpoint=sha256(weights),
        chosen=(checkpoint or run.default_checkpoint) if config.select else None,
        run_length=config.total_images if config.select else None,
    )
