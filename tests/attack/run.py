"""One command in a child process, with a fault. And what is wrong about how it ended."""

from __future__ import annotations

import ctypes
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.world import fork

COUNT, KILL, TERM, FULL = 1, 2, 3, 4  # as in shim.c
PATIENCE = 300.0  # seconds of a command: more is a hang, even on a busy machine
MOST_MIB = 3000  # of memory: the child of a process with torch begins with about 600
CODES = (0, 1, 2, 130)
WORDS = ("Traceback", "fault in synth", "Exception ignored", "Fatal Python error")


@dataclass(frozen=True)
class Ended:
    """How a command ended. A code below 0 is that of a signal."""

    code: int
    seconds: float
    mib: int
    out: str
    err: str
    writes: int  # calls that change a file or folder, if they were counted
    room: int  # of these, the calls that need room on the disk

    def wrong(self, killed: bool = False) -> list[str]:
        """What no command may do, whatever happens to it."""
        found = [f"says {word!r}" for word in WORDS if word in self.err]
        if self.code not in CODES and not (killed and self.code in (-9, -15)):
            found.append(f"code {self.code}")
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code in (1, 2) and len(lines) != 1:
            found.append(f"{len(lines)} lines of error")
        if self.seconds > PATIENCE:
            found.append("hangs")
        if self.mib > MOST_MIB:
            found.append(f"takes {self.mib} MiB")
        return [f"{each}: {self.err[-300:]!r}" for each in found]


def shim() -> ctypes.CDLL | None:
    """The faults, in this process. None where there is no compiler to make them."""
    library = os.environ.get("LD_PRELOAD")
    return ctypes.CDLL(library) if library else None


def start(
    words: Sequence[str],
    world: Path,
    fault: tuple[int, int] = (0, 0),
    log: str = "log",
) -> int:
    """Starts a command in a world. fault: a mode of shim.c and the number of a write."""
    out, faults = world.parent / f"{world.name}-{log}", shim()

    def enter() -> None:
        os.chdir(world)
        os.environ.update(
            HOME=str(world / "home"),
            TMPDIR=str(world / "tmp"),
            XDG_CACHE_HOME=str(world / "cache"),
            SYNTH_DATA=str(world / "digits"),
        )
        tempfile.tempdir = None
        if faults:
            faults.attack_arm(*fault)

    def leave() -> None:
        if faults:
            counts = faults.attack_count(), faults.attack_room()
            faults.attack_arm(0, 0)
            out.with_suffix(".counts").write_text(f"{counts[0]} {counts[1]}")

    return fork(words, out, enter, leave)


def wait(process: int, world: Path, log: str = "log") -> Ended:
    """Waits for a command that `start` began; no longer than `PATIENCE`."""
    begin = time.monotonic()
    while True:
        found, status, usage = os.wait4(process, os.WNOHANG)
        seconds = time.monotonic() - begin
        if found:
            break
        if seconds > PATIENCE:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    out = world.parent / f"{world.name}-{log}"
    texts = [out.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")]
    counts = out.with_suffix(".counts")
    told = counts.read_text().split() if counts.exists() else []  # empty: killed as it wrote them
    writes, room = map(int, told or (0, 0))
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, seconds, usage.ru_maxrss >> 10, texts[0], texts[1], writes, room)


def run(words: Sequence[str], world: Path, fault: tuple[int, int] = (0, 0)) -> Ended:
    return wait(start(words, world, fault), world)
