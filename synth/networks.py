"""Generator and discriminator of a recipe.

Layers are DCGAN's (Radford et al. 2015, arXiv:1511.06434); labels enter as in svhn-synthesis: an
embedding appended to the latent, and an embedding of 32·32 as one more input plane (or, by a dial,
as a projection of the discriminator's last map).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from synth.data import SIZE
from synth.ops.layers import Conv2d, ConvTranspose2d, Sequential
from synth.recipes import Activation, DiscriminatorRecipe, GeneratorRecipe, Norm, Recipe


class Generator(nn.Module):
    """Latent (B, latent_size) and labels int64 (B,) → images (B, 3, 32, 32) in [-1, 1].

    `classes` is 0 for an unconditional generator, which ignores the labels.
    """

    def __init__(self, recipe: GeneratorRecipe, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.label_embedding = nn.Embedding(classes, recipe.label_size) if classes else None
        inputs = recipe.latent_size + (recipe.label_size if classes else 0)
        self.stem = _stem(recipe, inputs)
        first = _norm(recipe.widths[0], recipe.norm) if recipe.stem_norm else nn.Identity()
        layers: list[nn.Module] = [first, _activation(recipe.stem_activation)]
        for width, wider in zip(recipe.widths[1:], recipe.widths[:-1], strict=True):
            layers += [
                _upsample(wider, width, recipe.kernel, bias=recipe.bias == "always"),
                _norm(width, recipe.norm),
                _activation(recipe.activation),
            ]
        layers += [_upsample(recipe.widths[-1], 3, recipe.kernel, bias=recipe.bias != "never")]
        self.layers = Sequential(*layers, nn.Tanh())

    def forward(self, latent: Tensor, labels: Tensor | None) -> Tensor:
        if self.label_embedding is not None:
            latent = torch.cat([latent, self.label_embedding(labels)], dim=1)
        if isinstance(self.stem, nn.Linear):
            x = self.stem(latent).unflatten(1, (-1, self.recipe.base, self.recipe.base))
        else:
            x = self.stem(latent[:, :, None, None])
        images: Tensor = self.layers(x.contiguous(memory_format=torch.channels_last))
        return images


class Discriminator(nn.Module):
    """Images (B, 3, 32, 32) in [-1, 1] and labels int64 (B,) → logits (B,), positive for real."""

    def __init__(self, recipe: DiscriminatorRecipe, classes: int) -> None:
        super().__init__()
        plane, projection = (classes and recipe.label == kind for kind in ("plane", "projection"))
        side = SIZE >> len(recipe.widths)
        self.label_planes = nn.Embedding(classes, SIZE * SIZE) if plane else None
        self.label_maps = (
            nn.Embedding(classes, recipe.widths[-1] * side * side) if projection else None
        )
        widths = [4 if plane else 3, *recipe.widths]
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(pairwise(widths)):
            norm = i > 0 or recipe.first_norm
            bias = recipe.bias == "always" or (recipe.bias == "without_norm" and not norm)
            layers.append(
                Conv2d(narrow, wide, recipe.kernel, 2, (recipe.kernel - 1) // 2, bias=bias)
            )
            if norm:
                layers.append(_norm(wide, recipe.norm))
            layers.append(nn.LeakyReLU(recipe.slope, inplace=True))
        self.layers = Sequential(*layers)
        self.head = (
            Conv2d(widths[-1], 1, side)
            if recipe.head == "conv"
            else nn.Linear(widths[-1] * side * side, 1)
        )

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.label_planes is not None:
            planes = self.label_planes(labels).view(-1, 1, SIZE, SIZE)
            images = torch.cat([images, planes], dim=1)
        x = self.layers(images)
        logits: Tensor = self.head(x if isinstance(self.head, nn.Conv2d) else x.flatten(1))
        logits = logits.flatten()
        if self.label_maps is not None:
            logits = logits + (x.flatten(1) * self.label_maps(labels)).sum(1)
        return logits


def build(recipe: Recipe, classes: int, seed: int) -> tuple[Generator, Discriminator]:
    """Both networks on the CPU, initialised from `seed` alone, convolutions channels-last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(recipe.generator, classes if recipe.conditional else 0)
        discriminator = Discriminator(recipe.discriminator, classes if recipe.conditional else 0)
        for network in (generator, discriminator):
            initialise(network, recipe.training.initialisation)
            network.to(memory_format=torch.channels_last)
    return generator, discriminator


def measure_networks(recipe: Recipe, classes: int = 10) -> dict[str, float]:
    """Parameters of both networks, and their forward GFLOP per image by torch's own counter
    (a multiplication and an addition count as two)."""
    generator, discriminator = build(recipe, classes, 0)
    labels = torch.zeros(1, dtype=torch.int64)
    figures: dict[str, float] = {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        images = generator.eval()(torch.zeros(1, recipe.generator.latent_size), labels)
        of_generator = counter.get_total_flops()
        discriminator.eval()(images, labels)
    for name, network, flops in (
        ("generator", generator, of_generator),
        ("discriminator", discriminator, counter.get_total_flops() - of_generator),
    ):
        figures[f"{name}_parameters"] = sum(p.numel() for p in network.parameters())
        figures[f"{name}_gflop"] = flops / 1e9
    return figures


def initialise(network: nn.Module, kind: str) -> None:
    """`dcgan`: weights N(0, 0.02) (Radford et al. 2015, §4); `keras`: Glorot uniform, biases 0;
    `pytorch`: as the layers were made. BatchNorm starts at 1 and 0 in all three, and embeddings of
    labels at torch's N(0, 1), beside which a latent has a like size: at Keras's U(-0.05, 0.05) the
    labels of a conditional form would go unseen. But the embedding of a projection is a weight,
    N(0, 0.02): at N(0, 1) labels would drown the image."""
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


def _stem(recipe: GeneratorRecipe, inputs: int) -> nn.Linear | nn.ConvTranspose2d:
    if recipe.stem == "conv":
        return ConvTranspose2d(inputs, recipe.widths[0], recipe.base, bias=recipe.stem_bias)
    return nn.Linear(inputs, recipe.widths[0] * recipe.base**2, bias=recipe.stem_bias)


def _upsample(wide: int, narrow: int, kernel: int, bias: bool) -> nn.ConvTranspose2d:
    """Doubles the side: output = (n - 1)·2 - 2·padding + kernel + output_padding = 2n."""
    return ConvTranspose2d(
        wide, narrow, kernel, 2, (kernel - 1) // 2, output_padding=kernel % 2, bias=bias
    )


def _norm(width: int, norm: Norm) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=norm.epsilon, momentum=norm.momentum)


def _activation(kind: Activation) -> nn.Module:
    return {
        "none": nn.Identity(),
        "relu": nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU(0.2, inplace=True),
    }[kind]
