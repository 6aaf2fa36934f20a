"""The format `npz`: one file, `images.npz`, with the arrays `images` and `labels`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import map_array, read_arrays
from synth.base.pictures import measured
from synth.formats import Chunks, Format, Found, Labels, number

FILE = "images.npz"
MOST_LABEL = 1 << 31
# Usual names of the arrays in other people's files
IMAGES = ("images", "image", "x_train", "X_train", "train_images", "x", "X", "data", "arr_0")
LABELS = ("labels", "label", "y_train", "Y_train", "train_labels", "y", "Y", "targets", "arr_1")
CLASSES = ("classes", "class_names", "label_names", "names")


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes the file that numpy's `savez` would write, one chunk of images at a time."""
    shape, chunks = measured(chunks)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        if labels is not None:
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    found = read_file(folder / FILE)
    return found.images, found.labels


def read_file(path: Path) -> Found:
    """Any npz file whose arrays have usual names. Images are uint8 (N, H, W, 3), (N, 3, H, W), or
    grey without the 3 or with 1. Labels are whole numbers or names, (N,) or (N, 1)."""
    usual = (*IMAGES, *LABELS, *CLASSES)
    mapped = map_array(path, "images")
    if mapped is None:
        arrays = read_arrays(path, *usual)
    else:
        arrays = {"images": mapped, **read_arrays(path, *(n for n in usual if n != "images"))}
    images = next((arrays[name] for name in IMAGES if name in arrays), None)
    labels = next((arrays[name] for name in LABELS if name in arrays), None)
    names = next((arrays[name] for name in CLASSES if name in arrays), None)
    if images is None:
        raise SynthError(f"{path}: holds no array named images")
    pixels = _channels_last(path, images)
    if labels is not None and labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iuU"):
        raise SynthError(f"{path}: labels are {labels.dtype} {labels.shape}, not int64 (N,)")
    if labels is not None and labels.dtype.kind == "U":
        return Found(pixels, *number(labels.tolist()))
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < MOST_LABEL:
        raise SynthError(f"{path}: labels are from {labels.min()} to {labels.max()}")
    known = names is not None and names.ndim == 1 and names.dtype.kind == "U"
    return Found(
        pixels,
        None if labels is None else labels.astype(np.int64),
        tuple(names.tolist()) if known and names is not None else None,
    )


def _channels_last(path: Path, images: np.ndarray) -> np.ndarray:
    pixels = images[..., None] if images.ndim == 3 else images
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
        raise SynthError(
            f"{path}: images are {images.dtype} {images.shape}, not uint8 (N, H, W, 3); "
            "give pixels from 0 to 255"
        )
    grey = pixels.shape[3] == 1
    if grey:
        return np.repeat(pixels, 3, axis=3)
    return pixels if pixels.flags.c_contiguous else np.ascontiguousarray(pixels)


FORMAT = Format(write, read, "one file, for numpy", FILE)
