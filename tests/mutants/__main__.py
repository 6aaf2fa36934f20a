"""Changes `eval/` and the training loop at random, and counts which changes the tests notice.

Takes hours the first time: it runs the suite under coverage, then the tests of each mutant. What it
has done is kept in --work and beside --table; a call that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests.mutants import reach, run, table
from tests.mutants.sample import Mutant, draw

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--cap", type=float, default=90, help="seconds of tests for each mutant")
    parser.add_argument(
        "--again", action="store_true", help="run the survivors again, with new tests"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "build" / "MUTANTS.md")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--at", default="HEAD", help="commit whose sources and tests are taken")
    parser.add_argument("--no-measure", action="store_true", help="take the coverage that is there")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    options.table, options.work = options.table.resolve(), options.work.resolve()

    data = options.table.with_suffix(".json")
    tree = run.copy(ROOT, options.work / "tree-0", commit(options.at))
    if not options.no_measure:
        reach.measure(tree, options.work / "coverage", options.jobs)
    sample = sample_of(data, tree, options)
    options.since = sample.commits.get("before", options.at)
    numbers = [i for i, fate in enumerate(sample.fates) if not fate.before]
    if options.again:
        tried = [i for i, fate in enumerate(sample.fates) if fate.before]
        numbers = [i for i in tried if sample.fates[i].last[0] not in table.NOTICED]
    if numbers:
        sample.cap, sample.note = options.cap, ""
        sample.commits["after" if options.again else "before"] = commit(options.at)
    try:
        for number, found in meet({i: sample.fates[i].mutant for i in numbers}, options):
            fate = sample.fates[number]
            fate.before, fate.after = (fate.before, found) if options.again else (found, [])
            sample.save(data)
    finally:
        sample.save(data)
        options.table.write_text(table.to_markdown(sample), encoding="utf-8")
    print(table.to_markdown(sample).partition("\n## ")[0])


def sample_of(data: Path, tree: Path, options: argparse.Namespace) -> table.Sample:
    """The sample that is there, where it has this seed and count; else a new one."""
    if data.exists():
        sample = table.load(data)
        if (sample.seed, sample.count) == (options.seed, options.count):
            return sample
    drawn, places = draw(tree, options.count, options.seed)
    fates = [table.Fate(mutant) for mutant in drawn]
    data.parent.mkdir(parents=True, exist_ok=True)
    return table.Sample(options.seed, options.count, places, options.cap, {}, fates)


def commit(name: str) -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def meet(
    mutants: dict[int, Mutant], options: argparse.Namespace
) -> Iterator[tuple[int, list[str]]]:
    """Runs the tests of each mutant in --jobs processes. Yields its number, and the outcome with
    the test that brought it; a second time where the first outcome was worth nothing."""
    readers: list[Any] = []
    numbers = list(mutants)
    for job in range(options.jobs):
        reader, writer = Pipe(duplex=False)
        own = {number: mutants[number] for number in numbers[job :: options.jobs]}
        Process(target=work, args=(job, own, writer, options)).start()
        writer.close()
        readers.append(reader)
    while readers:
        for reader in wait(readers):
            try:
                yield reader.recv()
            except EOFError:
                readers.remove(reader)


def work(
    job: int, mutants: dict[int, Mutant], writer: Connection, options: argparse.Namespace
) -> None:
    """Meets mutants in a tree of its own. At the end, runs the tests that noticed one without any
    mutant: one that fails then says nothing, and its mutants are run again without it."""
    tree = run.copy(ROOT, options.work / f"tree-{job}", commit(options.at))
    reached = reach.read(tree, options.work / "coverage")
    new = [test for test in reached.seconds if options.again and is_new(test, options.since)]
    outcomes: dict[int, tuple[str, str]] = {}

    def then(session: pytest.Session) -> None:
        known = {item.nodeid for item in session.items}
        reached.seconds = {test: s for test, s in reached.seconds.items() if test in known}
        again = list(mutants)
        while again:
            for number in again:
                started = time.monotonic()
                mutant = mutants[number]
                recent = [
                    outcomes[n][1]
                    for n in outcomes
                    if mutants[n].path == mutant.path and outcomes[n][0] == "noticed"
                ]
                early = [*recent, *new]
                found = outcomes[number] = meet_one(session, mutant, reached, early, options.cap)
                writer.send((number, list(found)))
                took = f"{number} {time.monotonic() - started:.1f} s"
                print(took, table.key(mutant), *found, file=sys.__stdout__, flush=True)
            killers = {outcomes[n][1] for n in again if outcomes[n][0] == "noticed"} & known
            unfit = unchanged(session, sorted(killers), reached)
            told = f"{len(killers)} tests noticed mutants; without one {len(unfit)} of them fail"
            print(told, *unfit, file=sys.__stdout__, flush=True)
            for test in unfit:
                reached.seconds.pop(test, None)
            again = [number for number in again if outcomes[number][1] in unfit]

    run.collect(tree, then)


def meet_one(
    session: pytest.Session, mutant: Mutant, reached: reach.Reach, early: list[str], cap: float
) -> tuple[str, str]:
    """`early`: new tests, and tests that noticed other mutants of this file. They come first."""
    tests = sorted(reached.tests(Path.cwd(), mutant), key=lambda test: test not in early)
    if not tests:
        return "not run", ""
    path = Path.cwd() / mutant.path
    old = path.read_text(encoding="utf-8")
    try:
        new = mutant.code(old)
    except LookupError:
        return "gone", ""
    path.write_text(new, encoding="utf-8")  # for the processes that tests start
    try:
        return run.fork(session, tests, reached.seconds, cap, old, new, str(path)).wait()
    finally:
        path.write_text(old, encoding="utf-8")


def is_new(test: str, since: str) -> bool:
    """Was there no test of this name in the commit?"""
    return f"def {test.partition('::')[2].partition('[')[0]}(" not in tests_of(since)


@cache
def tests_of(name: str) -> str:
    command = ["git", "-C", str(ROOT), "grep", "-h", "def test_", name, "--", "tests"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def unchanged(session: pytest.Session, tests: list[str], reached: reach.Reach) -> set[str]:
    """Those of the tests that fail where sources differ from the commit, but mean the same."""
    sources = {Path(path): Path(path).read_text(encoding="utf-8") for path in reached.lines}
    for path, source in sources.items():
        path.write_text(source + "\n# no mutant\n", encoding="utf-8")
    fork = run.fork(session, tests, reached.seconds, cap=1e6)
    fork.wait()
    for path, source in sources.items():
        path.write_text(source, encoding="utf-8")
    return {test for word, test, _ in fork.steps() if word == "failed"}


if __name__ == "__main__":
    sys.exit(main())
