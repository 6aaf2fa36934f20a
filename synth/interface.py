"""What `synth.train`, `synth.load` and `synth.Generator` are: training and sampling from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from synth import hub
from synth.base.errors import UsageError
from synth.data import ImageSet, load_training_images
from synth.environment import describe_environment, pick_device
from synth.families import Sampler
from synth.generation import CHUNK, Sampling, stream_images
from synth.pretrained import MODEL, open_pretrained, write_pretrained
from synth.published import find_recipe
from synth.recipes import RecipeBase
from synth.runs import Run, RunConfig, load_generator, open_run
from synth.training import plan_run, train_run


@dataclass(frozen=True)
class Generator:
    """A trained generator, from `load`, `train` or `from_pretrained`."""

    run: Run
    sampler: Sampler
    weights: Path  # the file that the sampler was loaded from

    @classmethod
    def from_pretrained(
        cls, source: Path | str, *, revision: str | None = None, device: str = "auto"
    ) -> Generator:
        """The generator in a folder that `save_pretrained` wrote, or in a repository of the Hugging
        Face hub that `synth push` made.

        source: the folder, or `OWNER/NAME`; a folder goes first. A repository needs the extra
        `synth-cas[hub]`; a private one needs a token, from `hf auth login` or HF_TOKEN. revision: a
        branch, tag or commit of the repository. device: `auto`, `cpu` or `cuda`. `run.config` of
        what it returns says how it was trained; it has no log and no checkpoints.

        Raises `SynthError` if there is none, if it is damaged, or if the hub cannot be reached.
        """
        folder = Path(source)
        if not folder.is_dir():
            hub.check_installed(str(source))
            hub.check_name(str(source), f"{source}: is no folder, and")
            folder = hub.download(str(source), ["config.json", MODEL], revision)
        run, weights = open_pretrained(folder)
        return cls(run, load_generator(weights, pick_device(device)), weights)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes a folder that `from_pretrained` loads: `config.json`, `model.safetensors` and a
        model card. `synth push` sends it to the Hugging Face hub.

        Raises `SynthError` if the folder cannot be written.
        """
        write_pretrained(self.run, self.weights, Path(folder))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes. A label is the place of a name in them."""
        return self.run.config.classes

    def sample(self, labels: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
        """One image for each label: uint8 (N, height, width, 3), RGB from 0 to 255.

        labels: whole numbers (N,), N ≥ 1, each from 0 to the number of classes - 1. seed: 0 or
        more. An unconditional generator makes one image for each label, whatever it means.

        The nth image of a class depends on (seed, class, n) alone. It is the nth image of that
        class in the set that `synth generate --seed SEED` makes from this run:
        `np.repeat(range(10), 5000)` gives all images of that set, in its order.

        Raises `UsageError`, a `SynthError`, if the labels or the seed are not as above.
        """
        wanted, most = np.asarray(labels), len(self.classes) - 1
        if wanted.dtype.kind not in "iu" or wanted.ndim != 1 or wanted.size == 0:
            found = f"labels: {wanted.dtype} {wanted.shape}"
            raise UsageError(f"{found}; give whole numbers in a list or in an array (N,)")
        if wanted.min() < 0 or wanted.max() > most:
            raise UsageError(f"labels: {wanted.min()} to {wanted.max()}; give numbers 0 to {most}")
        if seed < 0:
            raise UsageError(f"seed {seed}: must be 0 or more")
        sampling, made = Sampling(self.run.config.recipe.augment), {}
        for label in np.unique(wanted).tolist():
            chunks, count = (
                stream_images(self.sampler, label, seed, sampling),
                (wanted == label).sum(),
            )
            whole = torch.cat([next(chunks) for _ in range(0, count, CHUNK)])[:count]
            made[label] = whole.permute(0, 2, 3, 1).numpy()
        images = np.empty((len(wanted), *next(iter(made.values())).shape[1:]), np.uint8)
        for label, of_class in made.items():
            images[wanted == label] = of_class
        return images


def load(run: Path | str, checkpoint: str | None = None, device: str = "auto") -> Generator:
    """The generator of a run folder, such as `runs/00000-svhn-cdcgan-v2-cond-seed0`.

    checkpoint: `last`, `best`, or a name such as `0001024k`. By default it is the best one of a run
    that was trained with `--select`, and the last one of any other run. device: `auto`, `cpu` or
    `cuda`. Raises `SynthError` if there is no run, or if it is damaged.
    """
    found = open_run(Path(run))
    weights = found.find_checkpoint(checkpoint)
    return Generator(found, load_generator(weights, pick_device(device)), weights)


def train(
    recipe: str | RecipeBase | None = None,
    dataset: str = "svhn",
    *,
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    out: Path | str = "runs",
    device: str = "auto",
    precision: str = "auto",
) -> Generator:
    """Trains a generator, as the command `synth train` does, and loads it.

    recipe: a name that `synth recipes` lists, or a recipe. By default it is `cdcgan-v2`. dataset: a
    name that `synth datasets` lists; `NAME:tenth` trains on the first tenth of each class. images:
    length in real images shown; by default the recipe's. data_root: folder of the real data; by
    default the environment variable SYNTH_DATA. out: the run gets a new folder in it. precision:
    `auto`, `fp32` or `bf16`.

    Ctrl-C saves the run, and raises `SynthError` with the command that continues it. Raises
    `SynthError` if these images cannot train the recipe, or if it needs a teacher: `eval.train`
    trains that, too.
    """
    chosen = recipe if isinstance(recipe, RecipeBase) else find_recipe(recipe, None)
    if chosen.needs_teacher:
        raise UsageError(
            f"recipe {chosen.name}: a teacher guides it, a classifier, which synth alone cannot "
            "train; use eval.train, with the same arguments"
        )
    return train_by(
        plan_run, train_run, chosen, dataset, images, seed, data_root, out, device, precision
    )


def train_by(
    plan: Callable[..., RunConfig],
    fit: Callable[[Run, ImageSet, torch.device], None],
    recipe: str | RecipeBase | None,
    dataset: str,
    images: int | None,
    seed: int,
    data_root: Path | str | None,
    out: Path | str,
    device: str,
    precision: str,
) -> Generator:
    """`train`, by these functions instead of `plan_run` and `train_run`."""
    chosen = recipe if isinstance(recipe, RecipeBase) else find_recipe(recipe, None)
    real, where = load_training_images(dataset, data_folder(data_root)), pick_device(device)
    config = plan(chosen, dataset, real, images, seed, precision, where)
    run = Run.create(Path(out), config, describe_environment(where))
    fit(run, real, where)
    return load(run.folder, device=device)


def data_folder(given: Path | str | None) -> Path | None:
    """The folder of the real data that was given, or else named by SYNTH_DATA."""
    named = given or os.environ.get("SYNTH_DATA")
    return Path(named) if named else None
