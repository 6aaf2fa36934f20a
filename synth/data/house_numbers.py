"""The embedded data set `house-numbers`: drawn colour digits that imitate SVHN.

An image shows one dominant digit of a house number, with its neighbours cut off at the sides of
the crop, on a plate or a wall, under uneven light, photographed with blur and sensor noise.
Drawing the set, rather than downloading one, keeps the benchmark runnable offline.

Every image depends only on (seed, split, index). Images are drawn in fixed blocks, each from its
own random stream, so that a smaller set is a prefix of a larger one. Arithmetic is in float64:
what vector units or thread counts change in the last bit cannot then survive rounding to uint8.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import atomic_file, read_arrays
from synth.data import DIGITS, Dataset, ImageSet, Split, cache_folder

VERSION = 1  # a change of any pixel is a new version
TRAIN_SIZE, TEST_SIZE = 20_000, 5_000
IMAGE_SIZE = 32

# Each list has fonts that the other lacks, so that a classifier must generalise over typefaces.
# Left out: DejaVu Sans Mono (its dotted zero blurs into an eight), cmmi10 (old-style figures) and
# cmti10 (a four below the baseline), which no house number looks like.
SHARED_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "cmss10")
FONTS: dict[Split, tuple[str, ...]] = {
    "train": (*SHARED_FONTS, "DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSerif"),
    "test": (*SHARED_FONTS, "STIXGeneralBol", "STIXGeneralBolIta", "cmb10", "cmtt10"),
}

_SIZES: dict[Split, int] = {"train": TRAIN_SIZE, "test": TEST_SIZE}
_STREAMS: dict[Split, int] = {"train": 0, "test": 1}
_BLOCK = 100  # images per random stream; small, so that a batch stays in the cache
_SUPERSAMPLING = 2
_TEXTURE, _DIGIT_HEIGHT = 96, 64  # of a glyph's mask, in pixels
_BLUR_RADIUS = 3


def render(split: Split, size: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the first `size` images of a split (all of them by default).

    Returns images, uint8 (N, 3, 32, 32), and labels, int64 (N,) in 0..9. Labels are drawn
    uniformly, so classes are balanced only in expectation, as in a real sample.
    """
    size = _SIZES[split] if size is None else size
    if not 1 <= size <= _SIZES[split]:
        raise ValueError(f"size must be in 1..{_SIZES[split]} for {split}, not {size}")
    blocks = [_render_block(split, seed, block) for block in range(math.ceil(size / _BLOCK))]
    images, labels = zip(*blocks, strict=True)
    return torch.cat(images)[:size], torch.cat(labels)[:size]


def _render_block(split: Split, seed: int, block: int) -> tuple[Tensor, Tensor]:
    """Draw one block: images uint8 (B, 3, 32, 32) and labels int64 (B,)."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, _STREAMS[split], block)))
    labels = torch.from_numpy(rng.integers(0, 10, _BLOCK))
    frames = _word_frames(rng)
    coverage, extents = _digit_coverage(rng, labels, frames, split)
    images = _paint(rng, coverage, _plate_distance(rng, frames, extents))
    images = _blur(rng, images * _light(rng))
    noise = torch.from_numpy(rng.standard_normal(images.shape))
    images = images + noise * _uniform(rng, 0.0, 0.06)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _uniform(rng: np.random.Generator, low: float, high: float, channels: int = 1) -> Tensor:
    """Draw per-image parameters, (B, channels, 1, 1), that broadcast over pixels."""
    return torch.from_numpy(rng.uniform(low, high, (_BLOCK, channels, 1, 1)))


def _chance(rng: np.random.Generator, probability: float) -> Tensor:
    """Draw per-image events, float64 (B, 1, 1, 1): 1 where the event happens, else 0."""
    return (_uniform(rng, 0, 1) < probability).double()


@cache
def _glyphs(split: Split) -> tuple[Tensor, Tensor]:
    """Rasterise the split's fonts once: masks (fonts, 10, 96, 96) in [0, 1], widths (fonts, 10).

    Digits are centred and as high as `_DIGIT_HEIGHT`; widths are in units of that height.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    masks = np.zeros((len(FONTS[split]), 10, _TEXTURE, _TEXTURE))
    widths = np.zeros((len(FONTS[split]), 10))
    # The basic layout engine is always present; Raqm, the default, only in some builds of Pillow.
    basic = ImageFont.Layout.BASIC
    for i, name in enumerate(FONTS[split]):
        path = str(folder / f"{name}.ttf")
        _, top, _, bottom = ImageFont.truetype(path, 200, layout_engine=basic).getbbox("0")
        font = ImageFont.truetype(path, 200 * _DIGIT_HEIGHT / (bottom - top), layout_engine=basic)
        for digit in range(10):
            left, top, right, bottom = font.getbbox(str(digit))
            canvas = Image.new("L", (_TEXTURE, _TEXTURE))
            corner = ((_TEXTURE - left - right) / 2, (_TEXTURE - top - bottom) / 2)
            ImageDraw.Draw(canvas).text(corner, str(digit), fill=255, font=font)
            masks[i, digit] = np.asarray(canvas) / 255
            widths[i, digit] = (right - left) / _DIGIT_HEIGHT
    return torch.from_numpy(masks), torch.from_numpy(widths)


def _word_frames(rng: np.random.Generator) -> Tensor:
    """Draw each house number's pose: affine maps (B, 2, 3) from the crop to the word frame.

    The crop spans [-1, 1]; the word frame has its origin in the middle digit and the digit's
    height as its unit. All digits of a number share the pose, as on a real plate.
    """
    height = 2 * rng.uniform(0.64, 0.94, _BLOCK)
    stretch = rng.uniform(0.8, 1.15, _BLOCK)
    slant = rng.uniform(-0.25, 0.25, _BLOCK)
    angle = np.radians(rng.uniform(-11, 11, _BLOCK))
    shift = rng.uniform(-0.15, 0.15, (_BLOCK, 2, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    across = np.stack([cos + slant * sin, slant * cos - sin], axis=-1) / stretch[:, None]
    down = np.stack([sin, cos], axis=-1)
    linear = np.stack([across, down], axis=1) / height[:, None, None]
    return torch.from_numpy(np.concatenate([linear, -linear @ shift], axis=2))


def _word_coordinates(frames: Tensor, pixels: int) -> Tensor:
    """Coordinates of pixel centres in the word frame: (B, 2, pixels, pixels), across then down.

    As affine_grid, but elementwise: several times faster in float64, in a fixed order of sums.
    """
    centres = (torch.arange(pixels, dtype=torch.float64) * 2 + 1) / pixels - 1
    x, y, one = frames[..., None, None].unbind(2)
    return x * centres + (y * centres[:, None] + one)


def _digit_coverage(
    rng: np.random.Generator, labels: Tensor, frames: Tensor, split: Split
) -> tuple[Tensor, Tensor]:
    """Place the labelled digit and, on half of the sides, a neighbour.

    Returns coverage (B, 1, 64, 64) in [0, 1], and the half-extent (B, 2) of the number to the
    left and right in the word frame: infinite on a side where a neighbour leaves the crop.
    """
    masks, widths = _glyphs(split)
    fonts = torch.from_numpy(rng.integers(0, len(masks), _BLOCK))
    half = widths[fonts, labels] / 2
    coordinates = _word_coordinates(frames, _SUPERSAMPLING * IMAGE_SIZE)
    coverage = _place(masks[fonts, labels], coordinates, torch.zeros_like(half))
    extents = []
    for side in (-1, 1):
        digits = torch.from_numpy(rng.integers(0, 10, _BLOCK))
        present = torch.from_numpy(rng.random(_BLOCK) < 0.5)
        gap = torch.from_numpy(rng.uniform(0.08, 0.22, _BLOCK))
        offset = side * (half + gap + widths[fonts, digits] / 2)
        neighbour = _place(masks[fonts, digits], coordinates, offset)
        coverage = torch.maximum(coverage, neighbour * present[:, None, None, None])
        extents.append(torch.where(present, math.inf, half))
    return coverage, torch.stack(extents, dim=1)


def _place(masks: Tensor, coordinates: Tensor, offset: Tensor) -> Tensor:
    """Sample glyphs (B, 96, 96), moved by `offset` (B,) across, at word coordinates."""
    across = coordinates[:, 0] - offset[:, None, None]
    grid = torch.stack([across, coordinates[:, 1]], dim=-1) * (2 * _DIGIT_HEIGHT / _TEXTURE)
    return F.grid_sample(masks[:, None], grid, align_corners=False)


def _plate_distance(rng: np.random.Generator, frames: Tensor, extents: Tensor) -> Tensor:
    """Signed distance to the edge of the number's plate, (B, 1, 32, 32), in pixels, > 0 outside."""
    coordinates = _word_coordinates(frames, IMAGE_SIZE)
    across, down = coordinates[:, :1], coordinates[:, 1:]
    margin = _uniform(rng, 0.1, 0.3)
    left, right = extents[:, :, None, None, None].unbind(1)
    sideways = torch.maximum(-across - left, across - right)
    outside = torch.maximum(sideways, down.abs() - 0.5) - margin
    return outside * 0.8 * IMAGE_SIZE  # a digit is about 0.8 of the crop high


def _paint(rng: np.random.Generator, coverage: Tensor, plate_distance: Tensor) -> Tensor:
    """Colour wall, plate, outline, cast shadow and digits, back to front: (B, 3, 32, 32)."""
    contrast = _uniform(rng, 0.2, 0.6)
    darker = 0.08 + _uniform(rng, 0, 1) * (0.82 - contrast)
    light_digit = _chance(rng, 0.5)
    plate = _tint(rng, darker + contrast * (1 - light_digit))
    ink = _tint(rng, darker + contrast * light_digit)
    wall = _tint(rng, _uniform(rng, 0.15, 0.8))

    image = plate + _uneven_surface(rng)
    on_wall = (plate_distance + 0.5).clamp(0, 1) * _chance(rng, 0.3)
    image = torch.lerp(image, wall, on_wall)
    on_outline = (1.2 - plate_distance.abs()).clamp(0, 1) * _chance(rng, 0.12)
    image = torch.lerp(image, ink, on_outline)
    # Raised digits throw a shadow one pixel down and to the right.
    shadow = F.pad(coverage, (_SUPERSAMPLING, 0, _SUPERSAMPLING, 0))
    shadow = shadow[:, :, : coverage.shape[2], : coverage.shape[3]]
    image = image * (1 - _pool(shadow) * 0.5 * _chance(rng, 0.2))
    return torch.lerp(image, ink, _pool(coverage))


def _pool(coverage: Tensor) -> Tensor:
    """Average the supersamples of each pixel."""
    return F.avg_pool2d(coverage, _SUPERSAMPLING)


def _tint(rng: np.random.Generator, luminance: Tensor) -> Tensor:
    """Draw colours (B, 3, 1, 1) of a given luminance (B, 1, 1, 1), most of them muted.

    Hue does not move luminance, so the contrast between digit and plate stays as drawn.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).reshape(1, 3, 1, 1)
    chroma = _uniform(rng, -1, 1, channels=3)
    chroma = chroma - (chroma * weights).sum(dim=1, keepdim=True)
    return luminance + chroma * 0.35 * _uniform(rng, 0, 1).square()


def _uneven_surface(rng: np.random.Generator) -> Tensor:
    """Low-frequency stains and texture, (B, 1, 32, 32), around 0."""
    coarse = torch.from_numpy(rng.standard_normal((_BLOCK, 1, 8, 8)))
    smooth = F.interpolate(coarse, size=IMAGE_SIZE, mode="bilinear", align_corners=False)
    return smooth * _uniform(rng, 0.0, 0.06)


def _light(rng: np.random.Generator) -> Tensor:
    """Gain of the light, (B, 1, 32, 32), around 1: a gradient and at times a soft-edged shadow."""
    axis = torch.linspace(-1, 1, IMAGE_SIZE, dtype=torch.float64)
    x, y = axis.reshape(1, 1, 1, -1), axis.reshape(1, 1, -1, 1)
    gradient = x * _uniform(rng, -0.18, 0.18) + y * _uniform(rng, -0.18, 0.18)
    across = x * _uniform(rng, -1, 1) + y * _uniform(rng, -1, 1) + _uniform(rng, -0.7, 0.7)
    shade = (across * 3 + 0.5).clamp(0, 1) * _uniform(rng, 0.15, 0.45) * _chance(rng, 0.25)
    return (1 + gradient) * (1 - shade)


def _blur(rng: np.random.Generator, images: Tensor) -> Tensor:
    """Blur each image by its own Gaussian, as a sum of shifted copies along each axis."""
    sigma = _uniform(rng, 0.3, 1.5)
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=torch.float64)
    kernels = torch.softmax(-(taps**2) / (2 * sigma**2), dim=-1).unbind(-1)
    for dim, pad in (
        (2, (0, 0, _BLUR_RADIUS, _BLUR_RADIUS)),
        (3, (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0)),
    ):
        padded = F.pad(images, pad, mode="replicate")
        images = torch.zeros_like(images)
        for i, weight in enumerate(kernels):
            images.addcmul_(weight[..., None], padded.narrow(dim, i, IMAGE_SIZE))
    return images


# Kept in the cache


def load(split: Split, root: Path | None) -> ImageSet:
    """The split as drawn; `root` is not needed, for there is nothing to read."""
    path = cache_folder() / f"house-numbers-v{VERSION}-{split}.npz"
    images, labels = _read(path) or _draw(split, path)
    return ImageSet(images, labels, DIGITS, "house-numbers", split)


def _read(path: Path) -> tuple[Tensor, Tensor] | None:
    try:
        arrays = read_arrays(path)
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    except (SynthError, KeyError):
        return None  # not there, or damaged: drawn again


def _draw(split: Split, path: Path) -> tuple[Tensor, Tensor]:
    images, labels = render(split)
    try:
        with atomic_file(path) as temporary:
            np.savez(temporary, images=images.numpy(), labels=labels.numpy())
    except SynthError:
        pass  # a cache that cannot be written only costs the time to draw again
    return images, labels


DATASET = Dataset(load, "drawn house numbers, made here, no download")
