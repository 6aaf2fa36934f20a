"""A folder of the user's own images as a data set."""

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

# What Pillow raises, besides OSError, for a file that is no image or one too large to be a picture
DAMAGE = (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def load(split: Split, root: Path | None) -> ImageSet:
    """`root/train/<class>/*.png` and `root/test/…`, as torchvision's ImageFolder lays them out.

    Images that lie loose are an unlabelled set, for unconditional training, whatever other folders
    are beside them (a `runs/`, say), unless these hold images too; a root without `train` is itself
    the training split. Class names come from the training split, so that a test split that lacks a
    class keeps the right numbers.
    """
    if root is None:
        raise UsageError("--dataset folder: needs --data-root DIR, the folder that holds train/")
    if not root.is_dir():
        raise SynthError(f"{root}: is no folder; give --data-root the one with train/")
    if (root / "test").is_dir() and not (root / "train").is_dir():
        raise SynthError(f"{root}: has test/ but no train/; put the training images into train/")
    training = root / "train" if (root / "train").is_dir() else root
    here = training if split == "train" else root / "test"
    if not here.is_dir():
        raise SynthError(f"{here}: is missing; scoring needs images there")
    classes = tuple(sorted(path.name for path in training.iterdir() if _is_class_folder(path)))
    if _image_files(training):
        filled = [name for name in classes if _image_files(training / name)]
        if filled:
            raise SynthError(
                f"{training}: holds images, and folders of images ({filled[0]}); which are the "
                "data? move the others away"
            )
        classes = ()
    paths, labels = _labelled(here, classes) if classes else (_image_files(here), None)
    classes = classes or ("unlabelled",)
    if not paths:
        raise SynthError(f"{here}: holds no images ({', '.join(IMG_EXTENSIONS)})")
    name = slug(root.resolve().name)
    name += "-folder" if name in DATASETS else ""  # what is called svhn is not SVHN for that
    return ImageSet(read_images(paths), labels, classes, name, split)


def read_images(paths: Sequence[Path]) -> torch.Tensor:
    """uint8 (N, 3, 32, 32): turned as EXIF says, without transparency; other sizes are resized with
    antialiasing (Pillow's bicubic). Raises `SynthError` that names the first bad file."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = np.stack(list(pool.map(_read_image, paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # which Pillow would cut at 255
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
    strange = {p.name for p in folder.iterdir() if _is_class_folder(p)} - set(classes)
    if strange:
        raise SynthError(f"{folder / min(strange)}: a class that the training split lacks")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folder / name) if (folder / name).is_dir() else []
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels, dtype=torch.int64)


def _is_class_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _image_files(folder: Path) -> list[Path]:
    """Not hidden ones: `._1.jpg` is macOS's own notes on `1.jpg`."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    )


DATASET = Dataset(load, "your images: ROOT/train/<class>/*.png, ROOT/test/…")
