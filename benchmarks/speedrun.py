"""`python -m benchmarks.speedrun`: how long a generator trains until its images are worth a given
share of the real ones. Writes results/speedrun.json and results/speedrun.md.

A recipe is trained on the first four fifths of a training split. At every stop its images train the
classifier of a protocol, which is scored on the last fifth. The clock runs in training alone. The
test split takes no part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from eval.protocols import PROTOCOLS
from eval.scoring import disk_batches, score
from synth.base.files import write_json, write_text
from synth.data import FIFTH, VALIDATION, ImageSet, load_training_images, split_validation
from synth.environment import describe_environment
from synth.families import Trainer
from synth.generation import Sampling, generate
from synth.ops.acceleration import keep_freed_memory
from synth.published import find_recipe
from synth.training import plan_run

CPU = torch.device("cpu")
RATIOS = (0.80, 0.90, 0.95, 1.00)
RESULTS = Path("results")


def accuracy(images: ImageSet, held: ImageSet, protocol: str, precision: str) -> float:
    """The mean accuracy on `held` of the protocol's classifiers, trained on `images`."""
    rules = PROTOCOLS.find(protocol)
    seeds = score(rules, disk_batches(rules, images, CPU), held, CPU, precision).seeds
    return sum(seed.accuracy for seed in seeds) / len(seeds)


def parts(options: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The first four fifths of the training split, and the last fifth."""
    whole = load_training_images(options.dataset, options.data_root)
    return split_validation(whole, FIFTH)


def sample(trainer: Trainer, classes: tuple[str, ...], per_class: int, policy: str) -> ImageSet:
    """A balanced set of a trainer's images, changed by the policy of its recipe."""
    made = generate(
        trainer.sampler(), len(classes), per_class, seed=0, sampling=Sampling(augment=policy)
    )
    pixels = torch.from_numpy(made.images).permute(0, 3, 1, 2).contiguous()
    return ImageSet(pixels, torch.from_numpy(made.labels), classes, "made", "train")


def run(name: str, seed: int, real: float, options: argparse.Namespace) -> list[dict[str, float]]:
    """The stops of one training: images shown, seconds of training, ratio to real. It ends when
    the highest of `RATIOS` is reached."""
    key = options.dataset + VALIDATION
    images, held = parts(options)
    recipe = find_recipe(name, None)
    config = plan_run(recipe, key, images, options.images, seed, options.precision, CPU)
    trainer = config.family.make_trainer(config, images, None, CPU)
    stops: list[dict[str, float]] = []
    seconds, steps = 0.0, 0
    for shown in range(options.every, options.images + 1, options.every):
        start = time.perf_counter()
        while steps * recipe.batch < shown:
            trainer.step()
            steps += 1
        seconds += time.perf_counter() - start
        made = sample(trainer, images.classes, options.per_class, recipe.augment)
        ratio = accuracy(made, held, options.protocol, options.precision) / real
        stops.append({"images": steps * recipe.batch, "seconds": seconds, "ratio": ratio})
        print(f"{name} {seed}: {shown:,} images, {seconds:.0f} s, ratio {ratio:.3f}", flush=True)
        if ratio >= RATIOS[-1]:
            break
    return stops


def first(stops: list[dict[str, float]], ratio: float) -> str:
    """Seconds and images of the first stop with this ratio, as a cell."""
    for stop in stops:
        if stop["ratio"] >= ratio:
            return f"{stop['seconds']:.0f} s ({stop['images'] / 1000:.0f}k)"
    return f"not in {stops[-1]['seconds']:.0f} s"


def to_page(made: dict[str, list[list[dict[str, float]]]], facts: dict[str, object]) -> str:
    heads = ["recipe", "seed", *(f"ratio {ratio:.2f}" for ratio in RATIOS)]
    rows = [
        [name, str(seed), *(first(stops, ratio) for ratio in RATIOS)]
        for name, runs in made.items()
        for seed, stops in enumerate(runs)
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
    options = parser.parse_args()
    keep_freed_memory()
    key = options.dataset + VALIDATION
    real = accuracy(*parts(options), options.protocol, options.precision)
    made: dict[str, list[list[dict[str, float]]]] = {}
    for seed in range(options.seeds):
        for name in options.recipes.split(","):
            made.setdefault(name, []).append(run(name, seed, real, options))
    environment = describe_environment(CPU)
    facts = {
        "data": f"{key}; the real images reach {100 * real:.1f} %",
        "protocol": f"{options.protocol}, {options.per_class:,} images of each class",
        "machine": f"{environment['processor']}, {environment['threads']} thread(s), "
        f"{options.precision}",
        "stops": f"every {options.every:,} images, at most {options.images:,}",
    }
    write_json(RESULTS / "speedrun.json", {**facts, "real": real, "runs": made})
    write_text(RESULTS / "speedrun.md", to_page(made, dict(facts)))


if __name__ == "__main__":
    main()
