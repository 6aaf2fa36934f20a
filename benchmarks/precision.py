"""`python -m benchmarks.precision DATA_ROOT SET...`: is a score in bf16 that in fp32?

The classifiers of fixed-v1 are trained in both precisions on the real training split without its
last fifth and on each data set, with the same seeds. They are scored on that fifth, since a
precision is a choice, and no choice may read the test split. (The generators of the sets may have
seen it: in both precisions alike.) Writes results/precision.json: about ten minutes a seed and set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from eval.protocols import PROTOCOLS
from eval.scoring import disk_batches, score
from synth.base.files import write_json
from synth.data import FIFTH, ImageSet, load_training_images, split_validation
from synth.environment import describe_environment
from synth.ops.acceleration import keep_freed_memory
from synth.synthetic_set import read_synthetic

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_root", type=Path, help="folder of SVHN's .mat files")
    parser.add_argument("sets", type=Path, nargs="*", help="data sets made by synth generate")
    parser.add_argument("--seeds", type=int, default=3, help="classifier seeds")
    asked = parser.parse_args()
    keep_freed_memory()
    training, heldout = split_validation(load_training_images("svhn", asked.data_root), FIFTH)
    sets = {"real": training}
    for folder in asked.sets:
        synthetic = read_synthetic(folder)
        made = synthetic.manifest
        name = f"{made.recipe}, seed {made.training_seed}" if made else folder.name
        sets[name] = synthetic.images
    pairs = [
        pair
        for name, images in sets.items()
        for pair in measure(name, images, heldout, asked.seeds)
    ]
    report = {
        "protocol": "fixed-v1",
        "real": heldout.name,
        "pairs": pairs,
        "fp32_minus_bf16": summary(pairs),
        "environment": describe_environment(CPU),
    }
    write_json(Path("results/precision.json"), report)


def measure(name: str, images: ImageSet, heldout: ImageSet, seeds: int) -> list[dict[str, object]]:
    """Accuracies of classifiers that were trained on this set, by seed and precision."""
    protocol = PROTOCOLS.find("fixed-v1")
    accuracies = {
        precision: [
            s.accuracy
            for s in score(
                protocol, disk_batches(protocol, images, CPU), heldout, CPU, precision, seeds
            ).seeds
        ]
        for precision in ("fp32", "bf16")
    }
    return [
        {"trained_on": name, "seed": seed, "fp32": fp32, "bf16": bf16}
        for seed, (fp32, bf16) in enumerate(zip(*accuracies.values(), strict=True))
    ]


def summary(pairs: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Mean difference, paired over sets and seeds, with Student's 95 % interval, in points: of
    real images and of generated ones, whose scores spread much more."""
    frame = pd.DataFrame(pairs)
    points = 100 * (frame["fp32"] - frame["bf16"])
    figures = {}
    for kind, values in points.groupby(
        np.where(frame["trained_on"] == "real", "real", "generated")
    ):
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None
        figures[str(kind)] = {"pairs": len(values), "mean": values.mean(), "half_interval": half}
    return figures


if __name__ == "__main__":
    main()
