"""Mutated files of every kind that synth reads, and the commands that read them.

The commands run in the process of the attack, with a limit of time and memory: a mutant takes
milliseconds. A batch of mutants has a child of its own, so that a crash costs one batch.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

import cli
from eval import benchmark
from eval.protocols import PROTOCOLS
from eval.real_classifier import real_classifier
from synth.base.errors import SynthError
from synth.base.files import read_json, sha256, write_json
from synth.data import load_training_images
from synth.published import RECIPES
from synth.recipes import stored
from synth.runs import Run
from synth.synthetic_set import read_synthetic
from tests.attack.mutators import (
    Mutate,
    damage_image,
    damage_json,
    damage_lines,
    damage_mat,
    damage_npz,
    damage_tensors,
    damage_toml,
)
from tests.attack.run import CODES, WORDS
from tests.attack.world import CAS, STUDY, leftovers

BATCH = 50
SECONDS = 60  # of one command, on a busy machine
MIB = 600  # of memory that a mutant may take in addition
OUT = ("--out", "out")
SCORE = (*CAS, "--classifier-seeds", "1", "--no-baselines", "--results", "out")
DRY = ("train", "--recipe", "tiny", "--images", "64", "--precision", "fp32", "--dry-run")
Words = tuple[str, ...]
Call = Callable[[], None]
Fingerprint = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file, with what reads it.

    world: a folder that holds it and all that the commands need. commands: they take turns.
    content: of a world after a command that ended with 0; it must be that of the whole file.
    """

    name: str
    world: Path
    file: str
    mutate: Mutate
    commands: tuple[Words | Call, ...]
    content: Fingerprint | None = None

    @property
    def note(self) -> str:
        names = [each[0] if isinstance(each, tuple) else "classifier" for each in self.commands]
        return f"read by {', '.join(dict.fromkeys(names))}"


# The worlds and the kinds


def prepare(base: Path, worlds: dict[str, Path]) -> list[Kind]:
    """Makes a small world for each kind of file."""
    scored = worlds["scored"]
    (old_run,), (old_set,) = (sorted((scored / name).glob("0*")) for name in ("runs", "datasets"))
    made: list[Kind] = []

    def world(name: str, **parts: Path) -> Path:
        folder = base / "kinds" / name / "world"
        for place in ("home", "tmp"):
            (folder / place).mkdir(parents=True)
        for place, source in {"digits": scored / "digits", **parts}.items():
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, folder / place)
        return folder

    def add(
        name: str,
        at: Path,
        file: str,
        mutate: Mutate,
        *commands: Words | Call,
        content: Fingerprint | None = None,
    ) -> None:
        made.append(Kind(name, at, file, mutate, commands, content))

    # A run that is finished, and one that lacks its last step
    run = world("run", **{"run": old_run})
    (run / "runs").mkdir()
    shutil.copytree(old_run, run / "runs" / old_run.name)
    generate = ("generate", "--run", "run", "--per-class", "1", *OUT)
    resume = ("train", "--resume", "--run", "run")
    weights = "generator.safetensors"
    stopped = world("stopped", **{"run": old_run})
    config = read_json(stopped / "run" / "config.json")
    write_json(stopped / "run" / "config.json", {**config, "images": config["images"] + 16})
    first = read_json(stopped / "run" / "environment.json")
    resumed = [{"images": 16, **first}]
    write_json(stopped / "run" / "environment.json", {**first, "resumed": resumed})
    (kept,) = (path.name for path in (run / "run" / "checkpoints").iterdir())
    of_checkpoint = (*generate, "--checkpoint", kept.removesuffix(".safetensors"))
    found = ("generate", "--per-class", "1", *OUT)
    in_runs = f"runs/{old_run.name}"
    add("run's config.json", run, "run/config.json", damage_json, generate)
    add("config.json among runs", run, f"{in_runs}/config.json", damage_json, found)
    add("run's environment.json", stopped, "run/environment.json", damage_json, resume)
    add("run's log.jsonl", run, "run/log.jsonl", damage_lines, generate)
    add("log.jsonl of a stopped run", stopped, "run/log.jsonl", damage_lines, resume)
    add("generator.safetensors", run, f"run/{weights}", damage_tensors, generate)
    add("checkpoint", run, f"run/checkpoints/{kept}", damage_tensors, of_checkpoint)
    add("state", stopped, "run/state/latest.safetensors", damage_tensors, resume)

    # Sets
    one = world("set", set=old_set)
    foreign = world("foreign", set=old_set)
    for path in (foreign / "set").iterdir():
        if path.name != "images.npz":
            path.unlink()
    evaluate = ("evaluate", "set", *SCORE)
    add("manifest.json", one, "set/manifest.json", damage_json, evaluate)
    add("images.npz", one, "set/images.npz", damage_npz, evaluate, content=_images)
    add("images.npz without manifest", foreign, "set/images.npz", damage_npz, evaluate)
    folder = world("folder", run=old_run)
    _in_process(folder, (*generate[:-2], "--format", "folder", "--out", "sets"))
    (folder / "set").mkdir()
    shutil.copytree(next((folder / "sets").glob("0*")), folder / "set", dirs_exist_ok=True)
    image = "set/train/3/000000.png"
    add("PNG of a set", folder, image, damage_image, evaluate, content=_images)

    # Results
    parts = {name: scored / name for name in ("results", "runs", "datasets")}
    results = world("results", **parts)
    _keep_two(results / "results")
    path = next((results / "results" / "records").glob("*-tiny-tiny-v1.json"))
    record, name = f"results/records/{path.name}", path.stem
    _in_process(results, ("verify", "--from", "record", record))
    check, check_all = ("verify", "--from", "record", record), ("verify", "--all")
    board, compare = ("leaderboard",), ("compare", "tiny", "real", "--protocol", "tiny-v1")
    note = f"results/verified/{path.name}"
    figure = f"results/figures/{name}-samples.png"
    add("record", results, record, damage_json, board, compare, check_all)
    add(
        "record, its chain",
        results,
        record,
        damage_json,
        check,
        content=lambda w: _json(w / record),
    )
    predictions = f"results/predictions/{name}.npz"
    add("predictions", results, predictions, damage_npz, compare, board)
    add(
        "predictions, chain",
        results,
        predictions,
        damage_npz,
        check,
        content=lambda w: sha256(w / predictions),
    )
    add("note of verify", results, note, damage_json, board)
    add("figure of a record", results, figure, damage_image, ("report",))

    # What users write
    recipe = world("recipe")
    (recipe / "r.toml").write_text(_as_toml(stored(RECIPES["tiny"])))
    dry = (*DRY[:1], "--recipe", "r.toml", *DRY[3:])
    add("recipe TOML", recipe, "r.toml", damage_toml, ("recipes", "r.toml"), dry)
    plan = world("study")
    (plan / "study.toml").write_text(STUDY)
    add("study TOML", plan, "study.toml", damage_toml, ("study", "study.toml"))
    pictures = world("pictures")
    shutil.copytree(folder / "set" / "train", pictures / "pictures" / "train")
    for each in sorted((pictures / "pictures").glob("*/*/*.png")):
        for number in range(2):
            shutil.copyfile(each, each.with_name(f"{number}.png"))
    own = (*DRY, "--dataset", "folder", "--data-root", "pictures")
    add("image of a folder", pictures, "pictures/train/3/0.png", damage_image, own)
    add(".mat", world("mat"), "digits/train_32x32.mat", damage_mat, DRY)

    # The cache
    cache = world("cache")
    with _inside(cache):
        _classify()
    (kept_path,) = cache.glob("cache/synth/classifiers/*.safetensors")
    kept_name = str(kept_path.relative_to(cache))
    add("cached classifier", cache, kept_name, damage_tensors, _classify)
    return made


def _keep_two(results: Path) -> None:
    """Leaves a record of a set and one of real images."""
    for path in (results / "records").iterdir():
        if not path.name.endswith(("-tiny-tiny-v1.json", "-real-tiny-v1.json")):
            path.unlink()


def _as_toml(value: dict[str, Any], above: str = "") -> str:
    plain = {key: each for key, each in value.items() if not isinstance(each, dict)}
    lines = [f"{key} = {json.dumps(each)}" for key, each in plain.items() if each is not None]
    for key in value.keys() - plain.keys():
        lines.append(f"\n[{above}{key}]\n{_as_toml(value[key], f'{above}{key}.')}")
    return "\n".join(lines)


def _json(path: Path) -> str:
    return json.dumps(read_json(path), sort_keys=True)


def _images(world: Path) -> tuple[bytes, bytes]:
    """What synth reads of the set, whatever type its numbers have."""
    images = read_synthetic(world / "set").images
    return images.images.numpy().tobytes(), images.require_labels().numpy().tobytes()


def _classify() -> None:
    """Reads or trains the classifier of real images. It must be the same one."""
    real, cpu = load_training_images("svhn", Path("digits")), torch.device("cpu")
    try:
        found = real_classifier(real, PROTOCOLS["tiny-v1"], cpu, "fp32")
        total = float(sum(value.double().abs().sum() for value in found.state_dict().values()))
        print(total)
    except SynthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


# One mutant


def attack(kind: Kind, numbers: range, base: Path, seed: int) -> list[str]:
    """Carries out some mutants of one kind in a child. Returns what is wrong."""
    base.mkdir()
    told = base / "told"
    process = os.fork()
    if not process:
        try:
            with told.open("w") as file:
                for number in numbers:
                    print(json.dumps(f"{kind.name} {number}"), file=file, flush=True)
                    wrong = _one(kind, base / "in", Random(f"{seed} {kind.name} {number}"))
                    wrong = [f"{number}: {each}" for each in wrong]
                    print(json.dumps(wrong), file=file, flush=True)
        finally:
            os._exit(0)
    status = _wait(process, told)
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    wrong = [each for line in lines if isinstance(line, list) for each in line]
    if len(lines) < 2 * len(numbers):
        wrong.append(f"{lines[-1]} ends the process with {os.waitstatus_to_exitcode(status)}")
    shutil.rmtree(base)
    return wrong


def _wait(process: int, told: Path) -> int:
    """Waits for a child that keeps telling; one that does not is killed."""
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        if told.exists() and time.time() - told.stat().st_mtime > 2 * SECONDS:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _one(kind: Kind, base: Path, random: Random) -> list[str]:
    world = shutil.copytree(kind.world, base / "world")
    file = world / kind.file
    whole = file.read_bytes()
    data = kind.mutate(whole, random)
    while data == whole:
        data = kind.mutate(whole, random)
    file.write_bytes(data)
    command = random.choice(kind.commands)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = _in_process(world, command)
    wrong = _judge(code, out + err)
    if "not enough memory" in err and kind.mutate is not damage_toml:  # which may ask for much
        wrong.append(f"asks for much memory: {err[-300:]!r}")
    if code == 0 and kind.content is not None and not wrong:
        try:
            if kind.content(world) != kind.content(kind.world):
                wrong.append("another content is let in")
        except (SynthError, ValueError) as error:
            wrong.append(f"another content is let in ({error})")
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    if more > MIB:
        wrong.append(f"takes {more} MiB")
    if "left out: " in err and kind.file.startswith("set/"):
        wrong.append(f"a set makes a record that cannot be read: {err[-300:]}")
    wrong += leftovers(world)
    wrong += [f"writes {path.name} outside" for path in base.iterdir() if path != world]
    others = {path.name for path in world.iterdir()} - {p.name for p in kind.world.iterdir()}
    wrong += [f"writes {name}" for name in others - {"out", "cache", "results", "runs"}]
    shutil.rmtree(base)
    return [f"{command[0] if isinstance(command, tuple) else 'classifier'}: {e}" for e in wrong]


def _judge(code: object, text: str) -> list[str]:
    wrong = [f"says {word!r}" for word in (*WORDS, "Warning:") if word in text]
    if code not in CODES:
        wrong.append(f"code {code}")
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if code in (1, 2) and len(lines) != 1:
        wrong.append(f"{len(lines)} lines of error")
    if any(len(line) > 3000 for line in lines):
        wrong.append(f"a line of error of {len(lines[0])} characters")
    return [f"{each}: {text[-400:]!r}" for each in wrong]


class Late(BaseException):
    """The time of a command is over."""


def _in_process(world: Path, command: Words | Call) -> tuple[object, str, str]:
    """Runs a command in this process: its code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with _inside(world), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if isinstance(command, tuple):
                sys.argv = ["synth", *command]
                cli.main()
            else:
                command()
        except SystemExit as stop:
            code = stop.code or 0
        except Late:
            code = "of a hang"
        except BaseException as error:
            code = f"of {type(error).__name__}: {error}"
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def _inside(world: Path) -> Iterator[None]:
    """In a world, with limits. A study trains nothing there."""

    def late(*_: object) -> None:
        raise Late

    def no_training(*_: object) -> Run:
        raise SynthError("trains nothing here")

    folder, words, train = Path.cwd(), sys.argv, benchmark.find_or_train
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    places = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "SYNTH_DATA": "digits"}
    before = {key: os.environ.get(key) for key in places}
    os.environ.update({key: str(world / place) for key, place in places.items()})
    os.chdir(world)
    benchmark.find_or_train = no_training
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 * MIB << 20), limits[1]))
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        benchmark.find_or_train, sys.argv, tempfile.tempdir = train, words, None
        os.chdir(folder)
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
