"""The dataset `folder`: images of the user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from synth.base.errors import SynthError, UsageError
from synth.base.files import regular, slug
from synth.base.names import check_file_name
from synth.data import DATASETS, SIZE, Dataset, ImageSet, Split

MOST_PIXELS = 36_000_000  # of an image; 32×32 of them are used
MOST_THREADS = 8  # each holds an image of full size


def load(split: Split, root: Path | None) -> ImageSet:
    """Reads `root/train/<class>/*.png` and `root/test/…`, the layout of torchvision's ImageFolder.

    If `root` has no folder `train`, it is the training split itself. If the images are in no class
    folder, they have no labels; other folders beside them are ignored unless they hold images. The
    classes are those of the training split, so that both splits number them alike.
    """
    if root is None:
        raise UsageError("--dataset folder: needs --data-root DIR, the folder that holds train/")
    if not root.is_dir():
        raise SynthError(f"{root}: is no folder; set --data-root to the folder that holds train/")
    if (root / "test").is_dir() and not (root / "train").is_dir():
        raise SynthError(f"{root}: has test/ but no train/; put the training images into train/")
    training = root / "train" if (root / "train").is_dir() else root
    folder = training if split == "train" else root / "test"
    if not folder.is_dir():
        raise SynthError(f"{folder}: is missing; scoring needs images there")
    classes = _subfolders(training)
    if _image_files(training):
        filled = [name for name in classes if _image_files(training / name)]
        if filled:
            raise SynthError(
                f"{training}: holds images, and folders of images ({filled[0]}); remove those "
                "that are not training data"
            )
        classes = []
    for name in classes:
        try:
            check_file_name(name)
        except ValueError as error:
            raise SynthError(f"{training}: rename the class {name!r}; {error}") from error
    unknown = set(_subfolders(folder)) - set(classes) if classes else set()
    if unknown:
        raise SynthError(f"{folder / min(unknown)}: the training split has no such class")
    files = [_image_files(folder / name) for name in classes or [""]]
    paths = [path for each in files for path in each]
    numbers = torch.tensor([number for number, each in enumerate(files) for _ in each])
    if not paths:
        raise SynthError(f"{folder}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    name = slug(root.resolve().name)
    if name in DATASETS:  # a folder named svhn need not hold SVHN
        name += "-folder"
    labels = numbers if classes else None
    return ImageSet(read_images(paths), labels, tuple(classes) or ("unlabelled",), name, split)


def read_images(paths: Sequence[Path]) -> torch.Tensor:
    """Reads images as uint8 (N, 3, 32, 32). Raises `SynthError` that names a bad file.

    Images are turned as EXIF says, lose their transparency, and are resized with antialiasing.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        pixels = np.stack(list(pool.map(_read_image, paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(regular(path)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, more than {MOST_PIXELS:,}")
            if image.mode[0] in "IF":  # Pillow would cut these values at 255
                raise ValueError("more than 8 bits a channel")
            colour = ImageOps.exif_transpose(image).convert("RGB")
        if colour.size != (SIZE, SIZE):
            colour = colour.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return np.asarray(colour)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError):
            reason = error.strerror or "cut short or no image"
        raise SynthError(f"{path}: cannot be read ({reason}); mend or remove it") from error


def _visible(folder: Path) -> list[Path]:
    """What is in `folder`, without hidden files: macOS keeps notes on `1.jpg` in `._1.jpg`."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _subfolders(folder: Path) -> list[str]:
    return [path.name for path in _visible(folder) if path.is_dir()]


def _image_files(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in IMG_EXTENSIONS]


DATASET = Dataset(load, "your own images: DATA_ROOT/train/<class>/*.png, DATA_ROOT/test/…")
