"""The file formats of a synthetic set. Each public module here holds one, as `FORMAT`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from synth.base.registry import Registry

Chunks: TypeAlias = Iterable[np.ndarray]  # uint8 (n, H, W, 3), class by class
Labels: TypeAlias = np.ndarray | None  # int64 (count,)


class Found(NamedTuple):
    """What a file that somebody else made holds."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    labels: Labels
    classes: tuple[str, ...] | None  # None: the labels have no names


@dataclass(frozen=True)
class Format:
    """How the folder of a set holds its images.

    write(folder, chunks, count, labels, classes): `count` is the number of images in all chunks.
    Each chunk must be written before the next one is taken, to save memory.
    read(folder, classes): all images, uint8 (N, H, W, 3), and their labels. Raises `SynthError`
    if something is missing or damaged.
    data: what the folder holds the images in, as a pattern. builder: the name of the loader of
    Hugging Face's `datasets` for it; None if there is no loader.
    """

    write: Callable[[Path, Chunks, int, Labels, Sequence[str]], None]
    read: Callable[[Path, Sequence[str]], tuple[np.ndarray, Labels]]
    description: str
    data: str = ""
    builder: str | None = None


FORMATS: Registry[Format] = Registry(
    "--format", "synth.formats", Format, modules="synth.formats", attribute="FORMAT"
)


def number(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Names of classes (N,) → labels int64 (N,), and the classes in order; 10 comes after 9."""
    classes = sorted(set(names), key=lambda name: (not name.isdecimal(), len(name), name))
    if not all(name.isdecimal() for name in classes):
        classes = sorted(classes)
    at = {name: label for label, name in enumerate(classes)}
    return np.array([at[name] for name in names], np.int64), tuple(classes)
