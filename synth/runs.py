"""The run folder: what a training run leaves on disk, and how to find and read it again.

config.json            everything needed to repeat the run
environment.json       versions, device, commit, command line
log.jsonl              one line per tick
generator.safetensors  the weights to sample from; the metadata holds the configuration
checkpoints/0000512k.safetensors  the same, at every tick of a run that selects its checkpoint
state/latest.safetensors  all that resuming needs
samples/0000512k.png   the same latents at every tick, one row per class
losses.png
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
    make_numbered_folder,
    numbered_folders,
    read_json,
    sha256,
    slug,
    write_json,
    write_text,
)
from synth.base.progress import say
from synth.base.schema import CLOSED, Count, dump, on_disk, parse
from synth.checkpoints import get_entry, load_tensors, read_metadata
from synth.families import FAMILIES, Family, Sampler
from synth.recipes import RecipeBase

SCHEMA = 1
DEFAULT_FAMILY = "gan"


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RunConfig:
    """What was trained on what, and how: enough to repeat the run."""

    recipe: RecipeBase
    dataset: str  # the images' own name, e.g. svhn-part
    dataset_key: Annotated[str, on_disk("source")]  # how they were asked for, e.g. svhn
    fingerprint: str  # of the training split
    training_size: int
    classes: tuple[str, ...]
    total_images: Annotated[Count, on_disk("images")]  # length, in real images shown
    images_per_tick: Annotated[Count, on_disk("tick")]  # between two checkpoints
    seed: int
    precision: str
    select: str | None = None  # protocol that scores checkpoints on the validation part, if any
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`.

        Weights hold this text, and equal runs give equal files. So a key that came later is left
        out at its default: `select` where there is none, `family` where it is `gan`.
        """
        value = {**dump(self), "recipe": dump(self.recipe)}
        if self.select is None:
            del value["select"]
        family = self.recipe.family
        return value if family == DEFAULT_FAMILY else {**value, "family": family}

    @staticmethod
    def from_json(value: dict[str, Any], path: Path | str) -> RunConfig:
        """The inverse of `to_json`. Raises `SynthError` that names `path` and what is wrong."""
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
    """One run folder. Made with `create`, found again with `open_run`."""

    folder: Path
    config: RunConfig

    @staticmethod
    def create(root: Path, config: RunConfig, environment: dict[str, Any]) -> Run:
        run = Run(make_numbered_folder(root, config.slug), config)
        write_json(run.folder / "environment.json", environment)
        write_json(run.folder / "config.json", config.to_json())
        return run

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
        """Copies the last weights into `checkpoints`, under the name of this point of the run."""
        kept = self.folder / "checkpoints" / f"{checkpoint_name(images)}.safetensors"
        with atomic_file(kept) as temporary:
            shutil.copyfile(self.weights, temporary)
        return kept

    def checkpoints(self) -> dict[str, Path]:
        """The weights kept along the run, by name, oldest first; none without selection."""
        paths = sorted((self.folder / "checkpoints").glob("[0-9]*k.safetensors"))
        return {path.stem: path for path in paths}

    def validation_scores(self) -> dict[str, float]:
        """Checkpoint name → accuracy on the validation part, as the log has it, oldest first.

        Of two ticks with one name the later counts, whose weights took the earlier's place.
        """
        return {
            checkpoint_name(line["images"]): line["validation_accuracy"]
            for line in self.read_log()
            if "validation_accuracy" in line
        }

    def best_checkpoint(self) -> str:
        """The name of the highest validation accuracy, the later on a tie."""
        scores = self.validation_scores()
        if not scores:
            mend = "finish it with: synth train --resume" if self.config.select else "use last"
            raise UsageError(
                f"--checkpoint best: no checkpoint of {self.folder} has a validation score; {mend}"
            )
        return max(scores, key=lambda name: (scores[name], name))

    def find_checkpoint(self, name: str | None = None) -> Path:
        """The weights called `name`: last, best, or one of `checkpoints`. By default the best
        where the run selects its checkpoint, else the last."""
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
        """Real images shown up to these weights, the last by default; 0 when there are none."""
        weights = weights or self.weights
        if not weights.exists():
            return 0
        return int(get_entry(read_metadata(weights), "images", weights))

    def finished(self) -> bool:
        """True if training is complete. The state file is written last, so it marks completion."""
        if not self.state.exists():
            return False
        step = int(get_entry(read_metadata(self.state), "step", self.state))
        return step * self.config.recipe.batch >= self.config.total_images

    def read_log(self) -> list[dict[str, Any]]:
        """The complete lines of the log, oldest first; a line cut off by a kill is left out."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def rewind_log(self, images: int) -> None:
        """Drops the lines past `images`, which a resumed run is about to write again."""
        kept = [line for line in self.read_log() if line["images"] <= images]
        write_text(self.log, "".join(json.dumps(line) + "\n" for line in kept))

    def append_log(self, line: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def checkpoint_name(images: int) -> str:
    """`0000512k`: how files name a point of a run; in their order, the points are in theirs."""
    return f"{round(images / 1000):07d}k"


def weights_of_hash(run: Run, digest: str | None) -> Path | None:
    """The run's weights whose sha256 is `digest`; None where they are gone or have changed."""
    for path in (run.weights, *run.checkpoints().values()):
        if path.exists() and sha256(path) == digest:
            return path
    return None


def open_run(folder: Path) -> Run:
    """The run in `folder`. Raises `SynthError` when it is none or damaged."""
    path = folder / "config.json"
    if not path.exists():
        raise SynthError(
            f"{folder}: is no run folder (it has no config.json); make one with: synth train"
        )
    return Run(folder, RunConfig.from_json(read_json(path), path))


def all_runs(root: Path) -> list[Run]:
    """The runs in `root`, oldest first; folders that hold no readable run are passed over."""
    runs = []
    for folder in numbered_folders(root):
        if (folder / "config.json").exists():
            try:
                runs.append(open_run(folder))
            except SynthError as error:
                say(f"passed over: {error}")
    return runs


def newest_run(root: Path, finished: bool) -> Run:
    """The newest run that is finished (or is not). Raises `SynthError` when there is none."""
    for run in reversed(all_runs(root)):
        if run.finished() == finished:
            return run
    kind = "finished" if finished else "unfinished"
    mend = "make one with: synth train --conditional" if finished else "leave out --resume"
    raise SynthError(f"{root}: holds no {kind} run; {mend}, or name one with --run")


def load_generator(path: Path | str, device: torch.device | str = "cpu") -> Sampler:
    """The generator of a run folder, or of a file with its weights alone, ready to sample.

    Of a folder, it is the checkpoint that `synth generate` would use; see `Run.find_checkpoint`.
    """
    path = Path(path)
    path = open_run(path).find_checkpoint() if path.is_dir() else path
    tensors, metadata = load_tensors(path)
    try:
        config = RunConfig.from_json(metadata["config"], path)
        return config.family.load_sampler(config, tensors, torch.device(device))
    except (KeyError, RuntimeError) as error:
        raise SynthError(f"{path}: holds no generator of synth ({error})") from error
