"""Contenders in processes of their own, each as its users would run it, driven in turns."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

IMAGES = 2_000  # drawn house numbers to train on


class LeftOut(Exception):
    """A contender that cannot run here, and why."""


@contextmanager
def running(stage: str, name: str) -> Iterator[Connection]:
    """A started contender: send a number of steps, receive the seconds that they took."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(stage, name, theirs))
    process.start()
    theirs.close()
    try:
        problem = ours.recv()
        if problem:
            raise LeftOut(problem)
        yield ours
    finally:
        ours.close()
        process.join()


def _serve(stage: str, name: str, connection: Connection) -> None:
    import torch

    from benchmarks.contenders import STAGES
    from synth.data.house_numbers import render

    images, labels = render("train", IMAGES)
    torch.manual_seed(0)
    loop = STAGES[stage][name][0](images, labels)
    try:
        next(loop)  # builds everything
    except (ImportError, RuntimeError) as error:  # the latter where nothing can be compiled
        return connection.send(str(error).strip().split("\n")[0])
    connection.send("")
    while True:
        try:
            steps = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        for _ in range(steps):
            next(loop)
        connection.send(time.perf_counter() - start)
