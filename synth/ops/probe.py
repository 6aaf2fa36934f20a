"""Which precision is the faster one on this machine: some steps in each are timed, once.

What a probe found is kept in the cache folder, in `probes/`, for the same work on the same machine.
So later commands need not time it again, and all of them choose alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from synth.base.errors import SynthError, UsageError
from synth.base.files import cache_folder, read_json, sha256, write_json
from synth.base.progress import say
from synth.base.schema import dump, parse
from synth.ops.native import describe_machine, kernel_sources

Precision = Literal["fp32", "bf16"]
STEPS = 4  # of a probe; the first one warms up
# A probe stops after its first step if this took longer than PATIENCE seconds, and longer than
# RATIO times the best step so far. oneDNN needs tenths of a second to warm up.
RATIO, PATIENCE = 4.0, 1.0
# Variables that keep torch, oneDNN or MKL from some instructions of the processor
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
EMULATED = "this processor emulates bf16, which is some 30 times as slow as fp32"


@dataclass(frozen=True)
class Probe:
    """What a probe found."""

    precision: Precision  # the faster one
    found: str  # how long a step took in each, in words
    date: str


def has_bf16(device: torch.device) -> bool:
    """Whether torch has fast code for bf16 on the device. An x86 processor needs AVX-512 for it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True  # a probe will tell
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(
    asked: str, prepare: Callable[[str], Callable[[], None]], device: torch.device, work: str
) -> tuple[Precision, str]:
    """`asked`, or for `auto` the faster of fp32 and bf16 on this machine, and the reason.

    Nothing is timed on a processor that emulates bf16. prepare(precision): returns a step to time.
    work: a text that is the same for the same steps.
    Raises `UsageError` for any other value of `asked`.
    """
    emulated = not has_bf16(device)
    if asked in get_args(Precision):
        slow = asked == "bf16" and emulated
        return cast(Precision, asked), f"as asked{f', but {EMULATED}' if slow else ''}"
    if asked != "auto":
        raise UsageError(f"--precision {asked}: choose auto, fp32 or bf16")
    if emulated:
        return "fp32", EMULATED
    path = cache_folder() / "probes" / f"{_key(device, work)}.json"
    with suppress(SynthError):  # none is there, or it is damaged
        known = parse(Probe, read_json(path), f"{path}", SynthError)
        return known.precision, f"{known.found} (remembered from {known.date})"
    probe = _probe(prepare, device)
    with suppress(SynthError):  # a cache that cannot be written costs the time to probe again
        write_json(path, dump(probe))
    return probe.precision, probe.found


def _key(device: torch.device, work: str) -> str:
    """Of everything that the times follow from."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    layers = [*sorted(Path(__file__).parent.glob("*.py")), *kernel_sources()]
    value = {
        "work": work,
        "machine": gpu or describe_machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": [sha256(path) for path in layers],
        "limits": [os.environ.get(name) for name in LIMITS],
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _probe(prepare: Callable[[str], Callable[[], None]], device: torch.device) -> Probe:
    say(f"times some steps in {' and '.join(get_args(Precision))}")
    seconds: dict[Precision, float] = {}
    words = []
    for precision in get_args(Precision):
        step = prepare(precision)
        first = _timed(step, device)
        if first > max(PATIENCE, RATIO * min(seconds.values(), default=math.inf)):
            seconds[precision], note = first, " (its first step, and the only one)"
        else:
            seconds[precision] = min(_timed(step, device) for _ in range(STEPS - 1))
            note = ""
        words.append(f"{precision} {float(f'{1000 * seconds[precision]:.3g}'):g} ms{note}")
    fastest = min(seconds, key=lambda name: seconds[name])
    found = f"a step in a short probe took {', '.join(words)}"
    return Probe(fastest, found, f"{datetime.now(timezone.utc):%Y-%m-%d}")


def _timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
