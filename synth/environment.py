"""The environment of a measurement: versions, device, threads, commit, command line."""

from __future__ import annotations

import hashlib
import os
import platform
import re
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
from synth.base.files import portable, sha256
from synth.ops.native import describe_machine
from synth.ops.parallel import processes

CODE = (":(top)*.py", ":(top)*.c")  # path patterns of git for the source code
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas")
# Where these are the same, equal arithmetic gives equal bits, for equal numbers of threads.
MACHINE = ("python", *PACKAGES, "platform", "device", "processor", "compiler", "kernels", "tiles")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Everything that can change a result. Names no host, user or folder."""
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    deterministic = torch.are_deterministic_algorithms_enabled()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name,
        "threads": torch.get_num_threads(),
        "blas_threads": blas_threads(),
        **describe_machine(),
        **({"deterministic": True} if deterministic else {}),
        **({"processes": processes()} if processes() > 1 else {}),
        "commit": git_commit(),
        "code": code_hash(),
        "command": command_line(),
    }


def make_deterministic() -> None:
    """Makes torch use deterministic algorithms in this process.

    On a GPU this costs speed, and an operation without such an algorithm raises RuntimeError. On a
    CPU nothing changes: results are the same for the same number of threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.backends.cudnn.benchmark = False  # it would choose algorithms by their speed
    # Filling new memory costs time, and only helps code that reads memory before it writes it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def blas_threads() -> int | None:
    """Threads of the linear algebra in numpy and scipy, which change its rounding. None if unknown.
    The threads of torch are counted separately."""
    counts = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(counts, default=None)


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed, with `portable` paths. A URL keeps the last part of its path, because
    the rest may name a host or a key."""
    program, *words = sys.argv if arguments is None else arguments
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if "://" in word:
            url = value if equals and "://" in value else word
            words[index] = word.removesuffix(url) + _end_of(url)
        elif equals and "/" in value:
            words[index] = f"{option}={portable(value)}"
        elif "/" in word:
            words[index] = portable(word)
    return shlex.join([Path(program).name, *words])


def _end_of(url: str) -> str:
    """The last part of a URL's path, without a query; the scheme alone if it has no path."""
    scheme, _, place = url.partition("://")
    _, slash, path = re.split("[?#]", place)[0].rstrip("/").partition("/")
    return path.rsplit("/", 1)[-1] if slash else f"{scheme}://"


@cache
def git_commit() -> str | None:
    """The commit of the running code, with `+` if there are uncommitted changes. None outside git.

    The result is cached, because a later commit is not the code that this process runs.
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


@cache
def code_hash() -> str:
    """sha256 of the source files of synth and eval, which decide all results. It also tells apart
    what `git_commit` marks with `+`, and what runs outside git. Cached for the same reason."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    files = (path for room in ("synth", "eval") for path in (root / room).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".py", ".c")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. `auto` is the GPU if there is one.

    Raises `UsageError` for any other name, or for `cuda` without a GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; use --device cpu")
    return torch.device(name)
