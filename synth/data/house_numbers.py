"""The dataset `house-numbers`: colour digits that imitate SVHN, drawn without a download.

An image shows one digit of a house number on a plate or a wall, under uneven light, with blur and
sensor noise. The neighbours of the digit are cut off at the sides.

An image depends only on (seed, split, index). Images are drawn in fixed blocks, each from its own
random stream, so that a smaller set is a prefix of a larger one. Arithmetic is in float64, because
the last bit can depend on vector units and threads: rounding to uint8 then removes the difference.
"""

from __future__ import annotations

import contextlib
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
from synth.base.files import atomic_file, cache_folder, read_arrays
from synth.data import DIGITS, SIZE, Dataset, ImageSet, Split

VERSION = 1  # a change of any pixel is a new version
SIZES: dict[Split, int] = {"train": 20_000, "test": 5_000}

# Each split has fonts that the other lacks, so that a classifier must generalise over typefaces.
# Some fonts of matplotlib look like no house number: DejaVu Sans Mono has a dotted zero, cmmi10 has
# old-style figures, and the four of cmti10 reaches below the baseline.
SHARED_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "cmss10")
FONTS: dict[Split, tuple[str, ...]] = {
    "train": (*SHARED_FONTS, "DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSerif"),
    "test": (*SHARED_FONTS, "STIXGeneralBol", "STIXGeneralBolIta", "cmb10", "cmtt10"),
}

_BLOCK = 100  # images per random stream; a small block stays in the processor's cache
_SUPERSAMPLING = 2
_TEXTURE, _DIGIT_HEIGHT = 96, 64  # pixels of a glyph's mask, and of the digit in it
_BLUR_RADIUS = 3


def render(split: Split, size: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the first `size` images of a split, or all of them.

    Returns images, uint8 (N, 3, 32, 32), and labels, int64 (N,) in 0..9. Labels are drawn
    uniformly, so classes are balanced only on average.
    """
    size = SIZES[split] if size is None else size
    if not 1 <= size <= SIZES[split]:
        raise ValueError(f"size must be in 1..{SIZES[split]} for {split}, not {size}")
    blocks = [_render_block(split, seed, block) for block in range(math.ceil(size / _BLOCK))]
    images, labels = zip(*blocks, strict=True)
    return torch.cat(images)[:size], torch.cat(labels)[:size]


def _render_block(split: Split, seed: int, block: int) -> tuple[Tensor, Tensor]:
    """Draw one block: images uint8 (B, 3, 32, 32) and labels int64 (B,)."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, int(split == "test"), block)))
    labels = torch.from_numpy(rng.integers(0, 10, _BLOCK))
    frames = _word_frames(rng)
    coverage, extents = _digit_coverage(rng, labels, frames, split)
    images = _paint(rng, coverage, _plate_distance(rng, frames, extents))
    images = _blur(rng, images * _light(rng))
    noise = torch.from_numpy(rng.standard_normal(images.shape))
    images = images + noise * _uniform(rng, 0.0, 0.06)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def _uniform(rng: np.random.Generator, low: float, high: float, channels: int = 1) -> Tensor:
    """Draw one parameter per image and channel, (B, channels, 1, 1)."""
    return torch.from_numpy(rng.uniform(low, high, (_BLOCK, channels, 1, 1)))


def _chance(rng: np.random.Generator, probability: float) -> Tensor:
    """Draw one event per image, float64 (B, 1, 1, 1): 1 if it happens, else 0."""
    return (_uniform(rng, 0, 1) < probability).double()


@cache
def _glyphs(split: Split) -> tuple[Tensor, Tensor]:
    """Draw the digits of the fonts: masks (fonts, 10, 96, 96) in [0, 1], widths (fonts, 10).

    Digits are centred and `_DIGIT_HEIGHT` high. That height is the unit of the widths.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    masks = np.zeros((len(FONTS[split]), 10, _TEXTURE, _TEXTURE))
    widths = np.zeros((len(FONTS[split]), 10))
    # Every build of Pillow has the basic layout engine. Not every one has Raqm, the default.
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
    """Draw the pose of each house number: affine maps (B, 2, 3) from the crop to the word frame.

    The crop spans [-1, 1]. The origin of the word frame is the middle digit, and its unit is the
    height of a digit. All digits of a number share the pose, as on a real plate.
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

    torch's affine_grid is several times slower in float64, and its order of sums is not fixed.
    """
    centres = (torch.arange(pixels, dtype=torch.float64) * 2 + 1) / pixels - 1
    x, y, one = frames[..., None, None].unbind(2)
    return x * centres + (y * centres[:, None] + one)


def _digit_coverage(
    rng: np.random.Generator, labels: Tensor, frames: Tensor, split: Split
) -> tuple[Tensor, Tensor]:
    """Draw the labelled digit, and a neighbour on half of the sides.

    Returns coverage (B, 1, 64, 64) in [0, 1], and how far the number reaches to the left and right
    in the word frame, (B, 2): infinitely far on a side with a neighbour.
    """
    masks, widths = _glyphs(split)
    fonts = torch.from_numpy(rng.integers(0, len(masks), _BLOCK))
    half = widths[fonts, labels] / 2
    coordinates = _word_coordinates(frames, _SUPERSAMPLING * SIZE)
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
    """Read glyphs (B, 96, 96) at word coordinates, moved across by `offset` (B,)."""
    across = coordinates[:, 0] - offset[:, None, None]
    grid = torch.stack([across, coordinates[:, 1]], dim=-1) * (2 * _DIGIT_HEIGHT / _TEXTURE)
    return F.grid_sample(masks[:, None], grid, align_corners=False)


def _plate_distance(rng: np.random.Generator, frames: Tensor, extents: Tensor) -> Tensor:
    """Distance from the edge of the plate in pixels, (B, 1, 32, 32). It is negative inside."""
    coordinates = _word_coordinates(frames, SIZE)
    across, down = coordinates[:, :1], coordinates[:, 1:]
    margin = _uniform(rng, 0.1, 0.3)
    left, right = extents[:, :, None, None, None].unbind(1)
    sideways = torch.maximum(-across - left, across - right)
    outside = torch.maximum(sideways, down.abs() - 0.5) - margin
    return outside * 0.8 * SIZE  # a digit is about 0.8 of the crop high


def _paint(rng: np.random.Generator, coverage: Tensor, plate_distance: Tensor) -> Tensor:
    """Colour the plate, wall, outline, shadow and digits: (B, 3, 32, 32)."""
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
    # The shadow of raised digits lies one pixel down and to the right.
    shadow = F.pad(coverage, (_SUPERSAMPLING, 0, _SUPERSAMPLING, 0))
    shadow = shadow[:, :, : coverage.shape[2], : coverage.shape[3]]
    image = image * (1 - F.avg_pool2d(shadow, _SUPERSAMPLING) * 0.5 * _chance(rng, 0.2))
    return torch.lerp(image, ink, F.avg_pool2d(coverage, _SUPERSAMPLING))


def _tint(rng: np.random.Generator, luminance: Tensor) -> Tensor:
    """Draw colours (B, 3, 1, 1) of a given luminance (B, 1, 1, 1), most of them muted.

    Hue does not change luminance, so the contrast between digit and plate stays as drawn.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).reshape(1, 3, 1, 1)
    chroma = _uniform(rng, -1, 1, channels=3)
    chroma = chroma - (chroma * weights).sum(dim=1, keepdim=True)
    return luminance + chroma * 0.35 * _uniform(rng, 0, 1).square()


def _uneven_surface(rng: np.random.Generator) -> Tensor:
    """Draw stains of low frequency, (B, 1, 32, 32), around 0."""
    coarse = torch.from_numpy(rng.standard_normal((_BLOCK, 1, 8, 8)))
    smooth = F.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=False)
    return smooth * _uniform(rng, 0.0, 0.06)


def _light(rng: np.random.Generator) -> Tensor:
    """Draw a gradient of light, and sometimes a soft shadow: factors (B, 1, 32, 32) around 1."""
    axis = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    x, y = axis.reshape(1, 1, 1, -1), axis.reshape(1, 1, -1, 1)
    gradient = x * _uniform(rng, -0.18, 0.18) + y * _uniform(rng, -0.18, 0.18)
    across = x * _uniform(rng, -1, 1) + y * _uniform(rng, -1, 1) + _uniform(rng, -0.7, 0.7)
    shade = (across * 3 + 0.5).clamp(0, 1) * _uniform(rng, 0.15, 0.45) * _chance(rng, 0.25)
    return (1 + gradient) * (1 - shade)


def _blur(rng: np.random.Generator, images: Tensor) -> Tensor:
    """Blur each image with its own Gaussian, along one axis and then the other."""
    sigma = _uniform(rng, 0.3, 1.5)
    taps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=torch.float64)
    kernels = torch.softmax(-(taps**2) / (2 * sigma**2), dim=-1).unbind(-1)
    vertical, horizontal = (0, 0, _BLUR_RADIUS, _BLUR_RADIUS), (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0)
    for dim, pad in ((2, vertical), (3, horizontal)):
        padded = F.pad(images, pad, mode="replicate")
        images = torch.zeros_like(images)
        for i, weight in enumerate(kernels):
            images.addcmul_(weight[..., None], padded.narrow(dim, i, SIZE))
    return images


def load(split: Split, root: Path | None) -> ImageSet:
    """Reads the split from the cache folder. Draws it first if it is not there. Ignores `root`."""
    path = cache_folder() / f"house-numbers-v{VERSION}-{split}.npz"
    try:
        arrays = read_arrays(path, "images", "labels")
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
    except (SynthError, KeyError):  # missing or damaged
        images, labels = render(split)
        # If the cache cannot be written, the only cost is to draw again.
        with contextlib.suppress(SynthError), atomic_file(path) as temporary:
            np.savez(temporary, images=images.numpy(), labels=labels.numpy())
    return ImageSet(images, labels, DIGITS, "house-numbers", split)


DATASET = Dataset(load, "house numbers that synth draws itself, without a download")
