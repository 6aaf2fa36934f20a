"""The work of a benchmark or a study, spread over processes here or over a Ray cluster.

All of them share the folders of runs, sets and results, and each has one thread. What is there is
not done again, so the command that spread the work afterwards only reads it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from synth.base.errors import SynthError, UsageError
from synth.base.progress import hide_bars, progress_bar, say
from synth.ops.acceleration import keep_freed_memory

RETRIES = 5  # of a task whose worker is lost
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Work = Callable[[], object]  # it can be pickled


@dataclass(frozen=True)
class Spread:
    """Where the work is done, besides this process."""

    jobs: int = 1  # processes on this machine
    ray: str | None = None  # address of a Ray cluster


ALONE = Spread()


def jobs_that_pay(runs: int, device: torch.device) -> int:
    """As many processes as threads, if each has a run to train. A GPU takes one process."""
    threads = torch.get_num_threads()
    return threads if device.type == "cpu" and runs >= threads else 1


def share(spread: Spread, whole: Work, tasks: Sequence[Work], device: torch.device) -> None:
    """Does the work elsewhere, if `spread` says so. whole: all of it, for processes that share it.
    tasks: its parts, for the machines of a cluster."""
    if spread.jobs > 1:
        on_processes(spread.jobs, whole)
    if spread.ray is not None:
        on_ray(spread.ray, tasks, device)


def on_processes(jobs: int, work: Work) -> None:
    """Calls `work` in several new processes at once, which must share what it does by `do_all`.

    Raises `SynthError` if one of them fails.
    """
    context = get_context("spawn")
    arguments = Path.cwd(), sys.argv, work
    workers = [context.Process(target=_process, args=arguments) for _ in range(jobs)]
    try:
        with _environment(ONE_THREAD):
            for worker in workers:
                worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        alive = [worker for worker in workers if worker.is_alive()]
        for worker in alive:
            worker.terminate()  # a training saves what it has
        for worker in alive:
            worker.join()
        raise
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise SynthError(
            f"--jobs {jobs}: {len(failed)} of the processes failed (exit code {failed[0]}); the "
            "same command goes on with what is left"
        )


def on_ray(address: str, tasks: Sequence[Work], device: torch.device) -> None:
    """Does all tasks on a Ray cluster whose machines share the current folder.

    A task whose worker is lost is done again by another one. Then a training resumes from its last
    checkpoint. Raises `UsageError` if Ray is not installed, or not there.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray: Ray is not installed; pip install 'synth-cas[ray]'") from error
    try:
        ray.init(address, runtime_env={"env_vars": ONE_THREAD})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"--ray {address}: no Ray cluster answers there ({error})") from error
    try:
        gpus = int(device.type == "cuda")
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_work)
        left = [remote.remote(Path.cwd(), sys.argv, task) for task in tasks]
        with progress_bar("on the Ray cluster", len(left), "tasks") as advance:
            while left:
                done, left = ray.wait(left)
                ray.get(done)  # raises what the task raised
                advance(len(done))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise SynthError(f"--ray {address}: {error}") from error
    finally:
        ray.shutdown()


def _process(folder: Path, arguments: list[str], work: Work) -> None:
    """A process of `on_processes`, which tells its error, and exits with its code."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal reaches the first process alone, which ends the others
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _work(folder, arguments, work)
    except KeyboardInterrupt:
        sys.exit(130)
    except SynthError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _work(folder: Path, arguments: list[str], work: Work) -> None:
    """Works in the folder, and with the command line, of the process that spread the work."""
    os.chdir(folder)
    sys.argv = arguments
    torch.set_num_threads(1)
    keep_freed_memory()
    hide_bars()
    work()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """New processes get these variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
