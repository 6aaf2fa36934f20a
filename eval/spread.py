"""The work of a benchmark or a study, spread over processes here or over a Ray cluster.

Each has one thread. All of them share the folders of runs, sets and results, or their work is
brought there from a storage. What is there is not done again, so the command that spread the work
afterwards only reads it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from eval import storage
from eval.evaluator import Workspace
from synth.base.errors import SynthError, UsageError
from synth.base.progress import hide_bars, progress_bar, say
from synth.environment import command_line
from synth.ops.acceleration import keep_freed_memory

RETRIES = 5  # of a task whose worker is lost
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Work = Callable[[], object]  # it can be pickled


@dataclass(frozen=True)
class Spread:
    """Where the work is done, besides this process."""

    jobs: int = 1  # processes on this machine
    ray: str | None = None  # address of a Ray cluster
    storage: str | None = None  # URL for fsspec, if its machines share no folder


ALONE = Spread()


def jobs_that_pay(runs: int, device: torch.device) -> int:
    """As many processes as threads, if each has a run to train. A GPU takes one process."""
    threads = torch.get_num_threads()
    return threads if device.type == "cpu" and runs >= threads else 1


def share(
    spread: Spread,
    whole: Work,
    parts: Sequence[storage.Part],
    workspace: Workspace,
    device: torch.device,
    begun: Callable[[], Sequence[bool]],
) -> None:
    """Does the work elsewhere, if `spread` says so.

    whole: all of it, for processes that share it. parts: its tasks, for the machines of a cluster;
    each takes the workspace. begun: which of them have something in the workspace. Where no folder
    is shared, these are left to this process.
    """
    if spread.jobs > 1:
        on_processes(spread.jobs, whole)
    if spread.ray is None:
        return
    if spread.storage is None:
        here = Path.cwd(), sys.argv
        on_ray(spread.ray, [partial(_work, *here, partial(p, workspace)) for p in parts], device)
    else:
        tasks, fetch = tasks_away(spread.storage, parts, workspace, begun)
        on_ray(spread.ray, tasks, device, fetch)


def tasks_away(
    url: str,
    parts: Sequence[storage.Part],
    workspace: Workspace,
    begun: Callable[[], Sequence[bool]],
) -> tuple[list[Work], Callable[[str], object]]:
    """Tasks for machines that share no folder, and what to do with the result of each.

    First it takes what tasks have left that an earlier command did not wait for. See `share`.
    """
    workspace = storage.here_alone(workspace)
    for part in parts:
        storage.fetch(url, storage.name_of(part, workspace), workspace)
    left = [part for part, there in zip(parts, begun(), strict=True) if not there]
    numbers = storage.numbers_after(workspace, len(left))
    here = Path.cwd(), shlex.split(command_line())
    tasks: list[Work] = [
        partial(_work_away, url, *here, part, workspace, of_task)
        for part, of_task in zip(left, numbers, strict=True)
    ]

    def fetch(task: str) -> None:
        if not storage.fetch(url, task, workspace):
            raise SynthError(
                f"--storage {storage.shown(url)}: the results of a task are not there; do all "
                "machines reach it? The same command goes on with what is left"
            )

    return tasks, fetch


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


def on_ray(
    address: str,
    tasks: Sequence[Work],
    device: torch.device,
    done: Callable[[Any], object] = lambda _: None,
) -> None:
    """Does all tasks on a Ray cluster. done: is given the result of each.

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
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_call)
        left = [remote.remote(task) for task in tasks]
        with progress_bar("on the Ray cluster", len(left), "tasks") as advance:
            while left:
                (ready,), left = ray.wait(left)
                done(ray.get(ready))  # raises what the task raised
                advance(1)
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


def _call(task: Work) -> object:
    return task()


def _work_away(
    url: str,
    was: Path,
    arguments: list[str],
    part: storage.Part,
    workspace: Workspace,
    numbers: dict[Path, int],
) -> str:
    """Does a task on a machine that shares no folder. Returns its name in the storage."""
    task, before = storage.name_of(part, workspace), Path.cwd()
    with storage.away(url, task, was, workspace, numbers) as (folder, alone):
        try:
            _work(folder, arguments, partial(part, alone))
        finally:
            os.chdir(before)  # the folder will be gone
    return task


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
