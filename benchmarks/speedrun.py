"""`python -m benchmarks.speedrun`: how long a generator trains until its images are worth a given
share of the real ones. Writes results/speedrun.json and results/speedrun.md.

A recipe is trained on the first four fifths of a training split. At every stop its images train the
classifier of a protocol, which is scored on the last fifth. The clock runs in training alone. The
test split takes no part. A benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from eval.protocols import PROTOCOLS
from eval.scoring import disk_batches, score
from eval.study import training_seconds
from eval.training import plan_training, train
from synth.base.files import read_json, write_json, write_text
from synth.data import FIFTH, VALIDATION, ImageSet, load_training_images, split_validation
from synth.environment import describe_environment
from synth.generation import Sampling, generate
from synth.ops.acceleration import keep_freed_memory
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
    """What is known so far. It is on disk after every stop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.key = options, options.dataset + VALIDATION
        whole = load_training_images(options.dataset, options.data_root)
        self.images, self.held = split_validation(whole, FIFTH)
        environment = describe_environment(CPU)
        self.facts = {
            "data": self.key,
            "protocol": f"{options.protocol}, {options.per_class:,} images of each class",
            "machine": f"{environment['processor']}, {environment['threads']} thread(s), "
            f"{options.precision}",
            "stops": f"every {options.every:,} images, at most {options.images:,}",
        }
        path = RESULTS / "speedrun.json"
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        if any(known.get(name) != value for name, value in self.facts.items()):
            known = {}
        self.real: float = known.get("real") or self.accuracy(self.images)
        self.runs: dict[str, list[Stops]] = known.get("runs", {})

    def accuracy(self, images: ImageSet) -> float:
        """On the last fifth, of the protocol's classifiers, trained on `images`; their mean."""
        rules, precision = PROTOCOLS.find(self.options.protocol), self.options.precision
        seeds = score(rules, disk_batches(rules, images, CPU), self.held, CPU, precision).seeds
        return sum(seed.accuracy for seed in seeds) / len(seeds)

    def run(self, name: str, seed: int) -> None:
        """Trains and scores one run, until the highest ratio or the full length is reached."""
        options, of_recipe = self.options, self.runs.setdefault(name, [])
        if seed == len(of_recipe):
            of_recipe.append([])
        stops = of_recipe[seed]
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
        known = reversed(all_runs(options.runs)) if stops else ()  # without stops it begins anew
        begun = next((run for run in known if run.config == config), None)
        run = begun or Run.create(options.runs, config, describe_environment(CPU))

        def note(line: dict[str, Any]) -> None:
            if line["images"] not in [stop["images"] for stop in stops]:
                ratio = self.accuracy(sample(run, options.per_class)) / self.real
                seconds = training_seconds(run.read_log())
                stops.append({"images": line["images"], "seconds": seconds, "ratio": ratio})
                print(f"{name} {seed}: {stops[-1]}", flush=True)
                self.write()
            if max(stop["ratio"] for stop in stops) >= RATIOS[-1]:
                raise Reached

        if not any(stop["ratio"] >= RATIOS[-1] for stop in stops):
            with suppress(Reached):
                train(run, self.images, CPU, note=note)

    def write(self) -> None:
        write_json(RESULTS / "speedrun.json", {**self.facts, "real": self.real, "runs": self.runs})
        facts = {**self.facts, "data": f"{self.key}; the real images reach {100 * self.real:.1f} %"}
        write_text(RESULTS / "speedrun.md", to_page(self.runs, facts))


def first(stops: Stops, ratio: float) -> str:
    """Seconds and images of the first stop with this ratio, as a cell."""
    for stop in stops:
        if stop["ratio"] >= ratio:
            return f"{stop['seconds']:.0f} s ({stop['images'] / 1000:.0f}k)"
    return f"not in {stops[-1]['seconds']:.0f} s"


def to_page(made: dict[str, list[Stops]], facts: dict[str, str]) -> str:
    heads = ["recipe", "seed", *(f"ratio {ratio:.2f}" for ratio in RATIOS)]
    rows = [
        [name, str(seed), *(first(stops, ratio) for ratio in RATIOS)]
        for name, runs in made.items()
        for seed, stops in enumerate(runs)
        if stops
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="house-numbers")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--recipes", default="cdcgan,cdcgan-v2,cdcgan-v2-quick")
    parser.add_argument("--protocol", default="quick-v1")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=Path, default=Path("build/speedrun"))
    options = parser.parse_args()
    keep_freed_memory()
    speedrun = Speedrun(options)
    for seed in range(options.seeds):
        for name in options.recipes.split(","):
            speedrun.run(name, seed)


if __name__ == "__main__":
    main()
