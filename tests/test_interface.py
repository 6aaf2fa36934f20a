"""synth and eval from Python, as in a notebook."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot
import numpy as np
import pytest

import eval as cas
import synth as library
from eval.protocols import PROTOCOLS, Protocol
from synth.base.errors import SynthError, UsageError
from synth.formats import npz
from synth.published import RECIPES
from tests.conftest import ROOT, TRAIN, Ran, tiny
from tests.test_leaderboard import CEILING, record, synthetic

Synth = Callable[..., Ran]
DIGITS = np.arange(40) % 10


@pytest.fixture
def notebook(
    tiny_names: None, synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., cas.Result]:
    """An empty folder to work in, with real data; `score` under a tiny protocol."""
    matplotlib.use("agg")
    monkeypatch.setenv("SYNTH_DATA", str(mats))

    def score(images: np.ndarray, labels: np.ndarray = DIGITS, **options: object) -> cas.Result:
        return cas.score(images, labels, protocol="tiny-v1", precision="fp32", **options)  # type: ignore[arg-type]

    return score


def noise(seed: int, shape: tuple[int, ...] = (40, 32, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_all_public_names_are_there() -> None:
    for module in (library, cas):
        assert set(module.__all__) <= set(dir(module))
        assert all(getattr(module, name).__doc__ for name in module.__all__)
        assert not hasattr(module, "no_name")


def test_importing_them_imports_no_torch() -> None:
    code = "import sys, synth, eval; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_from_training_to_a_leaderboard(
    notebook: Callable[..., cas.Result], synth: Synth, mats: Path
) -> None:
    trained = library.train("tiny", images=64, precision="fp32")
    generator = library.load(trained.run.folder)
    assert generator.classes == tuple("0123456789")
    images = generator.sample(DIGITS, seed=3)
    assert images.shape == (40, 32, 32, 3)
    assert images.dtype == np.uint8

    results = [
        notebook(generator.sample(DIGITS, seed), name="tiny, by hand", seed=seed)
        for seed in range(3)
    ]
    one = results[0]
    assert 0 <= one.accuracy <= 1
    assert one.accuracy == pytest.approx(np.mean(one.accuracies))
    assert one.interval is not None and one.interval[0] <= one.accuracy <= one.interval[1]
    assert one.metrics == {}
    if one.ratio_to_real is not None:
        assert one.ratio_to_real == pytest.approx(one.accuracy / np.mean(one.real.accuracies))

    rows = cas.leaderboard(results).set_index("entry")
    assert set(rows.index) == {"tiny, by hand", "real"}
    row = rows.loc["tiny, by hand"]
    assert row.seeds == "3 × 2"
    assert row.accuracy == pytest.approx(np.mean([result.accuracy for result in results]))
    assert row.interval_covers.startswith("generator runs")
    assert row.real == "small-svhn" and row.protocol == "tiny-v1"
    whole = cas.leaderboard("results")  # the folder has the same records
    assert whole.accuracy.tolist() == cas.leaderboard(results).accuracy.tolist()
    assert "tiny, by hand" in synth("leaderboard").out


def test_samples_are_those_of_the_set(
    notebook: Callable[..., cas.Result], synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the recipe's own augmentation, over the border of a chunk, and in any order."""
    recipe = replace(tiny("tiny", True), augment="digits-v1")
    monkeypatch.setitem(RECIPES.entries, "tiny", recipe)
    generator = library.train("tiny", images=64, precision="fp32")
    made = synth("generate", "--per-class", "260", "--seed", "5")
    images, labels = npz.read(Path(made.out.strip()), ())
    assert labels is not None
    assert np.array_equal(generator.sample(labels.tolist(), seed=5), images)
    mixed = np.random.default_rng(0).permutation(labels)
    sampled = generator.sample(mixed, seed=5)
    for label in range(10):
        assert np.array_equal(sampled[mixed == label], images[labels == label])


def test_a_result_shows_itself(notebook: Callable[..., cas.Result]) -> None:
    result = notebook(noise(0), name="<b>noise</b> | *", metrics="diversity")
    assert set(result.metrics) >= {"diversity"}
    page = result._repr_html_()
    assert "&lt;b&gt;noise&lt;/b&gt;" in page and "<b>" not in page
    assert "real" in page and "95 % interval" in page
    assert f"{100 * result.accuracy:.2f} %" in repr(result)
    axes = result.plot()
    assert result.plot(axes) is axes
    (point,) = axes.containers[0][0].get_xdata()
    assert point == pytest.approx(100 * result.accuracy)
    matplotlib.pyplot.close("all")


def test_a_result_warns_of_copies() -> None:
    copies = {"share": 0.5, "expected_share": 0.001, "p_value": 0.0, "closer": 0.9}
    spaces = {"pixels": {**copies, "flagged": True}, "features": {**copies, "flagged": False}}
    made, real = record(synthetic(), 0.7), record(CEILING, 0.8)
    assert cas.Result(made, real).flag is None
    warned = replace(made, metrics={"seconds": {}, "memorisation": spaces})
    assert cas.Result(warned, real).flag == "near copies (pixels)"


def test_the_figures_of_a_result() -> None:
    result = cas.Result(record(synthetic(), 0.6, 0.7), record(CEILING, 0.8, 0.9))
    assert result.name == "cdcgan"
    assert result.accuracies == [0.6, 0.7]
    assert result.accuracy == pytest.approx(0.65)
    assert result.ratio_to_real == pytest.approx(0.65 / 0.85)
    low, high = result.interval or (1, 0)
    assert low < 0.65 < high and low + high == pytest.approx(1.3)
    low, high = result.ratio_interval or (1, 0)
    assert low < 0.65 / 0.85 < high
    alone = cas.Result(record(synthetic(), 0.6), record(CEILING, 0.8))
    assert alone.interval is None


def test_a_plot_shows_chance_and_real_images() -> None:
    axes = cas.Result(record(synthetic(), 0.6, 0.7), record(CEILING, 0.8, 0.9)).plot()
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.get_lines()}
    assert lines["chance"] == pytest.approx(10)
    assert lines["real images"] == pytest.approx(85)
    (around,) = axes.containers[0].lines[2]
    assert around.get_segments()[0].mean(0)[0] == pytest.approx(65)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"chance", "real images"}
    assert axes.get_xlabel() == "accuracy % on svhn-part, fixed-v1"
    matplotlib.pyplot.close("all")


def test_what_was_scored_is_not_scored_again(
    notebook: Callable[..., cas.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = notebook(noise(0), name="noise", seed=1)

    def never(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr("eval.evaluator.score", never)
        assert notebook(noise(0), name="noise", seed=1) == first
    assert notebook(noise(0), name="noise", seed=2).record.id != first.record.id


@pytest.mark.parametrize(
    ("images", "labels", "options", "words"),
    [
        (noise(0).astype(np.float32), DIGITS, {}, "images: float32 .* give uint8"),
        (noise(0, (40, 3, 32, 32)), DIGITS, {}, r"images: .* give uint8 \(N, 32, 32, 3\)"),
        (noise(0), DIGITS[:-1], {}, r"labels: .* give whole numbers \(40,\)"),
        (noise(0), DIGITS * 1.0, {}, "labels: float64"),
        (noise(0), DIGITS - 1, {}, "labels: -1 to 8; give numbers 0 to 9"),
        (noise(0), DIGITS // 2, {}, "no train image of class 5"),
        (noise(0), DIGITS, {"dataset": "svnh"}, "svnh: unknown; did you mean svhn"),
        (noise(0), DIGITS, {"metrics": "fdi"}, "fdi: unknown"),
        (noise(0), DIGITS, {"name": ""}, "name is ''"),
        (noise(0), DIGITS, {"name": "a\nb"}, "name .* line breaks"),
    ],
)
def test_what_does_not_fit_is_refused(
    notebook: Callable[..., cas.Result],
    images: np.ndarray,
    labels: np.ndarray,
    options: dict[str, str],
    words: str,
) -> None:
    with pytest.raises(SynthError, match=words):
        notebook(images, labels, **options)
    assert not list(Path().glob("results/records/*.json"))


def test_refusals_without_data(synth: Synth, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stream-v1: draws fresh samples"):
        cas.score(noise(0), DIGITS, protocol="stream-v1")
    with pytest.raises(SynthError, match="holds no records"):
        cas.leaderboard(tmp_path)
    with pytest.raises(SynthError, match="no run folder"):
        library.load(tmp_path)
    assert len(cas.leaderboard([])) == 0


@pytest.mark.parametrize(
    ("labels", "seed", "words"),
    [
        ([], 0, "give whole numbers"),
        ([0.5], 0, "labels: float64"),
        ([[0]], 0, r"labels: int64 \(1, 1\)"),
        ([10], 0, "give numbers 0 to 9"),
        ([-1, 3], 0, "-1 to 3"),
        ([0], -1, "seed -1"),
    ],
)
def test_samples_that_cannot_be(labels: list[int], seed: int, words: str) -> None:
    run = SimpleNamespace(config=SimpleNamespace(classes=tuple("0123456789")))
    with pytest.raises(UsageError, match=words):
        library.Generator(run, lambda labels, random: None, Path()).sample(labels, seed)  # type: ignore[arg-type]


def test_a_teacher_guides_a_training_from_python_as_from_the_command(
    notebook: Callable[..., cas.Result], synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Protocol("augmented-v1", "disk", steps=3, batch=32, seeds=1)
    monkeypatch.setitem(PROTOCOLS.entries, "augmented-v1", teacher)
    recipe = tiny("guided", True)
    training = replace(recipe.training, teacher_weight=1000.0, teacher_start=0)
    monkeypatch.setitem(RECIPES.entries, "guided", replace(recipe, training=training))
    with pytest.raises(UsageError, match=r"recipe guided: .*use eval\.train"):
        library.train("guided")
    assert not Path("runs").exists()
    trained = cas.train("guided", images=64, precision="fp32")
    assert trained.run.config.teacher == "augmented-v1"
    ran = synth("train", "--recipe", "guided", *TRAIN)
    assert ran.code == 0, ran.err
    assert trained.weights.read_bytes() == library.load(ran.out.strip()).weights.read_bytes()
    alone = library.train(recipe, images=64, precision="fp32")
    labels = np.arange(10)
    assert not np.array_equal(trained.sample(labels), alone.sample(labels))


def test_the_page_names_all_public_names() -> None:
    table = (ROOT / "docs" / "python.md").read_text().partition("## All names")[2]
    for room, module in (("synth", library), ("eval", cas)):
        named = re.findall(rf"`{room}\.(\w+)`", table)
        assert sorted(named) == sorted(module.__all__)
