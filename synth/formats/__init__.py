"""The forms that a synthetic set has on disk: one public module each, with a `FORMAT`."""

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
    """How images lie in the folder of a set.

    write(folder, chunks, count, labels, classes): `count` images in all; a chunk can be forgotten
    once it is written. read(folder, classes): all images uint8 (N, 32, 32, 3), and their labels.
    It raises `SynthError` where something is missing or damaged.
    """

    write: Callable[[Path, Chunks, int, Labels, Sequence[str]], None]
    read: Callable[[Path, Sequence[str]], tuple[np.ndarray, Labels]]
    description: str


FORMATS: Registry[Format] = Registry(
    "--format", "synth.formats", modules="synth.formats", attribute="FORMAT"
)
