"""The samples in the report: a full grid of each run, and a small picture of its first images."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES, COLUMNS, GAP = 10, 5, 2  # of a small picture, with one image of each class
# WebP quality → bytes that a pixel takes, measured on samples of SVHN; 100 is lossless
BYTES = {100: 1.8, 90: 0.34, 80: 0.21, 60: 0.15, 30: 0.1, 10: 0.06}
MOST_SMALL, MOST_FULL = 750_000, 1_200_000  # bytes of all pictures of a kind, about
MOST_SIDE = 16_383  # pixels; of WebP
DAMAGE = OSError, ValueError, SyntaxError, Image.DecompressionBombError  # of a picture


class Samples(NamedTuple):
    """The pictures as data URIs."""

    place: dict[Path, int]  # PNG of samples → its place in the lists
    small: list[str]
    full: list[str]
    lossless: bool  # are those in `full`?


def encode_samples(found: Iterable[tuple[Path, int]]) -> Samples:
    """found: PNGs of samples, one class per row, and the number of classes.

    Those that are absent, damaged or too large are left out, and equal ones are encoded once. The
    more there are, the lower the quality, so that a report of 40 entries takes less than 3 MB.
    """
    place: dict[Path, int] = {}
    known: dict[str, int] = {}
    kept: list[tuple[Path, int]] = []
    pixels = small_pixels = 0
    for path, classes in found:
        try:
            with Image.open(path) as image:
                image.load()
                width, height = image.size
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except DAMAGE:
            continue
        if max(width, height) > MOST_SIDE:
            continue
        if digest not in known:
            known[digest] = len(kept)
            kept.append((path, classes))
            pixels += width * height
            small_pixels += CLASSES * (height // classes) ** 2
        place[path] = known[digest]
    small, full = _quality(small_pixels, MOST_SMALL), _quality(pixels, MOST_FULL)
    return Samples(
        place,
        [_encode(first_of_each(_read(path), classes), small) for path, classes in kept],
        [_encode(_read(path), full) for path, _ in kept],
        full == 100,
    )


def first_of_each(grid: np.ndarray, classes: int) -> np.ndarray:
    """The first image of each of the first ten classes, five in a line, with clear gaps: uint8
    (height, width, 4).

    grid: uint8 (H, W, 3), as `synth.visuals.save_grid` draws it, one class per row, with gaps of
    one pixel. It is returned as it is if it was drawn otherwise.
    """
    pitch = (len(grid) - 1) // classes
    if pitch < 2 or len(grid) != pitch * classes + 1 or grid.shape[1] <= pitch:
        return grid
    images = grid[1:, 1:pitch].reshape(classes, pitch, pitch - 1, 3)[:CLASSES, :-1]
    images = np.pad(images, [(0, 0), (0, 0), (0, 0), (0, 1)], constant_values=255)
    missing = -len(images) % COLUMNS
    images = np.pad(images, [(0, missing), (0, GAP), (0, GAP), (0, 0)])
    lines = images.reshape(-1, COLUMNS, *images.shape[1:]).swapaxes(1, 2)
    drawn: np.ndarray = lines.reshape(-1, COLUMNS * images.shape[2], 4)[:-GAP, :-GAP]
    return drawn


def _quality(pixels: int, most: int) -> int:
    return next((each for each, rate in BYTES.items() if rate * pixels <= most), min(BYTES))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _encode(picture: np.ndarray, quality: int) -> str:
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "WEBP", quality=quality, lossless=quality == 100)
    return f"data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}"
