"""The family `flow`: velocities of straight lines, a step that resumes, and all commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synth.data import ImageSet, signed_from_uint8
from synth.flow import RECIPE, FlowRecipe, FlowSampler, FlowTrainer, UNet, measure
from synth.published import RECIPES, find_recipe
from tests.conftest import Ran, config_of

Synth = Callable[..., Ran]
TINY = replace(RECIPE, widths=(8, 8), condition_size=8, sampling_steps=2, batch_size=16)


def trainer_of(recipe: FlowRecipe, images: ImageSet) -> FlowTrainer:
    config = config_of(recipe, images)  # type: ignore[arg-type]
    return FlowTrainer(config, images, None, torch.device("cpu"))


class Told(nn.Module):
    """A network that says a velocity that it was told, whatever it sees, and keeps what it saw."""

    def __init__(self, velocity: Tensor) -> None:
        super().__init__()
        self.nothing, self.velocity = nn.Parameter(torch.zeros(())), velocity

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        self.seen = x, time, labels
        return self.velocity + self.nothing


def test_the_target_is_the_velocity_of_the_line(drawn: ImageSet) -> None:
    """At any time t the network sees (1 - t)·noise + t·image, and should say image - noise."""
    trainer = trainer_of(TINY, drawn)
    pixels, labels, noise, times, numbers = next(trainer._draw(0))
    images, t = signed_from_uint8(pixels), times[:, None, None, None]
    told = Told(images - noise)
    trainer.network = trainer.ema = told  # type: ignore[assignment]
    trainer.optimizer = torch.optim.Adam(told.parameters(), 0.0)
    trainer.update(pixels, labels, noise, times, numbers)
    x, time, given = told.seen
    torch.testing.assert_close(x, (1 - t) * noise + t * images)
    assert torch.equal(time, times) and torch.equal(given, labels)
    assert float(trainer.loss) < 1e-9


def test_sampling_follows_a_known_field() -> None:
    """For the velocity 2t the midpoint rule is exact: x(1) = x(0) + 1; labels choose the field."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_label = nn.Embedding(2, 1)

        def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
            rate = torch.where(labels == 1, 2 * time, torch.zeros_like(time))
            return rate[:, None, None, None].expand_as(x)

    sampler = FlowSampler(Field(), 3)  # type: ignore[arg-type]
    labels = torch.tensor([0, 1, 0, 1])
    noise = np.random.default_rng(5).standard_normal((4, 3, 32, 32), dtype=np.float32)
    expected = torch.from_numpy(noise)
    expected[labels == 1] += 1
    made = sampler(labels, np.random.default_rng(5))
    assert (made.int() - ((expected + 1) * 127.5).round().clamp(0, 255).int()).abs().max() <= 1


@pytest.mark.parametrize("policy", ["none", "geometry-colour-v1"])
def test_it_resumes_to_the_same_weights_and_learns(drawn: ImageSet, policy: str) -> None:
    recipe = replace(TINY, augment_real=policy, learning_rate=3e-3)
    whole = trainer_of(recipe, drawn)
    losses = []
    for _ in range(4):
        whole.step()
        losses.append(whole.log_values()["velocity_loss"])
    first, resumed = trainer_of(recipe, drawn), trainer_of(recipe, drawn)
    for _ in range(2):
        first.step()
    resumed.load_state(first.state(), 2)
    for _ in range(2):
        resumed.step()
    for name, tensor in whole.state().items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, resumed.state()[name]), name
    for _ in range(60):
        whole.step()
    assert whole.log_values()["velocity_loss"] < losses[0] * 0.8


def test_its_cost_is_about_that_of_cdcgan() -> None:
    """In training: three passes of the U-Net, against 3 of G, 6 of D and 2 of D in G's step."""
    assert find_recipe("flow", None) == RECIPE and "flow" in RECIPES
    one = measure(RECIPE)["generator_gflop"] / (2 * RECIPE.sampling_steps)
    cdcgan = 3 * 0.0360 + 8 * 0.0357
    assert 0.6 < 3 * one / cdcgan < 1.1
    assert UNet(RECIPE, 10)(torch.zeros(2, 3, 32, 32), torch.rand(2), torch.zeros(2).long()).shape


@pytest.mark.parametrize(
    ("change", "words"),
    [("widths=12,16", "multiples of 8"), ("augment_real=nonesuch", "no augmentation policy")],
)
def test_wrong_values_are_refused(synth: Synth, change: str, words: str) -> None:
    ran = synth("recipes", "flow", "--set", change)
    assert ran.code == 2 and words in ran.err


@pytest.mark.usefixtures("tiny_names")
def test_it_goes_through_all_commands(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES.entries, "tiny-flow", replace(TINY, name="tiny-flow"))
    length = ("--images", "32", "--precision", "fp32", "--data-root", mats)
    for command in (
        ("train", "--recipe", "tiny-flow", *length),
        ("generate", "--per-class", "8", "--latent-scale", "0.9"),
        ("evaluate", "--protocol", "tiny-v1", "--precision", "fp32", "--data-root", mats),
    ):
        ran = synth(*command)
        assert ran.code == 0, ran.err
    rows = {row["entry"]: row for row in json.loads(synth("leaderboard", "--json").out)}
    assert rows["tiny-flow, latents × 0.9"]["rank"] == 1
    (record,) = Path("results/records").glob("*tiny-flow*")
    ran = synth("verify", record, "--from", "train", "--data-root", mats)
    assert ran.code == 0 and "holds, bit for bit" in ran.out, ran.err
