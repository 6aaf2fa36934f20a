"""The provenance of a synthetic set: the same fields in its manifest and in its records."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from synth.base.names import FileName, Line, Name
from synth.base.schema import OPEN, Whole, on_disk

COPIES = ("config", "training_environment", "generation_environment", "training_log")
LARGEST = 1e300  # of a number in a log
MOST = {"threads": 1 << 16, "blas_threads": 1 << 16, "images": 1 << 63}  # of an environment


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(line.get("images"), int):
        raise ValueError(f"a line of the log has {line.get('images')!r} images")
    for key, found in line.items():
        for value in found if isinstance(found, list) else [found]:
            number = isinstance(value, int | float) and not abs(value) > LARGEST
            if value is not None and not number:
                raise ValueError(f"{key} in the log is {value!r:.50}, which is no number")
    return line


def _check_environment(value: dict[str, Any]) -> dict[str, Any]:
    """What is computed with must be what it says. All else is only compared."""
    resumed = value.get("resumed", [])
    if not isinstance(resumed, list) or not all(isinstance(each, dict) for each in resumed):
        raise ValueError("resumed in the environment is no list of environments")
    for each in (value, *resumed):
        for key, least in (("threads", 1), ("blas_threads", 1), ("images", 0)):
            count = each.get(key)
            if count is not None and not (type(count) is int and least <= count < MOST[key]):
                raise ValueError(f"{key} in the environment is {count!r:.50}")
        if not isinstance(each.get("device", ""), str):
            raise ValueError(f"device in the environment is {each['device']!r:.50}")
    if any(each.get("images") is None for each in resumed):
        raise ValueError("resumed in the environment lacks images")
    return value


# synth.environment.describe_environment(); of a training also `resumed`, see synth.runs
Environment = Annotated[dict[str, Any], AfterValidator(_check_environment)]
# Of a run's log.jsonl: the images shown, and other numbers or lists of them
LogLine = Annotated[dict[str, Any], AfterValidator(_check_line)]


@dataclass(frozen=True, kw_only=True, config=OPEN)
class Provenance:
    """Where a synthetic set comes from. All fields are None if synth did not make it."""

    recipe: Name | None = None
    conditional: bool | None = None
    # Who gave them: conditional (the generator), classifier, random, none
    labels: Name | None = None
    labeller: Name | None = None  # protocol of the classifier that labelled it
    teacher: Name | None = None  # protocol of the classifier that guided the training
    images_shown: Whole | None = None  # real images, in training
    training_seed: Whole | None = None
    generation_seed: Whole | None = None
    augmentation: Name | None = None  # policy by which images were changed after the generator
    # Share of each class's images that a classifier rejected
    rejection: Annotated[float, Field(gt=0, lt=1)] | None = None
    rejecter: Name | None = None  # protocol of that classifier
    # Standard deviation of the latents; None: 1
    latent_scale: Annotated[float, Field(gt=0, le=10)] | None = None
    mixture: list[Line] | None = None  # sha256 of the checkpoints that made the images in turns
    trained_on: Line | None = None  # fingerprint of the real images
    run: Line | None = None  # its folder
    checkpoint: Line | None = None  # sha256 of the weights
    # Both are None if the run does not select its checkpoint
    chosen: Name | None = None  # best, last or the name of a checkpoint
    run_length: Whole | None = None  # real images shown in the whole run
    config: dict[str, Any] | None = None  # the run's config.json
    training_environment: Environment | None = None
    generation_environment: Environment | None = None
    training_log: list[LogLine] | None = None  # log.jsonl

    def description(self) -> dict[str, Any]:
        """The fields that are known before anything is generated: all except `COPIES`."""
        names = [field.name for field in fields(Provenance) if field.name not in COPIES]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, config=OPEN)
class Manifest(Provenance):
    """The content of a synthetic set's `manifest.json`."""

    format: Name  # a name in synth.formats.FORMATS
    sha256: Line  # of the images' bytes, then the labels'
    classes: tuple[FileName, ...]
    recipe: Name
    labels: Literal["conditional", "classifier", "random", "none"]
    generation_seed: Annotated[Whole, on_disk("seed")]
    dataset_key: Annotated[Name, on_disk("source")]  # for --dataset
    dataset: Line = ""  # the real images' own name
    count: Whole = 0
    per_class: list[Whole] | None = None
    candidates: Whole | None = None  # images made to get these
    commit: str | None = None
    command: str | None = None
    generation_environment: Annotated[Environment | None, on_disk("environment")] = None
    schema: Literal[1] = 1
