"""Small worlds to test in: real SVHN where it is at hand, tiny recipes, tiny data, a quick CLI."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import settings

import cli
from eval.chain import seal
from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from synth.base.files import read_json, write_json
from synth.data import DIGITS, ImageSet
from synth.data.house_numbers import render
from synth.gan import GANTrainer
from synth.ops.probe import has_bf16
from synth.published import RECIPES
from synth.recipes import DiscriminatorRecipe, GeneratorRecipe, Recipe
from synth.runs import RunConfig

# Examples take as long as the machine lets them: a slow one is no failure. Each run draws new
# ones. With CI in the environment hypothesis takes its own profile: the same examples every time.
if not os.environ.get("CI"):
    settings.register_profile("unhurried", deadline=None)
    settings.load_profile("unhurried")

ROOT = Path(__file__).parent.parent
# Where bf16 is emulated a training step takes 30 times as long. There, tests in which precision
# plays no part take fp32, and those that compare trainings in both are skipped.
BF16 = has_bf16(torch.device("cpu"))
FAST = "bf16" if BF16 else "fp32"
needs_bf16 = pytest.mark.skipif(not BF16, reason="this processor emulates bf16, too slowly")
SVHN_PART = Path(os.environ.get("SYNTH_SVHN_PART", ROOT.parent / "shared" / "svhn-part"))


@pytest.fixture(scope="session")
def svhn_part() -> Path:
    """Real SVHN, a part of it; tests that need it are skipped where it is absent."""
    if not (SVHN_PART / "train_32x32.mat").exists():
        pytest.skip(f"real SVHN is not at {SVHN_PART} (set SYNTH_SVHN_PART)")
    return SVHN_PART


@pytest.fixture(scope="session")
def drawn() -> ImageSet:
    """500 drawn house numbers."""
    images, labels = render("train", 500)
    return ImageSet(images, labels, DIGITS, "drawn", "train")


GANS = [name for name, recipe in RECIPES.items() if isinstance(recipe, Recipe)]


def tiny(name: str, conditional: bool) -> Recipe:
    """A recipe that trains in milliseconds."""
    base = RECIPES["cdcgan"]
    assert isinstance(base, Recipe)
    return replace(
        base,
        name=name,
        conditional=conditional,
        generator=GeneratorRecipe(latent_size=8, widths=(16, 8, 8)),
        discriminator=DiscriminatorRecipe(widths=(8, 8, 16)),
        training=replace(base.training, batch=16, ema_half_life=200),
    )


def config_of(recipe: Recipe, images: ImageSet, **changes: object) -> RunConfig:
    """The configuration of a run of 160 images with one tick, without the probe for precision."""
    config = RunConfig(
        recipe=recipe,
        dataset=images.name,
        dataset_key="svhn",
        fingerprint=images.fingerprint,
        training_size=len(images),
        classes=images.classes,
        total_images=160,
        images_per_tick=160,
        seed=0,
        precision="fp32",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def make_trainer(
    recipe: Recipe, images: ImageSet, device: str = "cpu", **changes: object
) -> GANTrainer:
    return GANTrainer(config_of(recipe, images, **changes), images, None, torch.device(device))


@pytest.fixture
def tiny_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts tiny recipes and protocols into the tables, for tests through the command line."""
    monkeypatch.setitem(RECIPES.entries, "tiny", tiny("tiny", True))
    monkeypatch.setitem(RECIPES.entries, "tiny-uncond", tiny("tiny-uncond", False))
    for name, data in (("tiny-v1", "disk"), ("tiny-stream-v1", "stream")):
        protocol = Protocol(name, data, steps=3, batch=32, seeds=2)  # type: ignore[arg-type]
        monkeypatch.setitem(PROTOCOLS.entries, name, protocol)
    protocol = Protocol("tiny-select", "stream", steps=3, batch=32, seeds=1)
    monkeypatch.setattr("eval.selection.SELECTION", protocol)


def sure_of(labels: torch.Tensor) -> torch.Tensor:
    """What a classifier says that is sure of these digits (N,): probabilities (N, 10)."""
    return torch.nn.functional.one_hot(labels, 10).float()


def in_turns(images: torch.Tensor) -> torch.Tensor:
    """A classifier that calls the images 0, 1, … 9, 0, …: a real one of three steps sees one class
    at most."""
    return sure_of(torch.arange(len(images)) % 10)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def synth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SYNTH_")]:
        monkeypatch.delenv(name)
    for name in ("SYNTH_BENCHMARK_JOBS", "SYNTH_STUDY_JOBS"):
        monkeypatch.setenv(name, "1")  # other processes would not know what a test changes
    monkeypatch.setattr("eval.real_classifier.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("synth.ops.probe.cache_folder", lambda: tmp_path / "cache")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["synth", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Ran(int(stopped.value.code or 0), captured.out, captured.err)

    return run


def write_mat(folder: Path, split: str, images: torch.Tensor, labels: torch.Tensor) -> Path:
    """Writes images (N, 3, 32, 32) and digits (N,) in SVHN's own format."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}_32x32.mat"
    digits = np.where(labels.numpy() == 0, 10, labels.numpy()).astype(np.uint8)
    scipy.io.savemat(path, {"X": images.permute(2, 3, 1, 0).numpy(), "y": digits[:, None]})
    return path


@pytest.fixture
def mats(tmp_path: Path) -> Path:
    """A folder `small-svhn` with drawn digits in SVHN's format, 160 to train on and 80 to test."""
    folder = tmp_path / "small-svhn"
    for split, count in (("train", 160), ("test", 80)):
        images, _ = render("train" if split == "train" else "test", count)
        write_mat(folder, split, images, torch.arange(count) % 10)
    return folder


TRAIN = ("--dataset", "svhn", "--images", "64", "--precision", "fp32")
SCORE = ("--protocol", "tiny-v1", "--precision", "fp32")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def evaluated(
    synth: Callable[..., Ran], mats: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a tiny conditional run, its set, and records of it and of its references: made
    for the first test that asks, copied for the others."""
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    if not any(made.iterdir()):
        for command in (
            ("train", "--recipe", "tiny", *TRAIN),
            ("generate", "--per-class", "20"),
            ("evaluate", *SCORE),
        ):
            ran = synth(*command)
            assert ran.code == 0, ran.err
        shutil.copytree(mats.parent, made, dirs_exist_ok=True)
    shutil.copytree(made, mats.parent, dirs_exist_ok=True)
    return mats.parent


def record_of(folder: Path, kind: str = "synthetic") -> Path:
    (found,) = (r for r in read_records(folder / "results") if r.entry.kind == kind)
    return folder / "results" / "records" / f"{found.id}.json"


def tamper(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file. A record's chain is made anew, as a forger would who knows synth."""
    value = read_json(path)
    change(value)
    write_json(path, value)
    if value.get("chain"):
        reseal(path)


def reseal(path: Path) -> None:
    predictions = path.parent.parent / "predictions" / f"{path.stem}.npz"
    value = read_json(path)
    write_json(path, {**value, "chain": seal({**value, "chain": None}, predictions)})
