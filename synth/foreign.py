"""Sets that synth did not make: how they are found, read, and numbered as the real data is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from synth.base.errors import SynthError, UsageError
from synth.base.files import read_text, regular
from synth.base.names import check_line
from synth.base.pictures import read_pictures, resize
from synth.data import ImageSet
from synth.formats import Found, mat, npz, number, parquet, webdataset

FORMS = "an npz, mat, parquet or tar file, class folders of pictures, or a folder with one of them"
Read = Callable[[int | None], Found]  # the side to resize to, or None
TABLES = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's imagefolder
OTHER_SPLITS = ("test", "val")  # words in the names of parts that are not for training


def find(path: Path) -> Read:
    """How to read the set at `path`, a file or a folder. Reads no image yet. Raises `SynthError` if
    there is none.

    Where a folder has parts named after splits, the set is the one named `train`.
    """
    if path.is_dir():
        return _in_folder(path)
    readers: dict[str, Read] = {
        ".npz": lambda side: _fit(npz.read_file(path), side),
        ".mat": lambda side: _fit(mat.read_file(path), side),
        ".parquet": lambda side: parquet.read_files([path], side),
        ".tar": lambda side: webdataset.read_files([path], side),
    }
    if path.suffix.lower() not in readers:
        raise SynthError(f"{path}: is no data set; give {FORMS}")
    try:
        regular(path)
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror})") from error
    return readers[path.suffix.lower()]


def _in_folder(folder: Path) -> Read:
    single = folder / npz.FILE
    if single.exists():
        return find(single)
    for suffix in (".npz", ".mat"):
        files = _of_training(folder, sorted(folder.glob(f"*{suffix}")))
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise SynthError(f"{folder}: holds several sets ({names}); give the path of one")
        if files:
            return find(files[0])
    tables = _of_training(folder, sorted(folder.rglob("*.parquet")))
    if tables:
        return lambda side: parquet.read_files(tables, side)
    tars = _of_training(folder, sorted(folder.rglob("*.tar")))
    if tars:
        return lambda side: webdataset.read_files(tars, side)
    inside = folder / "train" if (folder / "train").is_dir() else folder
    for place in (inside, folder):
        for name in TABLES:
            if (place / name).exists():
                return partial(_with_metadata, place / name)
    classes = [path for path in sorted(inside.iterdir()) if path.is_dir() and _pictures(path)]
    if classes:
        return lambda side: _class_folders(classes, side)
    if inside != folder and _pictures(inside):
        return lambda side: Found(read_pictures(_pictures(inside), side), None, None)
    raise SynthError(
        f"{folder}: is no data set (it has no manifest.json); make one with: synth generate "
        f"--per-class 5000; or give {FORMS}"
    )


def _of_training(folder: Path, paths: list[Path]) -> list[Path]:
    """Those of the training split, where the paths name splits; else all."""
    words = {path: str(path.relative_to(folder)).lower() for path in paths}
    training = [path for path in paths if "train" in words[path]]
    return training or [p for p in paths if not any(name in words[p] for name in OTHER_SPLITS)]


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    )


def _class_folders(folders: Sequence[Path], side: int | None) -> Found:
    files = [(path, folder.name) for folder in folders for path in _pictures(folder)]
    images = read_pictures([path for path, _ in files], side)
    return Found(images, *number([name for _, name in files]))


def _with_metadata(table: Path, side: int | None) -> Found:
    """Pictures that a table names as `file_name`, with a column `label`, or one more column."""
    try:
        text = read_text(table)
        rows: list[dict[str, Any]] = (
            list(csv.DictReader(text.splitlines()))
            if table.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        names = [str(row["file_name"]) for row in rows]
        others = [key for key in rows[0] if key != "file_name"]
        columns = [key for key in parquet.LABELS if key in others] or others
        if len(columns) > 1 and columns[0] not in parquet.LABELS:
            raise ValueError(f"none of its columns {', '.join(columns)} is named label")
        labels = [str(row[columns[0]]) for row in rows] if columns else None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SynthError(f"{table}: cannot be read ({error}); give file_name and label") from error
    inside = table.parent.resolve()
    paths = [table.parent / name for name in names]
    for path in paths:
        if inside not in path.resolve().parents:
            raise SynthError(f"{table}: names {path.name}, which lies outside of its folder")
    images = read_pictures(paths, side)
    if labels is None:
        return Found(images, None, None)
    if all(label.isdecimal() for label in labels):
        return Found(images, np.array(labels, np.int64), None)
    return Found(images, *number(labels))


def _fit(found: Found, side: int | None) -> Found:
    if side is None or found.images.shape[1:3] == (side, side):
        return found
    return found._replace(images=np.stack([resize(pixels, side) for pixels in found.images]))


def to_image_set(path: Path, found: Found) -> ImageSet:
    """Labels without names get their numbers as names. Raises `SynthError` for impossible ones."""
    images, labels, classes = found
    low, high = (0, -1) if labels is None or len(labels) == 0 else (labels.min(), labels.max())
    known, count = len(classes or images), int(high) + 1
    if count > known or low < 0:
        held = f"{known} classes" if classes else f"{known} images"
        raise SynthError(f"{path}: has the label {high if count > known else low}, and {held}")
    try:
        whole = path.resolve()
        name = check_line(whole.name if path.is_dir() else whole.stem)
        classes = tuple(check_line(each) for each in classes or map(str, range(count)))
    except ValueError as error:
        raise SynthError(f"{path}: rename it or its classes; {error}") from error
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = None if labels is None else torch.from_numpy(labels)
    return ImageSet(pixels, targets, classes, name, "train")


def match_classes(
    ours: Sequence[str], real: Sequence[str], named: bool, given: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """The class of the real data for each class of a set.

    given: by `--classes`. named: False if the set has numbers alone, which then count the real
    classes in their order. Otherwise equal names are the same class, whatever the case. Raises
    `SynthError` if this is not one to one.
    """
    listed = ", ".join(ours)
    if given is not None:
        if sorted(given) != sorted(real) or len(given) != len(ours):
            raise UsageError(
                f"--classes {','.join(given)}: must name the classes {', '.join(real)}, each once, "
                f"in the order of the set's own classes {listed}"
            )
        return tuple(given)
    plain = {name.strip().casefold(): name for name in real}
    wanted = [name.strip().casefold() for name in ours]
    if named and len(plain) == len(real) and sorted(wanted) == sorted(plain):
        return tuple(plain[name] for name in wanted)
    if not named and len(ours) == len(real):
        return tuple(real)
    raise SynthError(
        f"{where}: has the classes {listed}, but the real data has {', '.join(real)}; choose the "
        "right --dataset, or name the real class of each of the set's with --classes"
    )


def renumber(images: ImageSet, numbers: Sequence[int], classes: tuple[str, ...]) -> ImageSet:
    """The set with other numbers of its classes. numbers: the new one of each; classes: the new
    names in the order of the new numbers."""
    assert images.labels is not None
    return replace(images, labels=torch.tensor(numbers)[images.labels], classes=classes)
