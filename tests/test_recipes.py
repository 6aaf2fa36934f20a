"""Every published recipe against the table it comes from, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from synth import generation
from synth.base.errors import UsageError
from synth.base.schema import all_keys, dump, parse
from synth.data import ImageSet, split_validation
from synth.generation import generate
from synth.networks import build, measure_networks
from synth.published import RECIPES, find_recipe, read_recipe
from synth.recipes import Recipe, override
from synth.runs import load_generator, newest_run
from synth.training import train_run
from synth.visuals import _heldout_losses
from tests.conftest import FAST, GANS, Ran
from tests.test_training import CPU, make_run

# name → parameters of both networks, and their layers: what holds weights, norms, activations.
# "C3>64 k4" is a convolution, "T" a transposed one, "L" linear, "+b" with bias, "B64" a norm.
CDCGAN = (
    "T105>256 k4, B256, relu, T256>128 k4, B128, relu, T128>64 k4, B64, relu, T64>3 k4 +b, tanh",
    "C4>64 k4 +b, leaky, C64>128 k4, B128, leaky, C128>256 k4, B256, leaky, C256>1 k4 +b",
)
WIDE_D = "C3>128 k4{b}, B128, leaky, C128>256 k4{b}, B256, leaky, C256>512 k4{b}, B512, leaky"
KERAS = (
    "L100>8192 +b, B512, leaky, T512>256 k5 +b, B256, leaky, T256>128 k5 +b, B128, leaky, "
    "T128>3 k5 +b, tanh",
    "C3>64 k5 +b, leaky, C64>128 k5 +b, B128, leaky, C128>256 k5 +b, B256, leaky, L4096>1 +b",
)
PUBLISHED: dict[str, tuple[int | None, int | None, str, str]] = {
    "cdcgan": (1_089_461, None, *CDCGAN),
    "svhn-synthesis": (1_089_461, None, *CDCGAN),
    "shahrullo": (
        372_416,
        167_809,
        "L100>2048 +b, T128>64 k4, B64, relu, T64>32 k4, B32, relu, T32>3 k4, tanh",
        "C3>32 k4, leaky, C32>64 k4, B64, leaky, C64>128 k4, B128, leaky, L2048>1 +b",
    ),
    "house-number-recognition": (
        None,
        None,
        "L100>8192 +b, B512, leaky, T512>256 k4, B256, relu, T256>128 k4, B128, relu, "
        "T128>3 k4, tanh",
        WIDE_D.format(b="") + ", L8192>1 +b",
    ),
    "sssingh-svhn": (
        3_457_155,
        2_638_465,
        "L100>8192 +b, B512, relu, T512>256 k4 +b, B256, relu, T256>128 k4 +b, B128, relu, "
        "T128>3 k4 +b, tanh",
        WIDE_D.format(b=" +b") + ", L8192>1 +b",
    ),
    "sssingh-celeba": (
        2_962_307,
        2_692_417,
        "L100>2048, B512, leaky, T512>256 k4, B256, leaky, T256>128 k4, B128, leaky, "
        "T128>64 k4, B64, leaky, T64>3 k4 +b, tanh",
        "C3>32 k4, B32, leaky, C32>128 k4, B128, leaky, C128>256 k4, B256, leaky, "
        "C256>512 k4, B512, leaky, L2048>1 +b",
    ),
    **{f"keras-trial-{trial}": (4_935_171, 1_034_113, *KERAS) for trial in (1, 2, 3)},
}
# name → latent, initialisation, loss, steps of the discriminator, fakes, images, batch, averaging,
# steps between held-out losses, learning rates of D and G, betas
ADAM = (2e-4, 2e-4, (0.5, 0.999))
NOTEBOOK = ("sum", "joint", "new")
KERAS_STEP = ("normal", "keras", "mean", "separate", "new", 8_000 * 256, 256, 0, 50)
TRAINED: dict[str, tuple[object, ...]] = {
    "cdcgan": ("normal", "dcgan", "mean", "joint", "shared", 1_000_000, 128, 10_000, 0, *ADAM),
    "svhn-synthesis": ("normal", "dcgan", "mean", "joint", "shared", 35 * 73_257, 128, 0, 0, *ADAM),
    "shahrullo": ("uniform", "pytorch", *NOTEBOOK, 50 * 73_257, 128, 0, 0, *ADAM),
    "house-number-recognition": ("uniform", "pytorch", *NOTEBOOK, 50 * 73_257, 128, 0, 0, *ADAM),
    "sssingh-svhn": ("uniform", "pytorch", *NOTEBOOK, 25 * 73_257, 128, 0, 0, *ADAM),
    "sssingh-celeba": ("uniform", "dcgan", *NOTEBOOK, 25 * 202_599, 128, 0, 0, *ADAM),
    "keras-trial-1": (*KERAS_STEP, 2e-4, 2e-4, (0.6, 0.999)),
    "keras-trial-2": (*KERAS_STEP, 1e-3, 1e-4, (0.5, 0.999)),
    "keras-trial-3": (*KERAS_STEP, 1e-3, 2e-4, (0.5, 0.999)),
}


def layers(network: nn.Module) -> str:
    """The layers in the order in which they are applied, in the notation of `PUBLISHED`."""
    words: list[str] = []

    def name(module: nn.Module, *_: object) -> None:
        bias = " +b" if getattr(module, "bias", None) is not None else ""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            kind = "C" if isinstance(module, nn.Conv2d) else "T"
            side = module.kernel_size[0]
            words.append(f"{kind}{module.in_channels}>{module.out_channels} k{side}{bias}")
        elif isinstance(module, nn.Linear):
            words.append(f"L{module.in_features}>{module.out_features}{bias}")
        elif isinstance(module, nn.BatchNorm2d):
            words.append(f"B{module.num_features}")
        elif isinstance(module, nn.LeakyReLU):
            assert module.negative_slope == 0.2
            words.append("leaky")
        elif isinstance(module, nn.ReLU | nn.Tanh):
            words.append(type(module).__name__.lower())

    for module in network.modules():
        module.register_forward_hook(name)
    labels = torch.zeros(2, dtype=torch.int64)
    inputs = torch.zeros(2, 100) if hasattr(network, "stem") else torch.zeros(2, 3, 32, 32)
    network.eval()(inputs, labels)
    return ", ".join(words)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_are_the_published_ones(name: str) -> None:
    of_generator, of_discriminator, generator_layers, discriminator_layers = PUBLISHED[name]
    generator, discriminator = build(RECIPES[name], 10, 0)
    assert layers(generator) == generator_layers
    assert layers(discriminator) == discriminator_layers
    for network, count in ((generator, of_generator), (discriminator, of_discriminator)):
        assert count in (None, sum(p.numel() for p in network.parameters()))
        norms = {(m.momentum, m.eps) for m in network.modules() if isinstance(m, nn.BatchNorm2d)}
        assert norms == {(0.01, 1e-3) if name.startswith("keras") else (0.1, 1e-5)}


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not RECIPES[n].conditional])
def test_conditional_forms_differ_by_the_label_alone(name: str) -> None:
    """Five numbers of an embedding beside the latent, one plane beside the image's three."""
    *_, generator_layers, discriminator_layers = PUBLISHED[name]
    labelled = find_recipe(name, conditional=True)
    assert labelled == find_recipe(f"{name}-conditional", None)
    assert replace(labelled, name=name, conditional=False) == RECIPES[name]
    generator, discriminator = build(labelled, 10, 0)
    assert layers(generator) == generator_layers.replace("L100>", "L105>")
    assert layers(discriminator) == discriminator_layers.replace("C3>", "C4>")


@pytest.mark.parametrize("name", TRAINED)
def test_recipes_are_trained_as_published(name: str) -> None:
    latent, dials = RECIPES[name].generator.latent_distribution, RECIPES[name].training
    assert TRAINED[name] == (
        *(latent, dials.initialisation, dials.discriminator_loss, dials.discriminator_steps),
        *(dials.fakes, dials.images, dials.batch, dials.ema_half_life, dials.heldout_every),
        *(dials.learning_rate_d, dials.learning_rate_g, dials.betas),
    )


def test_initial_weights_are_keras_own() -> None:
    """Glorot, Keras's own: U(-a, a), a = sqrt(6 / (inputs + outputs)), each times the kernel."""
    for network in build(RECIPES["keras-trial-1"], 10, 0):
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                weight = module.weight.detach()
                bound = (6 / ((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel())) ** 0.5
                assert float(weight.abs().max()) == pytest.approx(bound, rel=0.02)
                assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
                assert module.bias is not None
                assert module.bias.detach().eq(0).all()


@pytest.mark.parametrize("name", ["shahrullo", "sssingh-svhn", "sssingh-celeba"])
def test_initial_weights_are_torchs_or_dcgans(name: str) -> None:
    """PyTorch's: U(-a, a), a = 1 / sqrt(inputs times the kernel); DCGAN's: N(0, 0.02)."""
    for network in build(RECIPES[name], 10, 0):
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                weight = module.weight.detach()
                spread = (3 * weight.shape[1] * weight[0, 0].numel()) ** -0.5
                normal = RECIPES[name].training.initialisation == "dcgan"
                expected = 0.02 if normal else spread
                assert float(weight.std()) == pytest.approx(expected, rel=0.06)
                assert (float(weight.abs().max()) > 1.75 * expected) == normal  # a = sqrt(3) · std


@pytest.mark.parametrize("name", GANS)
def test_flops_agree_with_a_count_by_hand(name: str) -> None:
    """2 · inputs · outputs · kernel area, times the positions of the smaller map."""
    recipe = RECIPES[name]
    figures = measure_networks(recipe)
    labelled = recipe.conditional
    g, d = recipe.generator, recipe.discriminator
    expected = 2.0 * (g.latent_size + g.label_size * labelled) * g.widths[0] * g.base**2
    for i, (wide, narrow) in enumerate(zip(g.widths, (*g.widths[1:], 3), strict=True)):
        expected += 2 * wide * narrow * g.kernel**2 * (g.base << i) ** 2
    assert figures["generator_gflop"] * 1e9 == expected
    channels = (3 + (labelled and d.label == "plane"), *d.widths)
    scores = 1 + 20 * (d.label in ("dual-projection", "adc"))  # a logit, and two for each class
    expected = 2.0 * scores * d.widths[-1] * (32 >> len(d.widths)) ** 2
    for i, (narrow, wide) in enumerate(pairwise(channels), start=1):
        expected += 2 * narrow * wide * d.kernel**2 * (32 >> i) ** 2
    assert figures["discriminator_gflop"] * 1e9 == expected


def with_forms() -> list[str]:
    return [*GANS, *(f"{n}-conditional" for n, r in RECIPES.items() if not r.conditional)]


@pytest.mark.parametrize("name", with_forms())
def test_every_recipe_trains_for_two_ticks_and_samples(
    name: str, tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "CHUNK", 2)
    recipe = find_recipe(name, None)
    batch = recipe.training.batch // 8
    recipe = replace(recipe, training=replace(recipe.training, batch=batch, heldout_every=1))
    run = make_run(tmp_path, drawn, recipe, 2 * batch, images_per_tick=batch, precision=FAST)
    train_run(run, drawn, CPU)
    log = run.read_log()
    assert [line["images"] for line in log] == [batch, 2 * batch]
    assert all(len(line["heldout_d_losses"]) == 1 for line in log)
    images = generate(load_generator(run.folder), 10, 2, seed=0).images
    assert images.std() > 1


def test_heldout_images_are_one_block_and_never_trained_on(drawn: ImageSet) -> None:
    kept, heldout = split_validation(drawn)
    assert (len(kept), len(heldout)) == (450, 50)
    assert torch.equal(torch.cat([kept.images, heldout.images]), drawn.images)


@given(st.sampled_from(list(all_keys(Recipe))), st.text(max_size=8))
def test_hyperparameters_take_a_right_value_or_say_what_is_wrong(key: str, text: str) -> None:
    try:
        changed = override(RECIPES["cdcgan"], f"{key}={text}")
    except UsageError as error:
        assert key.split(".")[0] in str(error)
    else:
        assert isinstance(changed, Recipe)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.batch", "give KEY=VALUE"),
        ("training.bach=3", "did you mean training.batch"),
        ("generator.norm.epsilonn=1", "did you mean generator.norm.epsilon"),
        ("training.batch=-1", "training.batch is -1; input should be greater"),
        ("batch=3", "did you mean training.batch"),
        ("training.fakes=neww", "input should be 'shared' or 'new'"),
        ("training=3", "training is a group; set a value in it, such as training.images"),
        ("training.batch.size=3", "training.batch is .*; input should be a valid integer"),
        ("training.batch=many", "training.batch is 'many'; input should be a valid integer"),
        ("generator.stem_norm=perhaps", "should be a valid boolean"),
        ("training.betas=0.5", "should be a valid array"),
        ("training.betas=0.5,0.9,0.9", "at most 2 items"),
        ("training.learning_rate_g=inf", "finite number"),
        ("generator.slope=0.1", "did you mean discriminator.slope"),
        ("generator.batch=3", "did you mean training.batch"),
        ("slop=3", "did you mean discriminator.slope"),
        ("discriminator.norm.eps=3", "did you mean discriminator.norm.epsilon"),
        ("citation=x", "there is no citation; did you mean"),
        ("name=", "name is ''; string should have at least 1 character"),
    ],
)
def test_wrong_overrides_name_the_right_ones(assignment: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        override(RECIPES["cdcgan"], assignment)


def test_overrides_are_read_by_their_type() -> None:
    recipe = RECIPES["cdcgan"]
    for assignment in (
        "generator.widths=64, 32,16",
        "training.betas=0,0.9",
        "generator.norm.epsilon=1e-3",
        "generator.stem_norm=false",
        "conditional=false",
    ):
        recipe = override(recipe, assignment)
    assert recipe.generator.widths == (64, 32, 16)
    assert recipe.training.betas == (0.0, 0.9)
    assert recipe.generator.norm.epsilon == 1e-3
    assert recipe.generator.stem_norm is False
    assert recipe.conditional is False


def test_shapes_that_do_not_fit_are_refused() -> None:
    for assignment, said in (
        ("generator.widths=64,32", "makes images of 16×16"),
        ("generator.kernel=6", "should be 4 or 5"),
        ("discriminator.kernel=3", "should be 4 or 5"),
        ("discriminator.widths=64,64,64,64,64,64", "at most 5 items"),
        ("training.batch=0", "training.batch is 0"),
        ("training.images=0", "training.images is 0"),
        ("generator.latent_size=0", "generator.latent_size is 0"),
        ("generator.widths=64,0,64", "generator.widths.1 is 0"),
        ("discriminator.widths=0,", "discriminator.widths.0 is 0"),
        ("training.betas=0.5,1", "training.betas.1 is 1; input should be less than 1"),
        ("generator.norm.momentum=7", "generator.norm.momentum is 7"),
        ("discriminator.norm.epsilon=0", "discriminator.norm.epsilon is 0"),
    ):
        with pytest.raises(UsageError, match=said):
            override(RECIPES["cdcgan"], assignment)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_a_file(name: str) -> None:
    recipe = RECIPES[name]
    again = parse(type(recipe), json.loads(json.dumps(dump(recipe))), name)
    assert again == recipe
    assert again.citation == recipe.citation


def test_a_changed_recipe_does_not_keep_the_published_name(synth: Callable[..., Ran]) -> None:
    ran = synth(
        "train", "--dataset", "house-numbers", "--dry-run", "--precision", "fp32",
        "--recipe", "shahrullo", "--set", "training.batch=64",
    )  # fmt: skip
    assert json.loads(ran.out)["recipe"]["name"] == "shahrullo, training.batch=64"


def test_recipe_from_a_file(tmp_path: Path, synth: Callable[..., Ran]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "shahrullo"\n[training]\nbatch = 32\n[generator]\nwidths = [32, 16, 8]\n'
    )
    recipe = read_recipe(path)
    assert recipe.name == "mine"
    assert recipe.training.batch == 32
    assert recipe.generator.widths == (32, 16, 8)
    assert recipe.generator.stem == "linear"
    path.write_text("[training]\nbatchh = 32\n")
    ran = synth("recipes", path)
    assert ran.code == 2
    assert "did you mean training.batch" in ran.err
    path.write_text("not TOML")
    assert "is not TOML" in synth("recipes", path).err
    assert "cannot be read" in synth("recipes", tmp_path / "none.toml").err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training = { batch = 1979-05-27 }", "training.batch is '1979-05-27'; input should be"),
        ("conditional = 1979-05-27T07:32:00", "conditional is '1979-05-27 07:32:00'; input"),
        (f"generator = {{ widths = [{10**18}, 8, 8] }}", "generator.widths.0 is 1000000000000000"),
        (f"training = {{ batch = {10**30} }}", "training.batch is 1000000000000000000000000"),
    ],
)
def test_a_value_that_no_network_can_have_is_named(
    synth: Callable[..., Ran], tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    ran = synth("recipes", path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: --recipe {path}: {message}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("training.batch = 64.7", "training.batch is 64.7; input should be a valid integer"),
        ("training.batch = inf", "training.batch is inf; input should be a valid integer"),
        ("training.batch = true", "training.batch is True; input should be a valid integer"),
        ("training.fakes = [1]", "training.fakes is [1]; input should be 'shared' or 'new'"),
        ("generator.widths = [256.9, 128, 64]", "generator.widths.0 is 256.9; input should be"),
        ("generator.widths = 256", "generator.widths is 256; input should be a valid array"),
        ("generator.widths = []", "generator.widths is []; tuple should have at least 1 item"),
        ("conditional = [1]", "conditional is [1]; input should be a valid boolean"),
        ('name = ["x"]', "name is ['x']; input should be a valid string"),
        ('base = ["x"]', "base is ['x']; give the name of a recipe"),
        ('base = "KERAS-TRIAL-9"', "base KERAS-TRIAL-9: unknown; did you mean keras-trial-"),
    ],
)
def test_a_file_with_a_wrong_value_is_one_clear_line(
    tmp_path: Path, synth: Callable[..., Ran], line: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(line)
    ran = synth("recipes", path)
    assert ran.code == 2
    assert ran.err.startswith(f"error: --recipe {path}: {said}")


def test_recipes_are_shown_as_they_would_be_trained(
    tmp_path: Path, synth: Callable[..., Ran]
) -> None:
    shown = synth("recipes", "shahrullo", "--conditional", "--set", "training.batch=64")
    recipe = json.loads(shown.out)
    assert recipe["name"] == "shahrullo-conditional, training.batch=64"
    assert (recipe["conditional"], recipe["training"]["batch"]) == (True, 64)
    path = tmp_path / "mine.toml"
    path.touch()
    assert json.loads(synth("recipes", path, "--conditional").out)["name"] == "mine"
    other = json.loads(synth("recipes", path, "--unconditional").out)
    assert (other["name"], other["conditional"]) == ("mine-unconditional", False)
    assert "go with a recipe's name" in synth("recipes", "--set", "training.batch=64").err
    for name, said in (
        ("KERAS-TRIAL-1", "did you mean keras-trial-1?"),
        ("cdcgan-conditional", "cdcgan is conditional already"),
    ):
        assert said in synth("recipes", name).err
    assert "leave out --unconditional" in synth("recipes", "cdcgan", "--unconditional").err


def test_celeba_recipe_trains_on_a_folder_of_photographs(
    synth: Callable[..., Ran], tmp_path: Path
) -> None:
    """As CelebA is published: JPEG files in one folder, 178×218 pixels, no labels."""
    faces = tmp_path / "img_align_celeba"
    faces.mkdir()
    random = np.random.default_rng(0)
    for number in range(1, 131):
        coarse = random.integers(0, 256, (6, 5, 3), np.uint8)
        size = (178, 218) if number % 10 else (250, 250)
        Image.fromarray(coarse).resize(size).save(faces / f"{number:06d}.jpg")
    (faces.parent / "list_attr_celeba.txt").touch()
    ran = synth(
        *("train", "--recipe", "sssingh-celeba", "--dataset", "folder", "--data-root", faces),
        *("--images", "2k", "--tick", "1k", "--precision", FAST),
    )
    assert ran.code == 0, ran.err
    run = newest_run(tmp_path / "runs", finished=True)
    assert (run.config.dataset, run.config.training_size) == ("img-align-celeba", 130)
    first, second = (Image.open(path) for path in sorted((run.folder / "samples").iterdir()))
    assert first.size == second.size == (10 * 33 + 1, 10 * 33 + 1)
    assert np.asarray(first).tobytes() != np.asarray(second).tobytes()
    assert [line["images"] for line in run.read_log()] == [1024, 2048]
    assert synth("generate", "--per-class", "7").code == 0
    images = np.load(next((tmp_path / "datasets").glob("*/images.npz")))["images"]
    assert images.shape == (7, 32, 32, 3)


@given(st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 6)), min_size=1, max_size=6))
def test_heldout_losses_are_drawn_between_their_ticks(ticks: list[tuple[int, int]]) -> None:
    log: list[dict[str, Any]] = []
    shown = 0
    for length, count in ticks:
        shown += length * 1000
        log.append({"images": shown, "heldout_d_losses": [float(shown)] * count})
    at, losses = _heldout_losses(log)
    assert len(at) == len(losses) == sum(count for _, count in ticks)
    assert all(a < b for a, b in pairwise(at))
    for where, tick in zip(at, losses, strict=True):
        before = max([line["images"] for line in log if line["images"] < tick], default=0)
        assert before / 1000 < where <= tick / 1000
