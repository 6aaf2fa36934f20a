"""`python -m benchmarks`: times every stage of synth against plain loops, in one process, in turns.

Writes results/speed.md and results/speed.json; `--smoke` takes small sizes and only prints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contenders import CPU, STAGES, flops_per_image
from synth.environment import describe_environment
from synth.files import write_json, write_text
from synth.rendering import render

SIDE = 2048  # of the matrix product that is the ceiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="about, of one window")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.windows, arguments.seconds = 3, 1.0
    ceilings = measure_ceilings()
    flops = flops_per_image()
    stages = {stage: measure_stage(stage, arguments.windows, arguments.seconds) for stage in STAGES}
    for stage, rates in stages.items():
        print(f"{stage:<11} {summary(rates)}", flush=True)
    if arguments.smoke:
        return
    report = {
        "environment": describe_environment(CPU),
        "ceilings_gflops": ceilings,
        "flops_per_image": flops,
        "images_per_second": stages,
        "startup_seconds": measure_startup(arguments.windows),
    }
    write_json(Path("results/speed.json"), report)
    write_text(Path("results/speed.md"), to_markdown(report))


def measure_ceilings() -> dict[str, float]:
    """GFLOP/s of a 2048³ product, the best of ten, in both precisions."""
    ceilings = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
        times = [timed(lambda a=a, b=b: a @ b) for _ in range(11)]
        ceilings[name] = round(2 * SIDE**3 / min(times[1:]) / 1e9, 1)
    return ceilings


def measure_stage(stage: str, windows: int, seconds: float) -> dict[str, list[float]]:
    """Images/s of every contender in each window; windows go round in turns."""
    images, labels = render("train", 4_000)
    loops: dict[str, tuple[Iterator[None], int, int]] = {}
    for name, (make, count) in STAGES[stage].items():
        torch.manual_seed(0)
        loop = make(images, labels)
        try:
            next(loop)  # builds everything
        except ImportError as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
            continue
        step = min(timed(lambda loop=loop: next(loop)) for _ in range(3))
        loops[name] = loop, count, max(1, round(seconds / step))
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(windows):
        for name, (loop, count, steps) in loops.items():
            spent = timed(lambda loop=loop, steps=steps: [next(loop) for _ in range(steps)])
            rates[name].append(round(count * steps / spent, 1))
    return rates


def measure_startup(windows: int) -> dict[str, list[float]]:
    """Seconds of `synth --help` and of importing typer, in turns."""
    commands = {
        "synth --help": [sys.executable, "-c", "import cli; cli.main()", "--help"],
        "import typer": [sys.executable, "-c", "import typer"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(windows + 1):
        for name, command in commands.items():
            run = partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(round(timed(run), 4))
    return {name: values[1:] for name, values in times.items()}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(rates: dict[str, list[float]]) -> float:
    """synth's median over the fastest other implementation's."""
    others = [median(values) for name, values in rates.items() if not name.startswith("synth")]
    return median(rates["synth"]) / max(others)


def summary(rates: dict[str, list[float]]) -> str:
    parts = [f"{name} {median(values):,.0f}/s" for name, values in rates.items()]
    return f"{ratio(rates):.2f}× the fastest other; {', '.join(parts)}"


def to_markdown(report: dict[str, Any]) -> str:
    environment, ceilings = report["environment"], report["ceilings_gflops"]
    lines = [
        "# Speed",
        "",
        f"Made by `python -m benchmarks` on {environment['device']}, "
        f"{environment['threads']} threads, torch {environment['torch']}, "
        f"Python {environment['python']}. Images per second: the median (and range) of windows "
        "taken in turns within one process; read the ratios, for the machine is noisy. "
        f"Ceiling: a {SIDE}³ matrix product, {ceilings['fp32']:,.0f} "
        f"GFLOP/s in fp32 and {ceilings['bf16']:,.0f} in bf16.",
        "",
        "| stage | implementation | images/s | range | synth is | GFLOP/s | of the bf16 ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, rates in report["images_per_second"].items():
        for name, values in rates.items():
            gflops = median(values) * report["flops_per_image"][stage] / 1e9
            lines.append(
                f"| {stage} | {name} | {median(values):,.0f} | {min(values):,.0f} to "
                f"{max(values):,.0f} | {median(rates['synth']) / median(values):.2f}× | "
                f"{gflops:,.0f} | {gflops / ceilings['bf16']:.0%} |"
            )
    startup = {name: median(values) for name, values in report["startup_seconds"].items()}
    times = startup["synth --help"] / startup["import typer"]
    lines += ["", f"Start-up: `synth --help` takes {times:.2f}× of `import typer`."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    main()
