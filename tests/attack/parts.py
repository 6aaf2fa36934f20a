"""All parts of the attack, shared out among processes, and the table of what they found."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from synth.environment import git_commit
from tests.attack import forgeries, kills, mutations, writers
from tests.attack.world import prepare

Item = TypeVar("Item")
Options = argparse.Namespace


@dataclass
class Row:
    """One line of the table."""

    part: str
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    note: str = ""


def carry_out(base: Path, names: Sequence[str], options: Options) -> list[Row]:
    """The rows of these parts."""
    git_commit()  # before the forks, which share what is known
    tell("prepares the worlds")
    worlds = prepare(base)
    parts: dict[str, Callable[[], list[Row]]] = {
        "kills": lambda: _kills(base, worlds, options),
        "writers": lambda: _writers(base, worlds, options),
        "mutations": lambda: _mutations(base, worlds, options),
        "forgeries": lambda: _forgeries(base, worlds, options),
    }
    return [row for name in names for row in parts[name]()]


def _kills(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    known = kills.references(worlds, base)
    share, moments = (0.02, 1) if options.short else (1.0, 40)
    attacks = kills.plan(known, share, moments, options.seed)

    def strike(number: int) -> list[str]:
        attack = attacks[number]
        state, world = worlds[attack.target.state], base / f"kill{number}"
        return kills.strike(attack, state, world, known[attack.target.name])

    rows: dict[str, Row] = {}
    for number, wrong in share_out(range(len(attacks)), strike, base, options.jobs):
        attack = attacks[number]
        row = rows.setdefault(attack.part, Row(attack.part, note=f"{len(kills.TARGETS)} commands"))
        row.tried += 1
        row.wrong += [f"{attack.target.name}, {attack.write or attack.seconds}: {w}" for w in wrong]
    return list(rows.values())


def _writers(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    rounds = len(writers.ROUNDS) if options.short else 200
    row = Row("8 writers at once", note="rounds")

    def play(number: int) -> list[str]:
        return writers.play(number, worlds, base / f"round{number}", options.seed)

    for number, wrong in share_out(range(rounds), play, base, 1):
        row.tried += 1
        row.wrong += [f"round {number}: {each}" for each in wrong]
    return [row]


def _mutations(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    files = mutations.prepare(base, worlds)
    each = 10 if options.short else -(-10_000 // len(files))
    batch = 5 if options.short else 50
    items = [(place, at) for place in range(len(files)) for at in range(0, each, batch)]

    def attack(item: int) -> list[str]:
        place, at = items[item]
        numbers = range(at, min(at + batch, each))
        return mutations.attack(files[place], numbers, base / f"mutant{item}", options.seed)

    rows: dict[str, Row] = {}
    for item, wrong in share_out(range(len(items)), attack, base, options.jobs):
        place, at = items[item]
        row = rows.setdefault(files[place].name, Row(f"mutated {files[place].name}"))
        row.tried += min(batch, each - at)
        row.wrong += wrong
    return list(rows.values())


def _forgeries(base: Path, worlds: dict[str, Path], options: Options) -> list[Row]:
    if not forgeries.POSSIBLE:
        return [Row("forged records and manifests", note="verify has no chain of hashes yet")]
    changes = forgeries.plan(worlds["scored"], 20 if options.short else None, options.seed)

    def forge(number: int) -> list[str]:
        return forgeries.forge(changes[number], worlds["scored"], base / f"forged{number}")

    rows: dict[str, Row] = {}
    for number, wrong in share_out(range(len(changes)), forge, base, options.jobs):
        change = changes[number]
        row = rows.setdefault(change.file, Row(f"forged {change.file}", note="each field in turn"))
        row.tried += 1
        row.wrong += [f"{change}: {each}" for each in wrong]
    return list(rows.values())


def share_out(
    items: Sequence[int], work: Callable[[int], list[str]], base: Path, jobs: int
) -> Iterable[tuple[int, list[str]]]:
    """(item, what is wrong) for all items. Each of `jobs` processes takes every `jobs`-th item."""
    tell(f"{len(items)} attacks")
    files = [base / f"found{os.getpid()}-{time.monotonic_ns()}-{job}" for job in range(jobs)]
    workers = []
    for job, path in enumerate(files):
        worker = os.fork()
        if not worker:
            _work(items[job::jobs], work, path)
        workers.append(worker)
    for worker in workers:
        os.waitpid(worker, 0)
    for path in files:
        for line in path.read_text().splitlines():
            item, wrong = json.loads(line)
            yield item, wrong


def _work(items: Sequence[int], work: Callable[[int], list[str]], path: Path) -> None:
    """In a worker: writes what is wrong, line by line, and ends."""
    try:
        with path.open("w") as file:
            for done, item in enumerate(items, 1):
                try:
                    wrong = work(item)
                except Exception as error:
                    wrong = [f"the attack itself failed: {type(error).__name__}: {error}"]
                file.write(json.dumps([item, wrong]) + "\n")
                file.flush()
                for each in wrong:
                    tell(f"item {item}: {each}")
                if done % 100 == 0:
                    tell(f"{done} of {len(items)}")
    finally:
        os._exit(0)


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(rows: Sequence[Row], options: Options, seconds: float) -> str:
    """The page in Markdown."""
    lines = ["| attack | tried | wrong | |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {r.part} | {r.tried:,} | {len(r.wrong):,} | {r.note} |" for r in rows]
    form = "the short form" if options.short else "the whole attack"
    minutes = f"{seconds / 60:.0f} minutes, commit {git_commit()}, seed {options.seed}"
    found = [f"- {row.part}: {wrong}" for row in rows for wrong in row.wrong]
    return "\n".join([*lines, "", f"`make attack`, {form}: {minutes}.", "", *found])
