"""Augmentation: a function of its numbers, in range, differentiable, and what torchvision gives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as reference

from synth.ops.augment import NUMBERS, augment, gathered
from synth.ops.policies import POLICIES, Policy

SIDE = 32


def smooth_images(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Blurred noise in [0, 1], which interpolation changes little."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=random)
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic").clamp(0, 1)


def numbers(count: int = 4, **given: float) -> torch.Tensor:
    names = ["across", "down", "turn", "size", "slant", "contrast", "brightness", "inversion"]
    assert len(names) == NUMBERS
    row = torch.tensor([given.get(name, 0.0) for name in names])
    return row.repeat(count, 1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(POLICIES.names()), st.integers(0, 2**31))
def test_an_image_follows_from_its_own_numbers_and_stays_in_range(name: str, seed: int) -> None:
    images, policy = smooth_images(5, seed), POLICIES[name]
    random = torch.rand(5, NUMBERS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    changed = augment(images, policy, random)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    alone = augment(images[3:4], policy, random[3:4])
    torch.testing.assert_close(alone[0], changed[3], atol=1e-6, rtol=0)
    if name == "none":
        assert torch.equal(changed, images)


@pytest.mark.parametrize(
    ("given", "policy", "expected"),
    [
        ({"across": 1.0}, Policy(shift=2), {"translate": [-2, 0]}),
        ({"down": -1.0}, Policy(shift=3), {"translate": [0, 3]}),
        ({"turn": 0.5}, Policy(rotation=20), {"angle": -10.0}),
        ({"size": 1.0}, Policy(scale=0.25), {"scale": 1.25}),
        ({"slant": 1.0}, Policy(shear=0.2), {"shear": [math.degrees(math.atan(0.2)), 0.0]}),
    ],
)
def test_geometry_is_that_of_torchvision(given, policy, expected) -> None:  # type: ignore[no-untyped-def]
    """Compared in the middle, because torchvision fills the edge with black."""
    images = smooth_images()
    found = augment(images, policy, numbers(**given))
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | expected
    wanted = reference.affine(
        images, **arguments, interpolation=reference.InterpolationMode.BILINEAR
    )
    middle = slice(8, 24)
    torch.testing.assert_close(
        found[..., middle, middle], wanted[..., middle, middle], atol=2e-3, rtol=0
    )


def test_brightness_and_contrast_are_linear_and_inversion_has_its_probability() -> None:
    images = smooth_images() * 0.5 + 0.2
    brighter = augment(images, Policy(brightness=0.2), numbers(brightness=0.5))
    torch.testing.assert_close(brighter, images * 1.1)
    sharper = augment(images, Policy(contrast=0.2), numbers(contrast=-1.0))
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(sharper, mean + 0.8 * (images - mean))
    count = 4000
    random = torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dark = torch.full((count, 3, 2, 2), 0.1)
    inverted = augment(dark, Policy(inversion=0.25), random).amax((1, 2, 3)) > 0.5
    assert abs(float(inverted.double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)


def test_gradients_flow_back_to_the_images() -> None:
    images = smooth_images().requires_grad_()
    random = torch.rand(4, NUMBERS, generator=torch.Generator().manual_seed(1)) * 2 - 1
    augment(images, POLICIES["digits-v1"], random).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 4), st.sampled_from([(32, 32), (5, 9)]))
def test_gathered_pixels_and_their_gradients_are_those_of_grid_sample(
    seed: int, spread: float, sides: tuple[int, int]
) -> None:
    """Also at places far outside of the image, which are mirrored more than once."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, *sides, generator=random, dtype=torch.float64).requires_grad_()
    grid = (torch.rand(3, *sides, 2, generator=random, dtype=torch.float64) * 2 - 1) * spread
    weights = torch.rand(images.shape, generator=random, dtype=torch.float64)
    expected = torch.nn.functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )
    found = gathered(images, grid)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((each * weights).sum(), images) for each in (found, expected)]
    torch.testing.assert_close(*gradients)
