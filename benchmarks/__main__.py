"""`python -m benchmarks`: times every stage of synth against plain loops, in turns.

Writes results/speed.md and results/speed.json; `--smoke` takes small sizes, prints, and fails when
a stage is too slow beside the plain loop: under 1.5 times its speed on a processor with bf16 units.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contenders import CPU, STAGES, flops_per_image
from benchmarks.tuned import SWITCHES
from benchmarks.workers import LeftOut, running
from synth.base.files import write_json, write_text
from synth.environment import describe_environment
from synth.ops.probe import EMULATED, has_bf16

# A function that takes some steps and returns the seconds that they took, and the images in a step
Timed = tuple[Callable[[int], float], int]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TUNED_IN_BF16 = [f"torch, {name}" for name, on in SWITCHES.items() if on.bf16]
SIDE = 2048  # of the matrix product that is the ceiling
# Times the plain loop that every stage must reach, or the smoke test fails: with bf16 units, and on
# processors that only emulate bf16, where synth trains in fp32 with torch's own operations.
BF16 = has_bf16(CPU)
LEAST = 1.5 if BF16 else 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes; fails where too slow")
    parser.add_argument("--windows", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0, help="about, of one window")
    parser.add_argument("--out", default="results/speed", help="file name without its ending")
    arguments = parser.parse_args()
    if arguments.smoke:
        return smoke()
    ceilings = measure_ceilings(DTYPES if BF16 else ["fp32"])
    stages = {stage: measure_stage(stage, arguments.windows, arguments.seconds) for stage in STAGES}
    report = {
        "environment": describe_environment(CPU),
        "ceilings_gflops": ceilings,
        "flops_per_image": flops_per_image(),
        "images_per_second": stages,
        "command_seconds": measure_commands(),
        "thousand_images_seconds": measure_thousand(arguments.windows),
        "startup_seconds": measure_startup(arguments.windows),
    }
    write_json(Path(f"{arguments.out}.json"), report)
    write_text(Path(f"{arguments.out}.md"), to_markdown(report))


def smoke() -> None:
    """Against the plain loops that need nothing installed, and on short windows."""
    short = {}
    for stage, contenders in STAGES.items():
        rates = measure_stage(stage, 3, 0.7, only=list(contenders)[:1] + list(contenders)[2:3])
        short[stage] = ratio(rates)
    if not BF16:
        print(f"this processor emulates bf16: {LEAST}x of the plain loop is enough here")
    slow = [stage for stage, times in short.items() if times < LEAST]
    if slow:
        sys.exit(f"error: {', '.join(slow)}: under {LEAST}× of the plain loop")


def measure_ceilings(precisions: Iterable[str]) -> dict[str, float]:
    """GFLOP/s of a 2048³ product, the best of ten, in each precision."""
    ceilings = {}
    for name in precisions:
        a, b = (torch.randn(SIDE, SIDE).to(DTYPES[name]) for _ in range(2))
        times = [timed(partial(torch.matmul, a, b)) for _ in range(11)]
        ceilings[name] = round(2 * SIDE**3 / min(times[1:]) / 1e9, 1)
    return ceilings


def measure_stage(
    stage: str, windows: int, seconds: float, only: list[str] | None = None
) -> dict[str, list[float]]:
    """Images/s of every contender in each window."""
    with ExitStack() as stack:
        loops: dict[str, Timed] = {}
        for name in only or STAGES[stage]:
            try:
                if not BF16 and name in TUNED_IN_BF16:
                    raise LeftOut(EMULATED)
                loop = stack.enter_context(running(stage, name))
            except LeftOut as reason:
                print(f"{name}: left out ({reason})", file=sys.stderr)
                continue
            loops[name] = partial(spend, loop), STAGES[stage][name][1]
        rates = take_turns(loops, windows, seconds)
    print(f"{stage:<11} {summary(rates)}", flush=True)
    return rates


def take_turns(loops: dict[str, Timed], windows: int, seconds: float) -> dict[str, list[float]]:
    """Images/s of every loop in each window of about so many seconds; windows go round in turns."""
    steps = {
        name: max(1, round(seconds / min(spent(1) for _ in range(3))))
        for name, (spent, _) in loops.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(windows):
        for name, (spent, images) in loops.items():
            rates[name].append(round(images * steps[name] / spent(steps[name]), 1))
    return rates


def spend(loop: Connection, steps: int) -> float:
    """Seconds that a contender takes for so many steps."""
    loop.send(steps)
    seconds: float = loop.recv()
    return seconds


def measure_commands() -> dict[str, float]:
    """Seconds of the three commands as a user runs them, start-up and files included."""
    synth = [sys.executable, "-c", "import cli; cli.main()"]
    with tempfile.TemporaryDirectory() as folder:
        places = {name: f"{folder}/{name}" for name in ("runs", "datasets", "results")}
        data = ["--dataset", "house-numbers"]
        commands = {
            "synth train --conditional --images 64k": [*data, "--out", places["runs"]],
            "synth generate --per-class 5000": [
                *("--runs", places["runs"], "--out", places["datasets"])
            ],
            "synth evaluate --protocol quick-v1 --no-baselines": [
                *(part for name, place in places.items() for part in (f"--{name}", place))
            ],
        }
        return {
            shown: round(timed(partial(quietly, [*synth, *shown.split()[1:], *rest])), 2)
            for shown, rest in commands.items()
        }


def quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def measure_thousand(windows: int) -> list[float]:
    """Seconds for 1,000 images from a loaded generator."""
    with running("sampling", "synth") as loop:
        steps = 1000 // STAGES["sampling"]["synth"][1]
        return [round(spend(loop, steps), 4) for _ in range(windows + 1)][1:]


def measure_startup(windows: int) -> dict[str, list[float]]:
    """Seconds of `synth --help` and of importing typer, in turns."""
    commands = {
        "synth --help": [sys.executable, "-c", "import cli; cli.main()", "--help"],
        "import typer": [sys.executable, "-c", "import typer"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(windows + 1):
        for name, command in commands.items():
            times[name].append(round(timed(partial(quietly, command)), 4))
    return {name: values[1:] for name, values in times.items()}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(rates: dict[str, list[float]]) -> float:
    """synth's median over the fastest other implementation's."""
    others = [median(values) for name, values in rates.items() if not name.startswith("synth")]
    return median(rates["synth"]) / max(others)


def over_peers(rates: dict[str, list[float]]) -> str:
    """synth over the loops that people write, and over torch with its switches on, in words."""
    medians = {name: median(values) for name, values in rates.items()}
    tuned = {name: rate for name, rate in medians.items() if name.startswith("torch,")}
    fp32 = {name: rate for name, rate in tuned.items() if not SWITCHES[name[7:]].bf16}
    written = {
        name: rate for name, rate in medians.items() if name not in tuned and name[:5] != "synth"
    }
    parts = []
    for words, own, others in (
        ("the fastest loop that people write", "synth", written),
        ("torch with its best switches", "synth", tuned),
        ("torch with its best switches in fp32, synth in fp32", "synth, fp32", fp32),
    ):
        if others and own in medians:
            best = max(others, key=lambda name: others[name])
            parts.append(f"{medians[own] / others[best]:.2f}× {words} ({best})")
    return "; ".join(parts)


def summary(rates: dict[str, list[float]]) -> str:
    parts = [f"{name} {median(values):,.0f}/s" for name, values in rates.items()]
    return f"{ratio(rates):.2f}× the fastest other; {', '.join(parts)}"


def to_markdown(report: dict[str, Any]) -> str:
    environment, ceilings = report["environment"], report["ceilings_gflops"]
    highest = "bf16" if "bf16" in ceilings else "fp32"
    measured = " and ".join(f"{rate:,.0f} GFLOP/s in {name}" for name, rate in ceilings.items())
    lines = [
        "# Speed",
        "",
        f"Made by `python -m benchmarks` on {environment['processor']} "
        f"({environment['device']}), {environment['threads']} threads, torch "
        f"{environment['torch']}, Python {environment['python']}. Images per second: the median "
        "(and range) of windows taken in turns; read the ratios, for the machine is noisy. "
        f"Ceiling: a {SIDE}³ matrix product, {measured}.",
        *([] if highest == "bf16" else ["", f"Nothing runs in bf16: {EMULATED}."]),
        "",
        "| stage | implementation | images/s | range | synth is | GFLOP/s | "
        f"of the {highest} ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage, rates in report["images_per_second"].items():
        for name, values in rates.items():
            gflops = median(values) * report["flops_per_image"][stage] / 1e9
            lines.append(
                f"| {stage} | {name} | {median(values):,.0f} | {min(values):,.0f} to "
                f"{max(values):,.0f} | {median(rates['synth']) / median(values):.2f}× | "
                f"{gflops:,.0f} | {gflops / ceilings[highest]:.0%} |"
            )
    for stage, rates in report["images_per_second"].items():
        lines += ["", f"In {stage}, synth is {over_peers(rates)}."]
    startup = {name: median(values) for name, values in report["startup_seconds"].items()}
    times = startup["synth --help"] / startup["import typer"]
    lines += [
        "",
        "Every contender runs in a process of its own, as its users would run it; synth as its "
        "commands do, in the precision that its probe chooses. The commands as a user runs them, "
        "start-up, data and files included (the second writes 50,000 images):",
        "",
        "| command | seconds |",
        "|---|---|",
        *(f"| `{name}` | {seconds:.1f} |" for name, seconds in report["command_seconds"].items()),
        "",
        f"1,000 images from a loaded generator: {median(report['thousand_images_seconds']):.3f} s "
        f"(the source contest asked for 3 s). Start-up: `synth --help` takes {times:.2f}× of "
        "`import typer`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    main()
