"""The embedded data set must be reproducible, a fair test, and look like what it claims to be."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.data import house_numbers as rendering

BLOCK = rendering._BLOCK
COUNT = 10 * BLOCK  # enough for the statistics below


@pytest.fixture(scope="module")
def train() -> tuple[torch.Tensor, torch.Tensor]:
    return rendering.render("train", size=COUNT)


@pytest.fixture(scope="module")
def test() -> tuple[torch.Tensor, torch.Tensor]:
    return rendering.render("test", size=COUNT)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Mean of the channels, (N, 1024), in [0, 255]."""
    return images.double().mean(dim=1).flatten(1)


def test_shapes_types_and_ranges(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = train
    assert images.shape == (COUNT, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.shape == (COUNT,)
    assert labels.dtype == torch.int64


def test_default_size_is_the_whole_split(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = (torch.zeros(BLOCK, 3, 32, 32), torch.zeros(BLOCK))
    monkeypatch.setattr(rendering, "_render_block", lambda split, seed, block: blank)
    assert len(rendering.render("train")[0]) == rendering.SIZES["train"] == 20_000
    assert len(rendering.render("test")[1]) == rendering.SIZES["test"] == 5_000


@pytest.mark.parametrize("size", [-1, 0, rendering.SIZES["test"] + 1])
def test_refuses_sizes_outside_the_split(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        rendering.render("test", size=size)


@settings(max_examples=10)
@given(size=st.integers(1, 3 * BLOCK))
def test_a_smaller_set_is_a_prefix(train: tuple[torch.Tensor, torch.Tensor], size: int) -> None:
    images, labels = rendering.render("train", size=size)
    assert len(images) == len(labels) == size
    assert torch.equal(images, train[0][:size])
    assert torch.equal(labels, train[1][:size])


def test_bytes_do_not_depend_on_threads(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        images, labels = rendering.render("train", size=BLOCK)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(images, train[0][:BLOCK])
    assert torch.equal(labels, train[1][:BLOCK])


def test_seed_changes_images_and_labels(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = rendering.render("train", size=BLOCK, seed=1)
    assert (images != train[0][:BLOCK]).flatten(1).any(dim=1).all()
    assert not torch.equal(labels, train[1][:BLOCK])


def test_no_image_occurs_twice(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]
) -> None:
    every = [image.numpy().tobytes() for image in torch.cat([train[0], test[0]])]
    assert len(set(every)) == len(every)


def test_font_lists_overlap_only_partly() -> None:
    train_fonts, test_fonts = set(rendering.FONTS["train"]), set(rendering.FONTS["test"])
    assert train_fonts & test_fonts
    assert train_fonts - test_fonts
    assert test_fonts - train_fonts


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_glyph_is_drawn_whole_and_distinct(split: rendering.Split) -> None:
    masks, widths = rendering._glyphs(split)
    ink = masks.flatten(2).sum(dim=2)
    assert (ink > 0.05 * masks[0, 0].numel()).all()
    frame = torch.cat([masks[..., [0, -1], :].flatten(2), masks[..., [0, -1]].flatten(2)], dim=2)
    assert (frame == 0).all(), "a glyph is cut off by its texture"
    assert ((widths > 0.2) & (widths < 1.2)).all()
    shapes = {mask.numpy().tobytes() for mask in masks.flatten(0, 1)}
    assert len(shapes) == masks.shape[0] * 10


def test_global_random_state_is_untouched() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    before, _ = rendering.render("test", size=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    torch.rand(1), np.random.rand(1), random.random()
    after, _ = rendering.render("test", size=1)
    assert torch.equal(before, after), "the images depend on global random state"


def test_classes_are_about_balanced(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    counts = torch.bincount(train[1], minlength=10)
    expected = len(train[1]) / 10
    assert len(counts) == 10
    assert (counts > 0.6 * expected).all()
    assert (counts < 1.4 * expected).all()


def test_light_and_dark_digits_are_both_common(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    # Ink covers the smaller part of a crop, so the median is background and the far tail is ink.
    levels = luminance(train[0])
    low, median, high = torch.quantile(levels, torch.tensor([0.05, 0.5, 0.95]).double(), dim=1)
    light = ((high - median) > (median - low)).double().mean()
    assert 0.35 < light < 0.65


def test_images_use_the_range_without_saturating(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for images, _ in (train, test):
        assert ((images == 0) | (images == 255)).double().mean() < 0.05
        assert 90 < images.double().mean() < 165
        assert images.double().std() > 40
        assert (luminance(images).std(dim=1) > 8).double().mean() > 0.95


def test_images_are_in_colour(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    means = train[0].double().mean(dim=(2, 3))
    spread = means.amax(dim=1) - means.amin(dim=1)
    assert (spread > 20).double().mean() > 0.3
    for channel in range(3):
        assert (means.argmax(dim=1) == channel).double().mean() > 0.15


def test_the_label_is_the_digit_in_the_middle(train: tuple[torch.Tensor, torch.Tensor]) -> None:
    # Correlation up to sign, since the contrast goes both ways, with the split's mean glyph.
    images, labels = train
    masks, _ = rendering._glyphs("train")
    templates = torch.nn.functional.interpolate(masks.mean(dim=0)[None], size=38, mode="area")
    templates = templates[0, :, 3:-3, 3:-3].flatten(1)
    templates = templates - templates.mean(dim=1, keepdim=True)
    levels = luminance(images)
    levels = levels - levels.mean(dim=1, keepdim=True)
    match = (levels @ (templates / templates.norm(dim=1, keepdim=True)).T).abs()
    assert (match.argmax(dim=1) == labels).double().mean() > 0.3
