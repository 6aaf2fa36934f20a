"""The dataset `folder`: images of the user."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from synth.base.errors import SynthError, UsageError
from synth.base.files import slug
from synth.base.images import SIDES
from synth.base.names import check_file_name
from synth.base.pictures import read_pictures, size_of
from synth.base.progress import say
from synth.data import DATASETS, SIZE, Dataset, ImageSet, Split


def load(split: Split, root: Path | None) -> ImageSet:
    """Reads `root/train/<class>/*.png` and `root/test/…`, the layout of torchvision's ImageFolder.

    If `root` has no folder `train`, it is the training split itself. If the images are in no class
    folder, they have no labels; other folders beside them are ignored unless they hold images. The
    classes are those of the training split, so that both splits number them alike. The first
    training image says the size, if it is one of `SIDES`; else the size is 32×32. Images of another
    size are resized, which is said.
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
    examples = (path for each in (*classes, "") for path in _image_files(training / each))
    side = _side_like(next(examples, paths[0]))
    others = sum(size_of(path) != (side, side) for path in paths)
    if others:
        say(f"{folder}: {others:,} of {len(paths):,} images are resized to {side}×{side}")
    pixels = torch.from_numpy(read_pictures(paths, side)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, labels, tuple(classes) or ("unlabelled",), name, split)


def _side_like(path: Path) -> int:
    """The side of all images of a folder whose first training image is this."""
    width, height = size_of(path)
    return width if width == height and width in SIDES else SIZE


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
