"""The dataset `svhn`: cropped digits (Netzer et al. 2011), from the official .mat files."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from torchvision.datasets import SVHN

from synth.base.errors import SynthError
from synth.base.files import cache_folder, regular, slug
from synth.base.locks import scratch_folder
from synth.data import DIGITS, SIZE, Dataset, ImageSet, Split

WAYS_OUT = "point --data-root at SVHN's files, or use --dataset house-numbers"


def load(split: Split, root: Path | None) -> ImageSet:
    """Reads a split from `root`, or from the cache folder. Downloads it if it is not there.

    A file with the official checksum is named `svhn`. Any other file is named after its folder, so
    that nobody takes results on a part or a variant for results on SVHN.
    """
    root = root if root is not None else cache_folder() / "svhn"
    url, file_name, md5 = SVHN.split_list[split]
    path = root / file_name
    if not path.exists():
        _download(split, path, url)
    try:
        regular(path)
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror}); {WAYS_OUT}") from error
    images, labels = read_mat(path)
    name = "svhn"
    if hashlib.md5(path.read_bytes()).hexdigest() != md5:
        folder = slug(path.resolve().parent.name)
        name = "svhn-unofficial" if folder == "svhn" else folder
    return ImageSet(images, labels, DIGITS, name, split)


def read_mat(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads SVHN's format: `X` uint8 (32, 32, 3, N), `y` (N, 1) in 1..10, where 10 is digit 0.

    Returns images uint8 (N, 3, 32, 32) and labels int64 (N,). Raises `SynthError` for other files.
    """

    def refuse(found: str) -> SynthError:
        return SynthError(f"{path}: {found}; {WAYS_OUT}")

    try:
        contents: dict[str, Any] = scipy.io.loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise refuse(f"is damaged or no .mat file ({error})") from error
    if "X" not in contents or "y" not in contents:
        raise refuse("lacks SVHN's arrays X and y")
    pixels, labels = contents["X"], contents["y"].ravel()
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (SIZE, SIZE, 3):
        raise refuse(f"X is {pixels.dtype} {pixels.shape}, not uint8 (32, 32, 3, N)")
    if labels.dtype.kind not in "iuf" or len(labels) != pixels.shape[3] or len(labels) == 0:
        raise refuse(f"y has {len(labels)} labels ({labels.dtype}) for {pixels.shape[3]} images")
    if labels.min() < 1 or labels.max() > 10 or not np.array_equal(labels, np.floor(labels)):
        raise refuse(f"y holds labels from {labels.min()} to {labels.max()}, not 1 to 10")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return images, torch.from_numpy(labels.astype(np.int64) % 10)


def _download(split: Split, path: Path, url: str) -> None:
    """Downloads with torchvision, which compares the checksum. Leaves no partial file."""
    root, existed = path.parent, path.parent.exists()
    try:
        with scratch_folder(root) as folder:
            SVHN(str(folder), split=split, download=True)
            (folder / path.name).replace(path)
    except (OSError, RuntimeError) as error:
        if not existed:
            with contextlib.suppress(OSError):  # it holds something
                root.rmdir()
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise SynthError(
            f"{path}: is missing, and downloading {url} failed ({reason}); {WAYS_OUT}"
        ) from error


DATASET = Dataset(load, "Street View House Numbers (Netzer et al. 2011); synth downloads them")
