"""stream-v1 against an implementation of the source's protocol that shares nothing with it.

The source (`hackathon_evaluation.ipynb` of svhn-synthesis) trains its classifier for 10 epochs of
100 steps on 1,000 fresh samples each, uniform labels, and tests it on the real test split. Its
slip, images in [-1, 1] to train on and in [0, 1] to test on, is not repeated. Here both are
shorter alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eval.protocols import PROTOCOLS
from eval.scoring import score, stream_batches
from synth.data import DIGITS, ImageSet
from synth.data.house_numbers import render
from synth.gan import GANSampler
from synth.generation import fresh_batch
from synth.recipes import GeneratorRecipe

STEPS, BATCH, SEEDS = 80, 64, 4


class Drawer(nn.Module):
    """Stands in for a trained generator: a drawn digit of the class, chosen and tinted by the
    latent, in [-1, 1]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.recipe = GeneratorRecipe(latent_size=4)
        self.label_embedding = None
        self.digits = nn.ParameterList(
            nn.Parameter(images[labels == label] / 127.5 - 1, requires_grad=False)
            for label in range(10)
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        place = torch.special.ndtr(latent[:, 0])
        tint = 0.2 * latent[:, 1:, None, None].tanh()
        chosen = [
            self.digits[label][int(at * len(self.digits[label]))]
            for label, at in zip(labels.tolist(), place.tolist(), strict=True)
        ]
        return (torch.stack(chosen) + tint).clamp(-1, 1)


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Drawer(*render("train", 800))


@pytest.fixture(scope="module")
def real_test() -> tuple[Tensor, Tensor]:
    return render("test", 600)


def accuracy_from_the_description(
    generator: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> float:
    torch.manual_seed(1000 + seed)

    def block(narrow: int, wide: int) -> list[nn.Module]:
        convolution = nn.Conv2d(narrow, wide, 3, padding=1)
        return [convolution, nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]

    network = nn.Sequential(
        *block(3, 32),
        *block(32, 64),
        *block(64, 64),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(STEPS):
        with torch.no_grad():
            targets = torch.randint(0, 10, (BATCH,))
            samples = (generator(torch.randn(BATCH, 4), targets) + 1) / 2
        loss = nn.functional.cross_entropy(network(samples), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        return float((network(images / 255).argmax(1) == labels).float().mean())


def test_stream_protocol_agrees_with_its_description(
    drawer: Drawer, real_test: tuple[Tensor, Tensor]
) -> None:
    protocol = replace(PROTOCOLS["stream-v1"], steps=STEPS, batch=BATCH, seeds=SEEDS)
    sampler = GANSampler(drawer)  # type: ignore[arg-type]
    batches = stream_batches(
        protocol, lambda count, random: fresh_batch(sampler, 10, count, random)
    )
    test = ImageSet(*real_test, DIGITS, "drawn", "test")
    found = score(protocol, batches, test, torch.device("cpu"), "fp32")
    ours = np.array([seed.accuracy for seed in found.seeds])
    theirs = np.array(
        [accuracy_from_the_description(drawer, *real_test, seed) for seed in range(SEEDS)]
    )
    assert min(ours.min(), theirs.min()) > 0.5, (ours, theirs)  # learned, and can differ
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / SEEDS)
    assert abs(ours.mean() - theirs.mean()) < 3 * error, (ours, theirs)
