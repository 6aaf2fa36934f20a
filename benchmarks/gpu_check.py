"""`make gpu-check`: the tests that need a CUDA device, then what synth does on it in what time.

Writes results/gpu.json and results/gpu.md, and prints the latter:

- the pipeline: 2.5 million images trained, 50,000 generated, three classifiers. Target: 60 s;
- training beside the loop of pytorch/examples and torch with its switches. Target: 10 times;
- the largest batch that keeps the score, by a study on a part of the training split alone.

`--small --device cpu` goes the same way, to try the code. It takes 10 to 20 minutes, and
its figures mean nothing.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch

from benchmarks import contenders, peers, tuned
from benchmarks.__main__ import Timed, take_turns
from benchmarks.gpu_page import to_page
from eval.compare import compare_records
from eval.evaluate import evaluate_sets
from eval.evaluator import Scoring, Workspace
from eval.interface import train
from eval.records import read_records
from eval.study import run_study
from eval.study_file import BASE
from synth.base.errors import SynthError
from synth.base.files import cache_folder, write_json, write_text
from synth.base.progress import say
from synth.data import ImageSet, load_training_images
from synth.environment import describe_environment
from synth.interface import data_folder
from synth.ops.acceleration import keep_freed_memory
from synth.published import find_recipe
from synth.recipes import Recipe
from synth.set_generation import describe_provenance, generate_set

TESTS = ("tests/test_gpu.py", "tests/test_parallel.py")
ROOT = Path(__file__).parent.parent


class Lengths(NamedTuple):
    """How much of everything is done."""

    images: int  # shown in each training
    per_class: int
    protocol: str
    classifiers: int
    runs: int  # trainings of each batch size
    batches: tuple[int, ...]  # the others are compared with the first one
    windows: int
    seconds: float  # of one window
    workers: tuple[int, ...]  # of the DataLoader in the examples loop
    switches: tuple[str, ...]  # of `tuned.SWITCHES`


FULL = Lengths(
    images=2_500_000,
    per_class=5_000,
    protocol="fixed-v1",
    classifiers=3,
    runs=3,
    batches=(128, 256, 512, 1024),
    windows=9,
    seconds=3.0,
    workers=(2, 0),
    switches=("all but torch.compile", "all"),
)
SMALL = FULL._replace(
    images=256,
    per_class=20,
    protocol="quick-v1",
    classifiers=1,
    runs=1,
    batches=(32, 64),
    windows=2,
    seconds=0.01,
    workers=(0,),
    switches=("all but torch.compile",),
)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, help="folder of SVHN's .mat files")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny lengths, to try the code")
    asked = parser.parse_args(words)
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"error: gpu-check: no CUDA device is seen by torch {torch.__version__}; run it where "
            "there is one, or try the code with --small --device cpu"
        )
    key, root = find_data(asked.data_root)
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *TESTS]
    code = subprocess.run(tests, cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)
    keep_freed_memory()
    say(f"gpu-check: the data is {key}")
    report = check(key, root, torch.device(asked.device), SMALL if asked.small else FULL)
    write_json(asked.results / "gpu.json", report)
    page = to_page(report)
    write_text(asked.results / "gpu.md", page)
    print(page)


def check(key: str, root: Path | None, device: torch.device, lengths: Lengths) -> dict[str, Any]:
    """All measurements, with the units in the names of the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = measure_pipeline(key, root, device, lengths, folder / "pipeline")
        images = load_training_images(key, root)
        rates = measure_training(images, device, lengths)
        precision = pipeline["precision"]
        batches = compare_batches(key, root, device, precision, lengths, folder / "batches")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "driver": driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "environment": describe_environment(device),
        "data": images.name,
        "small": lengths != FULL,
        "lengths": lengths._asdict(),
        "pipeline": pipeline,
        "training_images_per_second": rates,
        "batches": batches,
    }


def find_data(given: Path | None) -> tuple[str, Path | None]:
    """Key and folder of the data: SVHN where it is there already, or else `house-numbers`."""
    root = data_folder(given)
    place = root or cache_folder() / "svhn"
    names = ("train_32x32.mat", "test_32x32.mat")
    missing = [name for name in names if not (place / name).exists()]
    if root is not None and missing:
        raise SynthError(f"--data-root {root}: has no {missing[0]}")
    return ("house-numbers", None) if missing else ("svhn", root)


def driver() -> str | None:
    """The version of NVIDIA's driver. None if `nvidia-smi` does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split("\n")[0].strip()


def measure_pipeline(
    key: str, root: Path | None, device: torch.device, lengths: Lengths, folder: Path
) -> dict[str, Any]:
    """What `synth train --conditional`, `generate` and `evaluate` do, in one process."""
    place = Workspace(root, folder / "runs", folder / "datasets", folder / "results")
    scoring = Scoring(lengths.protocol, device, seeds=lengths.classifiers)
    clock = [time.perf_counter()]
    made = train(
        None, key, images=lengths.images, data_root=root, out=place.runs, device=device.type
    )
    clock.append(time.perf_counter())
    provenance = describe_provenance(made.run, 0)
    folder = generate_set(made.run, provenance, lengths.per_class, place.datasets, device)
    clock.append(time.perf_counter())
    (record,), _ = evaluate_sets([folder], scoring, key, place, baselines=False)
    clock.append(time.perf_counter())
    config, stages = made.run.config, ("train", "generate", "evaluate")
    return {
        "recipe": config.recipe.name,
        "precision": config.precision,
        "classifier_precision": record.precision,
        "images_generated": record.entry.count,
        "accuracies": record.accuracies,
        "seconds": {
            stage: round(end - start, 2)
            for stage, (start, end) in zip(stages, pairwise(clock), strict=True)
        },
    }


def measure_training(
    images: ImageSet, device: torch.device, lengths: Lengths
) -> dict[str, list[float]]:
    """Images/s of training `cdcgan` in batches of 128, in each window; loops go round in turns."""
    pixels, labels = images.images, images.require_labels()
    there = pixels.to(device), labels.to(device)
    loops: dict[str, Iterator[None]] = {
        "synth": contenders.train(pixels, labels, "auto", device),
        "synth, fp32": contenders.train(pixels, labels, "fp32", device),
    }
    for workers in lengths.workers:
        name = f"examples loop, {workers} workers"
        loops[name] = peers.train_examples(pixels, labels, device, workers)
    for name in lengths.switches:
        loops[f"torch, {name}"] = tuned.train(tuned.SWITCHES[name], *there)
    timed: dict[str, Timed] = {}
    for name, loop in loops.items():
        # As in pytorch/examples. synth does not ask for it, and has recorded its step before.
        torch.backends.cudnn.benchmark = not name.startswith("synth")
        try:
            next(loop)  # builds everything
        except (ImportError, RuntimeError) as error:
            if not name.startswith("torch"):
                raise
            reason = str(error).strip().split("\n")[0]  # torch.compile needs a compiler
            print(f"{name}: left out ({reason})", file=sys.stderr)
            continue
        timed[name] = partial(spend, loop, device), peers.BATCH
    rates = take_turns(timed, lengths.windows, lengths.seconds)
    torch.backends.cudnn.benchmark = False
    return rates


def spend(loop: Iterator[None], device: torch.device, steps: int) -> float:
    """Seconds that so many steps take on the device."""
    start = time.perf_counter()
    for _ in range(steps):
        next(loop)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_batches(
    key: str,
    root: Path | None,
    device: torch.device,
    precision: str,
    lengths: Lengths,
    folder: Path,
) -> list[dict[str, Any]]:
    """A study of the default recipe in batches of several sizes: its rates as they are, and times
    the square root of the batch over the recipe's own (the rule for Adam of Malladi et al. 2022,
    arXiv:2205.10287; Adam's betas stay, for theirs leaves [0, 1) soon). Differences are from the
    first batch size in `lengths`."""
    recipe = find_recipe(None, None)
    assert isinstance(recipe, Recipe)
    training = recipe.training
    variants = {}
    for batch in lengths.batches:
        times = math.sqrt(batch / recipe.batch)
        size = f"training.batch={batch}"
        rates = [
            f"training.learning_rate_{network}={rate * times:.3g}"
            for network, rate in (("g", training.learning_rate_g), ("d", training.learning_rate_d))
        ]
        variants[f"{batch}"] = {"set": [size]}
        if batch != lengths.batches[0]:
            variants[f"{batch}, scaled rates"] = {"set": [size, *rates]}
    study = {
        "dataset": key,
        "recipe": recipe.name,
        "images": lengths.images,
        "seeds": lengths.runs,
        "per_class": lengths.per_class,
        "protocol": lengths.protocol,
        "classifier_seeds": lengths.classifiers,
        "precision": precision,
        "variants": variants,
    }
    path = folder / "batches.toml"
    write_text(path, tomli_w.dumps(study))
    place = Workspace(root, folder / "runs", folder / "datasets", folder / "results")
    found = {each.variant: each for each in run_study(path, device, place)}
    results = place.results / path.stem
    records = {record.id: record for record in read_records(results)}
    first = [records[name] for name in found[f"{lengths.batches[0]}"].records]
    rows = []
    for name, result in found.items():
        compared = compare_records(results, [records[each] for each in result.records], first)
        rows.append(
            {
                "batch": recipe.batch if name == BASE else int(name.split(",")[0]),
                "variant": name,
                "accuracy": result.accuracy,
                "difference": compared.difference,
                "low": compared.low,
                "high": compared.high,
                "images_per_second": result.images_per_second,
            }
        )
    return rows


if __name__ == "__main__":
    try:
        main()
    except SynthError as error:
        sys.exit(f"error: {error}")
