"""`python -m benchmarks.growth`: time and memory as the work grows, each point in a process of its
own. Writes results/growth.json and results/growth.png after every point. `--axes` takes some of the
axes alone, and `--sizes` other sizes: ten million images take 31 GB of the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch

from eval.classifier_training import shuffled_batches, train_classifier
from eval.evaluate import publish
from eval.protocols import PROTOCOLS
from eval.records import Entry, RealSplits, Record, write_record
from eval.scoring import disk_batches, measure, score
from synth.base.files import write_json
from synth.checkpoints import save_tensors
from synth.data import SIZE, ImageSet
from synth.environment import describe_environment
from synth.formats import npz
from synth.ops.acceleration import keep_freed_memory
from synth.ops.probe import has_bf16
from synth.published import RECIPES
from synth.recipes import RecipeBase, override
from synth.runs import Run, RunConfig
from synth.set_generation import describe_provenance, generate_set
from synth.synthetic_set import read_synthetic
from synth.training import memory_mib, plan_run

CPU = torch.device("cpu")
RECIPE = RECIPES["cdcgan"]
HALF = override(RECIPE, "generator.widths=[128,64,32]", "discriminator.widths=[32,64,128]")
FAST = "bf16" if has_bf16(CPU) else "fp32"
CHUNK = 100_000  # images of noise that are written at once


def noise_images(count: int, classes: int = 10) -> ImageSet:
    """Random pixels: time and memory do not depend on what they show."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % classes
    return ImageSet(pixels, labels, tuple(map(str, range(classes))), "noise", "train")


def config_of(images: ImageSet, shown: int, recipe: RecipeBase = RECIPE) -> RunConfig:
    return plan_run(recipe, "noise", images, shown, 0, FAST, CPU)


def train(images: ImageSet, shown: int) -> float:
    config = config_of(images, shown)
    trainer = config.family.make_trainer(config, images, None, CPU)
    trainer.step()
    start = time.perf_counter()
    for _ in range(shown // RECIPE.batch):
        trainer.step()
    return time.perf_counter() - start


def images_shown(count: int) -> float:
    return train(noise_images(4_000), count)


def real_images(count: int) -> float:
    return train(noise_images(count), 12_800)


def classes(count: int) -> float:
    return train(noise_images(4_000, count), 12_800)


def images_generated(count: int) -> float:
    """From a run folder to a data set on disk, with half of the channels of `RECIPE`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = noise_images(4_000)
        config = config_of(images, RECIPE.batch, HALF)
        run = Run.create(folder / "runs", config, describe_environment(CPU))
        sampler = config.family.make_trainer(config, images, None, CPU).sampler()
        save_tensors(run.weights, sampler.tensors(), {"config": config.to_json(), "images": 128})
        start = time.perf_counter()
        generate_set(run, describe_provenance(run, 0), count // 10, folder / "datasets", CPU)
        return time.perf_counter() - start


def images_evaluated(count: int) -> float:
    """From a set on disk to a score; the classifier takes few steps."""
    protocol = replace(PROTOCOLS["quick-v1"], steps=20)
    labels = np.repeat(np.arange(10, dtype=np.int64), count // 10)
    chunk = noise_images(min(count // 10, CHUNK)).images.permute(0, 2, 3, 1).numpy()
    with tempfile.TemporaryDirectory() as name:
        npz.write(Path(name), (chunk for _ in range(count // len(chunk))), count, labels, ())
        del chunk
        start = time.perf_counter()
        made = read_synthetic(Path(name)).images
        score(protocol, disk_batches(protocol, made, CPU), noise_images(1_000), CPU, FAST, 1)
        return time.perf_counter() - start


def own_mib() -> int | None:
    """Memory that belongs to this process alone: without pages of files, which the system can drop.
    It is that of the end; freed memory is kept, so it is near the peak. Only Linux tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) >> 10 for line in lines if line.startswith("RssAnon:")]
    return found[0] if found else None


def classifier_steps(count: int) -> float:
    images = noise_images(4_000)
    labels = images.require_labels()
    start = time.perf_counter()
    protocol = replace(PROTOCOLS["fixed-v1"], steps=count)
    batches = shuffled_batches(images.images, labels, protocol.batch, 0, CPU)
    train_classifier(protocol, batches, 10, 0, CPU, FAST)
    return time.perf_counter() - start


def records(count: int) -> float:
    """Rewriting the leaderboard and the report from so many records, of 100 entries."""
    random = np.random.default_rng(0)
    truth = torch.arange(1_000) % 10
    real = RealSplits("noise", "a", 1, "b", 1)
    environment = describe_environment(CPU)
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        for i in range(count):
            odds = torch.from_numpy(random.random((1_000, 10))).float().softmax(1)
            seed = measure(0, odds, truth, 1.0)
            entry = Entry("synthetic", f"entry {i % 100}", 1_000, str(i), training_seed=i // 100)
            record = Record(
                id=f"{i:05d}",
                date="",
                entry=entry,
                protocol=PROTOCOLS["quick-v1"].to_json(),
                real=real,
                scores=[seed],
                environment=environment,
                precision="fp32",
                seconds=1.0,
            )
            write_record(results, record, None)
        start = time.perf_counter()
        publish(results)
        return time.perf_counter() - start


AXES: dict[Callable[[int], float], tuple[int, ...]] = {
    images_shown: (8_192, 16_384, 32_768, 65_536),
    images_generated: (1_000, 10_000, 100_000, 1_000_000),
    images_evaluated: (1_000, 10_000, 100_000, 1_000_000),
    classes: (2, 10, 100, 1_000),
    real_images: (10_000, 75_000, 300_000, 600_000),
    classifier_steps: (50, 100, 200, 400),
    records: (10, 100, 1_000, 10_000),
}


def main() -> None:
    axes = {axis.__name__: axis for axis in AXES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", default=",".join(axes), help="names, with commas")
    parser.add_argument("--sizes", help="with commas, for all of these axes")
    parser.add_argument("--out", default="results/growth", help="file name without its ending")
    parser.add_argument("--one", nargs=2, metavar=("AXIS", "SIZE"), help="print one point as JSON")
    options = parser.parse_args()
    if options.one:
        keep_freed_memory()
        name, size = options.one
        seconds = round(axes[name](int(size)), 3)
        print(json.dumps({"seconds": seconds, "mib": memory_mib(CPU), "own_mib": own_mib()}))
        return
    environment = describe_environment(CPU)
    figures: dict[str, list[dict[str, float]]] = {}
    for name in options.axes.split(","):
        for size in map(int, options.sizes.split(",")) if options.sizes else AXES[axes[name]]:
            command = [sys.executable, "-m", "benchmarks.growth", "--one", name, str(size)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            point = json.loads(output.splitlines()[-1])
            figures.setdefault(name, []).append({"size": size, **point})
            print(f"{name:<17} {size:>10,} {point['seconds']:8.2f} s {point['mib']:7,} MiB")
            written = {"environment": environment, "points": figures}
            write_json(Path(f"{options.out}.json"), written)
            draw(figures, Path(f"{options.out}.png"))


def draw(figures: dict[str, list[dict[str, float]]], path: Path) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    size = (2.6 * len(figures), 4.4)
    grid, panels = pyplot.subplots(2, len(figures), figsize=size, sharex="col", squeeze=False)
    for column, (name, points) in zip(panels.T, figures.items(), strict=True):
        sizes = [point["size"] for point in points]
        for panel, key, unit in zip(column, ("seconds", "mib"), ("s", "MiB"), strict=True):
            values = [point[key] for point in points]
            panel.plot(sizes, values, "o-")
            own = [point.get("own_mib") for point in points]
            if key == "mib" and None not in own:
                panel.plot(sizes, own, ".:", label="without files' pages")
                panel.legend(fontsize="x-small")
            panel.set(xlim=(0, 1.08 * sizes[-1]), ylim=(0, 1.2 * max(values)), ylabel=unit)
            panel.locator_params(nbins=3)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        column[0].set_title(name.replace("_", " "))
    grid.tight_layout()
    grid.savefig(path, dpi=80)
    pyplot.close(grid)


if __name__ == "__main__":
    main()
