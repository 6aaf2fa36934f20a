"""The C library: kernels.c and tiles.c, compiled for this machine.

The first use compiles it, in about a second, into the user's cache folder. Without a C compiler, or
on a system other than Linux, there is no library, and `dispatch` chooses torch's own operations.
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
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
WIDE = "-mprefer-vector-width=512"  # only compilers for x86 know it

# Constants that Python and C share. The C sources get them as flags of the compiler.
MOST_CHANNELS = 1024  # of a map that is normalised or summed
MOST_LINE = 8192  # (width + 2 * padding) * channels of a map that `fold` fills
DEPTH = 32  # tiles.c takes channels, and images of a batch, by so many
SHARED = {"MOST_CHANNELS": MOST_CHANNELS, "MOST_LINE": MOST_LINE, "DEPTH": DEPTH}
C_TYPES: dict[type, Any] = {bool: ctypes.c_int, int: ctypes.c_int64, float: ctypes.c_float}


@cache
def native() -> ctypes.CDLL | None:
    """The compiled library, or None where there is none."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None


def call(function: str, *arguments: Tensor | float) -> int:
    """Calls a C function of the library. C gets a bool as int, an int as int64_t, a float as float,
    and of a tensor the address of its values. Raises RuntimeError where there is no library."""
    library = native()
    if library is None:
        raise RuntimeError(f"{function}: there is no compiled library on this machine")
    result: int = getattr(library, function)(*map(_for_c, arguments))
    return result


def _for_c(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return C_TYPES[type(value)](value)


def kernel_sources() -> list[Path]:
    """The C files of the library, beside this module."""
    return [Path(__file__).with_name(name) for name in ("kernels.c", "tiles.c")]


def _compiled(compiler: str) -> Path:
    """The shared library for these sources, flags, compiler, processor and torch."""
    sources = kernel_sources()
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in SHARED.items())]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append(WIDE)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    # The key holds the processor's features but not its clock, which changes all the time.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    words = map(str.encode, [*flags, *features, torch.__file__])
    parts = [*(source.read_bytes() for source in sources), version, *words]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = Path(platformdirs.user_cache_dir("synth")) / f"kernels-{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        # Link torch's own OpenMP where it has one: two pools of threads would compete for cores.
        openmp = map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
        command = [compiler, *flags, "-shared", *map(str, sources), *openmp, "-lm", "-o", str(made)]
        subprocess.run(command, capture_output=True, check=True, timeout=60)
        made.replace(path)
    return path
