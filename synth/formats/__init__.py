"""The file formats of a synthetic set. Each public module here holds one, as `FORMAT`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from synth.base.registry import Registry

Chunks: TypeAlias = Iterable[np.ndarray]  # uint8 (n, 32, 32, 3), class by class
Labels: TypeAlias = np.ndarray | None  # int64 (count,)


@dataclass(frozen=True)
class Format:
    """How the folder of a set holds its images.

    write(folder, chunks, count, labels, classes): `count` is the number of images in all chunks.
    Each chunk must be written before the next one is taken, to save memory.
    read(folder, classes): all images, uint8 (N, 32, 32, 3), and their labels. Raises `SynthError`
    if something is missing or damaged.
    """

    write: Callable[[Path, Chunks, int, Labels, Sequence[str]], None]
    read: Callable[[Path, Sequence[str]], tuple[np.ndarray, Labels]]
    description: str


FORMATS: Registry[Format] = Registry(
    "--format", "synth.formats", Format, modules="synth.formats", attribute="FORMAT"
)
