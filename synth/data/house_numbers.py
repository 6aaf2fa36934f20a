"""The embedded data set: drawn by `synth.data.rendering` on first use, then read from the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import atomic_file, read_arrays
from synth.data import DIGITS, ImageSet, Split, cache_folder
from synth.data.rendering import VERSION, render


def load(split: Split, root: Path | None) -> ImageSet:
    """The split as drawn; `root` is not needed, for there is nothing to read."""
    path = cache_folder() / f"house-numbers-v{VERSION}-{split}.npz"
    images, labels = _read(path) or _draw(split, path)
    return ImageSet(images, labels, DIGITS, "house-numbers", split)


def _read(path: Path) -> tuple[Tensor, Tensor] | None:
    try:
        arrays = read_arrays(path)
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    except (SynthError, KeyError):
        return None  # not there, or damaged: drawn again


def _draw(split: Split, path: Path) -> tuple[Tensor, Tensor]:
    images, labels = render(split)
    try:
        with atomic_file(path) as temporary:
            np.savez(temporary, images=images.numpy(), labels=labels.numpy())
    except SynthError:
        pass  # a cache that cannot be written only costs the time to draw again
    return images, labels
