"""`python -m benchmarks.cluster`: two nodes of one thread against one process of two threads.

Both train the same two runs of cdcgan-v2 on house-numbers, in turns: the process one after the
other, a Ray cluster of two nodes on this machine both at once. Needs synth-cas[ray]. The time to
start is told apart. What is timed ends when the weights, the samples and the log are on disk.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import ray
import torch
from ray.cluster_utils import Cluster

from eval.spread import ONE_THREAD
from synth.base.progress import hide_bars
from synth.data import load_training_images
from synth.environment import describe_environment
from synth.ops.acceleration import keep_freed_memory
from synth.published import find_recipe
from synth.runs import Run, RunConfig
from synth.training import plan_run, train_run

CPU = torch.device("cpu")
DATASET, RECIPE = "house-numbers", "cdcgan-v2"
RUNS = 2


class Process:
    """A process that holds the images, and trains runs."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        hide_bars()
        self.images = load_training_images(DATASET, None)

    def precision(self) -> str:
        """The faster one here."""
        return self._plan(1, 0, "auto").precision

    def train(self, length: int, seed: int, precision: str) -> None:
        with TemporaryDirectory() as folder:
            config = self._plan(length, seed, precision)
            run = Run.create(Path(folder), config, describe_environment(CPU))
            train_run(run, self.images, CPU)

    def _plan(self, length: int, seed: int, precision: str) -> RunConfig:
        recipe = find_recipe(RECIPE, None)
        return plan_run(recipe, DATASET, self.images, length, seed, precision, CPU)


def rate(work: Callable[[], object], length: int) -> float:
    """Images/s of all runs together."""
    start = time.perf_counter()
    work()
    return RUNS * length / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=16_000, help="shown in each run")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    length, process = options.images, Process(RUNS)
    started = time.perf_counter()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address, runtime_env={"env_vars": ONE_THREAD}, log_to_driver=False)
    nodes = [ray.remote(num_cpus=1)(Process).remote(1) for _ in range(RUNS)]
    ray.get([node.__ray_ready__.remote() for node in nodes])
    ready = time.perf_counter()
    precision = process.precision()

    def one_process() -> None:
        for seed in range(RUNS):
            process.train(length, seed, precision)

    def two_nodes() -> None:
        ray.get([node.train.remote(length, seed, precision) for seed, node in enumerate(nodes)])

    facts = describe_environment(CPU)
    print(f"{facts['processor']}, commit {facts['commit']}, {precision}")
    print(f"{RUNS} runs of {RECIPE} on {DATASET}, {length:,} images shown in each")
    print(f"to start the cluster with its processes: {ready - started:.1f} s, not counted")
    ratios = []
    for turn in range(options.rounds + 1):
        one, two = rate(one_process, length), rate(two_nodes, length)
        print(
            f"one process {one:,.0f}, two nodes {two:,.0f} images/s, {two / one:.2f} times", end=""
        )
        print("" if turn else " (to warm up, not counted)", flush=True)
        ratios += [two / one] if turn else []
    print(f"two nodes of one thread: {median(ratios):.2f} times as many images a second as one")
    print(f"process of two threads ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
