"""A generator to take along: the folder that `Generator.from_pretrained` loads. Its layout is that
of `PyTorchModelHubMixin` of huggingface_hub.

config.json         the run's configuration
model.safetensors   the weights, the same file as the run's checkpoint
README.md           a model card
samples.png         images of the same tick, if the run has them: one row per class
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth.base.errors import DISTRIBUTION, SynthError
from synth.base.files import atomic_file, write_json, write_text
from synth.base.names import in_markdown
from synth.card import TERMS, licence, page
from synth.checkpoints import read_count, read_metadata
from synth.runs import Run, RunConfig, checkpoint_name, load_generator

MODEL, SAMPLES = "model.safetensors", "samples.png"
TASK = "unconditional-image-generation"  # the hub has no word for one that is told a class

BODY = """
# {recipe}

A generator of {side}×{side} images of {classes} classes, made by synth. Its recipe is {recipe}
(seed {seed}). It was trained on {dataset}, until {shown:,} real images were shown. {labels}
The classes from label 0 on are: {names}.
{samples}
## What it is worth

{worth}

## How to use it

`pip install '{distribution}[hub]'`, and then:

```python
import synth

generator = synth.Generator.from_pretrained({source}
images = generator.sample([0, 0], seed=0)  # uint8 (2, {side}, {side}, 3)
```

## Terms

{terms}
"""
HERE = '"FOLDER")  # this folder; or OWNER/NAME on the hub'
LABELS = {True: "It is told the label of an image.", False: "It knows no labels."}
NOT_SCORED = "It was not scored, or no record of its score was found when this card was written."
SCORED = """The score is the accuracy on real test images of a classifier that learned from the
generator's images alone ([train on synthetic, test on real](https://arxiv.org/abs/1706.02633)).
"""


@dataclass(frozen=True)
class Scored:
    """A score of the generator, for its card."""

    entry: str  # its name in the leaderboard
    protocol: str
    real: str  # name of the real data
    dataset_key: str  # its name in the registry, such as svhn
    images: int  # that the classifiers learned from
    classifiers: int
    accuracy: float  # in [0, 1], mean over the classifiers
    of_real: float | None  # the same of the real training images, if it is known

    def line(self) -> str:
        real = "" if self.of_real is None else f" The real images reach {100 * self.of_real:.2f} %."
        return (
            f"- **{100 * self.accuracy:.2f} %** for {in_markdown(self.entry)} on "
            f"{in_markdown(self.real)} under the protocol {in_markdown(self.protocol)}, with "
            f"{self.images:,} images and {self.classifiers} classifiers.{real}"
        )

    def result(self) -> dict[str, Any]:
        """For the `model-index` of a card."""
        metric = {"type": "accuracy", "name": f"accuracy %, {self.protocol}"}
        return {
            "task": {"type": TASK},
            "dataset": {"type": self.dataset_key, "name": self.real},
            "metrics": [{**metric, "value": round(100 * self.accuracy, 2)}],
        }


def write_pretrained(
    run: Run,
    weights: Path,
    folder: Path,
    scores: Sequence[Scored] = (),
    repository: str | None = None,
) -> None:
    """Writes the generator with these weights of a run. The folder is made if there is none.

    repository: the one on the hub that the card loads it from. Raises `SynthError` if the weights
    are damaged, or if the folder cannot be written.
    """
    load_generator(weights)  # raises if nobody could load it
    shown = read_count(weights, "images")
    write_json(folder / "config.json", run.config.to_json())
    _copy(weights, folder / MODEL)
    ours = run.folder / "samples" / f"{checkpoint_name(shown)}.png"
    pictures = [path for path in (ours, run.folder / SAMPLES) if path.is_file()]
    if pictures:
        _copy(pictures[0], folder / SAMPLES)
    write_text(folder / "README.md", card(run.config, shown, scores, repository, bool(pictures)))


def _copy(source: Path, target: Path) -> None:
    with atomic_file(target) as temporary:
        shutil.copyfile(source, temporary)


def open_pretrained(folder: Path) -> tuple[Run, Path]:
    """The generator in a folder: its configuration as a run, and its weights. The configuration is
    the one in the weights, which has a hash. Raises `SynthError` if there is none."""
    weights = folder / MODEL
    if not weights.is_file():
        mend = "; load a run with synth.load" if (folder / "config.json").exists() else ""
        raise SynthError(f"{folder}: holds no generator (no {MODEL}){mend}")
    config = RunConfig.from_json(read_metadata(weights).get("config", {}), weights)
    return Run(folder, config), weights


def card(
    config: RunConfig,
    shown: int,
    scores: Sequence[Scored],
    repository: str | None,
    pictures: bool,
) -> str:
    """The text of README.md."""
    recipe, dataset = in_markdown(config.recipe.name), in_markdown(config.dataset)
    worth = "\n".join([SCORED, *(each.line() for each in scores)]) if scores else NOT_SCORED
    body = BODY.format(
        recipe=recipe,
        side=config.recipe.side,
        classes=len(config.classes),
        seed=config.seed,
        dataset=dataset,
        shown=shown,
        labels=LABELS[config.recipe.conditional],
        names=in_markdown(", ".join(config.classes)),
        samples=f"\n![samples, one class a row]({SAMPLES})\n" if pictures else "",
        worth=worth,
        distribution=DISTRIBUTION,
        source=HERE if repository is None else f'"{repository}")',
        terms=TERMS.format(dataset=dataset),
    )
    front: dict[str, Any] = {
        **licence(config.dataset),
        "library_name": DISTRIBUTION,
        "pipeline_tag": TASK,
        "tags": ["synthetic", config.recipe.family, config.recipe.name],
    }
    if scores:
        results = [each.result() for each in scores]
        front["model-index"] = [{"name": config.recipe.name, "results": results}]
    return page(front, body)
