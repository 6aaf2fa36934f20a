"""Runs tests in forks of a process that has imported all code and collected all tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import _pytest.main
import pytest

ROOMS = ("synth", "eval", "cli", "tests", "benchmarks")
LONG = 60  # seconds that a test may take in any case
BROKEN = 99  # exit code of a fork that failed by itself
FLAGS = (
    *("-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=sys"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of what a fork has imported already
)


def collect(tree: Path, then: Callable[[pytest.Session], None]) -> None:
    """Collects the tests of a copy of the repository and calls `then` in place of running them."""

    class Plugin:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            then(session)
            return True

    os.chdir(tree)
    forget(tree)
    os.environ.update(CI="1", PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    pytest.main([*FLAGS, "tests"], plugins=[Plugin()])


def forget(tree: Path) -> None:
    """What is imported from now on comes from the tree."""
    here = Path(__file__).parents[2]
    sys.path[:] = [str(tree), *(p for p in sys.path if p and Path(p) not in (here, tree))]
    for module in [name for name in sys.modules if name.partition(".")[0] in ROOMS]:
        del sys.modules[module]


def copy(root: Path, tree: Path, commit: str) -> Path:
    """A copy of a commit."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", root, tree], check=True)
    subprocess.run(["git", "-C", tree, "checkout", "--quiet", commit], check=True)
    return tree


class Progress:
    """A plug-in that writes down which test is run, and which fails; skips the tests that do not
    fit into `cap` seconds."""

    def __init__(self, path: Path, seconds: dict[str, float], cap: float) -> None:
        self.path, self.seconds, self.cap, self.end = path, seconds, cap, 0.0

    def write(self, word: str, test: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{word}\t{test}\t{time.monotonic()}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.end = self.end or time.monotonic() + self.cap  # the collection does not count
        if time.monotonic() + self.seconds.get(item.nodeid, 0) > self.end:
            self.write("skipped", item.nodeid)
            pytest.skip("out of time")
        self.write("start", item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.write("failed", report.nodeid)


@dataclass
class Fork:
    """A process that runs tests in the tree. `seconds`: what each test takes without a mutant."""

    pid: int
    progress: Path
    seconds: dict[str, float]
    start: float = field(default_factory=time.monotonic)

    def steps(self) -> list[list[str]]:
        text = self.progress.read_text() if self.progress.exists() else ""
        return [line.split("\t") for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait(self) -> tuple[str, str]:
        """The outcome, and the test that brought it: `noticed` by a test that fails, `loops` where
        a test takes far too long; `undecided` where tests did not fit the time, and the others
        pass; else `unnoticed`."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            steps = self.steps()
            _, test, since = steps[-1] if steps else ("", "", str(self.start))
            if pid:
                code = os.waitstatus_to_exitcode(status)
                if code == BROKEN:
                    raise RuntimeError(self.progress.with_suffix(".log").read_text())
                skipped = sum(word == "skipped" for word, _, _ in steps)
                if code not in (0, 5):
                    return "noticed", test or f"no test starts (exit code {code})"
                if skipped:
                    return "undecided", f"{skipped} tests did not fit the time"
                return "unnoticed", ""
            if time.monotonic() - float(since) > LONG + 5 * self.seconds.get(test, 3.0):
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return "loops", test
            time.sleep(0.02)


def fork(
    session: pytest.Session,
    tests: Sequence[str],
    seconds: dict[str, float],
    cap: float,
    old: str = "",
    new: str = "",
    file: str = "",
) -> Fork:
    """Starts tests in a fork. Until one fails, where `new` is the mutated source of `file`."""
    tree = Path.cwd()
    progress = tree.with_suffix(".progress")
    progress.unlink(missing_ok=True)
    pid = os.fork()
    if pid:
        return Fork(pid, progress, seconds)
    code = BROKEN
    try:
        os.setsid()
        log = os.open(tree.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        watch = Progress(progress, seconds, cap)
        if new and not exchange(file, old, new):
            forget(tree)
            code = int(pytest.main([*FLAGS, "-x", *tests], plugins=[watch]))
        else:
            session.config.option.maxfail = 1 if new else 0
            session.config.pluginmanager.register(watch)
            known = {item.nodeid: item for item in session.items}
            session.items = [known[test] for test in tests]
            with suppress(session.Failed, session.Interrupted):
                _pytest.main.pytest_runtestloop(session)
            code = int(bool(session.testsfailed))
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def exchange(file: str, old: str, new: str) -> bool:
    """Gives the functions that were imported from a file the code that differs in `new`. False
    where that does not do: code that runs at the import differs."""
    before, after = (list(scopes(compile(text, file, "exec"))) for text in (old, new))
    if len(before) != len(after):
        return False
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if content(a) != content(b)]
    for a, b in pairs:
        places = (file, a.co_qualname, a.co_firstlineno)
        found = [f for f in gc.get_objects() if type(f) is FunctionType and at(f) == places]
        if not found or any(f.__code__.co_freevars != b.co_freevars for f in found):
            return False
        for function in found:
            function.__code__ = b
    return True


def at(function: FunctionType) -> tuple[str, str, int]:
    code = function.__code__
    return code.co_filename, code.co_qualname, code.co_firstlineno


def scopes(code: CodeType) -> Iterator[CodeType]:
    """A module's code, that of its classes, and that of the functions which are in no other."""
    yield code
    if not code.co_flags & CO_OPTIMIZED:
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield from scopes(each)


def content(code: CodeType) -> tuple[Any, ...]:
    """What code does, without line numbers; that of a module or class without its functions."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return (
        *(code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        [repr(each) for each in code.co_consts if not isinstance(each, CodeType)],
        [content(each) for each in inner] if code.co_flags & CO_OPTIMIZED else len(inner),
    )
