"""Random changes of images that keep their class: geometry, contrast, brightness, inversion."""

from __future__ import annotations

import math

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
        images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    if policy.contrast or policy.brightness:
        mean = images.mean((1, 2, 3), keepdim=True)
        stretched = mean + (images - mean) * _per_image(1 + contrast * policy.contrast)
        images = stretched * _per_image(1 + brightness * policy.brightness)
    if policy.inversion:
        inverted = _per_image(inversion.add(1) / 2 < policy.inversion)
        images = torch.where(inverted, 1 - images, images)
    return images.clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
