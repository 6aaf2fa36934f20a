"""Forged records and manifests: each value changed in turn, and `synth verify` must name it.

A careless forger leaves the hashes alone, and the chain of the record tells (`--from record`). A
careful one makes all hashes anew, in the record and in the manifest. Then only a repetition tells:
`--from evaluate`, `generate` or `train`, whichever can. What none of them can tell is in `OPEN`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from typing import Any

from eval.evaluator import Evaluator, Workspace
from eval.verify import verify
from synth.base.errors import SynthError
from synth.base.files import read_json, sha256, write_json, write_text
from tests.attack.run import run
from tests.attack.world import SCORE
from tests.conftest import reseal
from tests.test_forgery import Way, forged, leaves, other, remembering

BATCH = 25
RECORD, MANIFEST, CONFIG, LOG = "record", "manifest.json", "config.json", "log.jsonl"
# Manifest → record: where the same value has another name
RENAMED = {"seed": "generation_seed", "environment": "generation_environment"}

MACHINE = "The word of whoever ran it. It decides how strictly a repetition is compared."
SPEED = "A time, a rate or memory: no repetition has the same."
PLACE = "A place on the forger's machine."
BESIDE = "Told beside the figures: no table shows it, and no figure follows from it."
# What no repetition can tell once all hashes are made anew: file → pattern → reason
OPEN = {
    RECORD: {
        "environment.*": MACHINE,
        "entry.training_environment.*": MACHINE,
        "entry.generation_environment.*": MACHINE,
        "seconds": SPEED,
        "scores.*.seconds": SPEED,
        "metrics.seconds*": SPEED,
        "entry.folder": PLACE,
        "entry.run": PLACE,
    },
    MANIFEST: {
        "environment.*": MACHINE,
        "training_environment.*": MACHINE,
        "training_log.*.images_per_second": SPEED,
        "training_log.*.memory_mib": SPEED,
        **dict.fromkeys(("dataset", "source", "candidates", "commit", "command"), BESIDE),
        "run": PLACE,
    },
}
# What the chain leaves out of a run's files
OPEN[LOG] = {"*.images_per_second": SPEED, "*.memory_mib": SPEED}


@dataclass(frozen=True)
class Forgery:
    """Some values of one file, changed one after the other."""

    file: str
    careful: bool
    ways: tuple[Way, ...]

    @property
    def part(self) -> str:
        return f"forged {self.file}, {'hashes made anew' if self.careful else 'hashes left alone'}"

    @property
    def note(self) -> str:
        last = "--from evaluate, generate or train" if self.careful else "--from record"
        return f"each value in turn; named by `synth verify {last}`"


def prepare(base: Path, made: Path) -> Path:
    """A world with a record of all metrics."""
    world = shutil.copytree(made, base / "measured")
    ended = run(("evaluate", *SCORE, "--no-baselines"), world)
    assert ended.code == 0, ended
    return world


def plan(world: Path, share: float, seed: int) -> list[Forgery]:
    """A share of all values of all files, in batches."""
    planned = []
    for file, careful in (
        *((RECORD, False), (MANIFEST, False), (CONFIG, False), (LOG, False)),
        *((RECORD, True), (MANIFEST, True)),
    ):
        ways = [way for way, _ in leaves(_read(world, file)) if not careful or way[0] != "chain"]
        count = max(min(10, len(ways)), round(share * len(ways)))
        chosen = Random(f"{seed} {file} {careful}").sample(ways, count)
        for at in range(0, count, BATCH):
            planned.append(Forgery(file, careful, tuple(chosen[at : at + BATCH])))
    return planned


def forge(forgery: Forgery, original: Path, base: Path) -> tuple[list[str], list[str]]:
    """Carries them out in a child. Returns what is wrong, and what is open."""
    world = shutil.copytree(original, base)
    told = base.with_suffix(".told")
    process = os.fork()
    if not process:
        try:
            os.chdir(world)
            os.environ["SYNTH_DATA"] = str(world / "digits")
            os.environ["XDG_CACHE_HOME"] = str(world / "cache")
            with contextlib.redirect_stderr(io.StringIO()):
                told.write_text(json.dumps(_forge(forgery)))
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    shutil.rmtree(world)
    if not told.exists():
        return ["the attack itself failed"], []
    wrong, unseen = json.loads(told.read_text())
    return wrong, unseen


def _forge(forgery: Forgery) -> tuple[list[str], list[str]]:
    here, wrong, unseen = Path(), [], []
    _remember()
    depths = ("evaluate", "generate", "train") if forgery.careful else ("record",)
    honest = [each for depth in depths for each in named(here, depth)]
    assert not honest, honest
    files = [_path(here, name) for name in (RECORD, MANIFEST, CONFIG, LOG)]
    whole = {path: path.read_bytes() for path in files}
    for way in forgery.ways:
        value = _read(here, forgery.file)
        leaf = dict(leaves(value))[way]
        _write(here, forgery.file, forged(value, way, other(leaf)))
        if forgery.careful:
            _make_anew(here, forgery.file, way, other(leaf))
        if not any(named(here, depth) for depth in depths):
            name = ".".join(map(str, way))
            known = (p for p in OPEN.get(forgery.file, {}) if fnmatch(name, p))
            pattern = next(known, None)
            if pattern is None:
                wrong.append(f"{name}, from {leaf!r} to {other(leaf)!r}: is not named")
            else:
                unseen.append(f"{forgery.file}: `{pattern}`. {OPEN[forgery.file][pattern]}")
        for path, data in whole.items():
            path.write_bytes(data)
    return wrong, unseen


def named(world: Path, depth: Any) -> list[str]:
    """What `synth verify --from <depth>` has against the record."""
    workspace = Workspace(world / "digits", world / "runs", world / "datasets", world / "results")
    try:
        found = verify(_path(world, RECORD), depth, workspace)
    except SynthError as error:
        return [str(error)]
    return [f"{check.what}: {check.detail}" for check in found.checks if not check.met]


def _make_anew(world: Path, file: str, way: Way, leaf: Any) -> None:
    """All hashes. A lie of the manifest is told by the record, too, and the other way round."""
    record, manifest = _path(world, RECORD), _path(world, MANIFEST)
    value, beside = read_json(record), read_json(manifest)
    if file == MANIFEST:
        name = RENAMED.get(str(way[0]), way[0])
        if name in value["entry"]:
            value = forged(value, ("entry", name, *way[1:]), leaf)
        value["entry"]["manifest"] = sha256(manifest)
        write_json(record, value)
    elif way[0] == "entry":
        back = {new: old for old, new in RENAMED.items()}
        name = back.get(str(way[1]), way[1])
        if name in beside:
            write_json(manifest, forged(beside, (name, *way[2:]), leaf))
            value["entry"]["manifest"] = sha256(manifest)
            write_json(record, value)
    reseal(record)


# The files as nested values


def _path(world: Path, file: str) -> Path:
    if file == RECORD:
        (found,) = (world / "results" / "records").glob("*.json")
    else:
        (found,) = world.glob(f"{'datasets' if file == MANIFEST else 'runs'}/0*/{file}")
    return found


def _read(world: Path, file: str) -> dict[str, Any]:
    path = _path(world, file)
    if file == LOG:
        return {n: json.loads(line) for n, line in enumerate(path.read_text().splitlines())}
    return read_json(path)


def _write(world: Path, file: str, value: dict[str, Any]) -> None:
    if file == LOG:
        text = "".join(json.dumps(line) + "\n" for line in value.values())
        write_text(_path(world, file), text)
    else:
        write_json(_path(world, file), value)


def _remember() -> None:
    Evaluator.evaluate = remembering(Evaluator.evaluate)  # type: ignore[method-assign]
