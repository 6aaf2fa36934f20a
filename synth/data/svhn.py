"""SVHN's cropped digits (Netzer et al. 2011), from its own .mat files."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from torchvision.datasets import SVHN

from synth.base.errors import SynthError
from synth.base.files import slug
from synth.data import DIGITS, SIZE, Dataset, ImageSet, Split, cache_folder

WAYS_OUT = "point --data-root at SVHN's files, or use --dataset house-numbers"


def load(split: Split, root: Path | None) -> ImageSet:
    """SVHN's split from `root`, downloaded into it (or the cache folder) when it is not there.

    A file with the official checksum is named `svhn`; any other is named after its folder, so
    that figures measured on a part or a variant never pass for SVHN's own.
    """
    root = root if root is not None else cache_folder() / "svhn"
    url, file_name, md5 = SVHN.split_list[split]
    path = root / file_name
    if not path.exists():
        _download(split, root, url)
    images, labels = read_mat(path)
    return ImageSet(images, labels, DIGITS, _name(path, md5), split)


def read_mat(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads SVHN's format: `X` uint8 (32, 32, 3, N), `y` (N, 1) in 1..10, where 10 is digit 0.

    Returns images uint8 (N, 3, 32, 32) and labels int64 (N,). Raises `SynthError` otherwise.
    """

    def refuse(found: str) -> SynthError:
        return SynthError(f"{path}: {found}; {WAYS_OUT}")

    contents: dict[str, Any]
    try:
        contents = scipy.io.loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise refuse(f"is no readable .mat file, cut short or foreign ({error})") from error
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


def _name(path: Path, official_md5: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5") if hasattr(hashlib, "file_digest") else None
        md5 = digest.hexdigest() if digest else hashlib.md5(file.read()).hexdigest()
    if md5 == official_md5:
        return "svhn"
    name = slug(path.resolve().parent.name)
    return "svhn-unofficial" if name == "svhn" else name


def _download(split: Split, root: Path, url: str) -> None:
    """torchvision's download and checksum, in a folder beside the place; then moved into it."""
    name, existed = Path(url).name, root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as beside:
            SVHN(beside, split=split, download=True)
            (Path(beside) / name).replace(root / name)
    except (OSError, RuntimeError) as error:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise SynthError(
            f"{root / name}: is not there, and {url} gave no copy ({reason}); {WAYS_OUT}"
        ) from error


DATASET = Dataset(load, "Street View House Numbers (Netzer et al. 2011), downloaded")
