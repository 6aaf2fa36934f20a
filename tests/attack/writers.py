"""Eight processes at once on the same folders."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from synth.base.files import numbered_folders
from tests.attack.run import run, start, wait
from tests.attack.world import (
    CAS,
    SIZES,
    TRAIN,
    contents,
    leftovers,
    lost,
    outside,
    records,
)

WRITERS = 8
BENCHMARK = ("benchmark", "--recipes", "tiny", "--seeds", "2", *SIZES, *CAS)
GENERATE = ("generate", "--per-class", "4")
EVALUATE = ("evaluate", *CAS)
# A state to begin with, and the commands that the writers take from
ROUNDS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("data", (BENCHMARK,)),
    ("data", (TRAIN,)),
    ("data", (("study", "study.toml"),)),
    ("trained", (GENERATE,)),
    ("made", (EVALUATE,)),
    ("scored", (("leaderboard",),)),
    ("stopped", (("train", "--resume"),)),
    ("scored", (BENCHMARK, TRAIN, GENERATE, EVALUATE, ("leaderboard",), ("study", "study.toml"))),
)


def play(number: int, worlds: dict[str, Path], world: Path, seed: int) -> list[str]:
    """One round. Returns what is wrong."""
    state, commands = ROUNDS[number % len(ROUNDS)]
    random = Random(f"{seed} writers {number}")
    chosen = [random.choice(commands) for _ in range(WRITERS)]
    shutil.copytree(worlds[state], world)
    before, old = records(world), contents(world)
    processes = [start(words, world, log=str(n)) for n, words in enumerate(chosen)]
    ended = [wait(process, world, str(n)) for n, process in enumerate(processes)]
    wrong = [
        f"{words[0]}: {each}" for words, e in zip(chosen, ended, strict=True) for each in e.wrong()
    ]
    busy = state == "stopped"  # one of them goes on with the run, and the others are refused
    failed = [(w, e) for w, e in zip(chosen, ended, strict=True) if e.code]
    if len(failed) != (WRITERS - 1 if busy else 0) and not (busy and len(failed) < WRITERS):
        wrong += [f"{words[0]} ends with {e.code}: {e.err[-200:]!r}" for words, e in failed]
    wrong += [*lost(world, before), *leftovers(world), *outside(world)]
    wrong += _doubled(contents(world), old, Counter(words[0] for words in chosen))
    for root in (world / "runs", world / "datasets"):
        numbers = [folder.name[:5] for folder in numbered_folders(root)]
        wrong += [f"{root.name}/{n} is there twice" for n, c in Counter(numbers).items() if c > 1]
    wrong += _stale(world)
    shutil.rmtree(world)
    return wrong


def _doubled(
    found: Counter[tuple[Any, ...]], old: Counter[tuple[Any, ...]], asked: Counter[str]
) -> list[str]:
    """`train`, `generate` and `evaluate` make anew what is asked for. All else is there once."""
    wrong = []
    for each, count in found.items():
        kind = each[0]
        most = max(1, old[each])
        if kind == "run":
            most += asked["train"]
        elif kind == "set":
            most += asked["generate"]
        elif each[1] == "synthetic":
            most += asked["evaluate"]
        if count > most:
            wrong.append(f"has {each[:3]} {count} times")
    return wrong


def _stale(world: Path) -> list[str]:
    """A leaderboard that lacks records: writing it again changes it."""
    path = world / "results" / "leaderboard.csv"
    if not path.exists():
        return []
    text = path.read_text()
    ended = run(("leaderboard",), world)
    return [] if ended.code == 0 and path.read_text() == text else ["its leaderboard was stale"]
