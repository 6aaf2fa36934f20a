"""Studies: variants scored on a part of the training split, with no way to the test split."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.classifiers import FixedClassifier
from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from eval.study import training_seconds
from eval.study_file import Study, Variant, read_study, recipes_of
from eval.study_page import Result, draw, to_text
from eval.training import teacher_maker
from synth.base.errors import UsageError
from synth.checkpoints import load_tensors
from synth.data import ImageSet, load_test_images, load_training_images
from synth.generation import Sampling
from synth.published import RECIPES
from synth.runs import all_runs
from tests.conftest import Ran
from tests.test_cli import one_line

Synth = Callable[..., Ran]
STUDY = """
dataset = "svhn"
recipe = "tiny"
images = 64
seeds = 2
per_class = 8
protocol = "tiny-v1"
classifier_seeds = 2
precision = "fp32"

[variants.balanced]
set = ["training.balanced=true"]

[variants.moved]
generate = { augment = "geometry-v1" }
"""


@pytest.fixture
def study(tmp_path: Path, mats: Path, tiny_names: None) -> Path:
    """The file of a small study, beside data without a test split."""
    (mats / "test_32x32.mat").unlink()
    path = tmp_path / "means.toml"
    path.write_text(STUDY)
    return path


BASE = Result("base", 0.8, 0.01, None, None, None, None, 400.0, 2.0, ("a",))
BETTER = Result("better", 0.85, 0.02, 0.05, 0.01, 0.09, "recipes", 300.0, 3.0, ("b",))
WORSE = Result("worse", 0.7, 0.03, -0.1, -0.15, -0.05, "recipes", 200.0, 4.0, ("c",))


def test_a_study_in_the_terminal_by_hand() -> None:
    text = to_text([BASE, WORSE, BETTER], {"real": 0.82})
    *head, better, real, base, worse = (line.split() for line in text.splitlines())
    titles = {"variant", "accuracy", "%", "difference", "95", "interval"}
    assert {word for line in head for word in line} == titles
    assert [better, real, base, worse] == [
        ["better", "85.0", "+5.0", "+1.0", "to", "+9.0"],
        ["real", "images", "82.0", "–", "–"],
        ["base", "80.0", "–", "–"],
        ["worse", "70.0", "-10.0", "-15.0", "to", "-5.0"],
    ]


def test_the_chart_of_a_study_shows_differences_with_their_intervals() -> None:
    (axes,) = draw([BASE, BETTER, WORSE]).axes
    zero, *lines = axes.get_lines()
    assert list(zero.get_xdata()) == [0, 0]
    shown = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
    assert shown == [
        ([pytest.approx(-15), pytest.approx(-5)], [0, 0]),
        ([pytest.approx(-10)], [0]),
        ([pytest.approx(1), pytest.approx(9)], [1, 1]),
        ([pytest.approx(5)], [1]),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worse", "better"]
    assert axes.get_xlabel() == "difference from the base, in points"


def test_the_time_of_a_run_is_that_of_its_ticks() -> None:
    log = [
        {"images": 100, "images_per_second": 50},
        {"images": 400, "images_per_second": 100.0},
    ]
    assert training_seconds(log) == 5.0
    for unknown in (None, 0, -1.0, "fast"):
        assert math.isnan(training_seconds([*log, {"images": 500, "images_per_second": unknown}]))


def test_changes_of_a_variant_are_options_of_the_command_line() -> None:
    study = Study(
        dataset="svhn",
        recipe="cdcgan",
        images=64,
        variants={
            "another": Variant(recipe="dcgan", set=("g.label_width=5", "training.balanced=true")),
            "moved": Variant(generate=Sampling(augment="geometry-v1")),
            "plain": Variant(generate=Sampling()),
            "more": Variant(images=96, per_class=9),
        },
    )
    assert study.changes("base") == []
    assert study.changes("another") == [
        "--recipe dcgan",
        "g.label_width=5",
        "training.balanced=true",
    ]
    assert study.changes("moved") == ["--augment geometry-v1"]
    assert study.changes("plain") == ["no options of generate"]
    assert study.changes("more") == ["--images 96", "--per-class 9"]
    assert (study.length("more"), study.count("more")) == (96, 9)
    assert (study.length("base"), study.count("base")) == (64, 3000)


def test_a_study_has_conditional_recipes_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.toml"
    head = 'dataset = "svhn"\nimages = 64\nrecipe = '
    for recipe, variant, named in (("dcgan", "cdcgan", "base"), ("cdcgan", "dcgan", "other")):
        path.write_text(f'{head}"{recipe}"\n[variants.other]\nrecipe = "{variant}"\n')
        with pytest.raises(UsageError, match=f"{named} is unconditional, and a study scores"):
            read_study(path)
    path.write_text(f'{head}"cdcgan"\n[variants.other]\nrecipe = "cdcgan-v2"\n')
    assert read_study(path).recipe == "cdcgan"


def test_what_a_study_sets_holds_for_all_variants_without_a_recipe_of_their_own() -> None:
    study = Study(
        dataset="svhn",
        recipe="cdcgan",
        set=("training.batch=32", "generator.widths=[64, 32, 16]"),
        images=64,
        variants={
            "batch": Variant(set=("training.batch=16",)),
            "other": Variant(recipe="cdcgan-v2", set=("training.class_weight=1",)),
        },
    )
    found = {name: (recipe.batch, recipe.name) for name, recipe in recipes_of(study)}
    head = "cdcgan, training.batch=32, generator.widths=[64, 32, 16]"
    assert found == {
        "base": (32, head),
        "batch": (16, f"{head}, training.batch=16"),
        "other": (64, "cdcgan-v2, training.class_weight=1"),
    }


def test_a_study_needs_no_test_split_and_does_nothing_twice(
    synth: Synth, study: Path, mats: Path
) -> None:
    ran = synth("study", study, "--data-root", mats, "--json")
    assert ran.code == 0, ran.err
    results = {result["variant"]: result for result in json.loads(ran.out)}
    assert list(results) == ["base", "balanced", "moved"]
    assert results["base"]["difference"] is None
    for name in ("balanced", "moved"):
        found = results[name]
        assert found["low"] <= found["difference"] <= found["high"]
        assert found["covers"] == "recipes" and len(found["records"]) == 2
        expected = found["accuracy"] - results["base"]["accuracy"]
        assert found["difference"] == pytest.approx(expected)
    # base and moved share their runs
    assert len(all_runs(Path("runs"))) == 4
    records = read_records(Path("results/studies/means"))
    assert {record.real.name for record in records} == {"small-svhn-validation"}
    made = {record.entry.name for record in records if record.entry.kind == "synthetic"}
    assert made == {"tiny", "tiny + geometry-v1", "tiny, training.balanced=true"}
    page = Path("results/studies/means.md").read_text()
    assert "The test split took no part" in page and "| moved " in page
    assert Path("results/studies/means.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("records/*.json")}
    printed = synth("study", study, "--data-root", mats)
    assert printed.code == 0
    assert max(map(len, printed.out.splitlines())) <= 80
    for name in ("variant", "base", "balanced", "moved", "real images"):
        assert re.search(rf"^{name}  ", printed.out, re.MULTILINE), printed.out
    after = {path: path.stat().st_mtime_ns for path in Path("results").rglob("records/*.json")}
    assert after == before and len(all_runs(Path("runs"))) == 4
    # The records are enough: another machine that has them goes on with the study.
    shutil.rmtree("runs")
    shutil.rmtree("datasets")
    another = synth("study", study, "--data-root", mats, "--json")
    assert another.code == 0 and another.out == ran.out
    assert not Path("runs").exists()


def test_a_record_of_another_checkpoint_is_no_record_of_the_run(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    """A benchmark takes a record as done only if it is of the checkpoint that it would take."""
    train = ("--images", "6000", "--tick", "1k", "--precision", "fp32", "--data-root", mats)
    score = ("--protocol", "tiny-v1", "--precision", "fp32", "--metrics", "cas")
    assert synth("train", "--recipe", "tiny", *train).code == 0
    early = min(path.stem for path in Path("runs").glob("0*/checkpoints/*"))
    assert synth("generate", "--per-class", "5", "--checkpoint", early).code == 0
    assert synth("evaluate", *score, "--no-baselines", "--data-root", mats).code == 0
    words = ("--recipes", "tiny", "--images", "6000", "--per-class", "5", *score)
    for expected in (2, 2):  # the first call adds the record of the last checkpoint
        assert synth("benchmark", *words, "--data-root", mats).code == 0
        made = [r for r in read_records(Path("results")) if r.entry.kind == "synthetic"]
        assert len(made) == expected
    assert len({record.entry.checkpoint for record in made}) == 2


def test_a_changed_study_reports_what_it_says_now(synth: Synth, study: Path, mats: Path) -> None:
    """Records of its former lengths and protocols stay beside the new ones."""
    shown: list[dict[str, list[str]]] = []
    shorter = STUDY.replace("seeds = 2\nper", "seeds = 1\nper")
    longer = shorter.replace("images = 64", "images = 128")
    other = longer.replace("tiny-v1", "tiny-v2")
    PROTOCOLS.entries["tiny-v2"] = replace(PROTOCOLS["tiny-v1"], name="tiny-v2", steps=4)
    try:
        for text in (shorter, longer, other):
            study.write_text(text)
            ran = synth("study", study, "--data-root", mats, "--json")
            assert ran.code == 0, ran.err
            shown.append({result["variant"]: result["records"] for result in json.loads(ran.out)})
    finally:
        del PROTOCOLS.entries["tiny-v2"]
    by_id = {record.id: record for record in read_records(Path("results/studies/means"))}
    for found, images, protocol in zip(
        shown, (64, 128, 128), ("tiny-v1", "tiny-v1", "tiny-v2"), strict=True
    ):
        for (name,) in found.values():
            assert by_id[name].entry.images_shown == images
            assert by_id[name].protocol["name"] == protocol


def test_an_augmented_set_is_made_again_from_its_record(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    train = ("--images", "64", "--precision", "fp32", "--data-root", mats)
    assert synth("train", "--recipe", "tiny", *train).code == 0
    plain, none, ran = (
        synth("generate", "--per-class", "8", *words, "--json")
        for words in ((), ("--augment", "none"), ("--augment", "digits-v1"))
    )
    assert ran.code == 0, ran.err
    made = [json.loads(each.out) for each in (plain, none, ran)]
    assert [each["augmentation"] for each in made] == [None, None, "digits-v1"]
    assert made[0]["sha256"] == made[1]["sha256"] != made[2]["sha256"]
    score = ("--protocol", "tiny-v1", "--precision", "fp32", "--no-baselines")
    assert synth("evaluate", *score, "--data-root", mats).code == 0
    (path,) = Path("results/records").glob("*.json")
    assert json.loads(path.read_text())["entry"]["name"] == "tiny + digits-v1"
    ran = synth("verify", path, "--from", "generate", "--data-root", mats)
    assert ran.code == 0, ran.err
    value = json.loads(path.read_text())
    value["entry"]["augmentation"] = None
    path.write_text(json.dumps(value))
    one_line(synth("verify", path, "--data-root", mats), 1, "same description")


def test_the_last_checkpoints_make_a_set_together(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    train = ("--images", "6000", "--tick", "1k", "--precision", "fp32", "--data-root", mats)
    assert synth("train", "--recipe", "tiny", *train).code == 0
    kept = sorted(path.stem for path in Path("runs").glob("0*/checkpoints/*"))
    assert kept == ["0003k", "0004k", "0005k", "0006k"] or len(kept) == 4
    one_line(synth("generate", "--mix", "5"), 2, "mix is 5")
    one_line(synth("generate", "--mix", "2", "--checkpoint", kept[0]), 2, "--mix 2")
    ran = synth("generate", "--per-class", "300", "--mix", "3", "--json")
    assert ran.code == 0, ran.err
    assert len(set(json.loads(ran.out)["mixture"])) == 3
    score = ("--protocol", "tiny-v1", "--precision", "fp32", "--metrics", "cas")
    assert synth("evaluate", *score, "--no-baselines", "--data-root", mats).code == 0
    (path,) = Path("results/records").glob("*.json")
    assert json.loads(path.read_text())["entry"]["name"] == "tiny, last 3 checkpoints"
    for stage in ("generate", "train"):
        ran = synth("verify", path, "--from", stage, "--data-root", mats)
        assert ran.code == 0 and "holds, bit for bit" in ran.out, ran.err


def test_a_recipe_says_how_its_images_are_changed(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    train = ("--images", "64", "--precision", "fp32", "--data-root", mats)
    assert synth("train", "--recipe", "tiny", "--set", "augment=colour-v1", *train).code == 0
    asked = [(), ("--augment", "none"), ("--augment", "geometry-v1")]
    made = [json.loads(synth("generate", "--per-class", "4", *a, "--json").out) for a in asked]
    assert [each["augmentation"] for each in made] == ["colour-v1", None, "geometry-v1"]
    assert made[0]["config"]["recipe"]["augment"] == "colour-v1"
    one_line(synth("train", "--recipe", "tiny", "--set", "augment=blur", *train), 2, "blur")
    stream = ("--protocol", "tiny-stream-v1", "--precision", "fp32", "--no-baselines")
    assert (
        synth(
            "evaluate",
            "datasets/00000-small-svhn-tiny-augment-colour-v1-cond-seed0",
            *stream,
            "--data-root",
            mats,
        ).code
        == 0
    )
    (path,) = Path("results/records").glob("*.json")
    assert json.loads(path.read_text())["entry"]["augmentation"] is None
    ran = synth("verify", path, "--from", "generate", "--data-root", mats)
    assert ran.code == 0, ran.err


def test_the_validation_dataset_is_cut_from_the_training_split(mats: Path) -> None:
    whole = load_training_images("svhn", mats)
    (mats / "test_32x32.mat").unlink()
    first = load_training_images("svhn:validation", mats)
    last = load_test_images("svhn:validation", mats)
    assert (len(first), len(last)) == (128, 32)
    assert torch.equal(torch.cat([first.images, last.images]), whole.images)
    assert {first.name, last.name} == {"small-svhn-validation"}
    assert isinstance(last, ImageSet) and last.split == "test"


def test_options_and_length_for_all_and_other_recipes(
    synth: Synth, study: Path, mats: Path
) -> None:
    RECIPES.entries["tiny-other"] = replace(RECIPES["tiny"], name="tiny-other")
    more = (
        '[variants.other]\nrecipe = "tiny-other"\n[variants.plain]\ngenerate = {}\n'
        "[variants.more]\nimages = 96\nper_class = 9\n"
    )
    start = STUDY.replace("seeds = 2\nper", 'generate = { augment = "colour-v1" }\nper', 1)
    study.write_text(start + more)
    try:
        ran = synth("study", study, "--data-root", mats, "--wide")
    finally:
        del RECIPES.entries["tiny-other"]
    assert ran.code == 0, ran.err
    entries = [record.entry for record in read_records(Path("results/studies/means"))]
    made = {entry.name for entry in entries}
    assert {"tiny-other + colour-v1", "tiny + colour-v1", "tiny + geometry-v1", "tiny"} <= made
    sizes = {(e.images_shown, e.count) for e in entries if e.name == "tiny + colour-v1"}
    assert sizes == {(64, 80), (96, 90)}
    assert "training.balanced=true + colour-v1" in " ".join(made)
    page = Path("results/studies/means.md").read_text()
    assert ran.out == f"{page}\n"
    cells = {cell.strip() for line in page.splitlines() for cell in line.split("|")}
    assert {"`--recipe tiny-other`", "`no options of generate`"} <= cells
    assert "`--images 96`, `--per-class 9`" in cells
    assert "with `--augment colour-v1` of `synth generate`" in " ".join(page.split())
    assert "*real + augmentation*" in page


def test_a_tenth_of_the_training_split_and_the_whole_test_split(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    whole, tenth = (load_training_images(key, mats) for key in ("svhn", "svhn:tenth"))
    assert tenth.require_labels().bincount().tolist() == [2] * 10  # of 16 each
    assert torch.equal(tenth.images, whole.images[:20])
    test = load_test_images("svhn:tenth", mats)
    assert torch.equal(test.images, load_test_images("svhn", mats).images)
    assert tenth.name == test.name == "small-svhn-tenth"
    one_line(synth("train", "--dataset", "svhn:half", "--data-root", mats), 2, "svhn:half", "tenth")
    given = ("--dataset", "svhn:tenth", "--data-root", mats, "--precision", "fp32")
    ran = synth(
        "benchmark",
        "--recipes",
        "tiny",
        "--images",
        "64",
        "--per-class",
        "4",
        *given,
        "--protocol",
        "tiny-v1",
        "--metrics",
        "cas",
    )
    assert ran.code == 0, ran.err
    assert "small-svhn-tenth, tiny-v1 (20 real training images, 80 test images)" in ran.out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('dataset = "svhn"', ["means.toml", "dataset is missing"]),
        ('recipe = "tiny"', ["means.toml", "recipe is missing"]),
        ("seeds = 2", ["means.toml", "seeds"]),
        ('set = ["training.balanced=true"]', ["balances", "balanced"]),
        ('augment = "geometry-v1"', ["geometry-v9", "geometry-v1"]),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(
    synth: Synth, study: Path, mats: Path, change: str, words: list[str]
) -> None:
    wrong = {
        "seeds = 2": "seeds = 0",
        'set = ["training.balanced=true"]': 'set = ["training.balances=true"]',
        'augment = "geometry-v1"': 'augment = "geometry-v9"',
    }
    study.write_text(STUDY.replace(change, wrong.get(change, ""), 1))
    one_line(synth("study", study, "--data-root", mats), 2, *words)
    assert not Path("runs").exists()


def test_no_policy_or_an_unknown_one(synth: Synth, mats: Path, tiny_names: None) -> None:
    train = ("--images", "64", "--precision", "fp32", "--data-root", mats)
    assert synth("train", "--recipe", "tiny", *train).code == 0
    one_line(synth("generate", "--augment", "geometry"), 2, "--augment geometry", "geometry-v1")
    assert not Path("datasets").exists()


def test_a_teacher_learns_from_what_the_generator_learns_from_and_guides_it(
    synth: Synth, mats: Path, tiny_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str]] = []

    def untrained(images: ImageSet, protocol: Protocol, *_: object) -> FixedClassifier:
        asked.append((len(images), protocol.name))
        torch.manual_seed(0)
        return FixedClassifier().eval().requires_grad_(False)

    monkeypatch.setattr("eval.training.real_classifier", untrained)
    train = ("train", "--recipe", "tiny", "--images", "640", "--precision", "fp32")
    guided = ("--set", "training.teacher_weight=0.3", "--set", "training.teacher_start=320")
    for changes in ((), guided, (*guided, "--select", "cas")):
        ran = synth(*train, *changes, "--data-root", mats)
        assert ran.code == 0, ran.err
    assert asked == [(160, "augmented-v1"), (144, "augmented-v1")]
    plain, with_teacher, _ = (load_tensors(run.weights)[0] for run in all_runs(Path("runs")))
    assert not torch.equal(plain["stem.weight"], with_teacher["stem.weight"])
    log = all_runs(Path("runs"))[1].read_log()
    assert log[-1]["images"] == 640


def test_a_teacher_sees_images_in_its_own_range(
    drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator's are in [-1, 1], a classifier's in [0, 1]."""
    monkeypatch.setattr("eval.training.real_classifier", lambda *_: lambda images: images)
    run: Any = SimpleNamespace(config=SimpleNamespace(teacher=None, precision="fp32"))
    logits = teacher_maker(run, torch.device("cpu"))(drawn)
    assert logits(torch.tensor([-1.0, 0.0, 0.5, 1.0])).tolist() == [0, 0.5, 0.75, 1]


def test_a_recipe_with_many_overrides_fits_into_file_names(
    synth: Synth, mats: Path, tiny_names: None
) -> None:
    names = ("balanced", "mismatch", "feature_matching", "augment_real", "augment_both")
    values = ("true", "true", "1.5", "geometry-colour-v1", "geometry-v1")
    pairs = [(f"training.{name}", value) for name, value in zip(names, values, strict=True)]
    pairs += [(f"training.learning_rate_{network}", "0.00012345") for network in "dg"]
    pairs += [("discriminator.label", "dual-projection"), ("generator.label_size", "7")]
    changes = [word for key, value in pairs for word in ("--set", f"{key}={value}")]
    train = ("train", "--recipe", "tiny", "--images", "64", "--precision", "fp32", *changes)
    assert sum(map(len, changes)) > 255
    for command in (
        (*train, "--data-root", mats),
        ("generate", "--per-class", "4"),
        ("evaluate", "--protocol", "tiny-v1", "--no-baselines", "--data-root", mats),
    ):
        ran = synth(*command)
        assert ran.code == 0, ran.err
