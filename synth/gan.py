"""What is trained: generator, discriminator, their optimizers, the averaged generator."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import update_bn

from synth.batches import Batch, draw_latents, torch_random
from synth.data import ImageSet, signed_from_uint8
from synth.networks import Generator, build
from synth.ops.acceleration import (
    adam,
    autocast,
    descend,
    load_optimizer_tensors,
    optimizer_tensors,
)
from synth.recipes import Recipe

NORM_IMAGES = 2048  # from which the averaged generator's BatchNorm statistics are taken
LOG_KEYS = ("d_loss", "g_loss", "d_real", "d_fake")  # means over a tick's steps
SPREAD_KEYS = ("d_loss_std", "g_loss_std")  # of the first of those, from step to step


class Adversaries:
    """Generator, discriminator, their optimizers and the averaged generator: what is trained."""

    def __init__(self, recipe: Recipe, classes: int, seed: int, device: torch.device) -> None:
        self.recipe = recipe.training
        generator, discriminator = build(recipe, classes, seed)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.average = deepcopy(self.generator).requires_grad_(False)
        self.device = device
        self.g_weights = list(self.generator.parameters())
        self.d_weights = list(self.discriminator.parameters())
        training = recipe.training
        self.g_optimizer = adam(self.g_weights, training.learning_rate_g, training.betas)
        self.d_optimizer = adam(self.d_weights, training.learning_rate_d, training.betas)
        # Sums over steps of what LOG_KEYS names, and of the squares of both losses
        self.sums = torch.zeros(len(LOG_KEYS) + len(SPREAD_KEYS), device=device)

    def step(self, batch: Batch, precision: str) -> None:
        """One step of the discriminator, then one of the generator."""
        with autocast(self.device, precision):
            fake = self.generator(batch.latent, batch.labels)
            real = signed_from_uint8(batch.images)
            real_logits, fake_logits = self._step_discriminator(real, fake.detach(), batch.labels)
            if self.recipe.fakes == "new":
                fake = self.generator(batch.second_latent, batch.labels)
            self.discriminator.requires_grad_(False)  # its own gradients would go to nobody
            g_loss = real_loss(self.discriminator(fake, batch.labels).float())
            self.discriminator.requires_grad_(True)
        descend(self.g_optimizer, self.g_weights, g_loss)
        self._update_average()
        d_loss = discriminator_loss(real_logits, fake_logits, self.recipe.discriminator_loss)
        d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
        figures = [d_loss, g_loss, d_real, d_fake, d_loss.square(), g_loss.square()]
        self.sums += torch.stack(figures).detach()

    def _step_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        real_logits = self.discriminator(real, labels).float()
        if self.recipe.discriminator_steps == "separate":
            descend(self.d_optimizer, self.d_weights, real_loss(real_logits))
            fake_logits = self.discriminator(fake, labels).float()
            descend(self.d_optimizer, self.d_weights, fake_loss(fake_logits))
        else:
            fake_logits = self.discriminator(fake, labels).float()
            loss = discriminator_loss(real_logits, fake_logits, self.recipe.discriminator_loss)
            descend(self.d_optimizer, self.d_weights, loss)
        return real_logits.detach(), fake_logits.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential moving average, after Karras et al. 2018 (arXiv:1710.10196, §A)."""
        keep = average_decay(self.recipe.ema_half_life, self.recipe.batch)
        averages: list[Tensor] = list(self.average.parameters())
        torch._foreach_lerp_(averages, list(self.g_weights), 1 - keep)

    @torch.no_grad()
    def loss_on(self, images: ImageSet, step: int) -> float:
        """The discriminator's loss on a batch of images that it never learned from, against as
        many fakes; both networks in evaluation mode."""
        random = torch_random(0, "heldout", step)
        picks = torch.randint(len(images), (self.recipe.batch,), generator=random)
        labels = picks * 0 if images.labels is None else images.labels[picks]
        latent = draw_latents(self.generator.recipe, (self.recipe.batch,), random)
        labels, latent = labels.to(self.device), latent.to(self.device)
        self.generator.eval()
        self.discriminator.eval()
        real = signed_from_uint8(images.images[picks].to(self.device))
        on_real = self.discriminator(real, labels)
        on_fake = self.discriminator(self.generator(latent, labels), labels)
        self.generator.train()
        self.discriminator.train()
        return float(discriminator_loss(on_real, on_fake, self.recipe.discriminator_loss))

    def take_figures(self, steps: int) -> dict[str, float]:
        """What the log says of the last `steps` steps; waits for the device, and starts anew."""
        means = [value / steps for value in self.sums.tolist()]
        self.sums.zero_()
        figures = dict(zip(LOG_KEYS, means, strict=False))
        squares = means[len(LOG_KEYS) :]
        spreads = [math.sqrt(max(0.0, s - m * m)) for s, m in zip(squares, means, strict=False)]
        return figures | dict(zip(SPREAD_KEYS, spreads, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Every tensor that resuming needs, by name."""
        networks = {"g": self.generator, "d": self.discriminator, "average": self.average}
        tensors = {
            f"{name}.{key}": tensor
            for name, network in networks.items()
            for key, tensor in network.state_dict().items()
        }
        tensors |= optimizer_tensors("g_adam", self.g_optimizer)
        return tensors | optimizer_tensors("d_adam", self.d_optimizer)

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.state().values())

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`. Raises `KeyError` or `RuntimeError` when they don't fit."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.generator.load_state_dict(part("g."))
        self.discriminator.load_state_dict(part("d."))
        self.average.load_state_dict(part("average."))
        load_optimizer_tensors("g_adam", self.g_optimizer, tensors)
        load_optimizer_tensors("d_adam", self.d_optimizer, tensors)


def average_decay(half_life: int, batch: int) -> float:
    """What one step keeps of the average: a half after `half_life` images; 0 switches it off."""
    return 0.5 ** (batch / half_life) if half_life else 0.0


def sampling_generator(adversaries: Adversaries, images: ImageSet, recipe: Recipe) -> Generator:
    """The averaged generator with BatchNorm statistics of its own, ready to sample.

    Averaged weights have other activations than any generator that was trained, so neither its
    running statistics nor their average fit; they are taken afresh, over latents and labels as in
    training (`torch.optim.swa_utils.update_bn`, after Izmailov et al. 2018, arXiv:1803.05407).
    """
    if recipe.training.ema_half_life == 0:
        return deepcopy(adversaries.generator).eval()
    random = torch_random(0, "norm", 0)
    batch = recipe.training.batch
    shape = (math.ceil(NORM_IMAGES / batch), batch)
    latents = draw_latents(recipe.generator, shape, random)
    picks = torch.randint(len(images), shape, generator=random)
    labels = picks if images.labels is None else images.labels[picks]
    generator = deepcopy(adversaries.average)
    with torch.no_grad():
        update_bn(
            ({"latent": z, "labels": y} for z, y in zip(latents, labels, strict=True)),
            _ByName(generator),
        )
    return generator.eval()


class _ByName(torch.nn.Module):
    """Lets `update_bn`, which passes one argument, call a network that takes several."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, arguments: dict[str, Tensor]) -> Tensor:
        device = next(self.network.parameters()).device
        output: Tensor = self.network(**{k: v.to(device) for k, v in arguments.items()})
        return output


def real_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) against "real"; on fakes it is the generator's loss, the
    non-saturating one with flipped labels."""
    return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def fake_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) against "fake"."""
    return binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def discriminator_loss(real: Tensor, fake: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Both halves, as their mean, or as their sum (twice the gradient)."""
    total = real_loss(real) + fake_loss(fake)
    return total / 2 if reduction == "mean" else total
