"""The run folder: its files, and how to find and read it.

config.json            everything needed to repeat the run
environment.json       versions, device, commit, command line: of the start, and in the list
                       `resumed` of each time that the run was resumed
log.jsonl              one line per tick
generator.safetensors  the weights to sample from, with the configuration as metadata
checkpoints/0000512k.safetensors  the weights at the last ticks, or at all if the run selects one
state/latest.safetensors  everything needed to resume the run
samples/0000512k.png   images of the same latents at every tick, one row per class
losses.png             the losses over the run
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from synth.base.errors import SynthError, UsageError
from synth.base.files import (
    atomic_file,
    numbered_folders,
    read_json,
    read_text,
    sha256,
    slug,
    write_json,
    write_numbered_folder,
    write_text,
)
from synth.base.locks import clear_leftovers
from synth.base.names import FileName, Line, Name
from synth.base.progress import say
from synth.base.schema import CLOSED, Count, Whole, dump, on_disk, parse
from synth.checkpoints import load_tensors, read_count
from synth.families import FAMILIES, Family, Sampler
from synth.provenance import Environment, LogLine
from synth.recipes import RecipeBase, stored

DEFAULT_FAMILY = "gan"
KEPT = 4  # checkpoints of a run that does not select one
WEIGHTS, CHECKPOINTS = "generator.safetensors", "[0-9]*k.safetensors"


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RunConfig:
    """Everything needed to repeat a run."""

    recipe: RecipeBase
    dataset: Name  # name of the images, such as svhn-part
    dataset_key: Annotated[Name, on_disk("source")]  # name in the registry, such as svhn
    fingerprint: Line  # of the training split
    training_size: Whole
    classes: Annotated[tuple[FileName, ...], Field(min_length=1)]
    total_images: Annotated[Count, on_disk("images")]  # length, in real images shown
    images_per_tick: Annotated[Count, on_disk("tick")]  # real images between two checkpoints
    seed: Whole
    precision: str  # one of the family's
    select: Name | None = None  # protocol that scores the checkpoints, if any
    teacher: Name | None = None  # protocol of the classifier that guides the training, if any
    schema: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`.

        Weight files hold it too, and those of equal runs must be equal. So keys that newer versions
        added are left out if they have their defaults: `select` and `teacher` None, `family` "gan",
        and those of the recipe (see `stored`).
        """
        value = {**dump(self), "recipe": stored(self.recipe)}
        for key in ("select", "teacher"):
            if value[key] is None:
                del value[key]
        family = self.recipe.family
        return value if family == DEFAULT_FAMILY else {**value, "family": family}

    @staticmethod
    def from_json(value: dict[str, Any], path: Path | str) -> RunConfig:
        """The inverse of `to_json`. Raises `SynthError` that names `path` and the wrong value."""
        what = f"{path}: is damaged or from another version"
        rest = parse(dict[str, Any], value, what)
        family = FAMILIES.find(parse(str, rest.pop("family", DEFAULT_FAMILY), f"{what}, family"))
        recipe = parse(family.recipe, rest.get("recipe"), f"{what}, recipe")
        config = parse(RunConfig, {**rest, "recipe": recipe}, what)
        if config.precision not in family.precisions:
            raise SynthError(f"{what}: precision is {config.precision!r:.50}")
        return config

    @property
    def family(self) -> Family:
        return FAMILIES.find(self.recipe.family)

    @property
    def slug(self) -> str:
        kind = "cond" if self.recipe.conditional else "uncond"
        return f"{slug(self.dataset)}-{slug(self.recipe.name)}-{kind}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder. `create` makes a new one, and `open_run` finds an old one."""

    folder: Path
    config: RunConfig

    @staticmethod
    def create(root: Path, config: RunConfig, environment: dict[str, Any]) -> Run:
        def fill(folder: Path) -> None:
            write_json(folder / "environment.json", environment)
            write_json(folder / "config.json", config.to_json())

        return Run(write_numbered_folder(root, config.slug, fill), config)

    def note_start(self, images: int, environment: dict[str, Any]) -> None:
        """Notes that training goes on from here, `images` shown, in this environment.

        What ran before from the same images on, or later ones, left nothing: it is dropped.
        """
        if images:
            first = self.read_environment()
            kept = [each for each in first.get("resumed", []) if each["images"] < images]
            environment = {**first, "resumed": [*kept, {"images": images, **environment}]}
        write_json(self.folder / "environment.json", environment)

    def read_environment(self) -> dict[str, Any]:
        """Raises `SynthError` if it is missing or damaged."""
        path = self.folder / "environment.json"
        found: dict[str, Any] = parse(Environment, read_json(path), f"{path}: is damaged")
        return found

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def state(self) -> Path:
        return self.folder / "state" / "latest.safetensors"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    def keep_checkpoint(self, images: int) -> Path:
        """Copies the last weights into `checkpoints`. Returns the path of the copy.

        A run that does not select its checkpoint keeps the last `KEPT`.
        """
        kept = self.folder / "checkpoints" / f"{checkpoint_name(images)}.safetensors"
        with atomic_file(kept) as temporary:
            shutil.copyfile(self.weights, temporary)
        if self.config.select is None:
            for path in list(self.checkpoints().values())[:-KEPT]:
                path.unlink()
        return kept

    def checkpoints(self) -> dict[str, Path]:
        """Name → weights, oldest first."""
        paths = sorted((self.folder / "checkpoints").glob(CHECKPOINTS))
        return {path.stem: path for path in paths}

    def validation_scores(self) -> dict[str, float]:
        """Checkpoint name → accuracy on the validation part in [0, 1], oldest first.

        If two ticks have the same name, the later one counts: its weights replaced the others.
        """
        return {
            checkpoint_name(line["images"]): line["validation_accuracy"]
            for line in self.read_log()
            if isinstance(line.get("validation_accuracy"), int | float)
        }

    def best_checkpoint(self) -> str:
        """The checkpoint with the highest validation accuracy, the later one on a tie."""
        scores = self.validation_scores()
        if not scores:
            mend = "finish it with: synth train --resume" if self.config.select else "use last"
            raise UsageError(
                f"--checkpoint best: no checkpoint of {self.folder} has a validation score; {mend}"
            )
        return max(scores, key=lambda name: (scores[name], name))

    def find_checkpoint(self, name: str | None = None) -> Path:
        """The weights of a checkpoint: last, best, or a name in `checkpoints`. By default it is
        `default_checkpoint`. Raises `UsageError` if there is no such checkpoint."""
        name = name or self.default_checkpoint
        if name == "last":
            return self.weights
        wanted = self.best_checkpoint() if name == "best" else name
        found = self.checkpoints()
        if wanted not in found:
            there = ["last", *(["best"] if self.validation_scores() else []), *found]
            raise UsageError(f"--checkpoint {wanted}: {self.folder} has {', '.join(there)}")
        return found[wanted]

    def mixture(self, name: str | None, mix: int) -> list[Path]:
        """The weights of the last `mix` checkpoints. mix 1 gives those of `find_checkpoint(name)`.

        Raises `UsageError` if the run has fewer, or if `name` is another one than the last.
        """
        if mix == 1:
            return [self.find_checkpoint(name)]
        if (name or self.default_checkpoint) != "last":
            raise UsageError(f"--mix {mix}: takes the last checkpoints; leave out --checkpoint")
        paths = list(self.checkpoints().values())
        if len(paths) < mix:
            raise UsageError(f"--mix {mix}: {self.folder} has {len(paths)} checkpoints")
        return paths[-mix:]

    @property
    def default_checkpoint(self) -> str:
        return "best" if self.config.select else "last"

    def images_shown(self, weights: Path | None = None) -> int:
        """Real images shown up to these weights, by default the last."""
        return read_count(weights or self.weights, "images")

    def finished(self) -> bool:
        """True if training is complete. The state file is written last, so it marks completion."""
        if not self.state.exists():
            return False
        return read_count(self.state, "step") * self.config.recipe.batch >= self.config.total_images

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, oldest first. Skips a line that was cut off by a kill, and damaged
        lines with a message."""
        try:
            text = read_text(self.log, errors="replace")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise SynthError(f"{self.log}: cannot be read ({error})") from error
        lines = []
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                lines.append(parse(LogLine, json.loads(line), ""))
            except (ValueError, RecursionError, SynthError):
                if line.endswith("}"):
                    say(f"skipped: {self.log}: line {number} is damaged")
        return lines

    def rewind_log(self, images: int) -> None:
        """Drops the lines after `images`, because a resumed run writes them again."""
        kept = [line for line in self.read_log() if line["images"] <= images]
        write_text(self.log, "".join(json.dumps(line) + "\n" for line in kept))

    def append_log(self, line: dict[str, Any]) -> None:
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SynthError(f"{self.log}: cannot be written ({error.strerror})") from error


def checkpoint_name(images: int) -> str:
    """The name of a point of a run in files, such as `0000512k`. Names sort by time."""
    return f"{round(images / 1000):07d}k"


def weights_of_hash(folder: Path, digest: str | None) -> Path | None:
    """The weights in a run folder with this sha256. None if they are missing or have changed."""
    for path in (folder / WEIGHTS, *sorted((folder / "checkpoints").glob(CHECKPOINTS))):
        if path.is_file() and sha256(path) == digest:
            return path
    return None


def open_run(folder: Path) -> Run:
    """The run in `folder`. Raises `SynthError` if there is none, or if it is damaged."""
    path = folder / "config.json"
    if not path.exists():
        raise SynthError(
            f"{folder}: is no run folder (it has no config.json); make one with: synth train"
        )
    return Run(folder, RunConfig.from_json(read_json(path), path))


def all_runs(root: Path) -> list[Run]:
    """The runs in `root`, oldest first. Skips damaged runs with a message."""
    runs = []
    for path in (folder / "config.json" for folder in numbered_folders(root)):
        try:
            if path.exists():
                runs.append(open_run(path.parent))
        except SynthError as error:
            say(f"skipped: {error}")
    return runs


def runs_in_state(root: Path, finished: bool) -> Iterator[Run]:
    """The finished (or unfinished) runs in `root`, newest first. Skips damaged runs with a
    message."""
    for run in reversed(all_runs(root)):
        try:
            if run.finished() == finished:
                yield run
        except SynthError as error:
            say(f"skipped: {error}")


def newest_run(root: Path, finished: bool) -> Run:
    """The newest finished (or unfinished) run. Raises `SynthError` if there is none.

    Clears what ended processes left in the runs there.
    """
    clear_leftovers(root, depth=2)
    found = next(runs_in_state(root, finished), None)
    if found is not None:
        return found
    kind = "finished" if finished else "unfinished"
    mend = "make one with: synth train --conditional" if finished else "leave out --resume"
    raise SynthError(f"{root}: holds no {kind} run; {mend}, or name one with --run")


def load_generator(path: Path | str, device: torch.device | str = "cpu") -> Sampler:
    """The generator in a run folder or a weight file, ready to sample.

    Of a folder it takes the default of `Run.find_checkpoint`. Raises `SynthError` if damaged.
    """
    path = Path(path)
    path = open_run(path).find_checkpoint() if path.is_dir() else path
    tensors, metadata = load_tensors(path)
    try:
        config = RunConfig.from_json(metadata["config"], path)
        return config.family.load_sampler(config, tensors, torch.device(device))
    except (KeyError, RuntimeError) as error:
        raise SynthError(f"{path}: holds no generator of synth ({error})") from error
