"""Runs tests in forks of a process that has imported everything but what is under test."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOMS = ("synth", "eval", "cli", "tests")
SPENT = 64  # exit code: the tests took too long altogether
FLAGS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--tb=line")


@dataclass
class Fork:
    """A process that runs tests in a copy of the repository. `tests` is what it was to run."""

    pid: int
    tree: Path
    seconds: dict[str, float]
    start: float = field(default_factory=time.monotonic)

    @property
    def progress(self) -> Path:
        return self.tree.parent / f"{self.tree.name}.progress"

    def poll(self) -> tuple[str, str] | None:
        """None while it runs. Then the outcome, and the test that brought it: `noticed` by a test
        that fails, `loops` where one test takes ten times as long, else `unnoticed`."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        lines = self.progress.read_text().splitlines() if self.progress.exists() else []
        last = lines[-1].split("\t") if lines else ["", "", str(self.start)]
        if not pid:
            allowed = 30 + 10 * self.seconds.get(last[1], 3.0)
            if time.monotonic() - float(last[2]) < allowed:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return "loops", last[1]
        code = os.waitstatus_to_exitcode(status)
        if code in (0, SPENT):
            return "unnoticed", "" if code == 0 else "out of time"
        return "noticed", last[1] if code == 1 else last[1] or f"no import (exit code {code})"


class Progress:
    """A plug-in that writes down which test is run, and which fails; ends the run when `cap`
    seconds are over."""

    def __init__(self, path: Path, cap: float) -> None:
        self.path, self.end = path, time.monotonic() + cap

    def write(self, word: str, test: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word}\t{test}\t{time.monotonic()}\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if time.monotonic() > self.end:
            pytest.exit("out of time", returncode=SPENT)
        self.write("start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write("failed", report.nodeid)


def fork(
    tree: Path, tests: Sequence[str], seconds: dict[str, float], *more: str, cap: float
) -> Fork:
    """Starts to run tests in a copy of the repository."""
    pid = os.fork()
    if pid:
        return Fork(pid, tree, seconds)
    os.setsid()
    os.chdir(tree)
    here = Path(__file__).parents[2]
    sys.path[:] = [str(tree), *(each for each in sys.path if each and Path(each) != here)]
    for module in [name for name in sys.modules if name.partition(".")[0] in ROOMS]:
        del sys.modules[module]
    os.environ["PYTHONPATH"] = str(tree)
    log = os.open(f"{tree}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    path = Path(f"{tree}.progress")
    path.unlink(missing_ok=True)
    code = 3
    try:
        code = int(pytest.main([*FLAGS, *more, *tests], plugins=[Progress(path, cap)]))
    finally:
        os._exit(code)


def finish(fork: Fork) -> tuple[str, str]:
    while True:
        found = fork.poll()
        if found:
            return found
        time.sleep(0.05)


def copy(root: Path, tree: Path) -> Path:
    """A copy of the last commit: what a fork works in."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", root, tree], check=True)
    return tree


def warm_up(tree: Path) -> set[str]:
    """Imports into this process all that the tests import, but for what is under test. Leaves
    compiled files in the tree. Returns the tests that there are."""
    listing = (
        "import sys, json, pytest\n"
        "class Plugin:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        names = [item.nodeid for item in session.items]\n"
        "        json.dump([names, sorted(sys.modules)], open(sys.argv[1], 'w'))\n"
        f"pytest.main({[*FLAGS, '--collect-only', 'tests']!r}, plugins=[Plugin()])\n"
    )
    found = tree.parent / "modules.json"
    command = [sys.executable, "-c", listing, str(found)]
    subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, check=True)
    tests, modules = json.loads(found.read_text())
    sys.dont_write_bytecode = True
    os.environ.update(CI="1", PYTHONDONTWRITEBYTECODE="1")
    for module in modules:
        if module.partition(".")[0] not in (*ROOMS, "__main__"):
            try:
                importlib.import_module(module)
            except Exception:
                continue  # a part that only its own package can import
    return set(tests)
