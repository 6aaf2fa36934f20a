"""Where `synth train --log` sends the lines of a run's log, besides log.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from synth.base.errors import NotInstalled, UsageError
from synth.checkpoints import read_count
from synth.runs import Run

Note = Callable[[dict[str, Any]], None]  # is given each line of the log
PROJECT = "synth"  # the name under which a tracker groups runs


def ignore(line: dict[str, Any]) -> None:
    """For a run that no tracker follows."""


def check_tracker(name: str | None) -> None:
    """Raises `UsageError` for an unknown name, and `NotInstalled` if its package is missing."""
    if name is None:
        return
    if name not in TRACKERS:
        raise UsageError(f"--log {name}: choose {' or '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise NotInstalled(f"--log {name}", name, name)


@contextmanager
def tracker(name: str | None, run: Run) -> Iterator[Note]:
    """The tracker of this name, or none, in a block that trains `run`."""
    if name is None:
        yield ignore
        return
    with TRACKERS[name](run) as note:
        yield note


@contextmanager
def _tensorboard(run: Run) -> Iterator[Note]:
    """Event files in the run's own folder: `tensorboard --logdir runs` shows all runs."""
    from torch.utils.tensorboard import SummaryWriter

    # A resumed run writes what comes after its last state again, and that replaces the first lines.
    steps = read_count(run.state, "step") if run.state.exists() else 0
    purged = steps * run.config.recipe.batch + 1
    with SummaryWriter(run.folder / "tensorboard", purge_step=purged) as writer:

        def note(line: dict[str, Any]) -> None:
            for key, value in numbers_of(line).items():
                writer.add_scalar(key, value, line["images"])
            writer.flush()

        yield note


@contextmanager
def _wandb(run: Run) -> Iterator[Note]:
    """A resumed run is another one of the same group there."""
    import wandb

    name, config = run.folder.name, run.config.to_json()
    with wandb.init(project=PROJECT, name=name, group=name, config=config) as tracked:
        yield lambda line: tracked.log(numbers_of(line), step=line["images"])


@contextmanager
def _mlflow(run: Run) -> Iterator[Note]:
    import mlflow

    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=run.folder.name):
        mlflow.log_dict(run.config.to_json(), "config.json")
        yield lambda line: mlflow.log_metrics(numbers_of(line), step=line["images"])


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def numbers_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers in a line of the log, without `images`; of a list its mean."""
    found = {key: value for key, value in line.items() if value not in (None, [])}
    return {key: float(np.mean(value)) for key, value in found.items() if key != "images"}
