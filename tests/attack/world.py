"""The folders to attack, the commands to attack in them, and what they must hold afterwards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import torch
from PIL import Image
from sklearn.decomposition import PCA

import eval
import synth
from eval import baselines
from eval.records import predictions_path, read_records
from synth.base.errors import SynthError
from synth.base.files import numbered_folders, read_arrays, sha256
from synth.data.house_numbers import render
from synth.runs import Run, RunConfig, open_run
from synth.synthetic_set import read_synthetic
from tests.attack.run import run
from tests.conftest import write_mat
from tests.world import build

RECORD = "RECORD"  # in a command: the path of the record of a synthetic set
TRAIN = ("train", "--recipe", "tiny", "--images", "96", "--precision", "fp32")
SCORE = ("--protocol", "tiny-v1", "--precision", "fp32")
CAS = (*SCORE, "--metrics", "cas")
SIZES = ("--images", "64", "--per-class", "4")
STUDY = """
dataset = "svhn"
recipe = "tiny"
images = 64
per_class = 4
protocol = "tiny-v1"
classifier_seeds = 2
precision = "fp32"

[variants.moved]
generate = { augment = "geometry-v1" }
"""
FOLDERS = {"digits", "home", "tmp", "cache", "study.toml"}  # of the user
FOLDERS |= {"runs", "datasets", "results", "pairs.png"}  # of synth


@dataclass(frozen=True)
class Target:
    """A command to attack. Its world begins as `state`. Then the user does the same again. once: no
    content may be there twice after that."""

    name: str
    state: str
    words: tuple[str, ...]
    once: bool = False


TARGETS = (
    Target("train", "data", TRAIN),
    Target("train --select", "data", (*TRAIN, "--select", "cas")),
    Target("train --resume", "stopped", ("train", "--resume")),
    Target("generate", "trained", ("generate", "--per-class", "4")),
    Target("generate folder", "trained", ("generate", "--per-class", "2", "--format", "folder")),
    Target("evaluate", "made", ("evaluate", *CAS)),
    Target(
        "evaluate --metrics",
        "made",
        ("evaluate", *SCORE, "--no-baselines", "--closest-pairs", "pairs.png"),
    ),
    Target("leaderboard", "scored", ("leaderboard",), once=True),
    Target("report", "scored", ("report",), once=True),
    Target("compare", "scored", ("compare", "tiny", "real", *SCORE[:2]), once=True),
    Target("verify", "scored", ("verify", RECORD), once=True),
    Target("benchmark", "data", ("benchmark", "--recipes", "tiny", *SIZES, *CAS), once=True),
    Target("study", "data", ("study", "study.toml"), once=True),
)


def words_in(world: Path, words: Sequence[str]) -> list[str]:
    found = sorted(world.glob("results/records/*-tiny-tiny-v1.json"))
    return [str(found[0].relative_to(world)) if word == RECORD else word for word in words]


def prepare(base: Path) -> dict[str, Path]:
    """Makes a world for each state in which an attack begins. Returns state → world."""
    build()
    import_all()
    # Of 160 images this solver finds the components in a hundredth of the time
    baselines.PCA = lambda count, **_: PCA(count, svd_solver="full")  # type: ignore[misc]
    torch.set_num_threads(1)
    worlds = {}
    first = base / "data"
    for name in ("home", "tmp", "cache"):
        (first / name).mkdir(parents=True)
    for split, count in (("train", 160), ("test", 80)):
        images, _ = render("train" if split == "train" else "test", count)
        write_mat(first / "digits", split, images, torch.arange(count) % 10)
    (first / "study.toml").write_text(STUDY)
    worlds["data"] = first

    def grow(state: str, after: str, *words: str) -> str:
        worlds[state] = shutil.copytree(worlds[after], base / state)
        ended = run(words, worlds[state])
        assert ended.code == 0, ended
        return ended.out

    grow("trained", "data", *TRAIN)
    config = json.loads(grow("stopped", "data", *TRAIN, "--dry-run"))
    ticks = RunConfig.from_json({**config, "images": 288, "tick": 96}, "-")
    Run.create(worlds["stopped"] / "runs", ticks, {})
    grow("made", "trained", "generate", "--per-class", "4")
    grow("scored", "made", "evaluate", *CAS)
    return worlds


def import_all() -> None:
    """All that commands import later. So a forked child has it."""
    for package in (synth, eval):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            if module.name != "eval.metrics.inception":
                import_module(module.name)
    Image.init()


def contents(world: Path) -> Counter[tuple[Any, ...]]:
    """All that is finished in a world, without names and times. Raises `SynthError` if something
    that is visible is damaged."""
    found: Counter[tuple[Any, ...]] = Counter()
    for folder in numbered_folders(world / "runs"):
        made = open_run(folder)
        if made.finished():
            kept = tuple(map(sha256, made.checkpoints().values()))
            config = made.config
            found["run", config.recipe.name, config.seed, sha256(made.weights), kept] += 1
            ticks = [line["images"] for line in made.read_log()]
            if ticks != sorted(set(ticks)) or ticks[-1] < config.total_images:
                raise SynthError(f"{made.log}: has the ticks {ticks}")
    for folder in numbered_folders(world / "datasets"):
        manifest = read_synthetic(folder).manifest
        assert manifest is not None
        found["set", manifest.recipe, manifest.augmentation, manifest.sha256] += 1
    for results in results_of(world):
        records = read_records(results, quiet=True)
        files = list((results / "records").glob("*.json"))
        if len(records) != len(files):
            raise SynthError(f"{results}: {len(files)} records, of which {len(records)} are good")
        for record in records:
            predictions = read_arrays(predictions_path(results, record))["predictions"]
            score = tuple(record.accuracies), predictions.tobytes()
            entry = record.entry
            found["record", entry.kind, entry.name, entry.labels, entry.count, score] += 1
    return found


def results_of(world: Path) -> Iterator[Path]:
    for folder in sorted(world.glob("**/records")):
        yield folder.parent


def lost(world: Path, before: dict[Path, bytes]) -> list[str]:
    """Records that were there before, and have gone or changed."""
    now = records(world)
    return [f"{path.name} is lost" for path, data in before.items() if now.get(path) != data]


def records(world: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in world.glob("**/records/*.json")}


def compare(
    world: Path, expected: Counter[tuple[Any, ...]], once: bool, asked: int = 2
) -> list[str]:
    """What is wrong with a world after the last command in it. asked: how often a content may be
    there that the user asked for, which a second command makes again."""
    try:
        found = contents(world)
    except (SynthError, AssertionError) as error:
        return [f"is damaged: {error}"]
    wrong = [f"lacks {each[:3]}" for each in expected if each not in found]
    wrong += [f"has another {each[:3]}" for each in found if each not in expected]
    for each, count in found.items():
        shared = each[0] == "record" and each[1] != "synthetic"  # a baseline
        most = 1 if once or shared else asked
        if count > max(most, expected[each] if not shared else 1):
            wrong.append(f"has {each[:3]} {count} times")
    return [*wrong, *leftovers(world), *outside(world)]


def leftovers(world: Path) -> list[str]:
    """Temporary files and folders, when all processes have ended."""
    left = [*world.rglob(".partial-*"), *(world / "tmp").iterdir()]
    return [f"left {path.relative_to(world)}" for path in left]


def outside(world: Path) -> list[str]:
    """Files that no command was asked for."""
    others = {path.name for path in world.iterdir()} - FOLDERS
    return [f"wrote {name}" for name in (*others, *(p.name for p in (world / "home").iterdir()))]
