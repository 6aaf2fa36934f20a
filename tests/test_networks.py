"""The networks of the recipes, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synth.losses import discriminator_loss, fake_loss, real_loss
from synth.networks import build
from synth.published import RECIPES, find_recipe
from tests.conftest import GANS

LATENT, LABELS = torch.randn(4, 100), torch.tensor([0, 3, 3, 9])


def shapes(network: nn.Module, kinds: type | tuple[type, ...]) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, kinds)]


def test_cdcgan_is_the_published_generator() -> None:
    generator, _ = build(RECIPES["cdcgan"], 10, 0)
    assert sum(p.numel() for p in generator.parameters()) == 1_089_461
    assert shapes(generator, nn.ConvTranspose2d) == [
        (105, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 4, 4),
    ]
    assert shapes(generator, nn.BatchNorm2d) == [(256,), (128,), (64,)]
    biases = [m.bias is not None for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert biases == [False, False, False, True]
    assert shapes(generator, nn.Embedding) == [(10, 5)]
    assert sum(isinstance(m, nn.ReLU) for m in generator.modules()) == 3


def test_cdcgan_is_the_published_discriminator() -> None:
    _, discriminator = build(RECIPES["cdcgan"], 10, 0)
    assert shapes(discriminator, nn.Conv2d) == [
        (64, 4, 4, 4),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (1, 256, 4, 4),
    ]
    assert shapes(discriminator, nn.BatchNorm2d) == [(128,), (256,)]
    assert shapes(discriminator, nn.Embedding) == [(10, 1024)]
    slopes = [m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2, 0.2, 0.2]


def test_dcgan_is_the_same_without_labels() -> None:
    generator, discriminator = build(RECIPES["dcgan"], 10, 0)
    assert shapes(generator, nn.ConvTranspose2d)[0] == (100, 256, 4, 4)
    assert shapes(discriminator, nn.Conv2d)[0] == (64, 3, 4, 4)
    assert shapes(generator, nn.Embedding) == shapes(discriminator, nn.Embedding) == []
    generator.eval()
    assert torch.equal(generator(LATENT, LABELS), generator(LATENT, None))


@pytest.mark.parametrize("name", GANS)
def test_images_and_logits_have_their_shapes_and_ranges(name: str) -> None:
    recipe = RECIPES[name]
    generator, discriminator = build(recipe, 10, 0)
    images = generator(LATENT, LABELS)
    assert images.shape == (4, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    assert discriminator(images, LABELS).shape == (4,)


@pytest.mark.parametrize("name", GANS)
def test_labels_are_heard_from_the_start(name: str) -> None:
    """Another label changes an image by a tenth or more of what another latent does, and a logit
    by as much of what another image does."""
    recipe = RECIPES[name]
    generator, discriminator = build(
        find_recipe(name, True if not recipe.conditional else None), 10, 0
    )
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 10
    latent, other_latent = torch.randn(2, 64, recipe.generator.latent_size, generator=random)
    image, other_image = torch.rand(2, 64, 3, 32, 32, generator=random) * 2 - 1
    for network, given, other in (
        (generator, latent, other_latent),
        (discriminator, image, other_image),
    ):
        with torch.no_grad():
            said = network(given, labels)
            of_label = (network(given, (labels + 1) % 10) - said).square().mean().sqrt()
            of_input = (network(other, labels) - said).square().mean().sqrt()
        assert of_label > 0.1 * of_input


def test_a_projection_adds_the_labels_product_with_the_last_map() -> None:
    """logit = head(map) + <embedding of the label, map> (Miyato & Koyama 2018, eq. 3)."""
    _, discriminator = build(RECIPES["cdcgan-quick"], 10, 0)
    discriminator.eval()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    last = discriminator.layers(images)
    maps = discriminator.label_maps.weight.view(10, 256, 4, 4)  # type: ignore[union-attr]
    expected = discriminator.head(last).flatten() + torch.einsum("bcij,bcij->b", last, maps[LABELS])
    torch.testing.assert_close(discriminator(images, LABELS), expected)


def test_initial_weights_are_dcgans_and_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = [p.clone() for n in build(RECIPES["cdcgan"], 10, 5) for p in n.parameters()]
    state = torch.get_rng_state()
    again = [p for n in build(RECIPES["cdcgan"], 10, 5) for p in n.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, first, again))
    generator, discriminator = build(RECIPES["cdcgan"], 10, 6)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 9999:
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
                assert abs(float(module.weight.detach().mean())) < 1e-3
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.detach().eq(1).all()
                assert module.bias.detach().eq(0).all()


def test_losses_agree_with_their_formulas() -> None:
    real = torch.randn(50, dtype=torch.float64)
    fake = torch.randn(50, dtype=torch.float64)
    on_real = -torch.log(torch.sigmoid(real)).mean()
    on_fake = -torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(real_loss(real), on_real)
    torch.testing.assert_close(fake_loss(fake), on_fake)
    torch.testing.assert_close(discriminator_loss(real, fake, "sum"), on_real + on_fake)
    torch.testing.assert_close(discriminator_loss(real, fake, "mean"), (on_real + on_fake) / 2)
