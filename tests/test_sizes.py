"""Images of 28, 32 and 64 pixels, grey or in colour, from the data to the leaderboard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from eval.classifiers import CLASSIFIERS
from eval.protocols import PROTOCOLS, at_side, protocol_for
from eval.records import read_records
from synth.base.errors import UsageError
from synth.base.images import SIDES
from synth.data import load_test_images, load_training_images
from synth.networks import build
from synth.published import RECIPES, find_recipe, read_recipe, recipe_to_toml
from synth.recipes import Recipe
from synth.runs import newest_run
from tests.conftest import GANS, SCORE, Ran

Synth = Callable[..., Ran]
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")


def draw_digits(folder: Path, side: int, colour: bool) -> Path:
    """Three classes of drawn digits, 20 of each to train on and 6 to test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name in "012":
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                back, ink = (tuple(random.integers(low, low + 90, 3).tolist()) for low in (0, 160))
                image = Image.new("RGB", (side, side), back)
                font = ImageFont.truetype(str(FONT), int(side * random.uniform(0.6, 0.9)))
                ImageDraw.Draw(image).text((side * 0.2, 0), name, fill=ink, font=font)
                image = image if colour else image.convert("L")
                image.save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(("side", "colour"), [(28, False), (64, True)])
def test_three_commands_lead_to_a_leaderboard(
    synth: Synth,
    tiny_names: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    side: int,
    colour: bool,
) -> None:
    tiny = at_side(PROTOCOLS["tiny-v1"], side)
    monkeypatch.setitem(PROTOCOLS.entries, tiny.name, tiny)
    data = ("--dataset", "folder", "--data-root", draw_digits(tmp_path / "drawn", side, colour))
    ran = synth(
        *("train", "--recipe", "tiny", *data, "--images", "64", "--precision", "fp32"),
    )
    assert ran.code == 0, ran.err
    recipe = newest_run(Path("runs"), finished=True).config.recipe
    assert (recipe.name, recipe.side) == (f"tiny-{side}" + "-grey" * (not colour), side)
    ran = synth("generate", "--per-class", 10, "--format", "folder")
    assert ran.code == 0, ran.err
    images = load_training_images("folder", Path(ran.out.strip()))
    assert images.images.shape == (30, 3, side, side)
    assert images.grey != colour
    ran = synth("evaluate", "--data-root", data[-1], *SCORE)
    assert ran.code == 0, ran.err
    assert f"so that tiny-{side}-v1 scores" in ran.err
    kinds = {found.entry.kind for found in read_records(Path("results"))}
    assert {"synthetic", "real", "pca-gaussian", "copier"} <= kinds
    ran = synth("leaderboard")
    assert ran.code == 0, ran.err
    assert f"drawn, tiny-{side}-v1 (60 real training images, 18 test images)" in ran.out
    assert recipe.name in ran.out


def test_the_first_image_says_the_size_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_digits(tmp_path / "drawn", 28, False)
    assert load_test_images("folder", folder).images.shape == (18, 3, 28, 28)
    assert "resized" not in capsys.readouterr().err
    Image.new("L", (64, 64)).save(folder / "train" / "0" / "99.png")
    assert load_training_images("folder", folder).images.shape == (61, 3, 28, 28)
    assert "1 of 61 images are resized to 28×28" in capsys.readouterr().err


# Recipes


@pytest.mark.parametrize("name", GANS)
@pytest.mark.parametrize("side", SIDES)
def test_every_recipe_has_every_size(name: str, side: int) -> None:
    recipe = find_recipe(name, None).fitted(side, grey=True)
    assert isinstance(recipe, Recipe)
    assert recipe.name == name + (f"-{side}" if side != 32 else "") + "-grey"
    assert recipe.fitted(side, True) == recipe
    with torch.device("meta"):
        generator, discriminator = build(recipe, 10, 0)
        labels = torch.zeros(2, dtype=torch.int64)
        images = generator.eval()(torch.zeros(2, recipe.generator.latent_size), labels)
        assert images.shape == (2, 3, side, side)
        assert discriminator(images, labels).shape == (2,)


def test_only_the_size_of_the_images_changes_a_recipe() -> None:
    for recipe in RECIPES.values():
        assert recipe.fitted(32, grey=False) is recipe or recipe.fitted(32, False) == recipe
    wide = RECIPES["cdcgan"].fitted(64, grey=False)
    assert isinstance(wide, Recipe)
    assert wide.generator.widths == (512, 256, 128, 64)  # DCGAN's own, for 64×64
    assert wide.discriminator.widths == (64, 128, 256, 512)
    with pytest.raises(UsageError, match="--recipe flow: makes images of 32×32"):
        RECIPES["flow"].fitted(28, grey=False)


@pytest.mark.parametrize("name", [*RECIPES, "shahrullo-conditional"])
def test_a_recipe_in_toml_is_the_recipe(name: str, tmp_path: Path, synth: Synth) -> None:
    recipe = find_recipe(name, None)
    path = tmp_path / "mine.toml"
    path.write_text(recipe_to_toml(recipe))
    again = read_recipe(path)
    assert again == recipe
    assert (again.name, again.citation) == (recipe.name, recipe.citation)
    ran = synth("recipes", name, "--toml")
    assert (ran.code, ran.out) == (0, path.read_text())


# Protocols


def test_a_protocol_of_another_size_has_another_name() -> None:
    for name in ("fixed-v1", "fixed-resnet-v1", "stream-v1", "quick-v1", "augmented-v1"):
        for side in SIDES:
            protocol = protocol_for(name, side)
            assert protocol.side == side
            assert replace(protocol, name=name, side=32, teacher=None) == replace(
                PROTOCOLS[name], teacher=None
            )
            assert protocol_for(protocol.name, side) is protocol
    assert protocol_for("fixed-v1", 64).name == "fixed-64-v1"
    assert protocol_for("fixed-v1", 64).teacher == "augmented-64-v1"
    assert len({protocol.hash for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    with pytest.raises(UsageError, match="fixed-64-v1: is for images of 64×64, and the real"):
        protocol_for("fixed-64-v1", 28)


@pytest.mark.parametrize("name", list(CLASSIFIERS))
@pytest.mark.parametrize("side", SIDES)
def test_classifiers_read_every_size(name: str, side: int) -> None:
    with torch.device("meta"):
        classifier = CLASSIFIERS[name](7, side).eval()
        assert classifier(torch.zeros(2, 3, side, side)).shape == (2, 7)
