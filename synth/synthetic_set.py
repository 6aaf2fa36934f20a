"""The synthetic set on disk: how to write, read and check it.

images.npz (or train/<class>/000123.png)   images uint8 (N, 32, 32, 3), labels int64 (N,)
manifest.json    counts, hashes, seed, run, checkpoint, commit
README.md        a data set card
preview.png      ten images of each class
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from synth.base.errors import SynthError
from synth.base.files import (
    numbered_folders,
    read_json,
    sha256_arrays,
    write_json,
    write_numbered_folder,
    write_text,
)
from synth.base.names import check_line, in_markdown
from synth.base.schema import dump, parse
from synth.data import ImageSet
from synth.formats import FORMATS, npz
from synth.provenance import Manifest
from synth.visuals import save_grid

PREVIEW = 10  # images per class

CARD = """---
license: other
task_categories: [image-classification]
tags: [synthetic, {tag}]
size_categories: ["n={count}"]
---

# {title}

{count:,} synthetic 32×32 colour images, {per_class:,} of each of {classes} classes, made by synth
with the generator {recipe} (seed {seed}) that was trained on {dataset}. {labels}

The generator learned from {dataset}, so the terms of {dataset} go on to apply to what it makes
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
    """A synthetic set that was read and checked. `manifest` is None if synth did not make it."""

    images: ImageSet
    manifest: Manifest | None
    folder: Path

    @property
    def dataset_key(self) -> str:
        """The real dataset that it imitates, for `--dataset`."""
        return self.manifest.dataset_key if self.manifest else "svhn"


@dataclass(frozen=True)
class Generated:
    """`count` images, class by class and equally many of each. They are made when they are read."""

    make_chunks: Callable[[], Iterator[np.ndarray]]  # uint8 (n, 32, 32, 3), the same every time
    count: int
    labels: np.ndarray | None  # int64 (count,), or None if unlabelled
    candidates: Callable[[], int]  # images made to get these, once all chunks were read

    @cached_property
    def images(self) -> np.ndarray:
        """All images at once: uint8 (count, 32, 32, 3)."""
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
        shown_as = {
            **{"title": slug, "per_class": per_class, "classes": len(classes)},
            **{"tag": json.dumps(manifest.recipe), "labels": LABELS[manifest.labels]},
            **{key: in_markdown(value[key]) for key in ("recipe", "dataset")},
        }
        card = CARD.format_map({**value, **shown_as})
        write_text(folder / "README.md", card)
        pixels = torch.from_numpy(np.concatenate(preview)).permute(0, 3, 1, 2)
        save_grid(pixels, folder / "preview.png", columns)
        write_json(folder / "manifest.json", value)

    return write_numbered_folder(root, slug, fill)


def read_synthetic(folder: Path) -> SyntheticSet:
    """Reads a synthetic set, and checks it against its manifest.

    A foreign set needs no manifest, but only `images.npz`. Raises `SynthError` if something is
    missing, damaged or does not match.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if not (folder / npz.FILE).exists():
            raise SynthError(
                f"{folder}: is no data set (it has no manifest.json); "
                "make one with: synth generate --per-class 5000"
            )
        images, labels = npz.read(folder, ())
    else:
        images, labels = FORMATS.find(manifest.format).read(folder, manifest.classes)
        arrays = [images] if labels is None else [images, labels]
        if sha256_arrays(*arrays) != manifest.sha256:
            raise SynthError(
                f"{folder}: its images do not match manifest.json; generate the set again"
            )
    count = 0 if labels is None or len(labels) == 0 else int(labels.max()) + 1
    if count > (len(manifest.classes) if manifest else len(images)):
        known = f"{len(manifest.classes)} classes" if manifest else f"{len(images)} images"
        raise SynthError(f"{folder}: has the label {count - 1}, and {known}")
    classes = manifest.classes if manifest else tuple(map(str, range(count)))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = None if labels is None else torch.from_numpy(labels)
    try:
        name = check_line(folder.resolve().name)
    except ValueError as error:
        raise SynthError(f"{folder}: rename it; {error}") from error
    image_set = ImageSet(pixels, targets, classes, name, "train")
    return SyntheticSet(image_set, manifest, folder)


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
