"""Labelled images, and every way to get them.

An `ImageSet` is what flows through synth: uint8 images that stay uint8 until the moment a network
reads them. The three maps between uint8 and a network's range stand here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import platformdirs
import torch
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import sha256_arrays
from synth.base.registry import Registry

Split = Literal["train", "test"]
SIZE = 32
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """Images of one split of one data set.

    images: uint8 (N, 3, 32, 32). labels: int64 (N,), indices into `classes`, or None.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: Split

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the images' bytes followed by the labels'."""
        tensors = [self.images] if self.labels is None else [self.images, self.labels]
        return sha256_arrays(*(tensor.numpy() for tensor in tensors))

    def require_labels(self) -> Tensor:
        """The labels. Raises `SynthError` when there are none or a class has no image."""
        if self.labels is None:
            raise SynthError(
                f"{self.name}: its {self.split} images have no class folders, and labels are "
                "needed here; add them, or train an unconditional recipe, such as dcgan"
            )
        counts = torch.bincount(self.labels, minlength=len(self.classes))
        missing = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if missing:
            raise SynthError(
                f"{self.name}: no {self.split} image of class {', '.join(missing)}; "
                "every class needs at least one"
            )
        return self.labels


def split_validation(images: ImageSet, share: float = 0.1) -> tuple[ImageSet, ImageSet]:
    """A training split without its validation part, and that part alone, both in their order.

    The part is the last `share`, one contiguous block, since neighbouring digits of SVHN come
    from one house number. Where the labels never decrease, the set is sorted by class (as a folder
    is read), and its tail would be of the last class alone: there it is the tail of each class.
    """
    labels = images.labels
    by_class = labels is not None and bool((labels.diff() >= 0).all())
    counts = labels.bincount().tolist() if labels is not None and by_class else [len(images)]
    kept = torch.ones(len(images), dtype=torch.bool)
    for end, count in zip(accumulate(counts), counts, strict=True):
        kept[end - round(count * share) : end] = False

    def part(mask: Tensor, name: str) -> ImageSet:
        picked = None if labels is None else labels[mask]
        return replace(images, images=images.images[mask], labels=picked, name=name)

    return part(kept, images.name), part(~kept, f"{images.name}, validation part")


def signed_from_uint8(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 [-1, 1], the range of a generator's tanh (Radford et al. 2015)."""
    return images.float().div_(127.5).sub_(1.0)


def uint8_from_signed(images: Tensor) -> Tensor:
    """float [-1, 1] → uint8 0..255, to the nearest; the inverse of `signed_from_uint8`."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def unit_from_uint8(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 [0, 1], the range that the fixed classifier reads."""
    return images.float().div_(255.0)


@dataclass(frozen=True)
class Dataset:
    """One way to get real images: `load(split, root)`, and a line that describes it."""

    load: Callable[[Split, Path | None], ImageSet]
    description: str


# Every public module of this package holds one, as `DATASET`.
DATASETS: Registry[Dataset] = Registry(
    "--dataset", "synth.datasets", modules="synth.data", attribute="DATASET"
)


def load_training_images(dataset_key: str, root: Path | None = None) -> ImageSet:
    """The training split of a data set in `DATASETS`. Never touches the test split's files."""
    return DATASETS.find(dataset_key).load("train", root)


def load_test_images(dataset_key: str, root: Path | None = None) -> ImageSet:
    """The test split: for the final score, and for nothing else."""
    return DATASETS.find(dataset_key).load("test", root)


def cache_folder() -> Path:
    """The platform's cache folder for synth, e.g. ~/.cache/synth on Linux."""
    return Path(platformdirs.user_cache_dir("synth", appauthor=False))
