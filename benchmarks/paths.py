"""`python -m benchmarks.paths`: which path each stage of synth takes on a processor, and the share
of the processor's own ceiling that it reaches there. Writes results/paths.json and .md.

A machine with AVX-512 stands for three processors: as it is, and with environment variables that
keep torch, oneDNN and MKL from some of its instructions. Any other stands for itself. The ceiling
is a 2048³ product in the precision of the path, under the same limits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.__main__ import Timed, measure_ceilings, take_turns, timed
from benchmarks.contenders import CPU, RECIPE, STAGES, flops_per_image
from benchmarks.workers import IMAGES
from eval.classifier_training import choose_classifier_precision
from eval.protocols import PROTOCOLS
from synth.base.files import write_json, write_text
from synth.data import DIGITS, ImageSet
from synth.data.house_numbers import render
from synth.environment import describe_environment
from synth.ops.native import describe_kernels
from synth.training import plan_run

VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
# The values of `VARIABLES`, and the precision that is asked for. A processor with AVX2 alone is not
# asked to probe here: torch sees that this one has bf16 units, and then takes oneDNN's reference
# code, a hundred times slower than the code that it has for processors without them.
LIMITS: dict[str, tuple[dict[str, str], str]] = {
    "all": ({}, "auto"),
    "AVX-512 without bf16": (
        dict(zip(VARIABLES, ("avx512", "AVX512_CORE_VNNI", "AVX512"), strict=True)),
        "auto",
    ),
    "AVX2": (dict.fromkeys(VARIABLES, "AVX2") | {VARIABLES[0]: "avx2"}, "fp32"),
}
LOOPS: dict[str, Callable[..., Iterator[None]]] = {
    "training": contenders.train,
    "sampling": contenders.sample,
    "classifier": contenders.classify,
}
LEAST = {"training": 0.4, "sampling": 0.4, "classifier": 0.3}  # shares that synth aims at


def measure(asked: str, windows: int, seconds: float) -> dict[str, Any]:
    """Of this process: its ceilings, and for each stage the chosen path and images/s."""
    images, labels = render("train", IMAGES)
    data = ImageSet(images, labels, DIGITS, "benchmark", "train")
    gan = plan_run(RECIPE, "benchmark", data, None, 0, asked, CPU).precision
    classifier, _ = choose_classifier_precision(asked, CPU, PROTOCOLS["fixed-v1"])
    chosen = {"training": gan, "sampling": gan, "classifier": classifier}
    stages: dict[str, Any] = {}
    for stage, precision in chosen.items():
        loop = LOOPS[stage](images, labels, precision)
        next(loop)  # builds everything
        timing: dict[str, Timed] = {"synth": (partial(steps_of, loop), STAGES[stage]["synth"][1])}
        rates = take_turns(timing, windows, seconds)["synth"]
        kernels = describe_kernels(CPU, precision)
        stages[stage] = {"precision": precision, "kernels": kernels, "images_per_second": rates}
    return {"ceilings_gflops": measure_ceilings(set(chosen.values())), "stages": stages}


def steps_of(loop: Iterator[None], steps: int) -> float:
    """Seconds of so many steps."""
    return timed(lambda: [next(loop) for _ in range(steps)])


def limited(name: str, windows: int, seconds: float) -> dict[str, Any]:
    """`measure` in a process with these limits."""
    limits, asked = LIMITS[name]
    command = [sys.executable, "-m", "benchmarks.paths", "--here", asked]
    command += ["--windows", str(windows), "--seconds", str(seconds)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **limits})
    made: dict[str, Any] = json.loads(ran.stdout)
    return made


def to_markdown(report: dict[str, Any]) -> str:
    environment = report["environment"]
    lines = [
        "# Paths",
        "",
        f"Made by `python -m benchmarks.paths` on {environment['processor']} "
        f"({environment['device']}), {environment['threads']} threads, torch "
        f"{environment['torch']}. Each row is a process that may use the named instructions alone. "
        "The share is of a 2048³ product in the same precision, in the same process. synth aims at "
        "40 % in training and sampling, and at 30 % in the classifier.",
        "",
        "| instructions | stage | path | images/s | GFLOP/s | ceiling | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report["limits"].items():
        for stage, values in found["stages"].items():
            rate = median(values["images_per_second"])
            gflops = rate * report["flops_per_image"][stage] / 1e9
            ceiling = found["ceilings_gflops"][values["precision"]]
            share, least = gflops / ceiling, LEAST[stage]
            lines.append(
                f"| {name} | {stage} | {values['precision']}, {values['kernels']} | {rate:,.0f} | "
                f"{gflops:,.0f} | {ceiling:,.0f} | {share:.0%}{' †' if share < least else ''} |"
            )
    return "\n".join([*lines, "", "† below the aim"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about, of one window")
    parser.add_argument("--out", default="results/paths", help="file name without its ending")
    parser.add_argument("--here", metavar="PRECISION", help="measure this process, print JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.windows, options.seconds)))
        return
    names = LIMITS if torch.backends.cpu.get_cpu_capability() == "AVX512" else ["all"]
    report = {
        "environment": describe_environment(CPU),
        "flops_per_image": flops_per_image(),
        "limits": {name: limited(name, options.windows, options.seconds) for name in names},
    }
    write_json(Path(f"{options.out}.json"), report)
    write_text(Path(f"{options.out}.md"), to_markdown(report))


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    main()
