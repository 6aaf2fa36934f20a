"""kernels.c and tiles.c, compiled for the machine at hand.

Compiled once, in about a second, into the user's cache folder. Where there is no C compiler, or no
Linux, there is no library, and `layers` takes torch's operations one by one.
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

import platformdirs
import torch
from torch import Tensor

SOURCES = ("kernels.c", "tiles.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
WIDE = "-mprefer-vector-width=512"  # known on x86 alone
INTEGER, FLAG, FLOAT, POINTER = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
ARGUMENTS = {
    "norm_apply": [INTEGER] * 3 + [POINTER] * 3 + [FLOAT, POINTER],
    "norm_forward": [INTEGER] * 3 + [POINTER] * 3 + [FLOAT] * 2 + [POINTER] * 3,
    "norm_backward": [INTEGER] * 3 + [POINTER] * 3 + [FLOAT] + [POINTER] * 3,
    "activate_in_place": [INTEGER, FLOAT, POINTER],
    "activation_backward": [INTEGER] * 2 + [POINTER] * 2 + [FLOAT] + [POINTER] * 3,
    "sum_pixels": [INTEGER] * 2 + [POINTER] * 3,
    "fold": [INTEGER] * 7 + [POINTER] * 3,
    "tiles_usable": [],
    "tiles_by_channel": [INTEGER] * 3 + [POINTER] * 2,
    "tiles_by_image": [INTEGER] * 3 + [FLAG] + [POINTER] * 2,
    "tiles_of_kernel": [INTEGER] * 3 + [FLAG] + [POINTER] * 2,
    "tiles_convolve": [POINTER, FLAG] + [POINTER] * 4,
    "tiles_weight_gradient": [POINTER] * 4,
}


@cache
def native() -> ctypes.CDLL | None:
    """The compiled library, or None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if sys.platform != "linux" or compiler is None:
        return None
    try:
        path = _compiled(compiler)
        loaded = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    for name, arguments in ARGUMENTS.items():
        if hasattr(loaded, name):  # tiles are not everywhere
            getattr(loaded, name).argtypes = arguments
    return loaded


def kernel_sources() -> list[Path]:
    """The C files of the library, beside this module."""
    return [Path(__file__).with_name(name) for name in SOURCES]


def _compiled(compiler: str) -> Path:
    """The shared library for these sources, compiler, processor and torch; made if need be."""
    sources = kernel_sources()
    flags = [*FLAGS, WIDE] if platform.machine() in ("x86_64", "AMD64") else [*FLAGS]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    # The processor's features, without its clock, which changes from moment to moment.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    parts = [
        *(s.read_bytes() for s in sources),
        version,
        *map(str.encode, [*flags, *features, torch.__file__]),
    ]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = Path(platformdirs.user_cache_dir("synth")) / f"kernels-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            # torch's own OpenMP, where it has one: a second pool of threads would fight with it.
            openmp = map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
            subprocess.run(
                [compiler, *flags, "-shared", *map(str, sources), *openmp, "-lm", "-o", str(made)],
                capture_output=True,
                check=True,
                timeout=60,
            )
            made.replace(path)
    return path


def usable(x: Tensor) -> bool:
    """Does the library work on tensors like this one?"""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and native() is not None
