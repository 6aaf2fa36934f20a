"""Random changes of images that keep their class: geometry, contrast, brightness, inversion."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from synth.ops.policies import Policy

NUMBERS = 8  # random numbers that one image takes


def draw_numbers(count: int, random: torch.Generator) -> Tensor:
    """The random numbers of `count` images for `augment`: float32 (count, 8) in [-1, 1)."""
    return torch.rand(count, NUMBERS, generator=random) * 2 - 1


def augment(images: Tensor, policy: Policy, numbers: Tensor) -> Tensor:
    """Changes each image by its own random numbers. Gradients flow through to `images`.

    images: float32 (B, 3, H, W) in [0, 1]; so is the result. numbers: float32 (B, 8), uniform in
    [-1, 1): the same numbers give the same images. Pixels from outside are mirrored at the edge.
    """
    across, down, turn, size, slant, contrast, brightness, inversion = numbers.unbind(1)
    if policy.moves:
        pixel = 2 / images.shape[-1]  # the image spans [-1, 1]
        angle = turn * math.radians(policy.rotation)
        zoom = 1 / (1 + size * policy.scale)
        cos, sin, shear = angle.cos() * zoom, angle.sin() * zoom, slant * policy.shear
        rows = [
            torch.stack([cos, cos * shear - sin, across * (policy.shift * pixel)], 1),
            torch.stack([sin, sin * shear + cos, down * (policy.shift * pixel)], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        images = _read(images, grid)
    if policy.contrast or policy.brightness:
        mean = images.mean((1, 2, 3), keepdim=True)
        stretched = mean + (images - mean) * _per_image(1 + contrast * policy.contrast)
        images = stretched * _per_image(1 + brightness * policy.brightness)
    if policy.inversion:
        inverted = _per_image(inversion.add(1) / 2 < policy.inversion)
        images = torch.where(inverted, 1 - images, images)
    return images.clamp(0, 1)


def _read(images: Tensor, grid: Tensor) -> Tensor:
    """The pixels at `grid`, (B, H, W, 2) in [-1, 1], between pixels by the bilinear rule."""
    needs_gradient = images.requires_grad and torch.is_grad_enabled()
    if images.is_cuda and needs_gradient and torch.are_deterministic_algorithms_enabled():
        return gathered(images, grid)  # there torch has no deterministic gradient of `grid_sample`
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def gathered(images: Tensor, grid: Tensor) -> Tensor:
    """The same as `grid_sample` in `_read`, from gathers of the four pixels around each place."""
    channels, *sides = images.shape[1:]
    corners = []
    for places, side in zip((grid[..., 1], grid[..., 0]), sides, strict=True):
        beyond = (((places + 1) * side).abs() / 2) % (2 * side)  # from the edge, in pixels
        mirrored = (torch.minimum(beyond, 2 * side - beyond) - 0.5).clamp(0, side - 1)
        low = mirrored.floor()
        high = (low + 1).clamp(max=side - 1)
        corners.append(((low, 1 - (mirrored - low)), (high, mirrored - low)))
    read = torch.zeros_like(images).flatten(2)
    for (row, down), (column, across) in product(*corners):
        index = (row * sides[1] + column).long().flatten(1)[:, None].expand(-1, channels, -1)
        read = read + images.flatten(2).gather(2, index) * (down * across).flatten(1)[:, None]
    return read.view(images.shape)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
