"""A trained generator → a balanced set of images.

Image i of class c depends on (seed, c, i) alone. Each class has its own random stream of latents.
The network always gets full chunks of `CHUNK` images, because rounding can depend on batch size.
A conditional generator's images go this way:

    latents → sampler → rejection by a teacher → augmentation → the set
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from synth.base.errors import SynthError, UsageError
from synth.base.schema import CLOSED, Text
from synth.data import uint8_from_unit, unit_from_uint8
from synth.families import Sampler
from synth.ops.augment import NUMBERS, augment
from synth.ops.parallel import own_share, total_count
from synth.ops.policies import POLICIES, Policy
from synth.runs import KEPT
from synth.synthetic_set import Generated

CHUNK = 250
MOST = 10_000_000  # images per class
TRIES = 50  # candidates per image, before synth gives up on a class
CALIBRATION = 4  # chunks of a class, by which a teacher sets its threshold
Classify = Callable[[Tensor], Tensor]  # uint8 (N, 3, 32, 32) → class probabilities (N, K)
Progress = Callable[[int], None]  # takes the number of new images


class ShortClass(SynthError):
    """A generator makes too few images of a class that are good enough."""


@dataclass(frozen=True, config=CLOSED)
class Sampling:
    """How images are sampled from a generator. The defaults do what its recipe says."""

    # Policy in `POLICIES`: each image is changed at random afterwards. None: that of the recipe
    augment: Text | None = None
    # The share of each class's images that a teacher rejects: those whose label it finds least
    # likely (after Ravuri & Vinyals 2019 and DRS of Azadi et al. 2019, arXiv:1810.06758)
    reject: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Standard deviation of the latents: below 1 truncates (Brock et al. 2019, arXiv:1809.11096),
    # above 1 widens
    latent_scale: Annotated[float, Field(gt=0, le=10)] = 1.0
    # Number of the last checkpoints that make the images in turns, a chunk each
    mix: Annotated[int, Field(ge=1, le=KEPT)] = 1

    def __post_init__(self) -> None:
        if self.augment is not None:
            POLICIES.find(self.augment)


DEFAULTS = Sampling()


def generate(
    sampler: Sampler | Sequence[Sampler],
    classes: int,
    per_class: int,
    seed: int,
    progress: Progress = lambda more: None,
    sampling: Sampling = DEFAULTS,
    teacher: Classify | None = None,
    parts: Path | None = None,
) -> Generated:
    """`per_class` images of each class. Those of an unconditional generator have no labels.

    sampler: several ones, such as the last checkpoints of a run, make the images in turns. teacher:
    for a `sampling` that rejects. parts: a folder of all processes that work together. Each makes
    whole classes, and keeps them there. Raises `UsageError` if a conditional generator was trained
    on fewer classes.
    """
    check_count(per_class)
    known = _in_turns(sampler)[0].classes
    if known and classes > known:
        raise UsageError(f"classes {classes}: this generator knows {known}")
    candidates: dict[int, list[int]] = {}

    def make_class(label: int) -> Iterator[np.ndarray]:
        candidates[label] = [0]
        chunks = stream_images(sampler, label, seed, sampling, teacher, candidates[label])
        for at in range(0, per_class, CHUNK):
            count = min(CHUNK, per_class - at)
            yield _channels_last(next(chunks)[:count])
            progress(count)

    made = np.repeat(np.arange(classes, dtype=np.int64), per_class)
    labels, count = made if known else None, classes * per_class
    if parts is None:
        return Generated(
            lambda: chain.from_iterable(map(make_class, range(classes))),
            count,
            labels,
            lambda: sum(number for (number,) in candidates.values()),
        )
    for label in own_share(range(classes)):
        with (parts / str(label)).open("wb") as file:
            for chunk in make_class(label):
                np.save(file, np.ascontiguousarray(chunk))
    tried = total_count(sum(number for (number,) in candidates.values()))
    paths = [parts / str(label) for label in range(classes)]
    return Generated(
        lambda: chain.from_iterable(map(_read_chunks, paths)), count, labels, lambda: tried
    )


def _read_chunks(path: Path) -> Iterator[np.ndarray]:
    """The chunks that `np.save` wrote into a file, one after the other: uint8 (n, H, W, 3)."""
    with path.open("rb") as file:
        while file.tell() < path.stat().st_size:
            yield np.load(file, allow_pickle=False)


def generate_labelled(
    sampler: Sampler | Sequence[Sampler],
    labeller: Classify,
    classes: tuple[str, ...],
    per_class: int,
    seed: int,
    progress: Progress = lambda more: None,
    sampling: Sampling = DEFAULTS,
) -> Generated:
    """`per_class` images of each class from an unconditional generator. They are the first ones
    that `labeller` assigns to the class. All are held in memory, 3 KB each.

    Raises `ShortClass` if a class is not full after `TRIES` candidates per image.
    """
    images = np.empty(0, np.uint8)
    filled = [0] * len(classes)
    candidates = [0]
    for chunk in stream_images(sampler, 0, seed, sampling, None, candidates):
        if not len(images):
            images = np.empty((len(classes), per_class, *chunk.shape[2:], 3), np.uint8)
        assigned = labeller(chunk).argmax(1)
        for label in range(len(classes)):
            room = per_class - filled[label]
            found = _channels_last(chunk[assigned == label])[:room]
            images[label, filled[label] : filled[label] + len(found)] = found
            filled[label] += len(found)
            progress(len(found))
        if min(filled) == per_class:
            break
        if candidates[0] >= TRIES * per_class * len(classes):
            short = int(np.argmin(filled))
            raise ShortClass(
                f"class {classes[short]} stays short: {filled[short]:,} of {per_class:,} images "
                f"after {candidates[0]:,} tries; train the generator longer, or use a smaller "
                "--per-class"
            )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), per_class)
    return Generated(lambda: iter(images), len(labels), labels, lambda: candidates[0])


def stream_images(
    sampler: Sampler | Sequence[Sampler],
    label: int,
    seed: int,
    sampling: Sampling = DEFAULTS,
    teacher: Classify | None = None,
    candidates: list[int] | None = None,
) -> Iterator[Tensor]:
    """Endless chunks of images of one class: uint8 (CHUNK, 3, 32, 32) on the CPU.

    candidates: its only item grows by the number of images that the sampler makes.
    """
    chunks = _sample(sampler, label, seed, sampling.latent_scale, candidates or [0])
    if sampling.reject:
        assert teacher is not None
        chunks = _accepted(chunks, label, sampling.reject, teacher)
    if sampling.augment is not None and POLICIES.find(sampling.augment) != Policy():
        random = np.random.default_rng([seed, label, *b"augmentation"])
        chunks = _augmented(chunks, POLICIES.find(sampling.augment), random)
    return chunks


def _in_turns(sampler: Sampler | Sequence[Sampler]) -> Sequence[Sampler]:
    return sampler if isinstance(sampler, Sequence) else [sampler]


def _sample(
    sampler: Sampler | Sequence[Sampler],
    label: int,
    seed: int,
    latent_scale: float,
    candidates: list[int],
) -> Iterator[Tensor]:
    samplers = [_scaled(each, latent_scale) for each in _in_turns(sampler)]
    labels, random = torch.full((CHUNK,), label), np.random.default_rng([seed, label])
    for take in cycle(samplers):
        candidates[0] += CHUNK
        yield take(labels, random)


def _scaled(sampler: Sampler, latent_scale: float) -> Sampler:
    if latent_scale == 1:
        return sampler
    if not hasattr(sampler, "latent_scale"):
        raise UsageError(f"--latent-scale {latent_scale}: this generator has no latents")
    scaled = copy(sampler)
    scaled.latent_scale = latent_scale
    return scaled


def _accepted(
    chunks: Iterator[Tensor], label: int, reject: float, teacher: Classify
) -> Iterator[Tensor]:
    """Without the images whose label the teacher finds less likely than a threshold. The threshold
    follows from the first `CALIBRATION` chunks, so that it does not depend on the set's size."""
    first = list(islice(chunks, CALIBRATION))
    threshold = torch.cat([teacher(chunk)[:, label] for chunk in first]).quantile(reject)
    waiting = torch.empty(0, *first[0].shape[1:], dtype=torch.uint8)
    for chunk in chain(first, chunks):
        waiting = torch.cat([waiting, chunk[teacher(chunk)[:, label] >= threshold]])
        while len(waiting) >= CHUNK:
            yield waiting[:CHUNK]
            waiting = waiting[CHUNK:]


def _augmented(
    chunks: Iterator[Tensor], policy: Policy, random: np.random.Generator
) -> Iterator[Tensor]:
    """Each image is changed by random numbers of its own."""
    for images in chunks:
        numbers = torch.from_numpy(random.random((len(images), NUMBERS), np.float32) * 2 - 1)
        yield uint8_from_unit(augment(unit_from_uint8(images), policy, numbers))


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
