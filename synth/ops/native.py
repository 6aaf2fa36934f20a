"""Compiles kernels.c and tiles.c for this machine, and calls them.

The first use compiles them in about a second, into the cache folder. Only a library that this user
wrote, and nobody else can write, is loaded from there. If there is no C compiler, or the system is
not Linux, there is no library. `dispatch` then chooses torch's own operations.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synth.base.files import cache_folder, sha256
from synth.base.locks import scratch_folder

PATIENCE, COMPILING = 10.0, 60.0  # seconds for an answer of the compiler, and for its work
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
    if sys.platform != "linux" or compiler_version() is None:
        return None
    try:
        return _load_or_compile()
    except (OSError, subprocess.SubprocessError):
        return None


def compiler() -> list[str]:
    """The command of the C compiler, such as `ccache gcc`: CC, as make reads it, or `cc`."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


@cache
def compiler_version() -> str | None:
    """What the C compiler says of itself. None if there is none that answers."""
    try:
        return _run([*compiler(), "--version"], PATIENCE).decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_kernels(device: torch.device, precision: str) -> str:
    """Which kernels run in this process, in one line for people."""
    if device.type != "cpu" or precision != "bf16":
        return "kernels of torch, since those of synth are for bf16 on a CPU"
    if native() is None:
        return (
            f"kernels of torch; those of synth need a C compiler ({shlex.join(compiler())} fails)"
        )
    units = "with" if call("tiles_usable") == 1 else "without"
    return f"kernels of synth, {units} matrix units"


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
    library = native() is not None
    tiles = library and call("tiles_usable") == 1
    told = str(compiler_version()).split("\n")[0] if library else None
    return {"processor": processor(), "compiler": told, "kernels": library, "tiles": tiles}


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


def _load_or_compile() -> ctypes.CDLL:
    """The library from the cache folder, or a new one. Raises OSError or SubprocessError."""
    sources = kernel_sources()
    flags = [*FLAGS, *(f"-D{name}={value}" for name, value in SHARED.items())]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append(WIDE)
    # The key leaves out other lines about the processor, such as its clock, because they change.
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    features = [line for line in lines if line.lower().startswith(("flags", "features"))][:1]
    words = [str(compiler_version()), *flags, *features, str(processor()), torch.__file__]
    parts = [*(source.read_bytes() for source in sources), *map(str.encode, words)]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = cache_folder()
    for path in sorted(folder.glob(f"kernels-{key}-*.so")):
        try:
            return _load(path)
        except (OSError, ValueError):
            with suppress(OSError):  # where it is another user's
                path.unlink()
    command = [*compiler(), *flags, "-shared", *map(str, sources)]
    try:
        with scratch_folder(folder) as private:
            made = _compile(command, private)
            kept = folder / f"kernels-{key}-{sha256(made)}.so"
            made.replace(kept)
            return _load(kept)
    except subprocess.TimeoutExpired:
        raise
    except (OSError, subprocess.SubprocessError, ValueError):
        # A cache folder that is full, or another's, costs the time to compile in every process.
        with tempfile.TemporaryDirectory() as name:
            return _load(_compile(command, Path(name)))


def _compile(command: list[str], private: Path) -> Path:
    """The new library, in a folder that only this user can write in."""
    made = private / "kernels.so"
    # Link torch's own OpenMP if it has one. Two pools of threads would compete for cores.
    openmp = map(str, (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    _run([*command, *openmp, "-lm", "-o", str(made)], COMPILING)
    made.chmod(0o600)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    return made.rename(private / f"kernels-{sha256(made)}.so")


def _load(path: Path) -> ctypes.CDLL:
    """Loads a library that this user wrote. Nobody else can have put or changed it there.

    Raises OSError or ValueError if it is another's, or damaged: its name ends with its sha256.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(file)
        others = stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ValueError(f"{path}: is no file of this user")
        if found.st_mode & others:
            raise ValueError(f"{path}: others can write it")
        held = f"/proc/self/fd/{file}"  # what was checked, even if the name leads elsewhere now
        if not path.stem.endswith(f"-{sha256(Path(held))}"):
            raise ValueError(f"{path}: is damaged")
        return ctypes.CDLL(held)
    finally:
        os.close(file)


def _run(command: list[str], seconds: float) -> bytes:
    """What a command prints. Raises OSError or SubprocessError if it fails or takes too long. Then
    it is ended, with all that it started."""
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, stdin=null, stdout=pipe, stderr=null, start_new_session=True
    ) as process:
        try:
            output: bytes = process.communicate(timeout=seconds)[0]
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output
