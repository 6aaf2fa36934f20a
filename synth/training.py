"""Training a recipe: one linear loop, counted in real images shown.

All randomness is a function of (seed, step): the order of the images, the latents, the labels. So
a run that was killed and resumed equals one that was not, and a checkpoint holds no random state.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.optim.swa_utils import update_bn

from synth.acceleration import (
    adam,
    autocast,
    choose_precision,
    descend,
    fastest,
    load_optimizer_tensors,
    optimizer_tensors,
)
from synth.data import SIZE, ImageSet, signed_from_uint8, split_tail, uint8_from_signed
from synth.errors import SynthError
from synth.losses import discriminator_loss, fake_loss, real_loss
from synth.networks import Generator, build
from synth.recipes import GeneratorRecipe, Recipe
from synth.runs import Run, load_tensors, save_tensors
from synth.visuals import draw_losses, save_grid

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

BLOCK = 64  # steps whose randomness is drawn at once
NORM_BATCHES = 16  # batches from which the averaged generator's BatchNorm statistics are taken
COLUMNS = 10  # images per class in the sample grid
LOG_KEYS = ("d_loss", "g_loss", "d_real", "d_fake")
Progress = Callable[[int], None]  # is told the images shown so far


class Interrupted(SynthError):
    """The user stopped the run; it was saved and can be resumed."""

    exit_code = 130


class Batch(NamedTuple):
    """What one step reads. B is the batch size, L the latent size."""

    images: Tensor  # uint8 (B, 3, 32, 32), real
    labels: Tensor  # int64 (B,), of the real images; the fakes are made for the same labels
    latent: Tensor  # float32 (B, L)
    second_latent: Tensor  # float32 (B, L), for recipes whose generator step draws new fakes


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
        self.sums = torch.zeros(len(LOG_KEYS), device=device)  # read, then zeroed, at each tick

    def step(self, batch: Batch, precision: str) -> None:
        """One step of the discriminator, then one of the generator."""
        with autocast(self.device, precision):
            fake = self.generator(batch.latent, batch.labels)
            real = signed_from_uint8(batch.images)
            real_logits, fake_logits = self._step_discriminator(real, fake.detach(), batch.labels)
            if self.recipe.fakes == "new":
                fake = self.generator(batch.second_latent, batch.labels)
            g_loss = real_loss(self.discriminator(fake, batch.labels).float())
        descend(self.g_optimizer, self.g_weights, g_loss)
        self._update_average()
        d_loss = discriminator_loss(real_logits, fake_logits, self.recipe.discriminator_loss)
        self.sums += torch.stack(
            [d_loss, g_loss, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
        ).detach()

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


def train(
    run: Run,
    images: ImageSet,
    device: torch.device,
    progress: Progress = lambda shown: None,
) -> None:
    """Trains the run to its length, from its last checkpoint where it has one.

    Raises `SynthError` when a loss stops being finite (the last good checkpoint stays) or another
    process is training the run, and `Interrupted` after Ctrl-C, once everything is saved.
    """
    try:
        with FileLock(run.folder / ".lock", timeout=0):
            _train(run, images, device, progress)
    except Timeout as error:
        raise SynthError(f"{run.folder}: is being trained by another process") from error


def _train(run: Run, images: ImageSet, device: torch.device, progress: Progress) -> None:
    # What is trained on what
    config, recipe = run.config, run.config.recipe
    batch = recipe.training.batch
    check_trainable(recipe, images)
    adversaries = Adversaries(recipe, len(config.classes), config.seed, device)
    step = _restore(run, adversaries)
    run.rewind_log(step * batch)
    last_step = math.ceil(config.images / batch)
    tick_steps = max(1, round(config.tick / batch))
    heldout_every = recipe.training.heldout_every
    heldout: ImageSet | None = None
    heldout_losses: list[float] = []
    if heldout_every:
        images, heldout = split_tail(images)
    batches = draw_batches(recipe, images, config.seed, device, first_step=step)
    example = _example_batch(recipe, len(config.classes), device)
    take_step = _fastest_step(adversaries, example, config.precision)
    progress(step * batch)

    # The loop
    with _interruptible() as interrupted:
        tick_start, tick_time = step, time.perf_counter()
        while step < last_step:
            take_step(*next(batches))
            step += 1
            if heldout is not None and step % heldout_every == 0:
                heldout_losses.append(adversaries.loss_on(heldout, step))
            if step % tick_steps and step < last_step and not interrupted():
                if step % 16 == 0:
                    progress(step * batch)
                continue

            # A tick: weights, samples, log, and last the state, so that a kill between is safe
            sums = adversaries.sums.tolist()  # waits for the device
            means = [value / (step - tick_start) for value in sums]
            if not (all(map(math.isfinite, means)) and adversaries.finite()):
                raise SynthError(
                    f"{run.folder}: losses or weights are no longer finite in the tick that ends "
                    f"at {step * batch:,} images; the checkpoint before it is kept; "
                    "try another --seed or --precision fp32"
                )
            adversaries.sums.zero_()
            seconds = time.perf_counter() - tick_time
            _write_samples(run, adversaries, images, step)
            run.append_log(
                {
                    "images": step * batch,
                    **dict(zip(LOG_KEYS, means, strict=True)),
                    **({"heldout_d_losses": heldout_losses} if heldout is not None else {}),
                    "images_per_second": round((step - tick_start) * batch / seconds, 1),
                    "memory_mib": _memory_mib(device),
                }
            )
            if step >= last_step or interrupted() or seconds > 10:
                draw_losses(run.read_log(), run.folder / "losses.png")
            save_tensors(run.state, adversaries.state(), {"step": step})
            progress(min(step * batch, config.images))
            if interrupted() and step < last_step:
                raise Interrupted(
                    f"stopped at {step * batch:,} of {config.images:,} images; go on with: "
                    f"synth train --resume --run {run.folder}"
                )
            tick_start, tick_time, heldout_losses = step, time.perf_counter(), []


def check_trainable(recipe: Recipe, images: ImageSet) -> None:
    """Raises `SynthError` when these images cannot train this recipe."""
    if recipe.conditional:
        images.require_labels()
    if len(images) < recipe.training.batch:
        raise SynthError(
            f"{images.name}: {len(images)} training images are fewer than the batch of "
            f"{recipe.training.batch}; add images"
        )


def draw_batches(
    recipe: Recipe, images: ImageSet, seed: int, device: torch.device, first_step: int = 0
) -> Iterator[Batch]:
    """Endless batches from `first_step` on; each pass shows every image once, the rest dropped."""
    size = recipe.training.batch
    pixels = images.images.to(device)
    labels = (
        images.labels if images.labels is not None else torch.zeros(len(images), dtype=torch.int64)
    ).to(device)
    for block in range(first_step // BLOCK, 1 << 62):
        order = _image_order(len(images), size, seed, block).to(device)
        random = torch_random(seed, "latents", block)
        latents = draw_latents(recipe.generator, (2, BLOCK, size), random).to(device)
        for i in range(max(0, first_step - block * BLOCK), BLOCK):
            yield Batch(pixels[order[i]], labels[order[i]], latents[0, i], latents[1, i])


def _image_order(count: int, batch: int, seed: int, block: int) -> Tensor:
    """Indices (BLOCK, batch) of the images that the block's steps show."""
    per_pass = count // batch
    steps = range(block * BLOCK, (block + 1) * BLOCK)
    passes = {
        number: torch.randperm(count, generator=torch_random(seed, "order", number))
        for number in {step // per_pass for step in steps}
    }
    return torch.stack([passes[s // per_pass][s % per_pass * batch :][:batch] for s in steps])


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


def sampling_generator(adversaries: Adversaries, images: ImageSet, recipe: Recipe) -> Generator:
    """The averaged generator with BatchNorm statistics of its own, ready to sample.

    Averaged weights have other activations than any generator that was trained, so neither its
    running statistics nor their average fit; they are taken afresh, over latents and labels as in
    training (`torch.optim.swa_utils.update_bn`, after Izmailov et al. 2018, arXiv:1803.05407).
    """
    if recipe.training.ema_half_life == 0:
        return deepcopy(adversaries.generator).eval()
    random = torch_random(0, "norm", 0)
    shape = (NORM_BATCHES, recipe.training.batch)
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


def _write_samples(run: Run, adversaries: Adversaries, images: ImageSet, step: int) -> None:
    """The weights to sample from, and the sample grid."""
    shown = step * run.config.recipe.training.batch
    generator = sampling_generator(adversaries, images, run.config.recipe)
    save_tensors(
        run.weights, generator.state_dict(), {"config": run.config.to_json(), "images": shown}
    )
    random = torch_random(run.config.seed, "grid", 0)
    classes = len(run.config.classes)
    labels = torch.arange(max(classes, COLUMNS)).repeat_interleave(COLUMNS) % classes
    latent = draw_latents(run.config.recipe.generator, (len(labels),), random)
    with torch.no_grad():
        samples = generator(latent.to(adversaries.device), labels.to(adversaries.device))
    save_grid(
        uint8_from_signed(samples).cpu(),
        run.folder / "samples" / f"{round(shown / 1000):07d}k.png",
        COLUMNS,
    )


def _restore(run: Run, adversaries: Adversaries) -> int:
    """Loads the last checkpoint, if any; returns the number of steps taken."""
    if not run.state.exists():
        return 0
    tensors, metadata = load_tensors(run.state)
    try:
        adversaries.load_state(tensors)
        return int(metadata["step"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise SynthError(f"{run.state}: does not fit the run's configuration ({error})") from error


def choose_training_precision(
    asked: str, recipe: Recipe, classes: int, device: torch.device
) -> tuple[str, str]:
    """Resolves `--precision auto` by timing steps of this recipe; see `choose_precision`."""
    example = _example_batch(recipe, classes, device)

    def prepare(precision: str) -> Callable[[], None]:
        take_step = _fastest_step(Adversaries(recipe, classes, 0, device), example, precision)
        return lambda: take_step(*example)

    return choose_precision(asked, prepare, device)


def _fastest_step(adversaries: Adversaries, example: Batch, precision: str) -> Callable[..., None]:
    def step(*batch: Tensor) -> None:
        adversaries.step(Batch(*batch), precision)

    return fastest(step, example, lambda: {**adversaries.state(), "sums": adversaries.sums})


def _example_batch(recipe: Recipe, classes: int, device: torch.device) -> Batch:
    size, random = recipe.training.batch, torch_random(0, "example", 0)
    images = torch.randint(256, (size, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    labels = torch.randint(classes, (size,), generator=random)
    latents = draw_latents(recipe.generator, (2, size), random)
    return Batch(*(tensor.to(device) for tensor in (images, labels, latents[0], latents[1])))


def _memory_mib(device: torch.device) -> int | None:
    """Peak memory so far: the GPU's, or the process's; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks the loop to save and stop; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
