"""The command line as a user meets it: the three commands, bad input, start-up."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from cli import parse_count
from eval import real_classifier
from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from eval.scoring import score
from eval.training import train
from synth.base.errors import UsageError
from synth.base.files import read_json
from synth.data import load_training_images
from synth.environment import command_line
from synth.gan import GANTrainer
from synth.published import RECIPES
from synth.runs import Run, all_runs, newest_run, open_run
from tests.conftest import (
    ROOT,
    SCORE,
    TRAIN,
    Ran,
    in_turns,
    needs_bf16,
    sure_of,
    tiny,
    write_mat,
)

Synth = Callable[..., Ran]
pytestmark = pytest.mark.usefixtures("tiny_names")
RUN = "00001-small-svhn-tiny-cond-seed0"
SELECT = ("--select", "cas")


@pytest.fixture
def trained(synth: Synth, mats: Path) -> Path:
    """A folder in which a conditional and an unconditional tiny run are finished."""
    for recipe in ("tiny-uncond", "tiny"):
        ran = synth("train", "--recipe", recipe, "--data-root", mats, *TRAIN)
        assert ran.code == 0, ran.err
    return mats.parent


@pytest.fixture
def any_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A labeller that finds every class; a classifier of three steps sees but one."""

    monkeypatch.setattr(real_classifier, "train_classify", lambda *_: in_turns)


@pytest.mark.usefixtures("any_labels")
def test_the_three_commands(
    synth: Synth, trained: Path, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    made = synth("generate", "--per-class", "30")
    assert made.code == 0, made.err
    assert made.out.strip() == "datasets/00000-small-svhn-tiny-cond-seed0"
    evaluated = synth("evaluate", *SCORE)
    assert evaluated.code == 0, evaluated.err
    records = read_records(trained / "results")
    assert [record.entry.name for record in records] == [
        "tiny",
        "real",
        "real + augmentation",
        "real, same size",
        "PCA + Gaussian per class",
        "copier",
        "tiny-uncond + pseudo-labels",
        "tiny-uncond + random labels",
    ]
    assert {record.entry.count for record in records} == {300, 160}
    assert {record.real.name for record in records} == {"small-svhn"}
    for name in ("LEADERBOARD.md", "leaderboard.csv", "report.html"):
        assert (trained / "results" / name).stat().st_size > 0
    for record in records:
        assert record.entry.name in evaluated.out

    again = json.loads(synth("evaluate", *SCORE, "--json").out)
    assert len(read_records(trained / "results")) == 9  # references are reused, the entry is not
    (first,) = (record for record in records if record.entry.name == "tiny")
    assert first.entry.training_log == open_run(trained / "runs" / RUN).read_log()
    assert again[0]["entry"] == asdict(first.entry)  # a reference is never the newest set
    assert [score["confusion"] for score in again[0]["scores"]] == [
        score.confusion for score in first.scores
    ]


def test_no_record_names_this_machine(synth: Synth, trained: Path, mats: Path) -> None:
    synth(
        "generate",
        "--per-class",
        "3",
        "--run",
        trained / "runs" / RUN,
    )
    synth(
        "evaluate",
        trained / "datasets" / "00000-small-svhn-tiny-cond-seed0",
        "--data-root",
        mats,
        *SCORE,
        "--no-references",
    )
    (path,) = (trained / "results" / "records").iterdir()
    texts = [path, *trained.glob("datasets/*/manifest.json"), *trained.glob("runs/*/*.json")]
    for text in (path.read_text() for path in texts):
        assert str(trained) not in text
        assert str(Path.home()) not in text
        assert os.uname().nodename not in text
    record = read_json(path)
    assert record["entry"]["folder"] == "datasets/00000-small-svhn-tiny-cond-seed0"
    assert "--data-root small-svhn" in record["environment"]["command"]


def test_deleting_the_test_file_does_not_change_training(
    synth: Synth, trained: Path, mats: Path
) -> None:
    (mats / "test_32x32.mat").unlink()
    assert synth("train", "--recipe", "tiny", "--data-root", mats, *TRAIN).code == 0
    weights = [
        trained / "runs" / f"{n}-small-svhn-tiny-cond-seed0" / "generator.safetensors"
        for n in ("00001", "00002")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_generating_needs_no_data(synth: Synth, trained: Path, mats: Path) -> None:
    shutil.rmtree(mats)
    assert synth("generate", "--per-class", "3").code == 0


def test_labels_for_an_unconditional_run(synth: Synth, trained: Path, mats: Path) -> None:
    run = trained / "runs" / "00000-small-svhn-tiny-uncond-uncond-seed0"
    assert synth("generate", "--per-class", "4", "--run", run).code == 0
    refused = synth("evaluate", "--data-root", mats, *SCORE)
    assert refused.code == 1
    assert "has no labels; generate it with --label-with classifier" in refused.err
    assert synth("generate", "--per-class", "4", "--run", run, "--label-with", "random").code == 0
    scored = synth("evaluate", "--data-root", mats, *SCORE, "--no-references")
    assert "tiny-uncond + random labels" in scored.out


def test_stream_protocol_from_the_command_line(synth: Synth, trained: Path, mats: Path) -> None:
    synth("generate", "--per-class", "4")
    ran = synth(
        "evaluate", "--data-root", mats, "--protocol", "tiny-stream-v1", "--precision", "fp32"
    )
    assert ran.code == 0, ran.err
    record = read_records(trained / "results")[0]
    assert record.entry.count == 96
    assert record.entry.sha256 is None
    assert {r.entry.kind for r in read_records(trained / "results")} == {"synthetic", "real"}
    refused = synth("benchmark", "--recipes", "tiny-uncond", "--protocol", "tiny-stream-v1")
    one_line(refused, 2, "tiny-uncond")


def test_resume_from_the_command_line(synth: Synth, trained: Path, mats: Path) -> None:
    run = trained / "runs" / RUN
    before = (run / "generator.safetensors").read_bytes()
    refused = synth("train", "--resume", "--data-root", mats)
    assert refused.code == 1
    assert "no unfinished run" in refused.err
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "images": 96}))
    assert synth("train", "--resume", "--data-root", mats).code == 0
    assert (run / "generator.safetensors").read_bytes() != before
    with safe_open(run / "generator.safetensors", "pt") as file:
        assert json.loads(file.metadata()["synth"])["images"] == 96


def test_a_stopped_run_goes_on_with_the_very_line_it_printed(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GANTrainer.step

    def interrupting(self: GANTrainer, *arguments: object) -> None:
        step(self, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    root = mats.rename(mats.parent / "my own digits")
    with monkeypatch.context() as patch:
        patch.setattr(GANTrainer, "step", interrupting)
        ran = synth("train", "--recipe", "tiny", "--data-root", root, "--out", "my runs", *TRAIN)
    assert ran.code == 130
    assert newest_run(Path("my runs"), finished=False).images_shown() == 16
    again = synth(*shlex.split(ran.err.splitlines()[-1].partition("go on with: synth ")[2]))
    assert again.code == 0, again.err
    assert open_run(Path(again.out.strip())).images_shown() == 64


def test_resume_refuses_other_images(synth: Synth, trained: Path, mats: Path) -> None:
    run = trained / "runs" / RUN
    config = read_json(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "images": 96, "fingerprint": "f" * 64}))
    ran = synth("train", "--resume", "--data-root", mats)
    one_line(ran, 1, "was trained on other images", "--data-root")


@pytest.mark.usefixtures("any_labels")
def test_benchmark_skips_what_is_there(
    synth: Synth, trained: Path, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES.entries, "tiny-other", tiny("tiny-other", False))
    command = (
        "benchmark",
        "--recipes",
        "tiny,tiny-uncond,tiny-other",
        "--images",
        "64",
        "--per-class",
        "5",
        "--data-root",
        mats,
        *SCORE,
        "--metrics",
        "cas",
    )
    first = synth(*command)
    assert first.code == 0, first.err
    kept = {path for path in trained.rglob("*") if path.suffix in (".safetensors", ".npz", ".json")}
    second = synth(*command, "--json")
    assert {p for p in trained.rglob("*") if p.suffix in (".safetensors", ".npz", ".json")} == kept
    rows = json.loads(second.out)
    assert len(rows) == 8
    names = {row["entry"] for row in rows}
    assert names >= {"real", "tiny", "tiny-uncond + pseudo-labels", "tiny-other + pseudo-labels"}
    assert len([name for name in names if name.endswith("random labels")]) == 1  # chance is chance
    assert len(all_runs(trained / "runs")) == 3  # two were found
    assert "report.html" in first.err

    newer = ("--recipe", "tiny-uncond", "--seed", "1", "--images", "64", "--precision", "fp32")
    assert synth("train", *newer, "--data-root", mats).code == 0
    assert synth("evaluate", "--data-root", mats, *SCORE, "--metrics", "fidelity").code == 0
    entries = [record.entry for record in read_records(trained / "results")]
    assert "tiny-uncond + pseudo-labels" in [e.name for e in entries if e.training_seed == 1]
    assert [e.name for e in entries if e.labels == "random"] == ["tiny-other + random labels"]
    # The records are enough
    shutil.rmtree("runs")
    shutil.rmtree("datasets")
    assert synth(*command).code == 0
    assert len(read_records(trained / "results")) == len(entries)


@needs_bf16
def test_benchmark_takes_nothing_in_another_precision(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither runs nor records; with auto it takes what is there."""
    trained: list[str] = []

    def counting(run: Run, *arguments: object, **more: object) -> None:
        trained.append(run.config.precision)
        train(run, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("eval.benchmark.train", counting)
    monkeypatch.setattr("eval.evaluator.score", lambda *a, **k: score(*a[:4], "fp32", *a[5:], **k))
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    command = ("benchmark", "--recipes", "tiny", "--images", "64", "--per-class", "5")
    options = ("--protocol", "tiny-v1", "--metrics", "cas")
    for precision in ("fp32", "bf16", "fp32", "bf16"):
        ran = synth(*command, *options, "--precision", precision)
        assert ran.code == 0, ran.err
    assert trained == ["fp32", "bf16"]
    records = read_records(Path("results"))
    kinds = [(record.entry.kind, record.precision) for record in records]
    assert len(kinds) == len(set(kinds)) == 10
    assert "tiny (trained in fp32)" in ran.out
    assert synth(*command, *options, "--precision", "auto").code == 0
    assert len(read_records(Path("results"))) == 10


def test_a_collapsed_baseline_does_not_stop_the_scoring(
    synth: Synth, trained: Path, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        real_classifier,
        "train_classify",
        lambda *_: lambda images: sure_of(images.long()[:, 0, 0, 0] * 0),
    )
    synth("generate", "--per-class", "3")
    ran = synth("evaluate", "--data-root", mats, *SCORE)
    assert ran.code == 0, ran.err
    assert "class 1 stays short" in ran.err
    failed = [record for record in read_records(trained / "results") if record.error]
    assert [record.entry.name for record in failed] == ["tiny-uncond + pseudo-labels"]
    assert "tiny-uncond + random labels" in ran.out
    assert "stays short" not in synth("evaluate", "--data-root", mats, *SCORE).err  # known now


def test_the_labeller_is_the_classifier_trained_on_real_images(mats: Path) -> None:
    real = load_training_images("svhn", mats)
    protocol = Protocol("short", "disk", steps=80, batch=64, seeds=1)
    classify = real_classifier.train_classify(real, protocol, torch.device("cpu"), "fp32")
    assert (classify(real.images).argmax(1) == real.require_labels()).float().mean() > 0.8


def test_the_labeller_is_the_one_that_the_set_names(
    synth: Synth, trained: Path, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a protocol of another network, too: see `real_protocol`."""
    other = Protocol("tiny-resnet-v1", "disk", steps=3, batch=32, seeds=1, classifier="resnet20")
    monkeypatch.setitem(PROTOCOLS.entries, other.name, other)
    asked: list[str] = []

    def any_labels(real: object, protocol: Protocol, *_: object) -> object:
        asked.append(protocol.name)
        return in_turns

    monkeypatch.setattr(real_classifier, "train_classify", any_labels)
    command = ("benchmark", "--recipes", "tiny-uncond", "--images", "64", "--per-class", "3")
    options = ("--protocol", other.name, "--precision", "fp32", "--metrics", "cas")
    ran = synth(*command, *options, "--data-root", mats)
    assert ran.code == 0, ran.err
    (path,) = (trained / "datasets" / "references").glob("*-classifier/manifest.json")
    assert asked == [read_json(path)["labeller"]] == ["fixed-v1"]


def test_labelling_needs_the_images_that_the_run_was_trained_on(
    synth: Synth, trained: Path, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_classifier, "LABELLER_PROTOCOL", "tiny-v1")
    whole = load_training_images("svhn", mats)
    write_mat(trained / "other", "train", 255 - whole.images, whole.require_labels())
    run = trained / "runs" / "00000-small-svhn-tiny-uncond-uncond-seed0"
    label = ("generate", "--per-class", "1", "--run", run, "--label-with", "classifier")
    ran = synth(*label, "--data-root", trained / "other")
    one_line(ran, 1, "was trained on other images")
    assert not (trained / "datasets").exists()


def test_dry_run_writes_nothing(synth: Synth, mats: Path) -> None:
    ran = synth("train", "--recipe", "tiny", "--data-root", mats, *TRAIN, "--dry-run")
    config = json.loads(ran.out)
    assert config["images"] == 64
    assert config["recipe"]["name"] == "tiny"
    ran = synth("train", "--recipe", "tiny", "--data-root", mats, *TRAIN, "--dry-run", *SELECT)
    assert json.loads(ran.out) == {**config, "select": "tiny-select"}
    assert not (mats.parent / "runs").exists()


def test_epochs_count_passes(synth: Synth, mats: Path) -> None:
    ran = synth(
        "train",
        "--recipe",
        "tiny",
        "--data-root",
        mats,
        "--precision",
        "fp32",
        "--epochs",
        "3",
        "--dry-run",
    )
    assert json.loads(ran.out)["images"] == 3 * 160


# Bad input: one clear line, the right code, nothing left behind


def one_line(ran: Ran, code: int, *parts: str) -> None:
    assert ran.code == code, ran
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["train", "--recipe", "nonesuch"], 2, "--recipe nonesuch: unknown; choose"),
        (["train", "--recipe", "tiny", "--unconditional"], 2, "is conditional"),
        (["train", "--recipe", "tiny-uncond-conditional", "--unconditional"], 2, "is conditional"),
        (["train", "--images", "-5"], 2, "--images -5"),
        (["train", "--images", "0"], 2, "--images 0"),
        (["train", "--images", "many"], 2, "--images many"),
        (["train", "--images", "nan"], 2, "--images nan"),
        (["train", "--images", "5", "--epochs", "2"], 2, "--images and --epochs"),
        (["train", "--epochs", "0"], 2, "--epochs"),
        (["train", "--seed", str(2**63)], 2, "--seed"),
        (["train", "--tick", "10"], 2, "--tick 10"),
        (["train", "--select", "fid"], 2, "--select fid: choose cas"),
        (["train", "--recipe", "tiny-uncond", "--select", "cas"], 2, "is unconditional"),
        (["train", "--resume", "--select", "cas"], 2, "--select"),
        (["train", "--resume", "--images", "5k"], 2, "--images"),
        (["train", "--resume", "--set", "a=1"], 2, "--set: cannot be changed by --resume"),
        (["train", "--resume", "--unconditional"], 2, "--conditional/--unconditional: cannot"),
        (["benchmark", "--recipes", "tiny", "--per-class", "0"], 2, "--per-class 0"),
        (["generate", "--per-class", "1000000000000"], 2, "--per-class"),
        (["leaderboard", "--results", "nowhere"], 1, "nowhere: holds no records"),
        (["train", "--device", "tpu"], 2, "--device tpu"),
        (["train", "--precision", "fp8"], 2, "--precision fp8"),
        (["train", "--dataset", "mnist"], 2, "unknown; choose folder, house-numbers, svhn"),
        (["train", "--dataset", "folder"], 2, "--data-root"),
        (["train", "--seed", "-1"], 2, "--seed"),
        (["train", "--run", "x"], 2, "--run"),
        (["train", "--resume"], 1, "holds no unfinished run"),
        (["generate"], 1, "synth train --conditional"),
        (["generate", "--per-class", "x"], 2, "--per-class"),
        (["generate", "--run", "nowhere"], 1, "nowhere: is no run folder"),
        (["generate", "--format", "bmp"], 2, "--format bmp: unknown; choose folder, mat, npz"),
        (["generate", "--label-with", "dice"], 2, "--label-with dice"),
        (["evaluate"], 1, "synth generate --per-class 5000"),
        (["evaluate", "nowhere"], 1, "nowhere: is no data set"),
        (["benchmark", "--recipes", "tiny,nonesuch"], 2, "--recipe nonesuch"),
        (["benchmark", "--recipes", "tiny", "--seeds", "0"], 2, "--seeds 0"),
        (["recipes", "nonesuch"], 2, "nonesuch"),
        (["nonesuch"], 2, "nonesuch"),
        (["train", "--nonesuch"], 2, "--nonesuch"),
    ],
)
def test_bad_options(
    synth: Synth,
    mats: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    if "folder" not in arguments:
        monkeypatch.setenv("SYNTH_DATA", str(mats))
    before = sorted(mats.parent.rglob("*"))
    one_line(synth(*arguments), code, part)
    assert sorted(mats.parent.rglob("*")) == before


def test_missing_data_is_named_with_the_ways_out(
    synth: Synth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    from torchvision.datasets import SVHN

    unreachable.split_list = SVHN.split_list  # type: ignore[attr-defined]
    monkeypatch.setattr("synth.data.svhn.SVHN", unreachable)
    ran = synth("train", "--data-root", tmp_path / "empty")
    one_line(ran, 1, "train_32x32.mat", "no network", "--data-root", "--dataset house-numbers")


@pytest.mark.parametrize("content", [b"", b"plain text, not a .mat file" * 20])
def test_bad_mat(synth: Synth, mats: Path, content: bytes) -> None:
    (mats / "train_32x32.mat").write_bytes(content)
    one_line(synth("train", "--data-root", mats), 1, "train_32x32.mat", "--data-root")
    assert not (mats.parent / "runs").exists()


def test_empty_folder_and_broken_image(synth: Synth, tmp_path: Path) -> None:
    (tmp_path / "mine" / "train").mkdir(parents=True)
    train = ("train", "--dataset", "folder", "--data-root", tmp_path / "mine")
    one_line(synth(*train), 1, "holds no images")
    (tmp_path / "mine" / "train" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    one_line(synth(*train, "--unconditional"), 1, "broken.png", "mend or remove it")


def test_missing_class(synth: Synth, tmp_path: Path, mats: Path) -> None:
    whole = load_training_images("svhn", mats)
    keep = whole.require_labels() != 6
    write_mat(tmp_path / "lacking", "train", whole.images[keep], whole.require_labels()[keep])
    ran = synth("train", "--recipe", "tiny", "--data-root", tmp_path / "lacking", *TRAIN)
    one_line(ran, 1, "no train image of class 6")


def test_per_class_zero_and_a_run_without_weights(synth: Synth, trained: Path) -> None:
    one_line(synth("generate", "--per-class", "0"), 2, "--per-class 0")
    run = trained / "runs" / RUN
    (run / "generator.safetensors").unlink()
    one_line(synth("generate", "--run", run), 1, "is missing", "synth train --resume")
    (run / "generator.safetensors").write_bytes(b"not weights")
    one_line(synth("generate", "--run", run), 1, "is damaged")
    assert not (trained / "datasets").exists()


def test_corrupted_manifest(synth: Synth, trained: Path, mats: Path) -> None:
    synth("generate", "--per-class", "3")
    (manifest,) = trained.glob("datasets/*/manifest.json")
    manifest.write_text(manifest.read_text()[:-20])
    ran = synth("evaluate", "--data-root", mats, *SCORE)
    one_line(ran, 1, "manifest.json: is damaged")
    assert not (trained / "results").exists()


def test_output_that_cannot_be_written(synth: Synth, trained: Path, mats: Path) -> None:
    (trained / "file").write_text("in the way")
    places = [trained / "file" / "below"]
    if os.geteuid() != 0:  # root may write anywhere
        (trained / "locked").mkdir(mode=0o500)
        places.append(trained / "locked")
    for place in places:
        ran = synth("train", "--recipe", "tiny", "--data-root", mats, *TRAIN, "--out", place)
        one_line(ran, 1, str(place), "--out")
        ran = synth("generate", "--per-class", "3", "--out", place)
        one_line(ran, 1, str(place), "--out")
    synth("generate", "--per-class", "3")
    ran = synth("evaluate", "--data-root", mats, *SCORE, "--results", trained / "file" / "below")
    one_line(ran, 1, "below", "cannot be written")


def test_other_classes_are_refused(synth: Synth, trained: Path, mats: Path) -> None:
    images = np.zeros((30, 32, 32, 3), np.uint8)
    (trained / "foreign").mkdir()
    np.savez(trained / "foreign" / "images.npz", images=images, labels=np.arange(30) % 3)
    ran = synth("evaluate", trained / "foreign", "--data-root", mats, *SCORE)
    one_line(ran, 1, "foreign", "--dataset")


# Start-up, numbers, structure


def test_help_takes_less_than_half_a_second() -> None:
    command = [sys.executable, "-c", "import cli; cli.main()", "--help"]
    times = []
    for _ in range(3):  # processor time: other processes of the machine do not count
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['synth', '--help']\n"
        "import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "benchmark" in ran.stdout


@given(st.integers(1, 10**9))
def test_counts_are_read_with_their_unit(count: int) -> None:
    assert parse_count("--images", str(count)) == count
    assert parse_count("--images", f"{count}k") == count * 1000
    assert parse_count("--images", "2.5M") == 2_500_000
    with pytest.raises(UsageError):
        parse_count("--images", f"{count}.0005k")


def test_paths_in_a_command_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["/usr/bin/synth", "train", "--data-root", str(tmp_path / "data"), f"--out={tmp_path}"]
    assert command_line(words) == "synth train --data-root data --out=."
    for path in (Path.home() / "secret" / "data", f"../../../../../../..{Path.home()}/x/data"):
        assert command_line(["synth", str(path)]) == "synth data"
    assert command_line(["synth", "../beside"]) == "synth ../beside"
    for url, kept in (
        ("s3://bucket/a/folder/", "folder"),
        ("file:///home/me/folder", "folder"),
        ("https://host/f?sig=secret/x#y", "f"),
        ("ftp://me:secret@host", "ftp://"),
        ("s3://me:secret@bucket/", "s3://"),
        ("ray://host:10001", "ray://"),
    ):
        assert command_line(["synth", "--storage", url]) == f"synth --storage {kept}"
        assert command_line(["synth", f"--storage={url}"]) == f"synth --storage={kept}"
