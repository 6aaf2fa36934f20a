"""`python -m benchmarks.speedrun`: how long a generator trains until its images are worth a given
share of the real ones. Writes results/speedrun.json and results/speedrun.md.

A recipe is trained on the first four fifths of a training split. At every stop its images train the
classifier of a protocol, which is scored on the last fifth. The clock runs in training alone. The
test split takes no part. A benchmark that was stopped goes on where it was. With --jobs several
processes share the runs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from eval.protocols import PROTOCOLS
from eval.scoring import disk_batches, score
from eval.spread import on_processes
from eval.study import training_seconds
from eval.training import plan_training, train
from synth.base.files import read_json, write_json, write_text
from synth.base.locks import LOCKS, do_all, exclusive, task
from synth.data import FIFTH, VALIDATION, ImageSet, load_training_images, split_validation
from synth.environment import describe_environment
from synth.generation import Sampling, generate
from synth.ops.acceleration import keep_freed_memory
from synth.ops.probe import has_bf16
from synth.published import find_recipe
from synth.runs import Run, all_runs, load_generator

CPU = torch.device("cpu")
RATIOS = (0.80, 0.90, 0.95, 1.00)
RESULTS = Path("results")
Stops = list[dict[str, float]]  # images shown, seconds of training, ratio to real


class Reached(Exception):
    """The highest of `RATIOS` is reached."""


def sample(run: Run, per_class: int) -> ImageSet:
    """A balanced set of the run's images, changed by the policy of its recipe."""
    classes, policy = run.config.classes, run.config.recipe.augment
    sampler = load_generator(run.weights, CPU)
    made = generate(sampler, len(classes), per_class, seed=0, sampling=Sampling(augment=policy))
    pixels = torch.from_numpy(made.images).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, torch.from_numpy(made.labels), classes, "made", "train")


class Speedrun:
    """What is known so far. It is on disk after every stop. Several processes can share it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.key = options, options.dataset + VALIDATION
        whole = load_training_images(options.dataset, options.data_root)
        self.images, self.held = split_validation(whole, FIFTH)
        environment = describe_environment(CPU)
        rules = PROTOCOLS.find(options.protocol)
        self.facts = {
            "data": self.key,
            "protocol": f"{rules.name}, {options.per_class:,} images of each class, "
            f"{options.classifier_seeds or rules.seeds} classifier(s)",
            "machine": f"{environment['processor']} ({environment['device']}), {options.jobs} "
            f"process(es) of {environment['threads']} thread(s), {options.precision}",
            "stops": f"every {options.every:,} images, at most {options.images:,}",
        }
        with task(RESULTS, "the score of the real images", "real", wait=True):
            self.real: float = self.known().get("real") or self.accuracy(self.images)
            self.write()

    def known(self) -> dict[str, Any]:
        """What is on disk, or nothing where that is of other options or of another machine."""
        path = RESULTS / "speedrun.json"
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        return known if all(known.get(name) == fact for name, fact in self.facts.items()) else {}

    def accuracy(self, images: ImageSet) -> float:
        """On the last fifth, of the protocol's classifiers, trained on `images`; their mean."""
        options, rules = self.options, PROTOCOLS.find(self.options.protocol)
        batches = disk_batches(rules, images, CPU)
        wanted = options.classifier_seeds or rules.seeds
        seeds = score(rules, batches, self.held, CPU, options.precision, wanted).seeds
        return sum(seed.accuracy for seed in seeds) / len(seeds)

    def run(self, name: str, seed: int) -> None:
        """Trains and scores one run, until the highest ratio or the full length is reached.

        Raises `Busy` if another process is at it.
        """
        label, options = f"{name}, seed {seed}", self.options
        with task(options.runs, label, label):
            stops: Stops = self.known().get("runs", {}).get(label, [])
            config = plan_training(
                find_recipe(name, None),
                self.key,
                self.images,
                options.images,
                seed,
                options.precision,
                CPU,
                options.every,
            )
            known = reversed(all_runs(options.runs)) if stops else ()  # without stops begins anew
            begun = next((run for run in known if run.config == config), None)
            run = begun or Run.create(options.runs, config, describe_environment(CPU))

            def note(line: dict[str, Any]) -> None:
                if line["images"] not in [stop["images"] for stop in stops]:
                    ratio = self.accuracy(sample(run, options.per_class)) / self.real
                    seconds = training_seconds(run.read_log())
                    stops.append({"images": line["images"], "seconds": seconds, "ratio": ratio})
                    print(f"{label}: {stops[-1]}", flush=True)
                    self.write({label: stops})
                if max(stop["ratio"] for stop in stops) >= RATIOS[-1]:
                    raise Reached

            if not any(stop["ratio"] >= RATIOS[-1] for stop in stops):
                with suppress(Reached):
                    train(run, self.images, CPU, note=note)

    def write(self, new: Mapping[str, Stops] | None = None) -> None:
        """Adds these runs to what is on disk."""
        with exclusive(RESULTS / LOCKS / "speedrun", "the table", wait=True):
            runs = {**self.known().get("runs", {}), **(new or {})}
            write_json(RESULTS / "speedrun.json", {**self.facts, "real": self.real, "runs": runs})
            data = f"{self.key}; the real images reach {100 * self.real:.1f} %"
            write_text(RESULTS / "speedrun.md", to_page(runs, {**self.facts, "data": data}))


def first(stops: Stops, ratio: float) -> str:
    """Seconds and images of the first stop with this ratio, as a cell."""
    for stop in stops:
        if stop["ratio"] >= ratio:
            return f"{stop['seconds']:.0f} s ({stop['images'] / 1000:.0f}k)"
    return f"not in {stops[-1]['seconds']:.0f} s"


def to_page(runs: Mapping[str, Stops], facts: Mapping[str, str]) -> str:
    heads = ["run", *(f"ratio {ratio:.2f}" for ratio in RATIOS)]
    rows = [
        [label, *(first(stops, ratio) for ratio in RATIOS)] for label, stops in sorted(runs.items())
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    text = (
        "# Time to a score\n\n"
        "Made by `make speedrun`. Seconds of training (and images shown) until a generator's "
        "images are worth the given share of the real ones. Time to score is not counted. "
        "The test split takes no part.\n\n"
    )
    return (
        text
        + "".join(f"- {key}: {value}\n" for key, value in facts.items())
        + ("\n" + "\n".join(lines) + "\n")
    )


def work(options: argparse.Namespace) -> None:
    """All runs, but for those that other processes are at."""
    speedrun = Speedrun(options)
    runs = product(range(options.seeds), options.recipes.split(","))
    do_all([partial(speedrun.run, name, seed) for seed, name in runs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="house-numbers")
    parser.add_argument("--data-root", type=Path, default=os.environ.get("SYNTH_DATA"))
    parser.add_argument("--recipes", default="cdcgan,cdcgan-v2,cdcgan-v2-quick")
    parser.add_argument("--protocol", default="quick-v1")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--classifier-seeds", type=int, default=0, help="0: as the protocol says")
    parser.add_argument("--precision", default="bf16" if has_bf16(CPU) else "fp32")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--runs", type=Path, default=Path("build/speedrun"))
    options = parser.parse_args()
    for name in options.recipes.split(","):
        if not find_recipe(name, None).conditional:
            parser.error(f"--recipes: {name} is unconditional, and labelled sets are scored here")
    if options.jobs > 1:
        on_processes(options.jobs, partial(work, options))
    else:
        keep_freed_memory()
        work(options)


if __name__ == "__main__":
    main()
