"""The family `flow`: class-conditional flow matching with a small U-Net.

A network learns the velocity that carries noise to images along straight lines (Lipman et al. 2023,
arXiv:2210.02747, with the optimal-transport path and σ_min = 0; rectified flow: Liu et al. 2023,
arXiv:2209.03003). It is here as a plain reference to read DCGANs by, at about their cost per image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from synth.base.schema import CLOSED, Count, Number, Size, Text
from synth.batches import draw_images, torch_random
from synth.data import SIZE, ImageSet, uint8_from_signed, unit_from_uint8
from synth.families import Family
from synth.ops.acceleration import (
    Step,
    adam,
    autocast,
    load_optimizer_tensors,
    maybe_cuda_graph,
    optimizer_step,
    optimizer_tensors,
    update_ema,
)
from synth.ops.augment import augment, draw_numbers
from synth.ops.layers import Conv2d
from synth.ops.parallel import average, own_part
from synth.ops.policies import POLICIES, check_policy
from synth.recipes import RecipeBase

if TYPE_CHECKING:
    from synth.runs import RunConfig

GROUPS = 8  # of every GroupNorm
FREQUENCIES = 32  # of the sine and cosine that encode time


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class FlowRecipe(RecipeBase):
    """How a flow is built and trained."""

    family: ClassVar[str] = "flow"

    # Channels at 32×32, 16×16, …: multiples of GROUPS
    widths: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)] = (24, 40, 64)
    condition_size: Size = 128  # of the vector that carries time and label
    sampling_steps: Count = 5  # of the midpoint rule: two evaluations each
    images: Count = 1_000_000  # default length, in real images shown
    batch_size: Count = 128
    learning_rate: Number = 1e-3
    ema_half_life: Annotated[int, Field(ge=0)] = 30_000  # in images
    balanced: bool = True  # every class is equally frequent in the batches
    augment_real: Text = "none"  # policy in synth.ops.policies for the real images

    @property
    def batch(self) -> int:
        return self.batch_size

    @property
    def total_images(self) -> int:
        return self.images

    @model_validator(mode="after")
    def check(self) -> FlowRecipe:
        if any(width % GROUPS for width in self.widths):
            raise ValueError(f"widths are {self.widths}; give multiples of {GROUPS}")
        if self.balanced and not self.conditional:
            raise ValueError("balanced needs labels; choose a conditional recipe")
        check_policy(self.augment_real)
        return self


class UNet(nn.Module):
    """Images (B, 3, 32, 32), time (B,) in [0, 1], labels int64 (B,) → velocity (B, 3, 32, 32).

    classes: 0 for an unconditional network, which ignores the labels.
    """

    def __init__(self, recipe: FlowRecipe, classes: int) -> None:
        super().__init__()
        widths, size = recipe.widths, recipe.condition_size
        self.embed_time = nn.Linear(2 * FREQUENCIES, size)
        self.embed_label = nn.Embedding(classes, size) if classes else None
        self.first = Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(width, width, size) for width in widths)
        self.shrink = nn.ModuleList(
            Conv2d(wide, narrow, 4, 2, padding=1) for wide, narrow in pairwise(widths)
        )
        self.up = nn.ModuleList(
            _Block(low + high, high, size) for high, low in reversed(list(pairwise(widths)))
        )
        self.last_norm = nn.GroupNorm(GROUPS, widths[0])
        self.last = Conv2d(widths[0], 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        rates = torch.logspace(0, math.log2(1000), FREQUENCIES, base=2.0, device=x.device)
        angles = time[:, None] * rates
        condition = self.embed_time(torch.cat([angles.sin(), angles.cos()], 1))
        if self.embed_label is not None:
            condition = condition + self.embed_label(labels)
        condition = F.silu(condition)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        kept = []
        for block, shrink in zip(self.down, [*self.shrink, None], strict=True):
            x = block(x, condition)
            if shrink is not None:
                kept.append(x)
                x = shrink(x)
        for block in self.up:
            x = torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1)
            x = block(x, condition)
        velocity: Tensor = self.last(F.silu(self.last_norm(x)))
        return velocity


class _Block(nn.Module):
    """A residual block; the condition scales and shifts its maps (FiLM)."""

    def __init__(self, narrow: int, wide: int, condition_size: int) -> None:
        super().__init__()
        self.norm, self.second_norm = nn.GroupNorm(GROUPS, narrow), nn.GroupNorm(GROUPS, wide)
        self.conv = Conv2d(narrow, wide, 3, padding=1)
        self.second_conv = Conv2d(wide, wide, 3, padding=1)
        self.condition = nn.Linear(condition_size, 2 * wide)
        self.shortcut = Conv2d(narrow, wide, 1) if narrow != wide else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv(F.silu(self.norm(x)))
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)
        y = self.second_conv(F.silu(self.second_norm(y) * (1 + scale) + shift))
        total: Tensor = self.shortcut(x) + y
        return total


class FlowTrainer:
    """Trains a U-Net on random points of the lines from noise to images, and keeps its EMA."""

    def __init__(
        self, config: RunConfig, images: ImageSet, heldout: ImageSet | None, device: torch.device
    ) -> None:
        recipe = config.recipe
        assert isinstance(recipe, FlowRecipe)
        self.recipe, self.images, self.seed, self.device = recipe, images, config.seed, device
        self.precision = config.precision
        self.network = _build(recipe, len(config.classes), config.seed).to(device)
        self.ema = deepcopy(self.network).requires_grad_(False)
        self.optimizer = adam(self.network, recipe.learning_rate, (0.9, 0.999))
        self.loss = torch.zeros((), device=device)  # sum since the last log line
        self.steps, self.logged_steps = 0, 0
        self._batches: Iterator[tuple[Tensor, ...]] = iter(())
        self._update: Step | None = None

    def step(self) -> None:
        if self._update is None:
            self._batches = self._draw(self.steps)
            first = next(self._draw(self.steps))
            self._update = maybe_cuda_graph(
                self.update, first, lambda: {**self.state(), "loss": self.loss}
            )
        self._update(*next(self._batches))
        self.steps += 1

    def _draw(self, first_step: int) -> Iterator[tuple[Tensor, ...]]:
        """Real images uint8 (B, 3, 32, 32), labels, noise, times in [0, 1), numbers to augment."""
        recipe = self.recipe
        drawn = draw_images(
            self.images, recipe.batch, recipe.balanced, self.seed, self.device, first_step
        )
        for step, (pixels, labels) in enumerate(drawn, first_step):
            random = torch_random(self.seed, "flow", step)
            noise = torch.randn(pixels.shape, generator=random)
            times = torch.rand(len(pixels), generator=random)
            numbers = draw_numbers(len(pixels), random)
            drawn_too = (each.to(self.device) for each in (noise, times, numbers))
            yield tuple(map(own_part, (pixels, labels, *drawn_too)))

    def update(
        self, pixels: Tensor, labels: Tensor, noise: Tensor, times: Tensor, numbers: Tensor
    ) -> None:
        """One step on the squared error of the velocity."""
        policy = POLICIES.find(self.recipe.augment_real)
        images = augment(unit_from_uint8(pixels), policy, numbers) * 2 - 1
        t = times[:, None, None, None]
        with autocast(self.device, self.precision):
            velocity = self.network((1 - t) * noise + t * images, times, labels)
        loss = F.mse_loss(velocity.float(), images - noise)
        optimizer_step(self.optimizer, loss, shared=True)
        update_ema(self.ema, self.network, self.recipe.ema_half_life, self.recipe.batch)
        self.loss += average([loss.detach()])[0]

    def log_values(self) -> dict[str, Any]:
        mean = float(self.loss) / (self.steps - self.logged_steps)
        self.loss.zero_()
        self.logged_steps = self.steps
        return {"velocity_loss": mean}

    def sampler(self) -> FlowSampler:
        network = deepcopy(self.ema)
        return FlowSampler(network.eval(), self.recipe.sampling_steps, self.precision)

    def state(self) -> dict[str, Tensor]:
        networks = {"network": self.network, "ema": self.ema}
        return {
            **nn.ModuleDict(networks).state_dict(),
            **optimizer_tensors("adam", self.optimizer),
        }

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        networks = nn.ModuleDict({"network": self.network, "ema": self.ema})
        networks.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("adam.")})
        load_optimizer_tensors("adam", self.optimizer, dict(tensors))
        self.steps = self.logged_steps = step


class FlowSampler:
    """Carries noise to images by the midpoint rule."""

    latent_scale = 1.0  # factor of the noise

    def __init__(self, network: UNet, steps: int, precision: str = "fp32") -> None:
        self.network, self.steps, self.precision = network, steps, precision
        self.classes = 0 if network.embed_label is None else network.embed_label.num_embeddings

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        device = next(self.network.parameters()).device
        noise = random.standard_normal((len(labels), 3, SIZE, SIZE), dtype=np.float32)
        x = torch.from_numpy(noise * np.float32(self.latent_scale)).to(device)
        labels, length = labels.to(device), 1 / self.steps
        for step in range(self.steps):
            start = step * length
            middle = x + self._velocity(x, start, labels) * (length / 2)
            x = x + self._velocity(middle, start + length / 2, labels) * length
        return uint8_from_signed(x).cpu()

    def _velocity(self, x: Tensor, time: float, labels: Tensor) -> Tensor:
        times = torch.full((len(x),), time, device=x.device)
        with torch.inference_mode(), autocast(x.device, self.precision):
            velocity: Tensor = self.network(x, times, labels)
        return velocity.float()

    def tensors(self) -> dict[str, Tensor]:
        return self.network.state_dict()


def _build(recipe: FlowRecipe, classes: int, seed: int) -> UNet:
    """On the CPU, channels-last. The weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(recipe, classes if recipe.conditional else 0)
    return network.to(memory_format=torch.channels_last)


def _load_sampler(
    config: RunConfig, tensors: dict[str, Tensor], device: torch.device
) -> FlowSampler:
    recipe = config.recipe
    assert isinstance(recipe, FlowRecipe)
    network = _build(recipe, len(config.classes), 0)
    network.load_state_dict(tensors)
    network.to(device).eval().requires_grad_(False)
    return FlowSampler(network, recipe.sampling_steps, config.precision)


def measure(recipe: FlowRecipe) -> dict[str, float]:
    """Parameters for ten classes, and GFLOP of a sampled image: all evaluations of the network."""
    network, images = _build(recipe, 10, 0).eval(), torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    return {
        "generator_parameters": sum(weights.numel() for weights in network.parameters()),
        "generator_gflop": 2 * recipe.sampling_steps * counter.get_total_flops() / 1e9,
    }


RECIPE = FlowRecipe(
    name="flow",
    citation="flow matching of Lipman et al. 2023 (arXiv:2210.02747), at about cdcgan's cost",
    conditional=True,
)
FAMILY = Family(
    FlowRecipe, FlowTrainer, _load_sampler, ("fp32", "bf16"), measure, shares_batches=True
)
