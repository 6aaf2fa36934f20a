"""Generator and discriminator of a recipe.

The layers are those of DCGAN (Radford et al. 2015, arXiv:1511.06434). Labels enter as in
svhn-synthesis: the generator appends an embedding to the latent, and the discriminator reads an
embedding as one more input plane. A hyperparameter replaces the plane by a projection.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synth.data import SIZE
from synth.ops.layers import Conv2d, ConvTranspose2d, Sequential
from synth.recipes import Activation, DiscriminatorRecipe, GeneratorRecipe, Norm, Recipe


class Generator(nn.Module):
    """Latent (B, latent_size) and labels int64 (B,) → images (B, 3, side, side) in [-1, 1].

    classes: 0 for an unconditional generator, which ignores the labels.
    """

    def __init__(self, recipe: GeneratorRecipe, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.label_embedding = nn.Embedding(classes, recipe.label_size) if classes else None
        inputs = recipe.latent_size + (recipe.label_size if classes else 0)
        width, bias = recipe.widths[0], recipe.stem_bias
        self.stem: nn.Linear | nn.ConvTranspose2d = (
            ConvTranspose2d(inputs, width, recipe.base, bias=bias)
            if recipe.stem == "conv"
            else nn.Linear(inputs, width * recipe.base**2, bias=bias)
        )
        first = _norm(width, recipe.norm) if recipe.stem_norm else nn.Identity()
        layers: list[nn.Module] = [first, _activation(recipe.stem_activation)]
        for wide, narrow in pairwise(recipe.widths):
            layers += [
                _upsample(wide, narrow, recipe.kernel, bias=recipe.bias == "always"),
                _norm(narrow, recipe.norm),
                _activation(recipe.activation),
            ]
        last, bias = recipe.widths[-1], recipe.bias != "never"
        layers += [_upsample(last, recipe.channels, recipe.kernel, bias=bias)]
        self.layers = Sequential(*layers, nn.Tanh())

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        if self.label_embedding is not None:
            latent = torch.cat([latent, self.label_embedding(labels)], dim=1)
        if isinstance(self.stem, nn.Linear):
            x = self.stem(latent).unflatten(1, (-1, self.recipe.base, self.recipe.base))
        else:
            x = self.stem(latent[:, :, None, None])
        images: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


class Judged(NamedTuple):
    """What a discriminator says of a batch; K is the number of classes."""

    logits: Tensor  # (B,), positive for real
    classes: Tensor | None  # (B, 2·K) if its head tells classes apart: K for real, K for fakes
    features: Tensor  # (B, D), the last map

    def detached(self) -> Judged:
        return Judged(*(None if each is None else each.detach() for each in self))  # type: ignore[arg-type]


class Discriminator(nn.Module):
    """Images (B, 3, side, side) in [-1, 1] and labels int64 (B,) → logits (B,), positive for
    real."""

    def __init__(self, recipe: DiscriminatorRecipe, classes: int, side: int = SIZE) -> None:
        super().__init__()
        self.side = side
        plane = classes > 0 and recipe.label == "plane"
        projection = classes > 0 and recipe.label == "projection"
        last_side = recipe.last_side(side)
        features = recipe.widths[-1] * last_side * last_side
        self.label_planes = nn.Embedding(classes, side * side) if plane else None
        self.label_maps = nn.Embedding(classes, features) if projection else None
        self.dual = recipe.label == "dual-projection"
        two_way = classes > 0 and recipe.label in ("dual-projection", "adc")
        self.class_head = nn.Linear(features, 2 * classes, bias=False) if two_way else None
        widths = [4 if plane else 3, *recipe.widths]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(pairwise(widths)):
            norm = i > 0 or recipe.first_norm
            bias = recipe.bias == "always" or (recipe.bias == "without_norm" and not norm)
            padding = (recipe.kernel - 1) // 2
            layers.append(Conv2d(narrow, wide, recipe.kernel, 2, padding, bias=bias))
            if norm:
                layers.append(_norm(wide, recipe.norm))
            layers.append(nn.LeakyReLU(recipe.slope, inplace=True))
        self.layers = Sequential(*layers)
        conv = recipe.head == "conv"
        self.head = Conv2d(widths[-1], 1, last_side) if conv else nn.Linear(features, 1)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.judge(images, labels).logits

    def judge(self, images: Tensor, labels: Tensor | None) -> Judged:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.label_planes is not None:
            planes = self.label_planes(labels).view(-1, 1, self.side, self.side)
            images = torch.cat([images, planes], dim=1)
        x = self.layers(images)
        logits: Tensor = self.head(x if isinstance(self.head, nn.Conv2d) else x.flatten(1))
        logits, features, classes = logits.flatten(), x.flatten(1), None
        if self.label_maps is not None:
            logits = logits + (features * self.label_maps(labels)).sum(1)
        if self.class_head is not None:
            classes = self.class_head(features)
            if self.dual and labels is not None:
                own = labels[:, None]
                real, fake = classes.gather(1, own), classes.gather(1, own + classes.shape[1] // 2)
                logits = logits + (real - fake).flatten()
        return Judged(logits, classes, features)


def build(recipe: Recipe, classes: int, seed: int) -> tuple[Generator, Discriminator]:
    """Both networks on the CPU, channels-last. The weights depend on `seed` alone."""
    classes = classes if recipe.conditional else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(recipe.generator, classes)
        discriminator = Discriminator(recipe.discriminator, classes, recipe.side)
        for network in (generator, discriminator):
            initialise(network, recipe.training.initialisation)
            network.to(memory_format=torch.channels_last)
    return generator, discriminator


def measure_networks(recipe: Recipe) -> dict[str, float]:
    """Parameters of both networks for ten classes, and forward GFLOP per image. An addition counts
    as one operation, and so does a multiplication."""
    latent, image = recipe.generator.latent_size, (1, 3, recipe.side, recipe.side)
    inputs = torch.zeros(1, latent), torch.zeros(image)
    figures: dict[str, float] = {}
    for network, given in zip(build(recipe, 10, 0), inputs, strict=True):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(given, torch.zeros(1, dtype=torch.int64))
        name = type(network).__name__.lower()
        figures[f"{name}_parameters"] = sum(p.numel() for p in network.parameters())
        figures[f"{name}_gflop"] = counter.get_total_flops() / 1e9
    return figures


def initialise(network: nn.Module, kind: str) -> None:
    """Initialises the weights in place.

    kind: `dcgan` gives N(0, 0.02) (Radford et al. 2015, §4). `keras` gives Glorot uniform weights
    and zero biases. `pytorch` keeps the defaults of PyTorch. BatchNorm starts at 1 and 0.

    Label embeddings stay at N(0, 1), the scale of a latent. With Keras's U(-0.05, 0.05) they would
    have no effect. The embedding of a projection starts at N(0, 0.02). With N(0, 1) it would
    outweigh the image.
    """
    if isinstance(network, Discriminator) and network.label_maps is not None:
        nn.init.normal_(network.label_maps.weight, 0.0, 0.02)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "dcgan":
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif kind == "keras":
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _upsample(wide: int, narrow: int, kernel: int, bias: bool) -> nn.ConvTranspose2d:
    """Doubles the side: output = (n - 1)·2 - 2·padding + kernel + output_padding = 2n."""
    padding = (kernel - 1) // 2
    return ConvTranspose2d(wide, narrow, kernel, 2, padding, output_padding=kernel % 2, bias=bias)


def _norm(width: int, norm: Norm) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=norm.epsilon, momentum=norm.momentum)


def _activation(kind: Activation) -> nn.Module:
    return {
        "none": nn.Identity(),
        "relu": nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU(0.2, inplace=True),
    }[kind]
