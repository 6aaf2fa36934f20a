"""The format `folder`: PNG files in class folders, which torchvision's ImageFolder can read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from synth.base.errors import SynthError
from synth.base.pictures import read_pictures
from synth.formats import Chunks, Format, Labels

SPLIT = "train"  # the folder that holds the class folders


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes `train/<class>/000123.png`, or `train/000123.png` without labels. Each class counts
    from 0."""
    folder = folder / SPLIT
    names = [""] * count if labels is None else [classes[label] for label in labels]
    for name in set(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = {name: iter(range(count)) for name in set(names)}
    paths = (folder / name / f"{next(numbers[name]):06d}.png" for name in names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in chunks:
            files = list(islice(paths, len(chunk)))
            list(pool.map(lambda path, pixels: Image.fromarray(pixels).save(path), files, chunk))


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    folder = folder / SPLIT
    labelled = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*.png"))
    ]
    paths = [path for path, _ in labelled] or sorted(folder.glob("*.png"))
    if not paths:
        raise SynthError(f"{folder}: holds no images; generate the set again")
    labels = np.array([label for _, label in labelled], np.int64) if labelled else None
    return read_pictures(paths), labels


FORMAT = Format(write, read, "PNGs in class folders", f"{SPLIT}/**", "imagefolder")
