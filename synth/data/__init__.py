"""Labelled images, and the registry of datasets to load them from.

Images stay uint8 until a network reads them. All conversions between uint8 and the range of a
network are functions of this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from synth.base.errors import SynthError, UsageError
from synth.base.files import sha256_arrays
from synth.base.images import SIDE
from synth.base.registry import Registry

Split = Literal["train", "test"]
SIZE = SIDE
TENTH, FIFTH = 0.1, 0.2
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """Images of one split of one dataset.

    images: uint8 (N, 3, side, side); grey ones have three equal channels. labels: int64
    (N,), indices into `classes`, or None.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: Split

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.images.shape[-1]

    @property
    def grey(self) -> bool:
        """True if all channels are equal."""
        return bool((self.images == self.images[:, :1]).all())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the bytes of the images, then of the labels."""
        tensors = [self.images] if self.labels is None else [self.images, self.labels]
        return sha256_arrays(*(tensor.numpy() for tensor in tensors))

    def require_labels(self) -> Tensor:
        """The labels. Raises `SynthError` if there are none, or if a class has no image."""
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

    def subset(self, chosen: Tensor) -> ImageSet:
        """The images that `chosen`, bool or int64, indexes."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images[chosen], labels=labels)


def split_validation(images: ImageSet, share: float = TENTH) -> tuple[ImageSet, ImageSet]:
    """Splits a training split in two: images to train on, and the validation part.

    The validation part is the last `share` of the split. It is one block, because neighbouring
    digits of SVHN come from the same house number. A set that is sorted by class, such as one from
    a folder, would lose its last classes: it gives the last `share` of each class instead.
    """
    labels = images.labels
    counts = [len(images)]
    if labels is not None and bool((labels.diff() >= 0).all()):
        counts = labels.bincount().tolist()
    kept = torch.ones(len(images), dtype=torch.bool)
    for end, count in zip(accumulate(counts), counts, strict=True):
        kept[end - round(count * share) : end] = False
    validation = replace(images.subset(~kept), name=f"{images.name}, validation part")
    return images.subset(kept), validation


def first_of_each_class(real: ImageSet, share: float) -> ImageSet:
    """The first `share` of each class, one image at least, in the order of the split."""
    return real.subset(first_of_classes(real.require_labels(), share))


def first_of_classes(labels: Tensor, share: float) -> Tensor:
    """The same as a mask, bool (N,)."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        chosen[members[: math.ceil(len(members) * share)]] = True
    return chosen


def signed_from_uint8(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 [-1, 1], the range of a generator's tanh (Radford et al. 2015)."""
    return images.float().div_(127.5).sub_(1.0)


def uint8_from_signed(images: Tensor) -> Tensor:
    """float [-1, 1] → uint8 0..255, rounded. The inverse of `signed_from_uint8`."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def unit_from_uint8(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 [0, 1], the input range of classifiers."""
    return images.float().div_(255.0)


def uint8_from_unit(images: Tensor) -> Tensor:
    """float [0, 1] → uint8 0..255, rounded. The inverse of `unit_from_uint8`."""
    return images.float().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Dataset:
    """A source of real images. load(split, root): root is the folder of `--data-root`, or None."""

    load: Callable[[Split, Path | None], ImageSet]
    description: str


DATASETS: Registry[Dataset] = Registry(
    "--dataset", "synth.datasets", Dataset, modules="synth.data", attribute="DATASET"
)


# Suffixes of a dataset's name. They stand for parts of its splits.
VALIDATION = ":validation"  # the training split alone: its last fifth stands for the test split
A_TENTH = ":tenth"  # the first tenth of each class of the training split, and the whole test split


def load_training_images(dataset_key: str, root: Path | None = None) -> ImageSet:
    """The training split of a dataset in `DATASETS`, such as `svhn`. Does not open the files of the
    test split. `svhn:validation` is all but its last fifth, see `split_validation`; `svhn:tenth` is
    the first tenth of each class."""
    name, _, part = dataset_key.partition(":")
    images = DATASETS.find(name).load("train", root)
    if f":{part}" == VALIDATION:
        return _validation_parts(images)[0]
    if f":{part}" == A_TENTH:
        return replace(first_of_each_class(images, TENTH), name=f"{images.name}-tenth")
    return _whole(images, dataset_key)


def load_test_images(dataset_key: str, root: Path | None = None) -> ImageSet:
    """The test split of a dataset in `DATASETS`, which only the final score may use. Of
    `svhn:validation` it is the last fifth of the training split."""
    name, _, part = dataset_key.partition(":")
    if f":{part}" == VALIDATION:
        return _validation_parts(DATASETS.find(name).load("train", root))[1]
    images = DATASETS.find(name).load("test", root)
    if f":{part}" == A_TENTH:
        return replace(images, name=f"{images.name}-tenth")
    return _whole(images, dataset_key)


def _whole(images: ImageSet, dataset_key: str) -> ImageSet:
    if ":" in dataset_key:
        raise UsageError(f"--dataset {dataset_key}: after the colon, choose validation or tenth")
    return images


def _validation_parts(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    first, last = split_validation(images, FIFTH)
    name = f"{images.name}-validation"  # so that nobody takes its score for one on the test split
    return replace(first, name=name), replace(last, name=name, split="test")
