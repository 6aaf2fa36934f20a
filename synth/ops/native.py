"""Compiles kernels.c and tiles.c for this machine, and calls them.

The first use compiles them in about a second, into the cache folder. If there is no C compiler, or
the system is not Linux, there is no library. `dispatch` then chooses torch's own operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
# The lines of /proc/cpuinfo that name a model, on x86 and on ARM
MODEL = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")
WIDE = "-mprefer-vector-width=512"  # a flag of compilers for x86

# Constants that Python and C share. The compiler gets them as flags.
MOST_CHANNELS = 1024  # channels of a map that is normalised or summed
MOST_LINE = 8192  # (width + 2 * padding) * channels of the output of `fold`
DEPTH = 32  # tiles.c works on this many channels, or images, at once
SHARED = {"MOST_CHANNELS": MOST_CHANNELS, "MOST_LINE": MOST_LINE, "DEPTH": DEPTH}
C_TYPES: dict[type, Any] = {bool: ctypes.c_int, int: ctypes.c_int64, float: ctypes.c_float}


@cache
def native() -> ctypes.CDLL | None:
    """The compiled library, or None if there is none."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def call(function: str, *arguments: Tensor | float) -> int:
    """Calls a C function. bool becomes int, int int64_t, float float, and a tensor the address of
    its values. Raises RuntimeError if there is no library."""
    library = native()
    if library is None:
        raise RuntimeError(f"{function}: there is no compiled library on this machine")
    values = [
        ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else C_TYPES[type(v)](v)
        for v in arguments
    ]
    result: int = getattr(library, function)(*values)
    return result


def kernel_sources() -> list[Path]:
    """The C files of the library, beside this module."""
    return [Path(__file__).with_name(name) for name in ("kernels.c", "tiles.c")]


@cache
def describe_machine() -> dict[str, Any]:
    """What this process computes with: the processor, the compiler of the library (None without
    one), and whether `dispatch` can choose the library's kernels and its matrix units."""
    library, compiler = native(), None
    if library is not None:
        told = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True)
        compiler = told.stdout.decode(errors="replace").split("\n")[0]
    tiles = library is not None and call("tiles_usable") == 1
    kernels = library is not None
    return {"processor": processor(), "compiler": compiler, "kernels": kernels, "tiles": tiles}


def processor() -> str | None:
    """The model of the processor, such as `AMD EPYC, family 25, model 17, stepping 1`. None if the
    system does not tell: only Linux does in these words."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told = {key.strip(): value.strip() for key, _, value in (s.partition(":") for s in lines)}
        found = [told[key] for key in MODEL[:1] if key in told]
        found += [f"{key.split()[-1]} {told[key]}" for key in MODEL[1:] if key in told]
        return ", ".join(found) or None
    return None


def _compiled(compiler: str) -> Path:
    """The library's path. Its name depends on sources, flags, compiler, processor and torch."""
    sources = kernel_sources()
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in SHARED.items())]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append(WIDE)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    # The key leaves out other lines about the processor, such as its clock, because they change.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    words = map(str.encode, [*flags, *features, str(processor()), torch.__file__])
    parts = [*(source.read_bytes() for source in sources), version, *words]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = Path(platformdirs.user_cache_dir("synth")) / f"kernels-{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        # Link torch's own OpenMP if it has one. Two pools of threads would compete for cores.
        openmp = map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
        command = [compiler, *flags, "-shared", *map(str, sources), *openmp, "-lm", "-o", str(made)]
        subprocess.run(command, capture_output=True, check=True, timeout=60)
        made.replace(path)
    return path
