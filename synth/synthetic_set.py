"""The synthetic set on disk: images, manifest, card, preview; written whole, read with checks.

images.npz (or train/<class>/000123.png)   images uint8 (N, 32, 32, 3), labels int64 (N,)
manifest.json    counts, hashes, seed, run, checkpoint, commit
README.md        a data set card
preview.png      ten images of each class
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from synth.base.errors import SynthError
from synth.base.files import (
    numbered_folders,
    read_arrays,
    read_json,
    sha256_arrays,
    write_json,
    write_numbered_folder,
    write_text,
)
from synth.data import SIZE, ImageSet
from synth.data.folder import read_images
from synth.visuals import save_grid

SCHEMA = 1
Format = Literal["npz", "folder"]
PREVIEW = 10  # images per class
# What every manifest has, and what synth relies on when it reads one.
MANIFEST = {
    "format": str,
    "sha256": str,
    "classes": list,
    "recipe": str,
    "labels": str,
    "source": str,
    "seed": int,
}

CARD = """---
license: other
task_categories: [image-classification]
tags: [synthetic, {recipe}]
size_categories: ["n={count}"]
---

# {title}

{count:,} synthetic 32×32 colour images, {per_class:,} of each of {classes} classes, made by synth
with a `{recipe}` generator (seed {seed}) that was trained on `{dataset}`. {labels}

The generator learned from `{dataset}`, so the terms of `{dataset}` go on to apply to what it makes
(SVHN, for one, is for non-commercial research).

`manifest.json` holds the counts, the hashes and where every image comes from.
"""
LABELS = {
    "conditional": "The generator was told the labels.",
    "classifier": "A classifier trained on the real training split gave the labels.",
    "random": "The labels are random: this set is a chance floor.",
    "none": "The images have no labels.",
}


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set that was read and checked; `manifest` is empty for a foreign one."""

    images: ImageSet
    manifest: dict[str, Any]
    folder: Path


def write_synthetic(
    root: Path,
    slug: str,
    chunks: Iterable[np.ndarray],
    count: int,
    labels: np.ndarray | None,
    origin: dict[str, Any],
    form: Format = "npz",
) -> Path:
    """Writes `root/00003-slug`; `origin` (recipe, seed, classes, …) becomes part of the manifest.

    chunks: uint8 (n, 32, 32, 3), `count` images in all, class by class; a chunk is forgotten once
    it is written. labels: int64 (count,) or None. Returns the folder.
    """
    classes = origin["classes"]
    counts = np.bincount(labels, minlength=len(classes)).tolist() if labels is not None else None
    chosen = np.linspace(0, count, len(classes), endpoint=False).astype(int)
    shown = (chosen[:, None] + np.arange(min(PREVIEW, count // len(classes)))).ravel()
    digest, preview = hashlib.sha256(), []

    def watched() -> Iterator[np.ndarray]:
        at = 0
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
            preview.append(chunk[shown[(shown >= at) & (shown < at + len(chunk))] - at])
            at += len(chunk)
            yield chunk
        if at != count:
            raise ValueError(f"{at} images where {count} were announced")

    def fill(folder: Path) -> None:
        if form == "npz":
            _write_npz(folder / "images.npz", watched(), count, labels)
        else:
            _write_pngs(folder / "train", watched(), count, labels, classes)
        if labels is not None:
            digest.update(labels.data)
        manifest = {
            "schema": SCHEMA,
            "format": form,
            "count": count,
            "per_class": counts,
            "sha256": digest.hexdigest(),
            **origin,
        }
        card = CARD.format(
            title=slug,
            count=count,
            per_class=count // len(classes),
            classes=len(classes),
            recipe=origin["recipe"],
            seed=origin["seed"],
            dataset=origin["dataset"],
            labels=LABELS[origin["labels"]],
        )
        write_text(folder / "README.md", card)
        pixels = torch.from_numpy(np.concatenate(preview)).permute(0, 3, 1, 2)
        save_grid(pixels, folder / "preview.png", columns=len(shown) // len(classes))
        write_json(folder / "manifest.json", manifest)

    return write_numbered_folder(root, slug, fill)


def content_hash(images: np.ndarray, labels: np.ndarray | None) -> str:
    """sha256 of the images' bytes, then the labels': the same for every form on disk."""
    return sha256_arrays(images) if labels is None else sha256_arrays(images, labels)


def read_synthetic(folder: Path) -> SyntheticSet:
    """Reads a synthetic set, and checks it against its manifest.

    A folder that holds `images.npz` and no manifest is taken as a foreign set. Raises
    `SynthError` when something is missing, damaged or does not match.
    """
    manifest_path = folder / "manifest.json"
    if not manifest_path.exists():
        if (folder / "images.npz").exists():
            images, labels = _read_npz(folder / "images.npz")
            return _as_set(folder, images, labels, {})
        raise SynthError(
            f"{folder}: is no data set (it has no manifest.json); "
            "make one with: synth generate --per-class 5000"
        )
    manifest = read_json(manifest_path)
    for key, kind in MANIFEST.items():
        if not isinstance(manifest.get(key), kind):
            raise SynthError(
                f"{manifest_path}: is damaged, {key} is {manifest.get(key, 'missing')!r}; "
                "generate the set again"
            )
    form, expected, classes = manifest["format"], manifest["sha256"], manifest["classes"]
    if form == "npz":
        images, labels = _read_npz(folder / "images.npz")
    else:
        images, labels = _read_pngs(folder / "train", classes)
    if content_hash(images, labels) != expected:
        raise SynthError(f"{folder}: its images do not match manifest.json; generate the set again")
    return _as_set(folder, images, labels, manifest)


def newest_synthetic(root: Path) -> Path:
    """The newest data set folder in `root`. Raises `SynthError` when there is none."""
    for folder in reversed(numbered_folders(root)):
        if (folder / "manifest.json").exists():
            return folder
    raise SynthError(f"{root}: holds no data set; make one with: synth generate --per-class 5000")


def _as_set(
    folder: Path, images: np.ndarray, labels: np.ndarray | None, manifest: dict[str, Any]
) -> SyntheticSet:
    count = 0 if labels is None or len(labels) == 0 else int(labels.max()) + 1
    classes = tuple(manifest.get("classes") or map(str, range(count)))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = None if labels is None else torch.from_numpy(labels)
    image_set = ImageSet(pixels, targets, classes, folder.resolve().name, "train")
    return SyntheticSet(image_set, manifest, folder)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    arrays = read_arrays(path)
    if "images" not in arrays:
        raise SynthError(f"{path}: holds no array named images")
    images, labels = arrays["images"], arrays.get("labels")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise SynthError(
            f"{path}: images are {images.dtype} {images.shape}, not uint8 (N, 32, 32, 3)"
        )
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise SynthError(f"{path}: labels are {labels.dtype} {labels.shape}, not int64 (N,)")
    if labels is not None and len(labels) and labels.min() < 0:
        raise SynthError(f"{path}: labels start at {labels.min()}, not at 0 or above")
    return images, None if labels is None else labels.astype(np.int64)


def _write_npz(
    path: Path, chunks: Iterable[np.ndarray], count: int, labels: np.ndarray | None
) -> None:
    """What numpy's `savez` writes, without all images in memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIZE, SIZE, 3)}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
        if labels is not None:
            with archive.open("labels.npy", "w") as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def _write_pngs(
    folder: Path,
    chunks: Iterable[np.ndarray],
    count: int,
    labels: np.ndarray | None,
    classes: list[str],
) -> None:
    """`folder/<class>/000123.png`, numbered within the class; without labels, in one folder."""
    names = [""] * count if labels is None else [classes[label] for label in labels]
    for name in set(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = {name: iter(range(count)) for name in set(names)}
    paths = (folder / name / f"{next(numbers[name]):06d}.png" for name in names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in chunks:
            mine = list(islice(paths, len(chunk)))
            list(pool.map(lambda path, pixels: Image.fromarray(pixels).save(path), mine, chunk))


def _read_pngs(folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    labelled = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*.png"))
    ]
    paths = [path for path, _ in labelled] or sorted(folder.glob("*.png"))
    if not paths:
        raise SynthError(f"{folder}: holds no images; generate the set again")
    images = read_images(paths).permute(0, 2, 3, 1).numpy()
    return images, np.array([label for _, label in labelled], np.int64) if labelled else None
