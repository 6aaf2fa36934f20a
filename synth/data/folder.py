"""The dataset `folder`: images of the user."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from synth.base.errors import SynthError, UsageError
from synth.base.files import slug
from synth.data import DATASETS, SIZE, Dataset, ImageSet, Split

# Errors of Pillow, besides OSError, for files that are damaged, too large or no images
DAMAGE = (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


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
    classes = tuple(sorted(path.name for path in training.iterdir() if _is_class_folder(path)))
    if _image_files(training):
        filled = [name for name in classes if _image_files(training / name)]
        if filled:
            raise SynthError(
                f"{training}: holds images, and folders of images ({filled[0]}); remove those "
                "that are not training data"
            )
        classes = ()
    paths, labels = _labelled(folder, classes) if classes else (_image_files(folder), None)
    if not paths:
        raise SynthError(f"{folder}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    name = slug(root.resolve().name)
    if name in DATASETS:  # a folder named svhn need not hold SVHN
        name += "-folder"
    return ImageSet(read_images(paths), labels, classes or ("unlabelled",), name, split)


def read_images(paths: Sequence[Path]) -> torch.Tensor:
    """Reads images as uint8 (N, 3, 32, 32). Raises `SynthError` that names a bad file.

    Images are turned as EXIF says, lose their transparency, and are resized with antialiasing.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = np.stack(list(pool.map(_read_image, paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would cut these values at 255
                raise ValueError("more than 8 bits a channel")
            colour = ImageOps.exif_transpose(image).convert("RGB")
        if colour.size != (SIZE, SIZE):
            colour = colour.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return np.asarray(colour)
    except (OSError, *DAMAGE) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = error.strerror or "cut short or no image"
        raise SynthError(f"{path}: cannot be read ({reason}); mend or remove it") from error


def _labelled(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], torch.Tensor]:
    unknown = {p.name for p in folder.iterdir() if _is_class_folder(p)} - set(classes)
    if unknown:
        raise SynthError(f"{folder / min(unknown)}: the training split has no such class")
    files = [_image_files(folder / c) if (folder / c).is_dir() else [] for c in classes]
    labels = [label for label, paths in enumerate(files) for _ in paths]
    return [path for paths in files for path in paths], torch.tensor(labels, dtype=torch.int64)


def _is_class_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _image_files(folder: Path) -> list[Path]:
    """The images in `folder`, without hidden files: macOS keeps notes on `1.jpg` in `._1.jpg`."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    )


DATASET = Dataset(load, "your own images: DATA_ROOT/train/<class>/*.png, DATA_ROOT/test/…")
