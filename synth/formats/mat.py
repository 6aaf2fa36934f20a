"""The format `mat`: one file in SVHN's layout, for scipy and MATLAB."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from synth.base.errors import SynthError
from synth.base.files import regular
from synth.base.pictures import measured
from synth.formats import Chunks, Format, Found, Labels

FILE = "train.mat"
MOST = (1 << 32) - 256  # bytes of an array in this version of the format


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes `X` uint8 (H, W, 3, N), and with labels `y` (N, 1) and the names `classes` (K, 1).

    As in SVHN the label 0 is K in `y`. X is written by hand, one chunk at a time: scipy would need
    all images at once. Layout: MATLAB, "MAT-File Format" for level 5.
    """
    (height, width, channels), chunks = measured(chunks)
    size = count * height * width * channels
    if size > MOST:
        raise SynthError(f"--format mat: holds 4 GB at most, not {size:,} bytes; choose npz")
    small: dict[str, Any] = {}
    if labels is not None:
        small["y"] = np.where(labels == 0, len(classes), labels)[:, None]
        small["classes"] = np.array(classes, object)[:, None]
    with (folder / FILE).open("wb") as file:
        scipy.io.savemat(file, small)  # writes the file's header, too
        padding = -size % 8
        flags = struct.pack("<4I", 6, 8, 9, 0)  # uint8
        shape = struct.pack("<2I4i", 5, 16, height, width, channels, count)
        name = struct.pack("<2H4s", 1, 1, b"X")
        inside = len(flags + shape + name) + 8 + size + padding
        file.write(struct.pack("<2I", 14, inside) + flags + shape + name)
        file.write(struct.pack("<2I", 2, size))
        for chunk in chunks:  # the first index runs fastest
            file.write(np.ascontiguousarray(chunk.transpose(0, 3, 2, 1)).data)
        file.write(bytes(padding))


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    found = read_file(folder / FILE)
    return found.images, found.labels


def read_file(path: Path) -> Found:
    """Any file in SVHN's layout. Without `classes`, labels of 1 to 10 are SVHN's, where 10 is the
    digit 0, and labels from 0 on are what they are."""
    try:
        held: dict[str, Any] = scipy.io.loadmat(
            regular(path), variable_names=["X", "y", "classes"], chars_as_strings=True
        )
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise SynthError(f"{path}: is damaged or no .mat file ({error})") from error
    pixels = held.get("X")
    if pixels is None:
        raise SynthError(f"{path}: lacks the array X, uint8 (H, W, 3, N), of SVHN's layout")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != 3:
        raise SynthError(f"{path}: X is {pixels.dtype} {pixels.shape}, not uint8 (H, W, 3, N)")
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    if "y" not in held:
        return Found(images, None, None)
    names = tuple(str(np.ravel(name)[0]) for name in np.ravel(held.get("classes", [])))
    return Found(images, _labels(path, held["y"].ravel(), len(images), len(names)), names or None)


def _labels(path: Path, given: np.ndarray, count: int, classes: int) -> np.ndarray:
    if given.dtype.kind not in "iuf" or len(given) != count or count == 0:
        raise SynthError(f"{path}: y has {len(given)} labels ({given.dtype}) for {count} images")
    low, high = given.min(), given.max()
    if not np.array_equal(given, np.floor(given)) or low < 0:
        raise SynthError(f"{path}: y holds labels from {low} to {high}, not whole numbers from 0")
    labels = given.astype(np.int64)
    if classes or (low >= 1 and high == 10):
        if high > (classes or 10):
            raise SynthError(f"{path}: y holds the label {high}, and {classes} classes")
        return labels % (classes or 10)
    if low >= 1:
        raise SynthError(
            f"{path}: y holds labels from {low} to {high} without names; SVHN's are 1 to 10; let "
            "others begin at 0, or add the array classes"
        )
    return labels


FORMAT = Format(write, read, "one file in SVHN's layout, for scipy and MATLAB", FILE)
