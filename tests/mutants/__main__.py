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
from pathlib import Path

from tests.mutants import reach, run, table
from tests.mutants.sample import Mutant, draw

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--cap", type=float, default=90, help="seconds of tests for each mutant")
    parser.add_argument(
        "--again", action="store_true", help="run the survivors again, with new tests"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "build" / "MUTANTS.md")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--no-measure", action="store_true", help="take the coverage that is there")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    data = options.table.with_suffix(".json")
    if not options.no_measure:
        reach.measure(ROOT, options.work / "coverage")
    sample = sample_of(data, options)
    sample.commits["after" if options.again else "before"] = commit()
    chosen = [fate for fate in sample.fates if not fate.before]
    if options.again:
        chosen = [fate for fate in sample.fates if fate.before[0] not in table.NOTICED]
    try:
        meet(sample, chosen, data, options)
    finally:
        sample.save(data)
        options.table.write_text(table.to_markdown(sample), encoding="utf-8")
    print(table.to_markdown(sample).partition("\n## ")[0])


def sample_of(data: Path, options: argparse.Namespace) -> table.Sample:
    """The sample that is there, where it has this seed and count; else a new one."""
    if data.exists():
        sample = table.load(data)
        if (sample.seed, sample.count) == (options.seed, options.count):
            return sample
    drawn, places = draw(ROOT, options.count, options.seed)
    fates = [table.Fate(mutant) for mutant in drawn]
    data.parent.mkdir(parents=True, exist_ok=True)
    return table.Sample(options.seed, options.count, places, options.cap, {}, fates)


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def meet(
    sample: table.Sample, chosen: list[table.Fate], data: Path, options: argparse.Namespace
) -> None:
    """Runs the tests of each mutant, `--jobs` at a time, then the tests that noticed one without
    any mutant: one that fails then says nothing, and its mutants are run again without it."""
    trees = [run.copy(ROOT, options.work / f"tree{job}") for job in range(options.jobs)]
    known = set.intersection(*map(run.warm_up, trees))
    reached = reach.read(ROOT, options.work / "coverage")
    reached.seconds = {test: s for test, s in reached.seconds.items() if test in known}
    while chosen:
        meet_all(chosen, trees, reached, sample, data, options)
        killers = {fate.last[1] for fate in chosen if fate.last[0] == "noticed"} & known
        unfit = unchanged(trees[0], sorted(killers), reached)
        print(f"{len(killers)} tests noticed mutants; without one {len(unfit)} of them fail")
        for test in unfit:
            reached.seconds.pop(test, None)
        chosen = [fate for fate in chosen if fate.last[1] in unfit]


def meet_all(
    chosen: list[table.Fate],
    trees: list[Path],
    reached: reach.Reach,
    sample: table.Sample,
    data: Path,
    options: argparse.Namespace,
) -> None:
    waiting, free, busy = list(chosen), list(trees), dict[int, tuple[run.Fork, table.Fate]]()
    while waiting or busy:
        while waiting and free:
            fate = waiting.pop(0)
            tests = reached.tests(ROOT, fate.mutant)
            if tests:
                tree = free.pop()
                apply(tree, fate.mutant)
                fork = run.fork(tree, tests, reached.seconds, "-x", cap=options.cap)
                busy[fork.pid] = (fork, fate)
            else:
                note(fate, ("not run", ""), options)
        for pid, (fork, fate) in list(busy.items()):
            found = fork.poll()
            if found:
                note(fate, found, options)
                restore(fork.tree, fate.mutant)
                free.append(fork.tree)
                del busy[pid]
                sample.save(data)
                took = time.monotonic() - fork.start
                left = len(waiting) + len(busy)
                print(f"{left} {took:.1f} s {fate.key} {' '.join(found)}", flush=True)
        time.sleep(0.05)


def note(fate: table.Fate, found: tuple[str, str], options: argparse.Namespace) -> None:
    if options.again:
        fate.after = list(found)
    else:
        fate.before = list(found)


def apply(tree: Path, mutant: Mutant) -> None:
    path = tree / mutant.path
    path.write_text(mutant.code((ROOT / mutant.path).read_text(encoding="utf-8")), encoding="utf-8")


def restore(tree: Path, mutant: Mutant) -> None:
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", mutant.path], check=True)


def unchanged(tree: Path, tests: list[str], reached: reach.Reach) -> set[str]:
    """Those of the tests that fail where sources differ from the commit, but mean the same."""
    if not tests:
        return set()
    for path in reached.lines:
        with (tree / path).open("a", encoding="utf-8") as file:
            file.write("\n# no mutant\n")
    fork = run.fork(tree, tests, reached.seconds, cap=1e6)
    run.finish(fork)
    lines = [line.split("\t") for line in fork.progress.read_text().splitlines()]
    subprocess.run(["git", "-C", str(tree), "checkout", "--quiet", "."], check=True)
    return {test for word, test, _ in lines if word == "failed"}


if __name__ == "__main__":
    sys.exit(main())
