"""The run folder: its files, and how to find and read it.

config.json            everything needed to repeat the run
environment.json       versions, device, commit, command line: of the start, and in the list
                       `resumed` of each time that the run was resumed
log.jsonl              one line per tick
generator.safetensors  the weights to sample from, with the configuration as metadata
checkpoints/0000512k.safetensors  the weights at each tick, if the run selects its checkpoint
state/latest.safetensors  everything needed to resume the run
samples/0000512k.png   images of the same latents at every tick, one row per class
losses.png             the losses over the run
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic.dataclasses import dataclass

from synth.base.errors import SynthError, UsageError
from synth.base.files import (
    atomic_file,
    numbered_folders,
    read_json,
    sha256,
    slug,
    write_json,
    write_numbered_folder,
    write_text,
)
from synth.base.progress import say
from synth.base.schema import CLOSED, Count, dump, on_disk, parse
from synth.checkpoints import get_entry, load_tensors, read_metadata
from synth.families import FAMILIES, Family, Sampler
from synth.recipes import RecipeBase, stored

DEFAULT_FAMILY = "gan"


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RunConfig:
    """Everything needed to repeat a run."""

    recipe: RecipeBase
    dataset: str  # name of the images, such as svhn-part
    dataset_key: Annotated[str, on_disk("source")]  # name in the registry, such as svhn
    fingerprint: str  # of the training split
    training_size: int
    classes: tuple[str, ...]
    total_images: Annotated[Count, on_disk("images")]  # length, in real images shown
    images_per_tick: Annotated[Count, on_disk("tick")]  # real images between two checkpoints
    seed: int
    precision: str
    select: str | None = None  # protocol that scores the checkpoints, if any
    schema: int = 1

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`.

        Weight files hold it too, and those of equal runs must be equal. So keys that newer versions
        added are left out if they have their defaults: `select` None, `family` "gan", and those of
        the recipe (see `stored`).
        """
        value = {**dump(self), "recipe": stored(self.recipe)}
        if self.select is None:
            del value["select"]
        family = self.recipe.family
        return value if family == DEFAULT_FAMILY else {**value, "family": family}

    @staticmethod
    def from_json(value: dict[str, Any], path: Path | str) -> RunConfig:
        """The inverse of `to_json`. Raises `SynthError` that names `path` and the wrong value."""
        what, rest = f"{path}: is damaged or from another version", dict(value)
        family = FAMILIES.find(rest.pop("family", DEFAULT_FAMILY))
        recipe = parse(family.recipe, rest.get("recipe"), f"{what}, recipe")
        return parse(RunConfig, {**rest, "recipe": recipe}, what)

    @property
    def family(self) -> Family:
        return FAMILIES.find(self.recipe.family)

    @property
    def slug(self) -> str:
        kind = "cond" if self.recipe.conditional else "uncond"
        return f"{self.dataset}-{slug(self.recipe.name)}-{kind}-seed{self.seed}"


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
        path = self.folder / "environment.json"
        if images:
            first = read_json(path)
            kept = [each for each in first.get("resumed", []) if each["images"] < images]
            environment = {**first, "resumed": [*kept, {"images": images, **environment}]}
        write_json(path, environment)

    @property
    def weights(self) -> Path:
        return self.folder / "generator.safetensors"

    @property
    def state(self) -> Path:
        return self.folder / "state" / "latest.safetensors"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    def keep_checkpoint(self, images: int) -> Path:
        """Copies the last weights into `checkpoints`. Returns the path of the copy."""
        kept = self.folder / "checkpoints" / f"{checkpoint_name(images)}.safetensors"
        with atomic_file(kept) as temporary:
            shutil.copyfile(self.weights, temporary)
        return kept

    def checkpoints(self) -> dict[str, Path]:
        """Name → weights, oldest first. Empty if the run does not select its checkpoint."""
        paths = sorted((self.folder / "checkpoints").glob("[0-9]*k.safetensors"))
        return {path.stem: path for path in paths}

    def validation_scores(self) -> dict[str, float]:
        """Checkpoint name → accuracy on the validation part in [0, 1], oldest first.

        If two ticks have the same name, the later one counts: its weights replaced the others.
        """
        return {
            checkpoint_name(line["images"]): line["validation_accuracy"]
            for line in self.read_log()
            if "validation_accuracy" in line
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

    @property
    def default_checkpoint(self) -> str:
        return "best" if self.config.select else "last"

    def images_shown(self, weights: Path | None = None) -> int:
        """Real images shown up to these weights, by default the last."""
        weights = weights or self.weights
        return int(get_entry(read_metadata(weights), "images", weights))

    def finished(self) -> bool:
        """True if training is complete. The state file is written last, so it marks completion."""
        if not self.state.exists():
            return False
        step = int(get_entry(read_metadata(self.state), "step", self.state))
        return step * self.config.recipe.batch >= self.config.total_images

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log, oldest first. Skips a line that was cut off by a kill."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def rewind_log(self, images: int) -> None:
        """Drops the lines after `images`, because a resumed run writes them again."""
        kept = [line for line in self.read_log() if line["images"] <= images]
        write_text(self.log, "".join(json.dumps(line) + "\n" for line in kept))

    def append_log(self, line: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def checkpoint_name(images: int) -> str:
    """The name of a point of a run in files, such as `0000512k`. Names sort by time."""
    return f"{round(images / 1000):07d}k"


def weights_of_hash(run: Run, digest: str | None) -> Path | None:
    """The weights of the run with this sha256. None if they are missing or have changed."""
    for path in (run.weights, *run.checkpoints().values()):
        if path.exists() and sha256(path) == digest:
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


def newest_run(root: Path, finished: bool) -> Run:
    """The newest finished (or unfinished) run. Raises `SynthError` if there is none."""
    for run in reversed(all_runs(root)):
        if run.finished() == finished:
            return run
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
