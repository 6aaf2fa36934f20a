"""All parts of the attack, shared out among processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from synth.environment import code_hash, git_commit
from tests.attack import forgeries, kills, mutations, writers
from tests.attack.run import shim
from tests.attack.table import Row
from tests.attack.world import prepare

Options = argparse.Namespace
WRITERS = 200  # rounds
MUTANTS = 10_000
OPEN = "open: "
NO_SHIM = "**skipped**: there is no C compiler for the faults"


def carry_out(base: Path, options: Options) -> Iterator[tuple[str, list[Row]]]:
    """The parts that are asked for, one after the other: name and rows."""
    git_commit(), code_hash()  # before the forks, which share what is known
    tell("prepares the worlds")
    worlds = prepare(base)
    parts: dict[str, Callable[[Path, dict[str, Path], Options], list[Row]]] = {
        "kills": _kills,
        "writers": _writers,
        "mutations": _mutations,
        "forgeries": _forgeries,
    }
    for name in options.parts.split(","):
        yield name, parts[name](base, worlds, options)


def _kills(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    known = kills.references(worlds, base)
    attacks = kills.plan(known, options.share, options.seed)

    def strike(number: int) -> list[str]:
        attack = attacks[number]
        state, world = worlds[attack.target.state], base / f"kill{number}"
        return kills.strike(attack, state, world, known[attack.target.name])

    note = f"in each of {len(kills.TARGETS)} commands, then the same command again"
    rows = {
        part: Row(part, note if shim() or "random" in part else NO_SHIM) for part in kills.PARTS
    }
    for number, wrong in share_out(len(attacks), strike, base, options.jobs):
        attack = attacks[number]
        rows[attack.part].add(f"{attack.target.name} at {attack.write or attack.seconds}", wrong)
    return list(rows.values())


def _writers(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    rounds = max(len(writers.ROUNDS) // 2, round(options.share * WRITERS))
    row = Row("rounds of 8 writers at once", f"of {len(writers.ROUNDS)} kinds in turns")

    def play(number: int) -> list[str]:
        return writers.play(number, worlds, base / f"round{number}", options.seed)

    for number, wrong in share_out(rounds, play, base, 1):  # each is eight processes
        row.add(f"round {number}", wrong)
    return [row]


def _mutations(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    kinds = mutations.prepare(base, worlds)
    each = max(1, round(options.share * MUTANTS / len(kinds)))
    items = [(kind, at) for kind in kinds for at in range(0, each, mutations.BATCH)]

    def attack(number: int) -> list[str]:
        kind, at = items[number]
        numbers = range(at, min(at + mutations.BATCH, each))
        return mutations.attack(kind, numbers, base / f"mutants{number}", options.seed)

    rows = {kind.name: Row(f"mutated {kind.name}", kind.note) for kind in kinds}
    for number, wrong in share_out(len(items), attack, base, options.jobs):
        kind, at = items[number]
        rows[kind.name].add("mutant", wrong, min(mutations.BATCH, each - at))
    return list(rows.values())


def _forgeries(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    world = forgeries.prepare(base, worlds["made"])
    plans = forgeries.plan(world, options.share, options.seed)

    def forge(number: int) -> list[str]:
        wrong, unseen = forgeries.forge(plans[number], world, base / f"forged{number}")
        return [*wrong, *(OPEN + each for each in unseen)]

    rows: dict[str, Row] = {}
    for number, found in share_out(len(plans), forge, base, options.jobs):
        plan = plans[number]
        row = rows.setdefault(plan.part, Row(plan.part, plan.note))
        row.add("", [each for each in found if not each.startswith(OPEN)], len(plan.ways))
        row.open += [each.removeprefix(OPEN) for each in found if each.startswith(OPEN)]
    return list(rows.values())


def share_out(
    count: int, work: Callable[[int], list[str]], base: Path, jobs: int
) -> Iterator[tuple[int, list[str]]]:
    """(number, what is wrong) for the numbers below `count`, shared among `jobs` processes."""
    files = [base / f"found{time.monotonic_ns()}-{job}" for job in range(jobs)]
    workers = []
    for job, path in enumerate(files):
        worker = os.fork()
        if not worker:
            _work(range(job, count, jobs), count, work, path)
        workers.append(worker)
    try:
        for worker in workers:
            os.waitpid(worker, 0)
    except KeyboardInterrupt:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        raise
    found = dict(json.loads(line) for path in files for line in path.read_text().splitlines())
    for number in range(count):
        yield number, found.get(number, ["the attack itself was killed"])


def _work(numbers: Sequence[int], count: int, work: Callable[[int], list[str]], path: Path) -> None:
    """In a worker: writes what is wrong, line by line, and ends."""
    try:
        with path.open("w") as file:
            for number in numbers:
                try:
                    wrong = work(number)
                except Exception as error:
                    wrong = [f"the attack itself failed: {type(error).__name__}: {error}"]
                file.write(json.dumps([number, wrong]) + "\n")
                file.flush()
                for each in wrong:
                    if not each.startswith(OPEN):
                        tell(f"{number} of {count}: {each}")
                if number % 100 == 0:
                    tell(f"{number} of {count}")
    finally:
        os._exit(0)


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
