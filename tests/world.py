"""The command line with tiny recipes and protocols: `python -m tests.world WORDS`.

For tests with several processes. SYNTH_TEST_PAUSE: seconds that each training step takes longer.
SYNTH_TEST_JOURNAL: a file that gets a line of each training, `<process> <run folder>`.
SYNTH_TEST_COMMANDS: instead of WORDS, a JSON list of commands to run at once, each a list of words.
SYNTH_TEST_TORCHRUN: the commands are the processes that torchrun would start.
It then prints their processes and exit codes. They write to `0.out`, `0.err`, `1.out` and so on.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import cli
from eval import benchmark, selection, study
from eval.protocols import PROTOCOLS, Protocol
from eval.training import train
from synth.data import ImageSet
from synth.gan import GANTrainer
from synth.published import RECIPES
from synth.runs import Run
from synth.training import Saved
from tests.conftest import tiny


def build() -> None:
    """Puts tiny recipes and protocols into the tables of this process."""
    for name, conditional in (("tiny", True), ("tiny-uncond", False)):
        RECIPES.entries[name] = tiny(name, conditional)
    for name, data in (("tiny-v1", "disk"), ("tiny-stream-v1", "stream")):
        PROTOCOLS.entries[name] = Protocol(name, data, steps=3, batch=32, seeds=2)  # type: ignore[arg-type]
    selection.SELECTION = Protocol("tiny-select", "stream", steps=3, batch=32, seeds=1)


def slow_down(pause: float) -> None:
    step = GANTrainer.step

    def slow(self: GANTrainer) -> None:
        time.sleep(pause)
        step(self)

    GANTrainer.step = slow  # type: ignore[method-assign]


def keep_journal(path: Path) -> None:
    def told(run: Run, images: ImageSet, device: torch.device, saved: Saved | None) -> None:
        with path.open("a") as file:
            file.write(f"{os.getpid()} {run.folder}\n")
        train(run, images, device, saved=saved)

    benchmark.train = told
    assert study.ensure_scored is benchmark.ensure_scored  # so that it keeps the journal too


def as_torchrun(rank: int, count: int, port: int) -> None:
    """Sets the environment that torchrun gives to a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def fork(
    words: Sequence[str],
    out: Path,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> int:
    """Runs a command in a child that has all of torch in its memory already. Returns its process.

    Writes what it prints to `<out>.out` and `<out>.err`. before, after: are called in the child.
    torch must not have used threads before.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for stream, number in (("out", 1), ("err", 2)):
            file = os.open(out.with_suffix(f".{stream}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.argv = ["synth", *words]
        before()
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        after()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that it spawns
    build()
if __name__ == "__main__":
    slow_down(float(os.environ.pop("SYNTH_TEST_PAUSE", "0")))
    journal = os.environ.pop("SYNTH_TEST_JOURNAL", None)
    if journal:
        keep_journal(Path(journal))
    commands = os.environ.pop("SYNTH_TEST_COMMANDS", None)
    if commands is None:
        cli.main()
    else:
        several, port = json.loads(commands), free_port()
        torchrun = os.environ.pop("SYNTH_TEST_TORCHRUN", None)
        children = [
            fork(words, Path(str(n)), partial(as_torchrun, n, len(several), port))
            if torchrun
            else fork(words, Path(str(n)))
            for n, words in enumerate(several)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps([children, codes]))
