"""The batches of a training. Each one depends on (seed, step) alone. Processes share it.

So a resumed run equals an uninterrupted one, and a checkpoint needs no random state.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synth.data import ImageSet
from synth.ops.augment import NUMBERS
from synth.ops.parallel import own_part
from synth.recipes import GeneratorRecipe, Recipe

BLOCK = 64  # steps whose random numbers are drawn at once


class Batch(NamedTuple):
    """What one step reads. B is the batch size, L the latent size."""

    images: Tensor  # uint8 (B, 3, 32, 32), real
    labels: Tensor  # int64 (B,), of the real images and of the fakes
    others: Tensor  # int64 (B,), each the label of the image before
    latent: Tensor  # float32 (B, L)
    second_latent: Tensor  # float32 (B, L), if the generator step draws new fakes
    # float32 (2, B, 8) in [-1, 1): for `augment`, of the real images and of the fakes. (2, B, 0) if
    # the recipe augments nothing
    augmentation: Tensor


def draw_batches(
    recipe: Recipe, images: ImageSet, seed: int, device: torch.device, first_step: int = 0
) -> Iterator[Batch]:
    """Endless batches from `first_step` on; see `draw_images`. Each process gets its part."""
    training = recipe.training
    size = training.batch
    real = draw_images(images, size, training.balanced, seed, device, first_step)
    views = {training.augment_real, training.augment_both} != {"none"} or training.teacher_weight
    numbers_per_image = NUMBERS if views else 0
    for block in count(first_step // BLOCK):
        random = torch_random(seed, "latents", block)
        latents = draw_latents(recipe.generator, (2, BLOCK, size), random).to(device)
        random = torch_random(seed, "augmentation", block)
        numbers = torch.rand(BLOCK, 2, size, numbers_per_image, generator=random) * 2 - 1
        numbers = numbers.to(device)
        for i in range(max(0, first_step - block * BLOCK), BLOCK):
            pixels, labels = next(real)
            yield Batch(
                own_part(pixels),
                own_part(labels),
                own_part(labels.roll(1)),
                own_part(latents[0, i]),
                own_part(latents[1, i]),
                own_part(numbers[i], 1),
            )


def draw_images(
    images: ImageSet,
    batch: int,
    balanced: bool,
    seed: int,
    device: torch.device,
    first_step: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of real images from `first_step` on: uint8 (B, 3, 32, 32), labels int64 (B,).

    Labels are 0 if the images have none. Each pass shows every image once, and leaves out those
    that do not fill a batch. balanced: see `_balanced_order`.
    """
    labels = labels_or_zeros(images)
    members, counts = labels.argsort(stable=True), labels.bincount()
    pixels, labels = images.images.to(device), labels.to(device)
    for block in count(first_step // BLOCK):
        order = (
            _balanced_order(members, counts, batch, seed, block)
            if balanced
            else _image_order(len(images), batch, seed, block)
        ).to(device)
        for picks in order[max(0, first_step - block * BLOCK) :]:
            yield pixels[picks], labels[picks]


def labels_or_zeros(images: ImageSet) -> Tensor:
    """int64 (N,): the labels, or zeros if the images have none."""
    return torch.zeros(len(images), dtype=torch.int64) if images.labels is None else images.labels


def _image_order(total: int, batch: int, seed: int, block: int) -> Tensor:
    """Indices (BLOCK, batch) of the images that the block's steps show."""
    per_pass = total // batch
    steps = range(block * BLOCK, (block + 1) * BLOCK)
    passes = {
        number: torch.randperm(total, generator=torch_random(seed, "order", number))
        for number in {step // per_pass for step in steps}
    }
    return torch.stack([passes[s // per_pass][s % per_pass * batch :][:batch] for s in steps])


def _balanced_order(members: Tensor, counts: Tensor, batch: int, seed: int, block: int) -> Tensor:
    """Indices (BLOCK, batch): every class is equally likely, and so is every image of a class.

    members: the indices of all images, class after class; counts: of each class.
    """
    random = torch_random(seed, "balanced", block)
    drawn = torch.randint(len(counts), (BLOCK, batch), generator=random)
    within = (torch.rand(BLOCK, batch, generator=random) * counts[drawn]).long()
    within = within.minimum(counts[drawn] - 1)  # a product just below the count can round up to it
    return members[(counts.cumsum(0) - counts)[drawn] + within]


def draw_latents(
    recipe: GeneratorRecipe, shape: tuple[int, ...], random: torch.Generator
) -> Tensor:
    """float32 (*shape, latent_size) from the recipe's distribution."""
    latents = torch.empty(*shape, recipe.latent_size)
    if recipe.latent_distribution == "normal":
        return latents.normal_(generator=random)
    return latents.uniform_(-1, 1, generator=random)


def torch_random(seed: int, purpose: str, index: int) -> torch.Generator:
    """An independent random stream for each (seed, purpose, index)."""
    key = np.random.SeedSequence([seed, index, *purpose.encode()])
    return torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
