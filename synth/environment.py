"""What a number was measured with: versions, device, threads, commit, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info

from synth.base.errors import UsageError
from synth.base.files import portable
from synth.ops.native import native

CODE = (":(top)*.py", ":(top)*.c")  # what a commit has to name, as git's path patterns
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Everything that can change a figure, and nothing that names a host, a user or a folder."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "blas_threads": blas_threads(),
        "kernels": native() is not None,
        **({"deterministic": True} if is_deterministic() else {}),
        "commit": git_commit(),
        "command": command_line(),
    }


def make_deterministic() -> None:
    """Makes torch take the same order of operations every time, from now on in this process.

    On a GPU this costs speed, and an operation that has no such form raises RuntimeError. On a CPU
    nothing changes: with the same number of threads it repeats its bits anyhow.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for it
    torch.backends.cudnn.benchmark = False  # would choose by timing
    # Filling fresh memory would cost time, and matters to code that reads it unwritten alone.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def blas_threads() -> int | None:
    """Of numpy's and scipy's linear algebra, whose rounding depends on them; None if none is seen.
    torch's own threads are counted apart."""
    counts = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(counts, default=None)


def is_deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, with paths made `portable`."""
    words = list(sys.argv if arguments is None else arguments)
    words[0] = Path(words[0]).name
    return shlex.join([words[0], *map(_portable_word, words[1:])])


def _portable_word(word: str) -> str:
    option, equals, value = word.partition("=")
    if equals and "/" in value:
        return f"{option}={portable(value)}"
    return portable(word) if "/" in word else word


@cache
def git_commit() -> str | None:
    """The commit of the code that runs, with `+` when it has uncommitted changes.

    Looked up once: a commit made while this process runs is not what it runs.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if git("ls-files", Path(__file__).name) == "":
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises `SynthError` when `cuda` is asked in vain."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu")
    return torch.device(name)
