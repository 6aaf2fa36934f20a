"""Metrics of a set: declaration, choice, copies, calibration, Inception, plug-ins."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eval.features
import eval.metrics
import eval.real_classifier
from eval.aggregate import build_tables
from eval.baselines import BASELINES, train_copy
from eval.classifier_training import predict, train_classifier
from eval.classifiers import FixedClassifier
from eval.evaluate import save_samples
from eval.evaluator import Scoring, Workspace, make_evaluator
from eval.features import FEATURE_SPACES, features, label, load_inception
from eval.metrics import (
    CLASSIFIER,
    LARGEST,
    METRICS,
    Column,
    RealReference,
    Subject,
    all_columns,
    calibrate,
    check,
    column_values,
    describe,
    flags,
    gain_values,
    in_order,
    measure,
    measured,
    merge,
    parse_metrics,
)
from eval.metrics.fidelity import fid, halves, kid, statistics
from eval.metrics.memorisation import memorisation, near_copies, nearest_training
from eval.protocols import PROTOCOLS, Protocol
from eval.real_classifier import real_classifier, real_protocol
from eval.records import Record, read_records
from eval.scoring import disk_batches, score
from eval.statistics import difference_interval
from eval.tables import format_calibration, format_metrics, format_scores
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json, write_json
from synth.data import ImageSet, first_of_each_class, load_test_images, load_training_images
from synth.data.house_numbers import render
from tests.conftest import ROOT, Ran, record_of

Synth = Callable[..., Ran]
CPU = torch.device("cpu")
SCORE = ("--protocol", "tiny-v1", "--precision", "fp32")
BUILT_IN = (
    *("fidelity", "gan-test", "memorisation", "augmented-copies", "diversity"),
    *("augmentation", "augmentation-tenth"),
)
ALL = ("cas", *(m.name for m in in_order() if m.feature_space != "inception"))
KEYS = {"calibration", *(metric.key for metric in in_order())}
FULL = {
    "seconds": {"fidelity": 1.0},
    "gan_test": 0.9,
    "augmentation": {"all": [0.7, 0.8], "tenth": [0.5, 0.6]},
    "fidelity": {"classifier": {"fid": 1.0, "kid": 2.0, "kid_std": 0.1}},
    "memorisation": {"pixels": {"share": 0.5, "flagged": True}},
    "diversity": {"mean": 8.0, "real": 16.0, "per_class": [8.0], "real_per_class": [16.0]},
    "calibration": {"classifier": {"fid_halves": 1.0}},
}


def test_newer_metrics_replace_older_ones_and_leave_the_rest() -> None:
    newer = {"seconds": {"gan-test": 2.0}, "gan_test": 0.1, "diversity": None}
    both = merge(FULL, {**newer, "fidelity": {"inception": {"fid": 16.7}}})
    assert both["gan_test"] == 0.1
    assert both["diversity"] == FULL["diversity"]
    assert set(both["fidelity"]) == {"classifier", "inception"}
    assert both["seconds"] == {"fidelity": 1.0, "gan-test": 2.0}
    assert measured(both) == ("fidelity", "gan-test")
    assert merge(FULL, None) == merge(None, FULL) == FULL


def test_an_older_record_has_two_metrics_under_one_name() -> None:
    old = {"seconds": {"augmentation": 9.0}, "augmentation": {"all": [0.7], "tenth": [0.5]}}
    assert measured(old) == ("augmentation", "augmentation-tenth")
    assert measured({**old, "augmentation": {"all": [0.7]}}) == ("augmentation",)
    assert measured({**old, "augmentation": None}) == ("augmentation",)  # too few images
    assert measured({**old, "seconds": {}}) == ()


def test_columns_follow_from_the_declarations() -> None:
    assert column_values(FULL) == pytest.approx(
        {
            "fid": 1.0,
            "kid": 2.0,
            "kid_std": 0.1,
            "gan_test": 0.9,
            "near_copies_pixels": 0.5,
            "diversity": 8.0,
            "real_diversity": 16.0,
            "augmented": 0.75,
            "augmented_tenth": 0.55,
        }
    )
    gains = {column.key: (column.against, runs) for column, runs in gain_values([FULL, None])}
    assert gains == {
        "augmented_gain": ("real", [[0.7, 0.8]]),
        "augmented_tenth_gain": ("real-tenth", [[0.5, 0.6]]),
    }
    keys = [key for column in all_columns() for key in column.keys]
    assert len(set(keys)) == len(keys)
    for metric in in_order():
        for column in metric.columns:
            assert f"**{column.title}**" in " ".join(describe().split())
    shares = [Column("x", "x", form).show(0.1234) for form in ("%", "points", "{:.1f}")]
    assert shares == ["12.34", "+12.34", "0.1"]
    shown = {"x": 0.1, "x_low": -0.05, "x_high": 0.25}
    assert Column("x", "x", "points").show_with_interval(shown) == "+10.00 (-5.00 to +25.00)"
    assert Column("x", "x", "points").show_with_interval({"x": 0.1, "x_low": None}) == "+10.00"
    assert all_columns()[0].show(None) == all_columns()[0].show(float("nan")) == "–"


@pytest.mark.parametrize(
    "damage",
    [
        {"fidelity": 3.0},
        {"fidelity": {"classifier": {"fid": "low"}}},
        {"gan_test": [0.5]},
        {"gan_test": True},
        {"augmentation": {"all": []}},
        {"augmentation": {"tenth": []}},
        {"augmentation": 0.5},
        {"memorisation": {"pixels": {"share": 0.5}}},
        {"diversity": "great"},
        {"calibration": {"classifier": {"fid_test": None}}},
        {"seconds": None},
        {"gan_test": 1.01},
        {"gan_test": -0.01},
        {"fidelity": {"classifier": {"fid": 2 * LARGEST}}},
        {"fidelity": {"classifier": {"kid": -2 * LARGEST}}},
        {"calibration": {"classifier": {"fid_test": -2 * LARGEST}}},
    ],
)
def test_damaged_metrics_are_found_where_a_record_is_read(damage: dict[str, Any]) -> None:
    check(FULL)
    check(None)
    check({"seconds": {}, "unknown": "anything"})
    check({"seconds": {}, "gan_test": 1, "fidelity": {"classifier": {"kid": -LARGEST}}})
    check({"seconds": {}, "gan_test": 0.0, "fidelity": {"classifier": {"fid": LARGEST}}})
    with pytest.raises(ValueError, match="its metrics are damaged"):
        check({**FULL, **damage})


def test_names_are_parsed_and_the_score_is_always_there() -> None:
    assert parse_metrics("all") == ALL
    assert [name for name in ALL if name in BUILT_IN] == list(BUILT_IN)
    assert parse_metrics("diversity, gan-test") == ("cas", "gan-test", "diversity")
    not_default = ("augmented-copies", "augmentation", "augmentation-tenth")
    without = tuple(name for name in ALL if name not in not_default)
    assert parse_metrics() == parse_metrics("default") == without
    assert parse_metrics("cas,gan-test,fidelity,memorisation,diversity") == parse_metrics()
    with pytest.raises(UsageError, match=r"--metrics fidelty: unknown; did you mean fidelity\?"):
        parse_metrics("cas,fidelty")
    with pytest.raises(UsageError, match="gan-test"):
        parse_metrics("fid,,")
    assert parse_metrics("fidelity", "inception") == ("cas", "fidelity", "inception")
    with pytest.raises(UsageError, match="--feature-space inception: goes with --metrics fidelity"):
        parse_metrics("cas", "inception")


@pytest.fixture(scope="module")
def real() -> RealReference:
    images, labels = render("train", 400)
    train = ImageSet(images, labels, tuple("0123456789"), "drawn", "train")
    pixels, targets = render("test", 200)
    test = ImageSet(pixels, targets, train.classes, "drawn", "test")
    protocol = Protocol("short", "disk", steps=60, batch=64, seeds=1)
    classifier = train_classifier(protocol, disk_batches(protocol, train, CPU)(0), 10, 0, CPU)
    assert isinstance(classifier, FixedClassifier)
    extractors = {CLASSIFIER: partial(features, classifier)}
    return RealReference(train, test, extractors, partial(label, classifier))


@pytest.mark.parametrize("name", ALL[1:])
def test_a_metric_gives_its_own_values_alone(real: RealReference, name: str) -> None:
    subject = Subject(real.train, real, lambda union: [0.5, len(union) / 1000])
    made = measure(subject, ("cas", name))
    assert set(made) == {"seconds", *KEYS}
    assert {key for key in KEYS if made[key] is not None} == {METRICS[name].key}
    assert set(made["seconds"]) == {"features", name}
    assert json.loads(json.dumps(made)) == made
    check(made)


def test_metrics_of_the_training_images_themselves(real: RealReference) -> None:
    """Closed cases: nothing is between a set and itself, and nothing is new in it."""
    made = measure(Subject(real.train, real, lambda union: [float(len(union))]), ALL)
    guesses = real.label(real.features()[0])
    assert made["gan_test"] == float((guesses == real.train.require_labels()).double().mean())
    own = made["fidelity"]["classifier"]
    assert own["fid"] == pytest.approx(0, abs=1e-6)
    assert (own["precision"], own["recall"], own["coverage"]) == (1, 1, 1)
    assert flags([made]) == ["near copies (pixels, features)", "augmented copies"]
    found = made["diversity"]
    assert found["per_class"] == found["real_per_class"]
    assert found["mean"] == pytest.approx(np.mean(found["per_class"]))
    tenth = first_of_each_class(real.train, 0.1)
    assert made["augmentation"] == {"all": [800.0], "tenth": [400.0 + len(tenth)]}


def test_held_out_images_are_searched_once_for_all_sets(
    real: RealReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def counted(training: torch.Tensor, queries: torch.Tensor) -> Any:
        searched.append(len(queries))
        return nearest_training(training, queries)

    monkeypatch.setattr("eval.metrics.memorisation.nearest_training", counted)
    fresh = RealReference(real.train, real.test, real.extractors, real.label)
    for count in (50, 60):
        pixels, labels = render("train", count, seed=1)
        drawn = ImageSet(pixels, labels, real.train.classes, "drawn", "train")
        subject = Subject(drawn, fresh, lambda union: [0.5])
        found = near_copies(subject)
        compared = {
            "pixels": (real.train.images, real.test.images, pixels),
            "features": (*fresh.features(), subject.features()),
        }
        for space, images in compared.items():
            assert found[space] == memorisation(*images, nearest_training)._asdict()
    assert sorted(searched) == [50, 50, 60, 60, 200, 200]


def test_gan_test_asks_the_classifier(real: RealReference) -> None:
    network = real.extractors[CLASSIFIER].args[0]  # type: ignore[attr-defined]
    guesses = predict(network, real.train.images).argmax(1)
    assert (real.label(real.features()[0]) == guesses).all()


def test_too_few_images_go_without_metrics(
    real: RealReference, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ImageSet(real.train.images[:2], torch.tensor([0, 1]), ("a", "b"), "few", "train")
    subject = Subject(few, replace(real, train=few), lambda union: [])
    made = measure(subject, ("fidelity", "diversity"))
    assert made["fidelity"] is None
    assert made["diversity"] is None
    assert set(made["seconds"]) == {"features", "fidelity", "diversity"}  # measured, in vain
    assert "fidelity: not measured: " in capsys.readouterr().err
    assert calibrate(subject.real, ("fidelity",))["calibration"] is None


# A newcomer's metric


SHARPNESS = """
from eval.metrics import Column, Metric

METRIC = Metric(
    name="sharpness",
    key="sharpness",
    doc="By nobody.",
    columns=(Column("sharpness", "sharpness", "{:.1f}", "mean step between neighbours"),),
    compute=lambda subject: float(subject.images.images.float().diff(dim=3).abs().mean()),
    feature_space=None,
)
"""


@pytest.fixture
def sharpness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A plug-in with one metric: a package of one module with an entry point."""
    (tmp_path / "sharpness_plugin.py").write_text(SHARPNESS)
    about = tmp_path / "sharpness_plugin-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sharpness_plugin\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[eval.metrics]\nsharpness = sharpness_plugin:METRIC\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    in_order.cache_clear()
    yield
    sys.modules.pop("sharpness_plugin", None)
    in_order.cache_clear()


@pytest.mark.usefixtures("sharpness")
def test_a_plug_in_is_a_metric_like_the_others(real: RealReference) -> None:
    assert parse_metrics("all") == (*ALL, "sharpness")
    assert parse_metrics("sharpness") == ("cas", "sharpness")
    made = measure(Subject(real.train, real, lambda union: []), ("sharpness",))
    assert column_values(made) == {"sharpness": made["sharpness"]}
    assert all_columns()[-1].title == "sharpness"
    assert "- `sharpness`. **sharpness**: mean step between neighbours. By nobody." in describe()


def test_a_plug_in_with_a_built_in_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "shadow-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shadow\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[eval.metrics]\nfidelity = shadow:METRIC\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        SynthError, match="fidelity: the plug-in shadow:METRIC of the package shadow has"
    ):
        METRICS.find("fidelity")
    assert METRICS.find("diversity").name == "diversity"


# Baselines and the parts of the real split


def test_the_copier_returns_training_images(real: RealReference) -> None:
    made = train_copy(real.train, 30)
    known = {
        (int(label), image.numpy().tobytes())
        for image, label in zip(real.train.images, real.train.require_labels(), strict=True)
    }
    labels = made.require_labels()
    assert torch.bincount(labels).tolist() == [30] * 10
    for image, target in zip(made.images, labels, strict=True):
        assert (int(target), image.numpy().tobytes()) in known
    assert train_copy(real.train, 30).fingerprint == made.fingerprint
    assert len({image.numpy().tobytes() for image in made.images}) < 300  # with replacement


def test_halves_are_contiguous_but_for_sorted_classes(real: RealReference) -> None:
    assert halves(real.train).tolist() == [True] * 200 + [False] * 200
    labels = torch.tensor([0] * 4 + [1] * 5)
    sorted_ = ImageSet(real.train.images[:9], labels, ("a", "b"), "sorted", "train")
    assert halves(sorted_).int().tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 0]


def test_a_tenth_has_every_class(real: RealReference) -> None:
    tenth = first_of_each_class(real.train, 0.1)
    counts = torch.bincount(real.train.require_labels())
    assert torch.bincount(tenth.require_labels()).tolist() == (counts / 10).ceil().tolist()
    first = (real.train.labels == 3).nonzero()[0, 0]
    assert (tenth.images[tenth.labels == 3][0] == real.train.images[first]).all()


# The classifier trained on real images


def test_the_real_classifier_is_trained_once(
    drawn: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval.real_classifier, "cache_folder", lambda: tmp_path)
    protocol = Protocol("short", "disk", steps=3, batch=32, seeds=1)
    trained: list[int] = []

    def counting(*arguments: object) -> FixedClassifier:
        trained.append(1)
        return train_classifier(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(eval.real_classifier, "train_classifier", counting)

    def probabilities(images: ImageSet = drawn, precision: str = "fp32") -> torch.Tensor:
        return predict(real_classifier(images, protocol, CPU, precision), drawn.images)

    first = probabilities()
    left = tmp_path / "classifiers" / ".partial-12345678"  # by a process that was killed
    left.mkdir()
    (left / "lock").touch()
    assert (probabilities() == first).all()
    assert len(trained) == 1
    (kept,) = (tmp_path / "classifiers").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: trained again
    assert (probabilities() == first).all()
    assert len(trained) == 2
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1  # not what was written
    kept.write_bytes(content)
    assert (probabilities() == first).all()
    assert len(trained) == 3
    probabilities(replace(drawn, images=255 - drawn.images))
    probabilities(precision="bf16")
    assert len(trained) == 5
    (tmp_path / "file").touch()
    monkeypatch.setattr(eval.real_classifier, "cache_folder", lambda: tmp_path / "file")
    assert (probabilities() == first).all()  # a cache that can't be written costs time alone


def test_metrics_of_other_protocols_are_in_the_space_of_fixed_v1() -> None:
    assert real_protocol(PROTOCOLS["quick-v1"]).name == "quick-v1"
    assert real_protocol(PROTOCOLS["stream-v1"]).name == "fixed-v1"
    assert real_protocol(replace(PROTOCOLS["quick-v1"], classifier="another")).name == "fixed-v1"


# Through the command line


@pytest.fixture
def tiny_world(tiny_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny protocols, and noise in place of the reference whose PCA takes seconds."""

    def noise(real: ImageSet, per_class: int) -> ImageSet:
        random = torch.Generator().manual_seed(0)
        shape = (10 * per_class, *real.images.shape[1:])
        images = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        labels = torch.arange(len(images)) % 10
        return ImageSet(images, labels, real.classes, real.name, "train")

    baseline = replace(BASELINES["pca-gaussian"], build=noise)
    monkeypatch.setitem(BASELINES.entries, "pca-gaussian", baseline)


def test_the_score_of_real_images_trains_no_classifier_twice(
    mats: Path, tiny_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier that labels is that of seed 0. Known ones give the score of trained ones."""
    scoring = Scoring("tiny-v1", CPU, "fp32", seeds=2)
    workspace = Workspace(mats, results=tmp_path / "results", cache=tmp_path / "cache")
    evaluator = make_evaluator(scoring, "svhn", workspace)
    batches = disk_batches(evaluator.protocol, evaluator.train, CPU)
    alone = score(evaluator.protocol, batches, evaluator.test, CPU, "fp32", 2)
    real_classifier(evaluator.train, evaluator.protocol, CPU, "fp32", workspace.cache)
    trained: list[int] = []

    @wraps(train_classifier)
    def counting(*arguments: Any) -> Any:
        trained.append(arguments[3])
        return train_classifier(*arguments)

    for room in ("scoring", "real_classifier"):
        monkeypatch.setattr(f"eval.{room}.train_classifier", counting)
    record = evaluator.evaluate(*evaluator.build("real", 5))
    assert trained == [1]
    assert [each.confusion for each in record.scores] == [each.confusion for each in alone.seeds]
    again = evaluator.evaluate(*evaluator.build("real", 5))
    assert trained == [1]  # with other metrics, say
    assert [each.confusion for each in again.scores] == [each.confusion for each in alone.seeds]
    evaluator.evaluate(*evaluator.build("real-same-size", 5))
    assert trained == [1, 0, 1]


def write_set(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> Path:
    folder.mkdir()
    np.savez(folder / "images.npz", images=images.permute(0, 2, 3, 1), labels=labels)
    return folder


def by_name(results: Path) -> dict[str, Record]:
    return {record.entry.name: record for record in read_records(results)}


@pytest.fixture
def sets(mats: Path) -> tuple[Path, Path]:
    """300 images as honest as can be, and 300 of which half are training images."""
    images, _ = render("train", 460)
    labels = torch.arange(300) % 10
    real = load_training_images("svhn", mats)
    half = torch.cat([real.images[:150], images[310:]])
    return (
        write_set(mats.parent / "honest", images[160:], labels),
        write_set(mats.parent / "half", half, labels),
    )


@pytest.mark.usefixtures("tiny_world")
def test_copies_are_flagged_in_the_leaderboard(
    synth: Synth, mats: Path, sets: tuple[Path, Path]
) -> None:
    ran = synth("evaluate", *sets, "--dataset", "svhn", "--data-root", mats, *SCORE)
    assert ran.code == 0, ran.err
    found = by_name(mats.parent / "results")
    copies = {
        name: record.metrics and record.metrics["memorisation"] for name, record in found.items()
    }
    for space in ("pixels", "features"):
        for name, share in (("honest", 0), ("half", 0.5), ("copier", 1)):
            held = copies[name]
            assert held is not None
            assert held[space]["flagged"] is (share > 0), (name, space)
            assert held[space]["share"] == pytest.approx(share, abs=0.05)
    (table,) = build_tables(list(found.values()))
    flags = {row.entry: row.flag for row in table.rows}
    assert flags.pop("copier") == flags.pop("half") == "near copies (pixels, features)"
    assert "near copies" in str(flags.pop("real + augmentation"))
    assert set(flags.values()) == {None}
    text = (mats.parent / "results" / "LEADERBOARD.md").read_text()
    assert (
        text.count("near copies (pixels, features)") == 6
    )  # a note and a column for each of three
    assert "near copies (pixels, features)" in (mats.parent / "results/report.html").read_text()
    assert "copier" not in [row.entry for row in table.rows if not row.is_baseline]

    assert found["real, same size"].metrics is None  # real by definition
    real = found["real"].metrics
    assert real is not None
    assert {key for key in KEYS if real[key] is not None} == {"calibration"}
    again = synth("evaluate", sets[0], "--dataset", "svhn", "--data-root", mats, *SCORE)
    assert again.code == 0
    assert len(read_records(mats.parent / "results")) == len(found) + 1  # baselines are reused


@pytest.mark.usefixtures("tiny_world")
def test_calibration_is_that_of_direct_calls(
    synth: Synth, mats: Path, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", sets[0], "--dataset", "svhn", "--data-root", mats, *SCORE)
    assert synth(*command).code == 0
    train, test = load_training_images("svhn", mats), load_test_images("svhn", mats)
    classifier = real_classifier(train, PROTOCOLS["tiny-v1"], CPU, "fp32")
    a, b = (features(classifier, images.images) for images in (train, test))
    metrics = by_name(mats.parent / "results")["real"].metrics
    assert metrics is not None
    found = metrics["calibration"]["classifier"]
    assert found["fid_halves"] == fid(statistics(a[:80]), statistics(a[80:]))
    assert found["fid_test"] == fid(statistics(a), statistics(b))
    assert (found["kid_halves"], found["kid_halves_std"]) == kid(a[:80], a[80:], subset_size=80)
    assert (found["kid_test"], found["kid_test_std"]) == kid(a, b, subset_size=80)
    (table,) = build_tables(read_records(mats.parent / "results"))
    shown = format_calibration(table)
    assert shown is not None
    assert shown["FID"].tolist() == [f"{found[f'fid_{part}']:.2f}" for part in ("halves", "test")]


@pytest.mark.usefixtures("tiny_world")
def test_metrics_are_switched(synth: Synth, mats: Path, sets: tuple[Path, Path]) -> None:
    command = ("evaluate", sets[0], "--dataset", "svhn", "--data-root", mats, *SCORE)
    assert synth(*command, "--metrics", "cas", "--no-baselines").code == 0
    assert not (mats.parent / "cache").exists()  # nothing trained on real images for it
    assert synth(*command, "--metrics", "cas").code == 0
    results = mats.parent / "results"
    assert all(record.metrics is None for record in read_records(results))
    (table,) = build_tables(read_records(results))
    assert format_metrics(table) is None
    before = len(read_records(results))
    assert synth(*command, "--metrics", "gan-test").code == 0
    added = read_records(results)[before:]
    # the set again, and the baselines that lacked the metric
    assert [record.entry.kind for record in added] == [
        "synthetic",
        "real-augmented",
        "pca-gaussian",
    ]
    for record in added:
        assert record.metrics is not None
        assert record.metrics["gan_test"] is not None
        assert record.metrics["fidelity"] is None
    assert synth(*command, "--metrics", "cas").code == 0
    (table,) = build_tables(read_records(results))
    shown = format_metrics(table)
    assert shown is not None  # a newer record without metrics hides none
    assert list(shown.columns) == ["entry", "GAN-test %"]


@pytest.mark.usefixtures("tiny_world")
def test_augmentation_is_the_score_on_the_union(
    synth: Synth, mats: Path, sets: tuple[Path, Path]
) -> None:
    command = ("evaluate", sets[0], "--dataset", "svhn", "--data-root", mats, *SCORE)
    both = ("--metrics", "augmentation,augmentation-tenth")
    ran = synth(*command, *both)
    assert ran.code == 0, ran.err
    train, test = load_training_images("svhn", mats), load_test_images("svhn", mats)
    added = render("train", 460)[0][160:], torch.arange(300) % 10
    found = by_name(mats.parent / "results")
    metrics = found["honest"].metrics
    assert metrics is not None
    for real, kept in (
        (train, metrics["augmentation"]["all"]),
        (first_of_each_class(train, 0.1), metrics["augmentation"]["tenth"]),
    ):
        union = replace(
            real,
            images=torch.cat([real.images, added[0]]),
            labels=torch.cat([real.require_labels(), added[1]]),
        )
        batches = disk_batches(PROTOCOLS["tiny-v1"], union, CPU)
        expected = score(PROTOCOLS["tiny-v1"], batches, test, CPU, "fp32")
        assert kept == [seed.accuracy for seed in expected.seeds]
    assert found["real, a tenth"].entry.count == 20  # two of each class of sixteen
    (table,) = build_tables(list(found.values()))
    frame = table.to_frame().set_index("entry")
    gain = np.mean(metrics["augmentation"]["tenth"]) - frame.loc["real, a tenth", "accuracy"]
    assert frame.loc["honest", "augmented_tenth_gain"] == pytest.approx(gain)
    ends = frame.loc["honest", ["augmented_tenth_gain_low", "augmented_tenth_gain_high"]]
    assert tuple(ends) == difference_interval(
        [metrics["augmentation"]["tenth"]], found["real, a tenth"].accuracies
    )
    assert len(read_records(mats.parent / "results")) == 6
    assert synth(*command, *both).code == 0
    assert len(read_records(mats.parent / "results")) == 7


@pytest.mark.usefixtures("tiny_names")
def test_the_samples_of_a_set_are_kept_beside_its_record(evaluated: Path) -> None:
    (folder,) = (evaluated / "datasets").glob("0*")
    kept = evaluated / "results" / "figures" / f"{record_of(evaluated).stem}-samples.png"
    assert kept.read_bytes() == (folder / "preview.png").read_bytes()


def test_samples_are_the_first_images_of_each_class(tmp_path: Path) -> None:
    """In as many columns as the rarest class has images, ten at most."""
    for count, columns in ((4, 4), (12, 10)):
        labels = torch.arange(3).repeat(count)
        labels = torch.cat([labels, torch.tensor([1, 1])])
        images = torch.arange(len(labels)).byte()[:, None, None, None].expand(-1, 3, 32, 32)
        save_samples(ImageSet(images, labels, tuple("abc"), "s", "train"), tmp_path / "s.png")
        drawn = np.asarray(Image.open(tmp_path / "s.png"))[1::33, 1::33, 0]
        assert drawn.tolist() == [[3 * k + row for k in range(columns)] for row in range(3)]


@pytest.mark.usefixtures("tiny_world")
def test_closest_pairs_are_drawn_on_request(
    synth: Synth, mats: Path, sets: tuple[Path, Path]
) -> None:
    command = ("evaluate", "--dataset", "svhn", "--data-root", mats, *SCORE, "--no-references")
    assert synth(*command, sets[1], "--metrics", "memorisation").code == 0
    assert not list(mats.parent.rglob("*pairs*.png"))
    path = mats.parent / "pairs.png"
    assert synth(*command, sets[1], "--closest-pairs", path).code == 0
    grid = np.asarray(Image.open(path))
    assert grid.shape == (8 * 33 + 1, 10 * 33 + 1, 3)
    tiles = [[grid[y : y + 32, x : x + 32] for x in range(1, 331, 33)] for y in range(1, 265, 33)]
    assert all((tiles[0][i] == tiles[1][i]).all() for i in range(10))  # copies, each above its own
    for more in ((sets[0], sets[1]), (sets[0], "--metrics", "cas")):
        refused = synth(*command, *more, "--closest-pairs", path)
        assert refused.code == 2
        assert "--closest-pairs: goes with one data set" in refused.err


@pytest.mark.usefixtures("tiny_world")
def test_bad_options(synth: Synth, mats: Path, sets: tuple[Path, Path]) -> None:
    for command in (("evaluate", sets[0]), ("benchmark", "--recipes", "tiny")):
        ran = synth(*command, "--data-root", mats, "--metrics", "memorization")
        assert (ran.code, ran.err.count("error: ")) == (2, 1)
        assert "--metrics memorization: unknown; did you mean memorisation?" in ran.err
        ran = synth(*command, "--data-root", mats, "--feature-space", "clip")
        assert (ran.code, ran.err.count("error: ")) == (2, 1)
        assert "--feature-space clip: choose classifier or inception" in ran.err
    assert not (mats.parent / "results").exists()


def test_records_of_before_still_load_and_print(tmp_path: Path) -> None:
    """The first records had no metrics besides the accuracy, nor what repeating them needs."""
    newer = {
        *("chosen", "run_length", "labeller", "config"),
        *("training_environment", "generation_environment", "source", "metrics"),
    }
    for path in (ROOT / "results" / "records").glob("*-fixed-v1.json"):
        record = read_json(path)
        record["entry"] = {k: v for k, v in record["entry"].items() if k not in newer}
        first = {k: v for k, v in record.items() if k not in newer}
        write_json(tmp_path / "records" / path.name, first)
    records = read_records(tmp_path)
    assert len(records) > 5
    shown = {table.real: set(format_scores(table)["entry"]) for table in build_tables(records)}
    assert {"cdcgan", "real", "dcgan + pseudo-labels"} <= shown["svhn-part"]
    assert {"real", "teacher"} <= shown["svhn-part-tenth"]


# Inception


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights as torch-fidelity keeps them, but random."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as module

    network = module.FeatureExtractorInceptionV3
    path = tmp_path / "hub" / "checkpoints" / eval.features.WEIGHTS
    path.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(network("random", ["2048"]).state_dict(), path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    digest = eval.features.sha256(path)
    monkeypatch.setattr(eval.features, "SHA256", digest[:8])
    return path


def test_inception_features_are_those_of_torch_fidelity(weights: Path, drawn: ImageSet) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("other", ["2048"], str(weights))
    found = load_inception(CPU)(drawn.images[:3])
    assert found.shape == (3, 2048)
    assert found.std() > 0
    torch.testing.assert_close(found, network(drawn.images[:3])[0])


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_inception_without_its_parts_is_one_line(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": Malice()}, weights)
    monkeypatch.setattr(eval.features, "SHA256", eval.features.sha256(weights)[:8])
    with pytest.raises(SynthError, match="holds no weights of Inception"):
        load_inception(CPU)
    weights.write_bytes(pickle.dumps({}))
    with pytest.raises(SynthError, match="is damaged; download https://"):
        load_inception(CPU)
    weights.unlink()
    with pytest.raises(SynthError, match="is not there; download https://"):
        load_inception(CPU)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(SynthError, match=r"pip install 'synth-cas\[inception\]'"):
        load_inception(CPU)


@pytest.mark.usefixtures("tiny_world")
def test_both_spaces_stand_in_the_table(
    synth: Synth, mats: Path, sets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", sets[0], "--dataset", "svhn", "--data-root", mats, *SCORE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(mats.parent / "nowhere"))
    ran = synth(*command, "--feature-space", "inception")
    assert (ran.code, ran.err.count("error: ")) == (1, 1)
    assert not (mats.parent / "results").exists()
    monkeypatch.setitem(
        FEATURE_SPACES, "inception", lambda device: lambda x: x.float()[:, :, 0].mean(1)
    )
    assert synth(*command).code == 0
    count = len(read_records(mats.parent / "results"))
    assert synth(*command, "--feature-space", "inception").code == 0
    added = read_records(mats.parent / "results")[count:]  # whose fidelity is in one space alone
    assert [r.entry.kind for r in added] == [
        *("synthetic", "real", "real-augmented", "pca-gaussian", "copier")
    ]
    assert added[0].metrics is not None
    assert set(added[0].metrics["fidelity"]) == {"classifier", "inception"}
    (table,) = build_tables(read_records(mats.parent / "results"))
    shown = format_metrics(table)
    assert shown is not None
    assert {"FID", "Inception FID"} <= set(shown.columns)
    assert set(table.calibration) == {"classifier", "inception"}
