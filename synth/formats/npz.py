"""The format `npz`: one file, `images.npz`, with the arrays `images` and `labels`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import map_array, read_arrays
from synth.data import SIZE
from synth.formats import Chunks, Format, Labels

FILE = "images.npz"
MOST_LABEL = 1 << 31


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes the file that numpy's `savez` would write, one chunk of images at a time."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE, 3)}
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        if labels is not None:
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    path = folder / FILE
    mapped = map_array(path, "images")
    if mapped is None:
        arrays = read_arrays(path, "images", "labels")
    else:
        arrays = {"images": mapped, **read_arrays(path, "labels")}
    if "images" not in arrays:
        raise SynthError(f"{path}: holds no array named images")
    images, labels = arrays["images"], arrays.get("labels")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise SynthError(
            f"{path}: images are {images.dtype} {images.shape}, not uint8 (N, 32, 32, 3)"
        )
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise SynthError(f"{path}: labels are {labels.dtype} {labels.shape}, not int64 (N,)")
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < MOST_LABEL:
        raise SynthError(f"{path}: labels are from {labels.min()} to {labels.max()}")
    return images, None if labels is None else labels.astype(np.int64)


FORMAT = Format(write, read, "one file, for numpy")
