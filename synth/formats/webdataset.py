"""The format `webdataset`: tar files with pairs of `0000123.png` and `0000123.cls`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import regular
from synth.base.pictures import MOST_PIXELS, Encoded, read_pictures, to_png
from synth.formats import Chunks, Format, Found, Labels, number

SHARD = 10_000  # images in a file
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".ppm")


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    """Writes `train-000000.tar` and so on, with `SHARD` images each. A label is a number."""
    pairs = _pairs(chunks, labels)
    for shard in range(-(-count // SHARD)):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for _ in range(min(SHARD, count - shard * SHARD)):
                for name, data in next(pairs):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for _ in pairs:  # so that the chunks come to their end
        raise ValueError(f"more than the {count} images that were announced")


def _pairs(chunks: Chunks, labels: Labels) -> Iterator[list[tuple[str, bytes]]]:
    at = 0
    for chunk in chunks:
        for png in to_png(chunk):
            pair = [(f"{at:07d}.png", png)]
            if labels is not None:
                pair.append((f"{at:07d}.cls", str(labels[at]).encode()))
            yield pair
            at += 1


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise SynthError(f"{folder}: holds no images; generate the set again")
    found = read_files(paths)
    return found.images, found.labels


def read_files(paths: Sequence[Path], side: int | None = None) -> Found:
    """Any tar files of this layout; labels are whole numbers, or names of classes."""
    pictures: dict[str, Encoded] = {}
    labels: dict[str, str] = {}
    for path in paths:
        try:
            with tarfile.open(regular(path)) as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    key, suffix = f"{path}:{name.with_suffix('')}", name.suffix.lower()
                    file = tar.extractfile(member) if member.isfile() else None
                    if file is None or member.size > 3 * MOST_PIXELS:
                        continue
                    if suffix in PICTURES:
                        pictures[key] = Encoded(f"{path}: {name}", file.read())
                    elif suffix == ".cls":
                        labels[key] = file.read(1000).decode(errors="replace").strip()
        except (OSError, tarfile.TarError, EOFError) as error:
            raise SynthError(f"{path}: cannot be read ({error}); make it again") from error
    if not pictures:
        raise SynthError(f"{paths[0]}: holds no pictures ({', '.join(PICTURES)})")
    images = read_pictures(list(pictures.values()), side)
    if labels.keys() != pictures.keys():
        if labels:
            raise SynthError(f"{paths[0]}: some pictures have no label beside them (.cls)")
        return Found(images, None, None)
    given = [labels[key] for key in pictures]
    if all(label.isdecimal() for label in given):
        return Found(images, np.array(given, np.int64), None)
    return Found(images, *number(given))


FORMAT = Format(write, read, "tar files of PNGs and labels", "*.tar", "webdataset")
