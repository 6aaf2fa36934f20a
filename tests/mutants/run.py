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
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOMS = ("synth", "eval", "cli", "tests", "benchmarks")
FLAGS = (
    *("-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of what a fork has imported already
)


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
        that fails, `loops` where a test takes far too long, else `unnoticed`."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        lines = self.progress.read_text().splitlines() if self.progress.exists() else []
        last = lines[-1].split("\t") if lines else ["", "", str(self.start)]
        if not pid:
            allowed = 30 + 5 * self.seconds.get(last[1], 3.0)
            if time.monotonic() - float(last[2]) < allowed:
                return None
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return "loops", last[1]
        code = os.waitstatus_to_exitcode(status)
        if code in (0, 5):
            skipped = sum(line.startswith("skipped") for line in lines)
            return "unnoticed", f"{skipped} tests did not fit the time" if skipped else ""
        return "noticed", last[1] if code == 1 else last[1] or f"no import (exit code {code})"


class Progress:
    """A plug-in that writes down which test is run, and which fails; skips the tests that do not
    fit into `cap` seconds."""

    def __init__(self, path: Path, seconds: dict[str, float], cap: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + cap

    def write(self, word: str, test: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word}\t{test}\t{time.monotonic()}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() + self.seconds.get(item.nodeid, 0) > self.end:
            self.write("skipped", item.nodeid)
            pytest.skip("out of time")
        self.write("start", item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write("failed", report.nodeid)


def fork(
    tree: Path, tests: Sequence[str], seconds: dict[str, float], *more: str, cap: float
) -> Fork:
    """Starts to run tests in a copy of the repository."""
    path = Path(f"{tree}.progress")
    path.unlink(missing_ok=True)
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
    code = 3
    try:
        code = int(pytest.main([*FLAGS, *more, *tests], plugins=[Progress(path, seconds, cap)]))
    except BaseException:
        traceback.print_exc()
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
        "import json, pathlib, sys, pytest\n"
        "class Plugin:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        names = [item.nodeid for item in session.items]\n"
        "        text = json.dumps([names, sorted(sys.modules)])\n"
        "        pathlib.Path(sys.argv[1]).write_text(text)\n"
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
