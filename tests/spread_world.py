"""A plug-in for the processes that `eval.spread` starts: a tiny protocol, and slow trainings.

SYNTH_TEST_JOURNAL: a file that gets a line with the process of each training step.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from eval.protocols import Protocol
from synth.gan import GANTrainer

PROTOCOL = Protocol("spread-v1", "disk", steps=3, batch=32, seeds=2)
ENTRY_POINT = "[eval.protocols]\nspread-v1 = tests.spread_world:PROTOCOL\n"
PAUSE = 0.02  # seconds that each training step takes longer

step = GANTrainer.step


def slow(self: GANTrainer) -> None:
    time.sleep(PAUSE)
    with Path(os.environ["SYNTH_TEST_JOURNAL"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    step(self)


if "SYNTH_TEST_JOURNAL" in os.environ:
    GANTrainer.step = slow  # type: ignore[method-assign]
