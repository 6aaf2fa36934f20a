"""The family `gan`: one training step of a (conditional) DCGAN, its losses, and its sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import update_bn

from synth.batches import Batch, draw_batches, draw_latents, torch_random
from synth.data import ImageSet, signed_from_uint8, uint8_from_signed
from synth.families import Family
from synth.networks import Generator, build, measure_networks
from synth.ops.acceleration import (
    Step,
    adam,
    autocast,
    load_optimizer_tensors,
    maybe_cuda_graph,
    optimizer_step,
    optimizer_tensors,
)
from synth.recipes import Recipe

if TYPE_CHECKING:
    from synth.runs import RunConfig

NORM_IMAGES = 2048  # from which the EMA generator's BatchNorm statistics are taken
LOG_KEYS = ("d_loss", "g_loss", "d_real", "d_fake")  # means over a tick's steps
SPREAD_KEYS = ("d_loss_std", "g_loss_std")  # of the first of those, from step to step


class GANTrainer:
    """Generator, discriminator, their optimizers and the EMA generator, in training."""

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        seed: int,
        device: torch.device,
        precision: str = "fp32",
        images: ImageSet | None = None,
        heldout: ImageSet | None = None,
    ) -> None:
        """images: what `step` shows; without them, `update` takes batches from elsewhere."""
        self.recipe, self.seed, self.device, self.precision = recipe, seed, device, precision
        self.images, self.heldout = images, heldout
        generator, discriminator = build(recipe, classes, seed)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.generator_ema = deepcopy(self.generator).requires_grad_(False)
        self.g_weights = list(self.generator.parameters())
        self.d_weights = list(self.discriminator.parameters())
        training = recipe.training
        self.g_optimizer = adam(self.g_weights, training.learning_rate_g, training.betas)
        self.d_optimizer = adam(self.d_weights, training.learning_rate_d, training.betas)
        # Sums over steps of what LOG_KEYS names, and of the squares of both losses
        self.sums = torch.zeros(len(LOG_KEYS) + len(SPREAD_KEYS), device=device)
        self.steps, self.logged_steps = 0, 0  # taken so far, and up to the last log line
        self.heldout_losses: list[float] = []
        self._batches: Iterator[Batch] | None = None
        self._update: Step | None = None

    # One step

    def step(self) -> None:
        """Takes the next step. On a GPU the first one records it as a CUDA graph."""
        if self._batches is None or self._update is None:
            if self.images is None:
                raise ValueError("this trainer has no images to take a step on")
            self._batches = draw_batches(
                self.recipe, self.images, self.seed, self.device, self.steps
            )
            example = next(
                draw_batches(self.recipe, self.images, self.seed, self.device, self.steps)
            )
            self._update = maybe_cuda_graph(
                lambda *batch: self.update(Batch(*batch)),
                example,
                lambda: {**self.state(), "sums": self.sums},
            )
        self._update(*next(self._batches))
        self.steps += 1
        every = self.recipe.training.heldout_every
        if every and self.heldout is not None and self.steps % every == 0:
            self.heldout_losses.append(self.loss_on(self.heldout, self.steps))

    def update(self, batch: Batch) -> None:
        """One step of the discriminator, then one of the generator."""
        training = self.recipe.training
        with autocast(self.device, self.precision):
            fake = self.generator(batch.latent, batch.labels)
            real = signed_from_uint8(batch.images)
            real_logits, fake_logits = self._update_discriminator(real, fake.detach(), batch.labels)
            if training.fakes == "new":
                fake = self.generator(batch.second_latent, batch.labels)
            self.discriminator.requires_grad_(False)  # nobody reads these gradients
            g_loss = real_loss(self.discriminator(fake, batch.labels).float())
            self.discriminator.requires_grad_(True)
        optimizer_step(self.g_optimizer, self.g_weights, g_loss)
        self._update_ema()
        d_loss = discriminator_loss(real_logits, fake_logits, training.discriminator_loss)
        d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
        values = [d_loss, g_loss, d_real, d_fake, d_loss.square(), g_loss.square()]
        self.sums += torch.stack(values).detach()

    def _update_discriminator(
        self, real: Tensor, fake: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        training = self.recipe.training
        real_logits = self.discriminator(real, labels).float()
        if training.discriminator_steps == "separate":
            optimizer_step(self.d_optimizer, self.d_weights, real_loss(real_logits))
            fake_logits = self.discriminator(fake, labels).float()
            optimizer_step(self.d_optimizer, self.d_weights, fake_loss(fake_logits))
        else:
            fake_logits = self.discriminator(fake, labels).float()
            loss = discriminator_loss(real_logits, fake_logits, training.discriminator_loss)
            optimizer_step(self.d_optimizer, self.d_weights, loss)
        return real_logits.detach(), fake_logits.detach()

    @torch.no_grad()
    def _update_ema(self) -> None:
        """Exponential moving average, after Karras et al. 2018 (arXiv:1710.10196, §A)."""
        keep = ema_decay(self.recipe.training.ema_half_life, self.recipe.batch)
        averages: list[Tensor] = list(self.generator_ema.parameters())
        torch._foreach_lerp_(averages, list(self.g_weights), 1 - keep)

    # What is read off between steps

    @torch.no_grad()
    def loss_on(self, images: ImageSet, step: int) -> float:
        """The discriminator's loss on a batch of held-out images against as many fakes, with both
        networks in evaluation mode."""
        random = torch_random(0, "heldout", step)
        picks = torch.randint(len(images), (self.recipe.batch,), generator=random)
        labels = picks * 0 if images.labels is None else images.labels[picks]
        latent = draw_latents(self.recipe.generator, (self.recipe.batch,), random)
        labels, latent = labels.to(self.device), latent.to(self.device)
        self.generator.eval()
        self.discriminator.eval()
        real = signed_from_uint8(images.images[picks].to(self.device))
        on_real = self.discriminator(real, labels)
        on_fake = self.discriminator(self.generator(latent, labels), labels)
        self.generator.train()
        self.discriminator.train()
        return float(discriminator_loss(on_real, on_fake, self.recipe.training.discriminator_loss))

    def log_values(self) -> dict[str, Any]:
        """Means and spreads of the losses over the steps since the last call; waits for the
        device."""
        steps = self.steps - self.logged_steps
        means = [value / steps for value in self.sums.tolist()]
        self.sums.zero_()
        values: dict[str, Any] = dict(zip(LOG_KEYS, means, strict=False))
        squares = means[len(LOG_KEYS) :]
        spreads = [math.sqrt(max(0.0, s - m * m)) for s, m in zip(squares, means, strict=False)]
        values |= dict(zip(SPREAD_KEYS, spreads, strict=True))
        if self.recipe.keeps_heldout:
            values["heldout_d_losses"] = self.heldout_losses
        self.logged_steps, self.heldout_losses = self.steps, []
        return values

    def sampler(self) -> GANSampler:
        if self.images is None:
            raise ValueError("this trainer has no images to take label frequencies from")
        return GANSampler(sampling_generator(self, self.images), self.precision)

    def state(self) -> dict[str, Tensor]:
        networks = {"g": self.generator, "d": self.discriminator, "average": self.generator_ema}
        tensors = {
            f"{name}.{key}": tensor
            for name, network in networks.items()
            for key, tensor in network.state_dict().items()
        }
        tensors |= optimizer_tensors("g_adam", self.g_optimizer)
        return tensors | optimizer_tensors("d_adam", self.d_optimizer)

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.generator.load_state_dict(part("g."))
        self.discriminator.load_state_dict(part("d."))
        self.generator_ema.load_state_dict(part("average."))
        load_optimizer_tensors("g_adam", self.g_optimizer, dict(tensors))
        load_optimizer_tensors("d_adam", self.d_optimizer, dict(tensors))
        self.steps = self.logged_steps = step


def ema_decay(half_life: int, batch: int) -> float:
    """The share that one step keeps of the average: a half after `half_life` images. A half-life of
    0 keeps nothing."""
    return 0.5 ** (batch / half_life) if half_life else 0.0


# Sampling


class GANSampler:
    """A generator in evaluation mode, sampled in the precision that it was trained in."""

    def __init__(self, generator: Generator, precision: str = "fp32") -> None:
        self.generator, self.precision = generator, precision
        embedding = generator.label_embedding
        self.classes = 0 if embedding is None else embedding.num_embeddings

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        device = next(self.generator.parameters()).device
        latents = torch.from_numpy(self.latents(len(labels), random)).to(device)
        with torch.inference_mode(), autocast(device, self.precision):
            images = self.generator(latents, labels.to(device))
        return uint8_from_signed(images).cpu()

    def latents(self, count: int, random: np.random.Generator) -> np.ndarray:
        """float32 (count, latent_size) from the recipe's distribution."""
        recipe = self.generator.recipe
        shape = (count, recipe.latent_size)
        if recipe.latent_distribution == "normal":
            return random.standard_normal(shape, dtype=np.float32)
        return random.random(shape, dtype=np.float32) * 2 - 1

    def tensors(self) -> dict[str, Tensor]:
        return self.generator.state_dict()


def sampling_generator(trainer: GANTrainer, images: ImageSet) -> Generator:
    """The EMA generator with BatchNorm statistics of its own, ready to sample.

    Averaged weights have other activations than any generator that was trained. So neither its
    running statistics nor their average fit. They are measured afresh, over latents and labels as
    in training (`torch.optim.swa_utils.update_bn`, after Izmailov et al. 2018, arXiv:1803.05407).
    """
    recipe = trainer.recipe
    if recipe.training.ema_half_life == 0:
        return deepcopy(trainer.generator).eval()
    random = torch_random(0, "norm", 0)
    shape = (math.ceil(NORM_IMAGES / recipe.batch), recipe.batch)
    latents = draw_latents(recipe.generator, shape, random)
    picks = torch.randint(len(images), shape, generator=random)
    labels = picks if images.labels is None else images.labels[picks]
    generator = deepcopy(trainer.generator_ema)
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


# Losses on logits (Goodfellow et al. 2014, arXiv:1406.2661)


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


# The family


def _make_trainer(
    config: RunConfig, images: ImageSet, heldout: ImageSet | None, device: torch.device
) -> GANTrainer:
    recipe, classes = config.recipe, len(config.classes)
    assert isinstance(recipe, Recipe)
    return GANTrainer(recipe, classes, config.seed, device, config.precision, images, heldout)


def _load_sampler(
    config: RunConfig, tensors: dict[str, Tensor], device: torch.device
) -> GANSampler:
    recipe = config.recipe
    assert isinstance(recipe, Recipe)
    generator = Generator(recipe.generator, len(config.classes) if recipe.conditional else 0)
    generator.load_state_dict(tensors)
    generator.to(memory_format=torch.channels_last)
    return GANSampler(generator.to(device).eval().requires_grad_(False), config.precision)


FAMILY = Family(Recipe, _make_trainer, _load_sampler, ("fp32", "bf16"), measure_networks)
