"""The family `gan`: one training step of a (conditional) DCGAN, and its sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import BatchNorm2d, ModuleDict
from torch.nn.functional import softplus

from synth.base.errors import SynthError
from synth.batches import Batch, draw_batches, draw_latents, labels_or_zeros, torch_random
from synth.data import ImageSet, signed_from_uint8, uint8_from_signed
from synth.families import Family, Teacher
from synth.losses import (
    discriminator_loss,
    fake_class_loss,
    fake_loss,
    generator_loss,
    real_class_loss,
    real_loss,
    teacher_loss,
)
from synth.networks import Generator, Judged, build, measure_networks
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
from synth.ops.augment import augment
from synth.ops.parallel import average, share_statistics
from synth.ops.policies import POLICIES, Policy
from synth.recipes import Recipe

if TYPE_CHECKING:
    from synth.runs import RunConfig

WARM_UP = 25_000  # real images shown while the weight of the teacher's loss grows
TEACHER_VIEW = "geometry-colour-v1"  # the policy by which a teacher sees fakes
NORM_IMAGES = 2048  # to measure the BatchNorm statistics of the EMA generator


class GANTrainer:
    """Trains a generator and a discriminator, and keeps the EMA generator."""

    def __init__(
        self,
        config: RunConfig,
        images: ImageSet,
        heldout: ImageSet | None,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        recipe = config.recipe
        assert isinstance(recipe, Recipe)
        self.teacher, self.guiding = teacher, False
        self.guidance = torch.zeros((), device=device)  # weight of the teacher's loss now
        self.recipe, self.seed, self.precision = recipe, config.seed, config.precision
        self.images, self.heldout, self.device = images, heldout, device
        self.classes = len(config.classes)
        training = recipe.training
        self.augment_real = POLICIES.find(training.augment_real)
        self.augment_both = POLICIES.find(training.augment_both)
        self.teacher_view = POLICIES.find(TEACHER_VIEW)
        generator, discriminator = build(recipe, self.classes, config.seed)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.generator_ema = deepcopy(self.generator).requires_grad_(False)
        share_statistics(self.generator)
        share_statistics(self.discriminator)
        networks = {"g": self.generator, "d": self.discriminator, "average": self.generator_ema}
        self._networks = ModuleDict(networks)
        self.g_optimizer = adam(self.generator, training.learning_rate_g, training.betas)
        self.d_optimizer = adam(self.discriminator, training.learning_rate_d, training.betas)
        # Sums of d_loss, g_loss, d_real, d_fake, d_loss² and g_loss² since the last log line
        self.sums = torch.zeros(6, device=device)
        self.steps, self.logged_steps = 0, 0  # taken so far, and up to the last log line
        self.heldout_losses: list[float] = []
        self._batches: Iterator[Batch] = iter(())
        self._update: Step | None = None

    def step(self) -> None:
        """Takes the next step. On a GPU the first call records it as a CUDA graph."""
        training = self.recipe.training
        past = self.steps * self.recipe.batch - training.teacher_start
        if self.teacher is not None and past >= 0:
            if not self.guiding:
                self.guiding, self._update = True, None  # a graph cannot change: a new one
            self.guidance.fill_(training.teacher_weight * min(1.0, past / WARM_UP))
        if self._update is None:
            batches = draw_batches(self.recipe, self.images, self.seed, self.device, self.steps)
            first = next(batches)
            self._batches = chain([first], batches)
            self._update = maybe_cuda_graph(
                lambda *batch: self.update(Batch(*batch)),
                first,
                lambda: {**self.state(), "sums": self.sums},
            )
        self._update(*next(self._batches))
        self.steps += 1
        every = self.recipe.training.heldout_every
        if every and self.heldout is not None and self.steps % every == 0:
            self.heldout_losses.append(self.loss_on(self.heldout, self.steps))

    def update(self, batch: Batch) -> None:
        """One step of the discriminator, then one of the generator."""
        training, labels = self.recipe.training, batch.labels
        views = batch.augmentation.unbind(0)
        with autocast(self.device, self.precision):
            fake = self.generator(batch.latent, labels)
            real = signed_from_uint8(batch.images)
            real = self._view(real, self.augment_real, views[0])
            real = self._view(real, self.augment_both, views[0])
            seen = self._view(fake.detach(), self.augment_both, views[1])
            on_real, on_fake = self._update_discriminator(real, seen, labels, batch.others)
            if training.fakes == "new":
                fake = self.generator(batch.second_latent, labels)
            self.discriminator.requires_grad_(False)  # computes no gradients that nobody reads
            seen = self._view(fake, self.augment_both, views[1])
            judged = self.discriminator.judge(seen, labels)
            g_loss = generator_loss(judged, on_real, labels, self.classes, self.recipe)
            self.discriminator.requires_grad_(True)
            if self.teacher is not None and self.guiding:
                shown = self._view(fake, self.teacher_view, views[1])
                g_loss = g_loss + self.guidance * teacher_loss(self.teacher(shown), labels)
        optimizer_step(self.g_optimizer, g_loss, shared=True)
        half_life = training.ema_half_life
        update_ema(self.generator_ema, self.generator, half_life, self.recipe.batch)
        real_logits, fake_logits = on_real.logits.float(), on_fake.logits.float()
        d_loss = self._d_loss(real_logits, fake_logits)
        d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
        (values,) = average([torch.stack([d_loss, g_loss, d_real, d_fake]).detach()])
        self.sums += torch.cat([values, values[:2].square()])

    def _update_discriminator(
        self, real: Tensor, fake: Tensor, labels: Tensor, others: Tensor
    ) -> tuple[Judged, Judged]:
        """Returns what the discriminator said before its step, without gradients."""
        training, dual = self.recipe.training, self.discriminator.dual
        on_real = self.discriminator.judge(real, labels)
        loss = real_class_loss(on_real.classes, labels, dual)
        if training.mismatch:
            losses = softplus(self.discriminator(real, others).float()) * (labels != others)
            loss = loss + losses.mean() / 2
        if training.discriminator_steps == "separate":
            own = real_loss(on_real.logits.float()) + loss
            optimizer_step(self.d_optimizer, own, shared=True)
            on_fake = self.discriminator.judge(fake, labels)
            loss = fake_loss(on_fake.logits.float())
        else:
            on_fake = self.discriminator.judge(fake, labels)
            loss = self._d_loss(on_real.logits.float(), on_fake.logits.float()) + loss
        loss = loss + fake_class_loss(on_fake.classes, labels, dual)
        optimizer_step(self.d_optimizer, loss, shared=True)
        return on_real.detached(), on_fake.detached()

    def _view(self, images: Tensor, policy: Policy, numbers: Tensor) -> Tensor:
        """Images in [-1, 1], augmented in fp32."""
        if policy == Policy():
            return images
        with torch.autocast(self.device.type, enabled=False):
            return augment((images.float() + 1) / 2, policy, numbers) * 2 - 1

    @torch.no_grad()
    def loss_on(self, images: ImageSet, step: int) -> float:
        """The discriminator's loss on a batch of `images` and as many fakes, in evaluation mode."""
        random = torch_random(0, "heldout", step)
        picks = torch.randint(len(images), (self.recipe.batch,), generator=random)
        latent = draw_latents(self.recipe.generator, (self.recipe.batch,), random).to(self.device)
        labels = labels_or_zeros(images)[picks].to(self.device)
        self.generator.eval()
        self.discriminator.eval()
        real = signed_from_uint8(images.images[picks].to(self.device))
        on_real = self.discriminator(real, labels)
        on_fake = self.discriminator(self.generator(latent, labels), labels)
        self.generator.train()
        self.discriminator.train()
        return float(self._d_loss(on_real, on_fake))

    def _d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return discriminator_loss(real, fake, self.recipe.training.discriminator_loss)

    def log_values(self) -> dict[str, Any]:
        """Means and standard deviations of the losses over the steps since the last call."""
        steps = self.steps - self.logged_steps
        *means, d_square, g_square = (value / steps for value in self.sums.tolist())
        self.sums.zero_()
        names = ("d_loss", "g_loss", "d_real", "d_fake")
        values: dict[str, Any] = dict(zip(names, means, strict=True))
        for name, square in (("d_loss", d_square), ("g_loss", g_square)):
            variance = square - values[name] * values[name]
            values[f"{name}_std"] = math.sqrt(max(0.0, variance))
        if self.recipe.keeps_heldout:
            values["heldout_d_losses"] = self.heldout_losses
        self.logged_steps, self.heldout_losses = self.steps, []
        return values

    def sampler(self) -> GANSampler:
        """Samples the EMA generator, with its own BatchNorm statistics.

        Its activations differ from those of the trained generator, so the running statistics do
        not fit. They are measured on latents and labels as in training (Izmailov et al. 2018,
        arXiv:1803.05407).
        """
        recipe = self.recipe
        if recipe.training.ema_half_life == 0:
            return GANSampler(deepcopy(self.generator).eval(), self.precision)
        generator = deepcopy(self.generator_ema)
        for module in generator.modules():
            if isinstance(module, BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # a plain mean over all batches
        random = torch_random(0, "norm", 0)
        shape = (math.ceil(NORM_IMAGES / recipe.batch), recipe.batch)
        latents = draw_latents(recipe.generator, shape, random).to(self.device)
        picks = torch.randint(len(self.images), shape, generator=random)
        labels = labels_or_zeros(self.images)[picks].to(self.device)
        if recipe.training.balanced:
            labels = torch.randint(len(self.images.classes), shape, generator=random)
            labels = labels.to(self.device)
        with torch.no_grad():
            for latent, label in zip(latents, labels, strict=True):
                generator(latent, label)
        return GANSampler(generator.eval(), self.precision)

    def state(self) -> dict[str, Tensor]:
        return {
            **self._networks.state_dict(),
            **optimizer_tensors("g_adam", self.g_optimizer),
            **optimizer_tensors("d_adam", self.d_optimizer),
        }

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        weights = {key: tensor for key, tensor in tensors.items() if "_adam." not in key}
        self._networks.load_state_dict(weights)
        load_optimizer_tensors("g_adam", self.g_optimizer, dict(tensors))
        load_optimizer_tensors("d_adam", self.d_optimizer, dict(tensors))
        self.steps = self.logged_steps = step


class GANSampler:
    """Samples a generator in evaluation mode, in the precision of its training."""

    latent_scale = 1.0  # factor of the latents

    def __init__(self, generator: Generator, precision: str = "fp32") -> None:
        self.generator, self.precision = generator, precision
        embedding = generator.label_embedding
        self.classes = 0 if embedding is None else embedding.num_embeddings

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        device = next(self.generator.parameters()).device
        latents = torch.from_numpy(self.latents(len(labels), random)).to(device)
        with torch.inference_mode(), autocast(device, self.precision):
            images = self.generator(latents, labels.to(device))
        if not bool(images.isfinite().all()):
            raise SynthError("the generator makes images that are not finite; train it again")
        return uint8_from_signed(images).cpu()

    def latents(self, count: int, random: np.random.Generator) -> np.ndarray:
        """float32 (count, latent_size) from the recipe's distribution."""
        recipe = self.generator.recipe
        shape = (count, recipe.latent_size)
        if recipe.latent_distribution == "normal":
            latents: np.ndarray = random.standard_normal(shape, dtype=np.float32)
        else:
            latents = random.random(shape, dtype=np.float32) * 2 - 1
        latents *= np.float32(self.latent_scale)
        return latents

    def tensors(self) -> dict[str, Tensor]:
        return self.generator.state_dict()


def _load_sampler(
    config: RunConfig, tensors: dict[str, Tensor], device: torch.device
) -> GANSampler:
    recipe = config.recipe
    assert isinstance(recipe, Recipe)
    classes = len(config.classes) if recipe.conditional else 0
    generator = Generator(recipe.generator, classes).to(memory_format=torch.channels_last)
    generator.load_state_dict(tensors)
    return GANSampler(generator.to(device).eval().requires_grad_(False), config.precision)


FAMILY = Family(
    Recipe, GANTrainer, _load_sampler, ("fp32", "bf16"), measure_networks, shares_batches=True
)
