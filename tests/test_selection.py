"""Choosing a checkpoint without leakage: what the validation and the test split can change."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval import real_classifier, selection
from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from eval.scoring import score
from synth import data
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json, sha256
from synth.checkpoints import load_tensors
from synth.data import DATASETS, Dataset, ImageSet, load_training_images, split_validation
from synth.gan import GANTrainer
from synth.runs import Run, load_generator, open_run
from synth.set_generation import describe_provenance, generate_set
from synth.training import Interrupted, train_run, training_parts
from tests.conftest import ROOT, Ran, config_of, in_turns, tiny, write_mat
from tests.test_training import make_run

Synth = Callable[..., Ran]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("tiny_names")
LENGTH = ("--images", "3k", "--tick", "1k", "--precision", "fp32", "--set", "training.batch=100")
ROOMS = ("synth", "eval", "benchmarks")
SCORE = ("--protocol", "tiny-v1", "--precision", "fp32", "--no-references")


def selecting(root: Path, images: ImageSet, **changes: object) -> Run:
    """A run of 30 steps with a checkpoint after every ten, that is to select one of them."""
    recipe = tiny("tiny", True)
    recipe = replace(recipe, training=replace(recipe.training, batch=100))
    config = {"images_per_tick": 1000, "select": "tiny-select", **changes}
    return make_run(root, images, recipe, 3000, **config)


def by_length(weights: Path, validation: ImageSet) -> float:
    """A score that follows from the weights, with its best in the middle of a run."""
    return 0.5 - abs(load_tensors(weights)[1]["images"] - 2000) / 1e4


def with_labels(images: ImageSet, labels: torch.Tensor, at: slice) -> ImageSet:
    changed = images.require_labels().clone()
    changed[at] = labels
    return replace(images, labels=changed)


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    weights = {"last": run.weights, "state": run.state, **run.checkpoints()}
    return {
        f"{name}.{key}": tensor
        for name, path in weights.items()
        for key, tensor in load_tensors(path)[0].items()
    }


def same_tensors(one: Run, other: Run) -> bool:
    ours, theirs = tensors_of(one), tensors_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# The validation part


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.sampled_from([0.1, 0.25]))
def test_the_part_is_one_block_or_the_tail_of_each_class(labels: list[int], share: float) -> None:
    count = len(labels)
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    images = ImageSet(pixels, torch.tensor(labels), tuple("01234"), "numbered", "train")
    training, validation = split_validation(images, share)
    kept, cut = (part.images[:, 0, 0, 0].tolist() for part in (training, validation))
    assert sorted(kept + cut) == list(range(count))
    for part, numbers in ((training, kept), (validation, cut)):
        assert numbers == sorted(numbers)
        assert part.labels is not None
        assert part.labels.tolist() == [labels[n] for n in numbers]
    if labels == sorted(labels):
        for label in set(labels):
            numbers = [n for n in range(count) if labels[n] == label]
            wanted = numbers[len(numbers) - round(len(numbers) * share) :]
            assert [n for n in cut if labels[n] == label] == wanted
    else:
        assert cut == list(range(count - round(count * share), count))


def test_a_set_without_labels_loses_its_tail(drawn: ImageSet) -> None:
    training, validation = split_validation(replace(drawn, labels=None))
    assert torch.equal(torch.cat([training.images, validation.images]), drawn.images)
    assert training.labels is None
    assert len(validation) == 50


@pytest.mark.parametrize("layout", ["as it comes", "sorted by class"])
def test_nothing_learns_from_the_validation_part(
    tmp_path: Path, drawn: ImageSet, layout: str
) -> None:
    """Two data sets that differ in that part alone, pixels and labels, give the same weights with
    selection on; with selection off they do not, so that the difference would have shown."""
    order = torch.arange(500)
    if layout == "sorted by class":
        order = drawn.require_labels().argsort(stable=True)
    images = replace(drawn, images=drawn.images[order], labels=drawn.require_labels()[order])
    part = torch.zeros(500, dtype=torch.bool)
    numbered = replace(images, images=torch.arange(500)[:, None, None, None].expand(-1, 3, 1, 1))
    part[split_validation(numbered)[1].images[:, 0, 0, 0]] = True
    assert part.sum() == pytest.approx(50, abs=5)
    pixels, labels = images.images.clone(), images.require_labels().clone()
    pixels[part] = 255 - pixels[part]
    if layout == "as it comes":  # a set sorted by class stays sorted
        labels[part] = (labels[part] + 1) % 10
    other = replace(images, images=pixels, labels=labels)
    assert other.fingerprint != images.fingerprint
    equal = {}
    for select in ("tiny-select", None):
        runs = [selecting(tmp_path, trained_on, select=select) for trained_on in (images, other)]
        for run, trained_on in zip(runs, (images, other), strict=True):
            train_run(run, trained_on, CPU, selection.checkpoint_scorer(run, CPU))
        equal[select] = same_tensors(*runs)
    assert equal == {"tiny-select": True, None: False}


def test_permuted_validation_labels_change_the_choice(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permutation is one under which, by the predictions of the checkpoints' classifiers,
    another is the best: the run must then choose that one, with the score foretold."""
    protocol = Protocol("tiny-select", "stream", steps=60, batch=32, seeds=1)
    monkeypatch.setattr(selection, "SELECTION", protocol)

    def trained(images: ImageSet) -> Run:
        run = selecting(tmp_path, images)
        train_run(run, images, CPU, selection.checkpoint_scorer(run, CPU))
        return run

    run = trained(drawn)
    scores = run.validation_scores()
    assert list(scores) == ["0000001k", "0000002k", "0000003k"]
    validation = split_validation(drawn)[1]
    truth = validation.require_labels()
    predicted = {}
    for name, weights in run.checkpoints().items():
        batches = selection.sample_batches(protocol, weights, 10, CPU)
        result = score(protocol, batches, validation, CPU, "fp32")
        predicted[name] = torch.from_numpy(result.predictions[0]).long()
        assert scores[name] == result.seeds[0].accuracy  # again from the file alone
    random = torch.Generator().manual_seed(0)
    for _ in range(1000):
        permuted = truth[torch.randperm(len(truth), generator=random)]
        foretold = {k: float((v == permuted).double().mean()) for k, v in predicted.items()}
        best = max(foretold, key=lambda name: (foretold[name], name))
        if best != run.best_checkpoint():
            break
    other = trained(with_labels(drawn, permuted, slice(450, None)))
    assert same_tensors(run, other)
    assert other.validation_scores() == pytest.approx(foretold)
    assert other.best_checkpoint() == best != run.best_checkpoint()
    made = [
        generate_set(r, describe_provenance(r, 0), 2, tmp_path / "sets", CPU) for r in (run, other)
    ]
    hashes = [read_json(folder / "manifest.json")["sha256"] for folder in made]
    assert hashes[0] != hashes[1]


def test_permuted_test_labels_change_nothing_but_the_score(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each class has another count, so that even a classifier that sees one class alone scores
    differently when every label is that of the next class."""
    test = data.load_test_images("svhn", mats)
    counts = torch.tensor([2, 4, 5, 6, 7, 8, 9, 10, 12, 17])
    truth = torch.arange(10).repeat_interleave(counts)
    here = mats.parent
    kept, accuracies = [], []
    for folder, labels in (("one", truth), ("two", (truth + 1) % 10)):
        write_mat(mats, "test", test.images, labels)
        (here / folder).mkdir()
        monkeypatch.chdir(here / folder)
        run = ("--recipe", "tiny", "--select", "cas", "--data-root", mats, *LENGTH)
        assert synth("train", *run).code == 0
        assert synth("generate", "--per-class", "20").code == 0
        assert synth("evaluate", "--data-root", mats, *SCORE).code == 0
        (weights,) = Path("runs").glob("*/generator.safetensors")
        (images,) = Path("datasets").glob("*/images.npz")
        manifest = read_json(images.parent / "manifest.json")
        for tick in manifest["training_log"]:
            del tick["images_per_second"], tick["memory_mib"]
        kept.append(
            [
                weights.read_bytes(),
                open_run(weights.parent).validation_scores(),
                images.read_bytes(),
                {k: v for k, v in manifest.items() if k not in ("environment", "command")},
            ]
        )
        (record,) = read_records(Path("results"))
        accuracies.append(record.accuracies)
        with np.load(f"results/predictions/{record.id}.npz") as arrays:
            kept[-1].append(arrays["predictions"].tolist())
            right = arrays["predictions"] == labels.numpy()
        assert record.accuracies == pytest.approx(right.mean(1).tolist())
    assert kept[0] == kept[1]
    assert accuracies[0] != accuracies[1]


# The test split


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source refuses its test split."""

    def without_test(source: Dataset) -> Dataset:
        def load(split: data.Split, root: Path | None) -> ImageSet:
            if split == "test":
                raise AssertionError("the test split was asked for")
            return source.load(split, root)

        return replace(source, load=load)

    sources = {name: without_test(source) for name, source in DATASETS.items()}
    monkeypatch.setattr(DATASETS, "entries", sources)


@pytest.fixture
def pictures(tmp_path: Path, drawn: ImageSet) -> Path:
    """A folder of classes, 16 images in each to train on and 4 to test."""
    for i in range(200):
        folder = tmp_path / "pictures" / ("train" if i < 160 else "test") / f"class {i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.images[i].permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return tmp_path / "pictures"


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("source", ["svhn", "folder"])
def test_only_evaluate_reads_the_test_split(
    synth: Synth, source: str, mats: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = mats if source == "svhn" else pictures
    monkeypatch.setattr(real_classifier, "LABELLER_PROTOCOL", "tiny-v1")
    classify_for = real_classifier.classify_for

    def any_labels(*arguments: object) -> Callable[[torch.Tensor], torch.Tensor]:
        """Trained as ever; but a classifier of three steps sees one class alone."""
        classify_for(*arguments)  # type: ignore[arg-type]
        return in_turns

    monkeypatch.setattr(real_classifier, "classify_for", any_labels)
    real = ("--dataset", source, "--data-root", root)
    unconditional = synth("train", "--recipe", "tiny-uncond", *real, "--images", "64")
    conditional = synth("train", "--recipe", "tiny", "--select", "cas", *real, *LENGTH)
    run = Path(conditional.out.strip())
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "images": 4000}))
    for ran in (
        unconditional,
        conditional,
        synth("train", "--resume", "--data-root", root),
        synth("generate", "--per-class", "2"),
        synth("generate", "--per-class", "2", "--checkpoint", "last"),
        synth(
            *("generate", "--per-class", "2", "--run", unconditional.out.strip()),
            *("--label-with", "classifier", "--data-root", root),
        ),
    ):
        assert ran.code == 0, ran.err
    assert len(open_run(run).validation_scores()) == 4
    for command in (
        ("evaluate", *SCORE),
        ("benchmark", "--recipes", "tiny", "--protocol", "tiny-v1", "--precision", "fp32"),
    ):
        ran = synth(*command, "--data-root", root, "--dataset", source)
        assert ran.code == 1
        assert "the test split was asked for" in ran.err
    assert not Path("results/records").exists()


def test_one_function_reads_the_test_split_and_one_calls_it() -> None:
    """By what the sources say, the benchmarks' too: no other module names the function, and no
    other call asks a data set for `test`."""
    names, literals = set(), set()
    rooms = [ROOT / "cli.py", *(path for room in ROOMS for path in ROOT.glob(f"{room}/**/*.py"))]
    assert len(rooms) > 60
    for path in rooms:
        for node in ast.walk(ast.parse(path.read_text())):
            said = [getattr(node, key, None) for key in ("id", "attr", "name", "asname")]
            if "load_test_images" in said:
                names.add(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load"):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                if "'test'" in map(ast.unparse, given):
                    literals.add(path.relative_to(ROOT).as_posix())
    assert names == {"synth/data/__init__.py", "eval/evaluator.py"}
    assert literals == {"synth/data/__init__.py"}


# The choice


@given(st.lists(st.tuples(st.integers(1, 4_000), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_best_is_the_highest_and_the_later_on_a_tie(
    tmp_path_factory: pytest.TempPathFactory, ticks: list[tuple[int, int]]
) -> None:
    images = ImageSet(torch.zeros(1), None, ("0",), "x", "train")
    config = config_of(tiny("tiny", True), images, select="s")
    run = Run(tmp_path_factory.mktemp("run"), config)
    scores: dict[int, float] = {}
    for images, accuracy in sorted(ticks, key=lambda tick: tick[0]):
        run.append_log({"images": images, "validation_accuracy": accuracy / 5})
        scores[round(images / 1000)] = accuracy / 5  # files of one name replace each other
    run.append_log({"images": 5_000})  # a line where Ctrl-C stopped has no score
    best = int(run.best_checkpoint()[:-1])
    assert scores[best] == max(scores.values())
    assert all(value < scores[best] for name, value in scores.items() if name > best)


@pytest.mark.parametrize("killed_in", ["step", "score", "append_log", "save_tensors"])
def test_killed_and_resumed_chooses_as_uninterrupted(
    tmp_path: Path, drawn: ImageSet, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(function: Callable[..., object], fatal: int) -> Callable[..., object]:
        calls = itertools.count(1)

        def call(*arguments: object) -> object:
            if next(calls) == fatal:
                raise RuntimeError("killed")
            return function(*arguments)

        return call

    whole, killed = (selecting(tmp_path, drawn) for _ in range(2))
    train_run(whole, drawn, CPU, score_checkpoint=by_length)
    with monkeypatch.context() as patch:
        scorer = dying(by_length, 2 if killed_in == "score" else 99)
        if killed_in == "step":
            patch.setattr(GANTrainer, "step", dying(GANTrainer.step, 15))
        elif killed_in == "append_log":
            patch.setattr(Run, "append_log", dying(Run.append_log, 2))
        elif killed_in == "save_tensors":  # each tick saves the weights, then the state
            from synth import training

            patch.setattr(training, "save_tensors", dying(training.save_tensors, 4))
        with pytest.raises(RuntimeError, match="killed"):
            train_run(killed, drawn, CPU, score_checkpoint=scorer)  # type: ignore[arg-type]
    train_run(open_run(killed.folder), drawn, CPU, score_checkpoint=by_length)
    assert same_tensors(whole, killed)
    logs = whole.read_log(), killed.read_log()
    for line in itertools.chain(*logs):
        del line["images_per_second"], line["memory_mib"]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    assert whole.best_checkpoint() == killed.best_checkpoint() == "0000002k"


def test_ctrl_c_adds_no_candidate(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (selecting(tmp_path, drawn) for _ in range(2))
    train_run(whole, drawn, CPU, score_checkpoint=by_length)
    step, calls = GANTrainer.step, itertools.count(1)

    def interrupting(self: GANTrainer, *arguments: object) -> None:
        step(self, *arguments)  # type: ignore[arg-type]
        if next(calls) == 15:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, "step", interrupting)
        with pytest.raises(Interrupted):
            train_run(stopped, drawn, CPU, score_checkpoint=by_length)
    train_run(stopped, drawn, CPU, score_checkpoint=by_length)
    assert len(stopped.read_log()) == len(whole.read_log()) + 1
    assert stopped.validation_scores() == whole.validation_scores()
    assert same_tensors(whole, stopped)


def test_what_cannot_select_is_refused(tmp_path: Path, drawn: ImageSet) -> None:
    with pytest.raises(UsageError, match="--select cas: tiny-uncond is unconditional"):
        training_parts(tiny("tiny-uncond", False), drawn, select=True)
    lacking = with_labels(drawn, torch.ones(50, dtype=torch.int64), slice(450, None))
    training_parts(tiny("tiny", True), lacking)
    with pytest.raises(SynthError, match="drawn, validation part: no train image of class 0"):
        training_parts(tiny("tiny", True), lacking, select=True)
    few = replace(drawn, images=drawn.images[:17], labels=None)
    learning = tiny("tiny-uncond", False)
    training_parts(learning, few)
    heldout = replace(learning, training=replace(learning.training, heldout_every=1))
    with pytest.raises(SynthError, match="15 training images are fewer than the batch of 16"):
        training_parts(heldout, few)
    with pytest.raises(ValueError, match="nothing is given to score it"):
        train_run(selecting(tmp_path, drawn), drawn, CPU)
    older = make_run(tmp_path, drawn, tiny("tiny", True), 160, select="select-v0")
    with pytest.raises(SynthError, match="by select-v0, and this version of synth by tiny-select"):
        train_run(older, drawn, CPU, selection.checkpoint_scorer(older, CPU))


def test_configurations_from_before_load_and_stay_as_they_were(
    tmp_path: Path, drawn: ImageSet
) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    assert "select" not in read_json(run.folder / "config.json")
    assert open_run(run.folder).config.select is None
    run = selecting(tmp_path, drawn)
    assert open_run(run.folder).config == run.config
    assert run.config.select == "tiny-select"


# Through the command line


@pytest.fixture
def selected(synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run whose second checkpoint of three is the best."""
    monkeypatch.setattr(selection, "checkpoint_scorer", lambda *_: by_length)
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    ran = synth("train", "--recipe", "tiny", "--select", "cas", *LENGTH)
    assert ran.code == 0, ran.err
    assert "0000002k is the best on the validation part (50.00 %)" in ran.err
    return open_run(Path(ran.out.strip()))


def test_sets_say_which_checkpoint_they_are_from(synth: Synth, selected: Run) -> None:
    shown = {"last": 3000, "best": 2000, "0000001k": 1000}
    for name, images in shown.items():
        made = synth("generate", "--per-class", "3", "--checkpoint", name, "--json")
        manifest = json.loads(made.out)
        assert manifest["images_shown"] == images
        assert manifest["chosen"] == name
        assert manifest["run_length"] == 3000
        assert manifest["checkpoint"] == sha256(selected.find_checkpoint(name))
    by_default = json.loads(synth("generate", "--per-class", "3", "--json").out)
    assert by_default["chosen"] == "best"
    hashes = [read_json(p)["sha256"] for p in sorted(Path("datasets").glob("*/manifest.json"))]
    assert len(set(hashes)) == 3
    assert hashes[3] == hashes[1]
    last = selected.checkpoints()["0000003k"]
    assert last.read_bytes() == selected.weights.read_bytes()
    paths = selected.checkpoints()["0000002k"], selected.folder
    labels = torch.arange(4)
    best, default = (load_generator(path)(labels, np.random.default_rng(0)) for path in paths)
    assert torch.equal(default, best)


def test_sets_are_scored_with_the_checkpoint_they_are_from(synth: Synth, selected: Run) -> None:
    stream = ("--protocol", "tiny-stream-v1", "--precision", "fp32", "--no-references")
    protocol = PROTOCOLS["tiny-stream-v1"]
    test = data.load_test_images("svhn", Path(os.environ["SYNTH_DATA"]))
    for name in ("0000001k", "best", "last"):
        folder = synth("generate", "--per-class", "3", "--checkpoint", name).out.strip()
        assert synth("evaluate", folder, *stream).code == 0
        record = read_records(Path("results"))[-1]
        assert record.entry.name == f"tiny, training.batch=100, {name} checkpoint"
        batches = selection.sample_batches(protocol, selected.find_checkpoint(name), 10, CPU)
        expected = score(protocol, batches, test, CPU, "fp32")
        with np.load(f"results/predictions/{record.id}.npz") as arrays:
            assert np.array_equal(arrays["predictions"], expected.predictions)
    first = Path("datasets/00000-small-svhn-tiny-training.batch-100-cond-seed0")
    selected.checkpoints()["0000001k"].unlink()
    gone = synth("evaluate", first, *stream)
    assert gone.code == 1
    assert "its weights have changed since" in gone.err


def test_a_checkpoint_that_is_not_there(synth: Synth, selected: Run) -> None:
    ran = synth("generate", "--checkpoint", "000002k")
    assert ran.code == 2
    there = "last, best, 0000001k, 0000002k, 0000003k"
    assert ran.err.splitlines()[-1] == f"error: --checkpoint 000002k: {selected.folder} has {there}"
    selected.checkpoints()["0000002k"].unlink()
    ran = synth("generate")
    assert ran.code == 2
    assert "--checkpoint 0000002k" in ran.err
    selected.log.write_text("")
    ran = synth("generate")
    assert ran.code == 2
    assert "no checkpoint of" in ran.err
    plain = synth("train", "--recipe", "tiny", "--images", "200", "--precision", "fp32").out.strip()
    for name, said in (("best", "use last"), ("0000001k", f"{plain} has last, 0000000k")):
        ran = synth("generate", "--run", plain, "--checkpoint", name)
        assert ran.code == 2
        assert said in ran.err
    assert not Path("datasets").exists()


def test_benchmark_with_selection(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    command = ("benchmark", "--recipes", "tiny", "--images", "2k", "--per-class", "5", "--seeds", 2)
    for select in ((), ("--select", "cas"), ("--select", "cas")):
        ran = synth(*command, *select, "--protocol", "tiny-v1", "--precision", "fp32")
        assert ran.code == 0, ran.err
    assert len(list(Path("runs").glob("0*"))) == 4  # with and without; the third found its own
    records = [r for r in read_records(Path("results")) if r.entry.kind == "synthetic"]
    assert [r.entry.name for r in records] == ["tiny"] * 2 + ["tiny, best checkpoint"] * 2
    assert load_training_images("svhn", mats).fingerprint == records[-1].entry.trained_on
