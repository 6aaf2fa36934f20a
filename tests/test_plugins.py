"""A stranger's package beside synth, as docs/own-generator.md says it; and damaged ones."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval.metrics import METRICS, in_order
from synth.base.errors import SynthError
from synth.published import RECIPES
from tests.conftest import ROOT, Ran

Synth = Callable[..., Ran]
PAGE = ROOT / "docs" / "own-generator.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, for packages with metadata as an installer writes it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    in_order.cache_clear()
    yield folder
    in_order.cache_clear()
    sys.modules.pop("my_generator", None)
    importlib.invalidate_caches()


@pytest.fixture
def stranger(installed: Path, tmp_path: Path) -> None:
    """The package of the page, installed by pip."""
    source = tmp_path / "my-generator"
    source.mkdir()
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        with (source / name).open("a") as file:
            file.write(text + "\n\n")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", installed]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words), source], check=True)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("tiny_names", "stranger")
def test_a_generator_of_ones_own_gets_a_row_over_three_seeds(synth: Synth) -> None:
    """By the commands of the page, with a short protocol and without baselines."""
    assert '"spread": 1.0' in synth("recipes", "gaussian-small").out
    assert "bars that lie or stand" in synth("datasets").out
    scored = ("--metrics", "contrast", "--protocol", "tiny-v1", "--no-baselines")
    for seed in range(3):
        trained = ("--recipe", "gaussian-small", "--dataset", "bars", "--images", "400")
        assert synth("train", *trained, "--seed", seed).code == 0
        assert synth("generate", "--per-class", "40").code == 0
        ran = synth("evaluate", *scored, "--precision", "fp32")
        assert ran.code == 0, ran.err
    (row,) = json.loads(synth("leaderboard", "--json").out)
    assert (row["entry"], row["real"]) == ("gaussian-small", "bars")
    assert row["seeds"] == "3 × 2"
    assert row["rank"] == 1
    assert row["interval_low"] <= row["accuracy"] <= row["interval_high"]
    assert row["interval_covers"].startswith("generator runs")
    assert 0 < row["contrast"] < 1
    record = next(Path("results/records").glob("*gaussian-small*"))
    assert "holds, bit for bit" in synth("verify", record, "--from", "train").out


def install(folder: Path, package: str, entry_points: str) -> None:
    """What an installer leaves of a package that is nothing but metadata."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:RECIPE", "cannot be loaded (ModuleNotFoundError: No module named"),
        ("json:RECIPE", "cannot be loaded (AttributeError: module 'json' has no attribute"),
        ("not a place", "cannot be loaded"),
        ("damaged:RECIPE", "cannot be loaded (SyntaxError: "),
        ("failing:RECIPE", "cannot be loaded (ZeroDivisionError: "),
        ("json:dumps", "is a function, and not a RecipeBase"),
    ],
)
def test_a_damaged_plugin_is_named_in_one_line(
    value: str, words: str, installed: Path, synth: Synth
) -> None:
    (installed / "damaged.py").write_text("def :")
    (installed / "failing.py").write_text("1 / 0")
    install(installed, "strange", f"[synth.recipes]\nodd = {value}\n")
    ran = synth("recipes", "odd")
    assert ran.code == 1
    (line,) = ran.err.strip().splitlines()
    named = f"error: --recipe odd: the plug-in {value} of the package strange "
    assert line.startswith(named + words), line
    assert line.endswith("mend or uninstall it")
    assert "cdcgan" in RECIPES  # the others go on to work


def test_a_damaged_metric_is_named(installed: Path, synth: Synth) -> None:
    install(installed, "strange", "[eval.metrics]\nodd = json:dumps\n")
    ran = synth("evaluate", "--metrics", "odd")
    assert ran.code == 1 and "Traceback" not in ran.err
    named = "the plug-in json:dumps of the package strange"
    assert f"{named} is a function, and not a Metric" in ran.err


def test_two_packages_with_one_name_are_told_apart(installed: Path) -> None:
    for package in ("one", "other"):
        install(installed, package, f"[eval.metrics]\nsame = {package}:METRIC\n")
    with pytest.raises(SynthError, match=r"package one and .* package other have"):
        METRICS.find("same")


def test_an_error_in_a_plugin_is_no_fault_of_synth(installed: Path, synth: Synth) -> None:
    (installed / "faulty.py").write_text(
        "from synth import Dataset\nDATASET = Dataset(lambda split, root: 1 / 0, 'none')\n"
    )
    install(installed, "strange", "[synth.datasets]\nfaulty = faulty:DATASET\n")
    ran = synth("train", "--dataset", "faulty")
    assert ran.code == 1
    assert "ZeroDivisionError: division by zero (a fault in the plug-in strange;" in ran.err
    sys.modules.pop("faulty")
