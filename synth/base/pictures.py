"""Pictures (PNG, JPEG, …) ↔ pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from synth.base.errors import SynthError
from synth.base.files import regular

MOST_PIXELS = 36_000_000  # of a picture
MOST_THREADS = 8  # each holds a picture of full size


class Encoded(NamedTuple):
    """A picture that lies in another file."""

    name: str  # for messages
    data: bytes


Picture = Path | Encoded


def read_pictures(pictures: Sequence[Picture], side: int | None = None) -> np.ndarray:
    """Pixels uint8 (N, H, W, 3). Raises `SynthError` that names a bad picture.

    Pictures are turned as EXIF says, and lose their transparency. side: those of another size are
    resized to side × side, with antialiasing. None: all must have one size.
    """
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        pixels = list(pool.map(lambda picture: _read(picture, side), pictures))
    for picture, found in zip(pictures, pixels, strict=True):
        if found.shape != pixels[0].shape:
            sizes = "{1}×{0} and {3}×{2}".format(*pixels[0].shape[:2], *found.shape[:2])
            raise SynthError(f"{_name(picture)}: sizes differ ({sizes}); --resize makes them equal")
    return np.stack(pixels)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as stored. Raises `SynthError` if the picture is damaged."""
    try:
        with Image.open(regular(path)) as image:
            return image.width, image.height
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise _refuse(path, error) from error


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, 3) → (side, side, 3), with antialiasing."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def to_png(chunk: np.ndarray) -> list[bytes]:
    """Pixels uint8 (N, H, W, 3) → PNG files."""

    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(encode, chunk))


def measured(chunks: Iterable[np.ndarray]) -> tuple[tuple[int, int, int], Iterator[np.ndarray]]:
    """The shape (H, W, 3) of the images, and all chunks again."""
    iterator = iter(chunks)
    taken = [next(iterator)]
    height, width, channels = taken[0].shape[1:]

    def everything() -> Iterator[np.ndarray]:
        yield taken.pop()  # so that nothing holds it
        yield from iterator

    return (height, width, channels), everything()


def _read(picture: Picture, side: int | None) -> np.ndarray:
    file = io.BytesIO(picture.data) if isinstance(picture, Encoded) else picture
    try:
        with Image.open(regular(file) if isinstance(file, Path) else file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, more than {MOST_PIXELS:,}")
            if image.mode[0] in "IF":  # Pillow would cut these values at 255
                raise ValueError("more than 8 bits a channel")
            colour = ImageOps.exif_transpose(image).convert("RGB")
        pixels = np.asarray(colour)
        return pixels if side is None else resize(pixels, side)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise _refuse(picture, error) from error


def _refuse(picture: Picture, error: BaseException) -> SynthError:
    reason = str(error) or type(error).__name__
    if isinstance(error, OSError):
        reason = error.strerror or "cut short or no image"
    return SynthError(f"{_name(picture)}: cannot be read ({reason}); mend or remove it")


def _name(picture: Picture) -> str:
    return picture.name if isinstance(picture, Encoded) else str(picture)
