"""Kills and full disks: at every write, and at random moments. Then the user's next command."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from synth.runs import all_runs
from tests.attack.run import COUNT, FULL, KILL, TERM, Ended, run, start, wait
from tests.attack.world import TARGETS, Target, compare, contents, lost, records, words_in

NAMES = {KILL: "SIGKILL", TERM: "SIGTERM", FULL: "full disk"}
EVERY = {KILL: 1, TERM: 4, FULL: 1}  # takes every write, or every fourth
LONG_ONES, LONG = ("benchmark", "study", "evaluate"), 10  # of their writes it takes a tenth
MOMENTS = 10  # random ones, in each command
PARTS = [f"{name} at a write" for name in NAMES.values()]
PARTS += [f"{NAMES[mode]} at a random moment" for mode in (KILL, TERM)]


@dataclass(frozen=True)
class Attack:
    """One fault in one command: at its n-th write, or after some seconds."""

    target: Target
    mode: int
    write: int = 0
    seconds: float = 0.0

    @property
    def part(self) -> str:
        when = "a random moment" if self.seconds else "a write"
        return f"{NAMES[self.mode]} at {when}"


@dataclass(frozen=True)
class Reference:
    """The command without a fault."""

    ended: Ended
    contents: Counter[tuple[Any, ...]]


def references(worlds: dict[str, Path], base: Path) -> dict[str, Reference]:
    """Target → what it gives in peace."""
    found = {}
    for number, target in enumerate(TARGETS):
        world = shutil.copytree(worlds[target.state], base / f"reference{number}")
        ended = run(words_in(world, target.words), world, (COUNT, 0))
        assert ended.code == 0, (target.name, ended)
        found[target.name] = Reference(ended, contents(world))
    return found


def plan(known: dict[str, Reference], share: float, seed: int) -> list[Attack]:
    """A share of the whole attack. The whole takes every write of most commands, by each fault."""
    attacks = []
    for target in TARGETS:
        random, ended = Random(f"{seed} {target.name}"), known[target.name].ended
        for mode, every in EVERY.items():
            last = ended.room if mode == FULL else ended.writes
            writes = range(1, last + 1, every * (LONG if target.name in LONG_ONES else 1))
            count = int(share * len(writes) + random.random())  # so that small shares add up
            chosen = random.sample(writes, min(count, len(writes)))
            attacks += [Attack(target, mode, write) for write in chosen]
        for mode in (KILL, TERM):
            for _ in range(int(share * MOMENTS + random.random())):
                attacks.append(Attack(target, mode, 0, random.uniform(0.001, ended.seconds)))
    return attacks


def strike(attack: Attack, state: Path, world: Path, known: Reference) -> list[str]:
    """Carries out one attack in a new world. Returns what is wrong."""
    shutil.copytree(state, world)
    before = records(world)
    wrong = list(_hit(attack, world))
    wrong += lost(world, before)
    runs = all_runs(world / "runs") if (world / "runs").exists() else []
    unfinished = [made for made in runs if not made.finished()]
    again = words_in(world, attack.target.words)
    if again[0] == "train" and unfinished:
        again = ["train", "--resume"]
    ended = run(again, world)
    wrong += ended.wrong()
    nothing_left = "--resume" in again and not unfinished and "holds no unfinished run" in ended.err
    if ended.code and not nothing_left:
        wrong.append(f"the next command ends with {ended.code}: {ended.err[-300:]!r}")
    wrong += compare(world, known.contents, attack.target.once)
    shutil.rmtree(world)
    return wrong


def _hit(attack: Attack, world: Path) -> Iterator[str]:
    words = words_in(world, attack.target.words)
    if attack.seconds:
        process = start(words, world)
        time.sleep(attack.seconds)
        number = signal.SIGKILL if attack.mode == KILL else signal.SIGTERM
        os.kill(process, number)
        ended = wait(process, world)
        yield from ended.wrong(killed=True)
        return
    ended = run(words, world, (attack.mode, attack.write))
    yield from ended.wrong(killed=attack.mode != FULL)
    if attack.mode == KILL and ended.code not in (-9, 0):  # 0: it wrote less than before
        yield f"was not killed, but ended with {ended.code}"
    if attack.mode == FULL and ended.code not in (0, 1):
        yield f"a full disk ends it with {ended.code}"
