"""The measurements run; what they measured is in results/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import contenders, gpu_check, growth, paths, precision, speedrun, tuned
from benchmarks.__main__ import over_peers
from eval.protocols import PROTOCOLS, Protocol
from eval.scoring import disk_batches, score
from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.data import ImageSet
from synth.published import RECIPES
from tests.conftest import ROOT, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("axis", "size"),
    [
        (growth.images_shown, 256),
        (growth.images_generated, 20),
        (growth.images_evaluated, 20),
        (growth.classifier_steps, 2),
        (growth.records, 3),
    ],
)
def test_an_axis_can_be_measured(axis: Callable[[int], float], size: int) -> None:
    assert axis(size) > 0


def test_precisions_are_compared_in_pairs(drawn: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Protocol("fixed-v1", "disk", steps=2, batch=32, seeds=3)
    monkeypatch.setitem(PROTOCOLS.entries, "fixed-v1", short)
    (pair,) = precision.measure("real", drawn, drawn, 1)
    expected = score(short, disk_batches(short, drawn, CPU), drawn, CPU, "bf16", 1)
    assert pair["bf16"] == expected.seeds[0].accuracy
    pairs = [
        {"trained_on": "a", "seed": 0, "fp32": 0.75, "bf16": 0.72},
        {"trained_on": "b", "seed": 0, "fp32": 0.65, "bf16": 0.64},
        {"trained_on": "real", "seed": 0, "fp32": 0.9, "bf16": 0.8},
    ]
    figures = precision.summary(pairs)
    assert figures["generated"] == pytest.approx(
        {"pairs": 2, "mean": 2.0, "half_interval": 12.7062 * 1.0}, rel=1e-4
    )
    assert figures["real"] == {"pairs": 1, "mean": pytest.approx(10), "half_interval": None}


@pytest.mark.parametrize("name", ["no switches", "all but torch.compile"])
def test_tuned_loops_take_steps(
    drawn: ImageSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile takes a minute and is left out."""
    for size in ("BATCH", "CLASSIFIER_BATCH"):
        monkeypatch.setattr(tuned.peers, size, 8)
    monkeypatch.setattr(tuned, "SAMPLED", 8)
    assert drawn.labels is not None
    for loop in (tuned.train, tuned.sample, tuned.classify):
        steps = loop(tuned.SWITCHES[name], drawn.images, drawn.labels)
        next(steps)
        next(steps)


def test_synth_is_compared_with_the_best_of_each_kind() -> None:
    rates = {"synth": [6.0], "synth, fp32": [4.0], "examples loop": [2.0], "torch, all": [3.0]}
    told = over_peers({**rates, "torch, no switches": [2.5], "torch, all but bf16": [2.0]})
    assert told == (
        "3.00× the fastest loop that people write (examples loop); "
        "2.00× torch with its best switches (torch, all); "
        "1.60× torch with its best switches in fp32, synth in fp32 (torch, no switches)"
    )


def test_a_stage_reaches_a_share_of_the_ceiling_of_its_own_precision() -> None:
    stages = {
        "training": {"precision": "bf16", "kernels": "kernels of synth", "images_per_second": [30]},
        "classifier": {"precision": "fp32", "kernels": "of torch", "images_per_second": [1, 4, 9]},
    }
    report = {
        "environment": {"processor": "P", "device": "CPU", "threads": 2, "torch": "2.14"},
        "flops_per_image": {"training": 2e9, "classifier": 5e9},
        "limits": {"all": {"ceilings_gflops": {"fp32": 50, "bf16": 200}, "stages": stages}},
    }
    text = paths.to_markdown(report)
    assert "| all | training | bf16, kernels of synth | 30 | 60 | 200 | 30% † |" in text
    assert "| all | classifier | fp32, of torch | 4 | 20 | 50 | 40% |" in text


def test_the_paths_of_a_process_that_may_use_avx2_alone() -> None:
    found = paths.limited("AVX2", windows=1, seconds=0.01)
    assert {name: stage["precision"] for name, stage in found["stages"].items()} == dict.fromkeys(
        ("training", "sampling", "classifier"), "fp32"
    )
    assert all(stage["images_per_second"][0] > 0 for stage in found["stages"].values())


def test_a_speedrun_goes_on_where_it_was_stopped(
    mats: Path, tiny_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real images score 0.5, and the stops 0.3, 0.42 and 0.5, which is enough."""
    monkeypatch.chdir(mats.parent)
    (mats / "test_32x32.mat").unlink()
    scores = [0.5, 0.3, KeyboardInterrupt(), 0.42, 0.5]

    def accuracy(self: speedrun.Speedrun, images: ImageSet) -> float:
        found = scores.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(speedrun.Speedrun, "accuracy", accuracy)
    words = ["speedrun", "--dataset", "svhn", "--data-root", str(mats), "--recipes", "tiny"]
    words += ["--protocol", "tiny-v1", "--images", "4000", "--every", "1000", "--per-class", "5"]
    monkeypatch.setattr("sys.argv", [*words, "--precision", "fp32"])
    with pytest.raises(KeyboardInterrupt):
        speedrun.main()
    kept = read_json(Path("results/speedrun.json"))["runs"]["tiny, seed 0"]
    assert [stop["ratio"] for stop in kept] == [0.6]
    speedrun.main()
    stops = read_json(Path("results/speedrun.json"))["runs"]["tiny, seed 0"]
    assert stops[0] == kept[0] and [stop["ratio"] for stop in stops] == [0.6, 0.84, 1.0]
    shown, seconds = ([stop[key] for stop in stops] for key in ("images", "seconds"))
    assert shown == sorted(shown) and 0 < seconds[0] < seconds[1] < seconds[2]
    lines = Path("results/speedrun.md").read_text().splitlines()
    (row,) = (line for line in lines if line.startswith("| tiny, "))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[0] == "tiny, seed 0" and cells[1].endswith(f"({shown[1] / 1000:.0f}k)")
    assert cells[2] == cells[3] == cells[4] == f"{seconds[2]:.0f} s ({shown[2] / 1000:.0f}k)"
    speedrun.main()  # nothing is left: no score is asked for
    assert not scores


def test_a_speedrun_refuses_an_unconditional_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["speedrun", "--recipes", "cdcgan,dcgan"])
    with pytest.raises(SystemExit) as ended:
        speedrun.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: --recipes: dcgan is unconditional, and labelled sets are scored here\n"
    )


def test_growth_is_on_disk_after_every_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of the given sizes fails; the two before it are kept."""
    out = tmp_path / "growth"
    words = ["growth", "--axes", "records", "--sizes", "1,2,wrong", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    point = '{"seconds": 1.0, "mib": 2, "own_mib": 1}'
    monkeypatch.setattr(growth.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=point))
    with pytest.raises(ValueError, match="wrong"):
        growth.main()
    (points,) = read_json(out.with_suffix(".json"))["points"].values()
    assert [each["size"] for each in points] == [1, 2] and out.with_suffix(".png").exists()


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny recipes and protocols, and no tests: they would start pytest again."""
    monkeypatch.setitem(RECIPES.entries, "cdcgan-v2", tiny("cdcgan-v2", True))
    monkeypatch.setitem(PROTOCOLS.entries, "quick-v1", Protocol("quick-v1", "disk", 3, 32, 1))
    monkeypatch.setattr(contenders, "RECIPE", tiny("tiny", True))
    monkeypatch.setattr(tuned.peers, "BATCH", 16)
    assert all((ROOT / name).exists() for name in gpu_check.TESTS)
    monkeypatch.setattr(gpu_check, "TESTS", ("--version",))


@pytest.mark.usefixtures("small_tables")
def test_gpu_check_does_all_of_it_on_a_cpu(
    mats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--small", "--device", "cpu", "--data-root", str(mats), "--results", str(tmp_path)]
    gpu_check.main(words)
    report, page = read_json(tmp_path / "gpu.json"), (tmp_path / "gpu.md").read_text()
    assert page in capsys.readouterr().out
    assert report["data"] == "small-svhn" and report["small"] is True
    assert list(report["pipeline"]["seconds"]) == ["train", "generate", "evaluate"]
    assert report["pipeline"]["images_generated"] == 10 * gpu_check.SMALL.per_class
    assert len(report["pipeline"]["accuracies"]) == gpu_check.SMALL.classifiers
    rates = report["training_images_per_second"]
    assert {"synth", "examples loop, 0 workers", "torch, all but torch.compile"} < set(rates)
    assert all(len(windows) == gpu_check.SMALL.windows for windows in rates.values())
    batches = {row["variant"]: row for row in report["batches"]}
    assert list(batches) == ["base", "32", "64", "64, scaled rates"]
    assert batches["32"]["difference"] == 0
    for words_on_page in ("The target of 60 s is", "The target of 10 times is", "| 16, the recipe"):
        assert words_on_page in page


def test_gpu_check_stops_where_it_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--small", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: gpu-check: no CUDA device"):
        gpu_check.main(words)
    monkeypatch.setattr(gpu_check, "TESTS", ("--noconftest", "nonesuch.py"))
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main([*words, "--device", "cpu"])
    assert stopped.value.code == pytest.ExitCode.USAGE_ERROR
    assert not (tmp_path / "results").exists()


def test_gpu_check_takes_svhn_where_it_is(mats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYNTH_DATA", raising=False)
    monkeypatch.setattr(gpu_check, "cache_folder", lambda: mats.parent)
    assert gpu_check.find_data(None) == ("house-numbers", None)
    assert gpu_check.find_data(mats) == ("svhn", mats)
    mats.rename(mats.parent / "svhn")
    assert gpu_check.find_data(None) == ("svhn", None)
    with pytest.raises(SynthError, match=r"--data-root .*: has no train_32x32\.mat"):
        gpu_check.find_data(mats.parent)
