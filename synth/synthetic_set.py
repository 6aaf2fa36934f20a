"""The synthetic set on disk: how to write, read and check it.

images.npz (or another format of `FORMATS`)   images uint8 (N, H, W, 3), labels int64 (N,)
manifest.json    counts, hashes, seed, run, checkpoint, commit
README.md        a data set card
preview.png      ten images of each class
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from synth import foreign
from synth.base.errors import SynthError
from synth.base.files import (
    numbered_folders,
    read_json,
    sha256_arrays,
    write_json,
    write_numbered_folder,
    write_text,
)
from synth.base.schema import dump, parse
from synth.card import card
from synth.data import ImageSet
from synth.formats import FORMATS, Found
from synth.provenance import Manifest
from synth.visuals import save_grid

PREVIEW = 10  # images per class


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic set that was read and checked. `manifest` is None if synth did not make it."""

    images: ImageSet
    manifest: Manifest | None
    folder: Path  # or file, if synth did not make it
    named: bool = True  # False: its classes are numbers without names


@dataclass(frozen=True)
class Generated:
    """`count` images, class by class and equally many of each. They are made when they are read."""

    make_chunks: Callable[[], Iterator[np.ndarray]]  # uint8 (n, H, W, 3), the same every time
    count: int
    labels: np.ndarray | None  # int64 (count,), or None if unlabelled
    candidates: Callable[[], int]  # images made to get these, once all chunks were read

    @cached_property
    def images(self) -> np.ndarray:
        """All images at once: uint8 (count, H, W, 3)."""
        return np.concatenate(list(self.make_chunks()))


def write_synthetic(root: Path, slug: str, made: Generated, manifest: Manifest) -> Path:
    """Writes `root/00003-slug` in the format of the manifest. Returns the folder.

    Holds only one chunk of images in memory. Fills in the counts and the hash of the manifest.
    """
    classes, form = manifest.classes, FORMATS.find(manifest.format)
    per_class, labels = made.count // len(classes), made.labels
    columns = min(PREVIEW, per_class)
    shown = (np.arange(len(classes))[:, None] * per_class + np.arange(columns)).ravel()
    digest, preview = hashlib.sha256(), []

    def watched() -> Iterator[np.ndarray]:
        at = 0
        for chunk in made.make_chunks():
            digest.update(np.ascontiguousarray(chunk).data)
            preview.append(chunk[shown[(shown >= at) & (shown < at + len(chunk))] - at])
            at += len(chunk)
            yield chunk
        if at != made.count:
            raise ValueError(f"{at} images where {made.count} were announced")

    def fill(folder: Path) -> None:
        form.write(folder, watched(), made.count, labels, classes)
        if labels is not None:
            digest.update(labels.data)
        counts, sha256 = None if labels is None else [per_class] * len(classes), digest.hexdigest()
        counted = replace(manifest, count=made.count, per_class=counts)
        value = dump(replace(counted, candidates=made.candidates(), sha256=sha256))
        shown_images = np.concatenate(preview)
        write_text(folder / "README.md", card(slug, form, value, shown_images.shape[1]))
        pixels = torch.from_numpy(shown_images).permute(0, 3, 1, 2)
        save_grid(pixels, folder / "preview.png", columns)
        write_json(folder / "manifest.json", value)

    return write_numbered_folder(root, slug, fill)


def read_synthetic(folder: Path, side: int | None = None) -> SyntheticSet:
    """Reads a synthetic set, and checks it against its manifest.

    A set that synth did not make needs no manifest: see `synth.foreign`. side: images of such a set
    are resized to it. Raises `SynthError` if something is missing, damaged or does not match.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        found = foreign.find(folder)(side)
        image_set = foreign.to_image_set(folder, found)
        return SyntheticSet(image_set, None, folder, found.classes is not None)
    images, labels = FORMATS.find(manifest.format).read(folder, manifest.classes)
    arrays = [images] if labels is None else [images, labels]
    if sha256_arrays(*arrays) != manifest.sha256:
        raise SynthError(f"{folder}: its images do not match manifest.json; generate the set again")
    image_set = foreign.to_image_set(folder, Found(images, labels, manifest.classes))
    counts = None
    if labels is not None:
        counts = np.bincount(labels, minlength=len(manifest.classes)).tolist()
    if (manifest.count, manifest.per_class) != (len(images), counts):
        raise SynthError(f"{folder}: its images are not as many as its manifest.json says")
    return SyntheticSet(image_set, manifest, folder)


def imitated(folder: Path) -> str | None:
    """The real dataset that a set imitates, for `--dataset`; None if the set does not say it. Reads
    no image. Raises `SynthError` if there is no set."""
    manifest = read_manifest(folder)
    if manifest is None:
        foreign.find(folder)
    return manifest.dataset_key if manifest else None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a set, or None if it has none. Raises `SynthError` if it is damaged."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    return parse(Manifest, read_json(path), f"{path}: is damaged; generate the set again")


def newest_synthetic(root: Path) -> Path:
    """The folder of the newest set in `root`. Raises `SynthError` if there is none."""
    for folder in reversed(numbered_folders(root)):
        if (folder / "manifest.json").exists():
            return folder
    raise SynthError(f"{root}: holds no data set; make one with: synth generate --per-class 5000")
