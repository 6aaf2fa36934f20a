"""The provenance of a synthetic set: the same fields in its manifest and in its records."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from synth.base.schema import OPEN, on_disk

COPIES = ("config", "training_environment", "generation_environment", "training_log")
LARGEST = 1e300  # of a number in a log
Environment = dict[str, Any]  # synth.environment.describe_environment()


def _check_line(line: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(line.get("images"), int):
        raise ValueError(f"a line of the log has {line.get('images')!r} images")
    for key, found in line.items():
        for value in found if isinstance(found, list) else [found]:
            number = isinstance(value, int | float) and not abs(value) > LARGEST
            if value is not None and not number:
                raise ValueError(f"{key} in the log is {value!r}, which is no number")
    return line


# Of a run's log.jsonl: the images shown, and other numbers or lists of them
LogLine = Annotated[dict[str, Any], AfterValidator(_check_line)]


@dataclass(frozen=True, kw_only=True, config=OPEN)
class Provenance:
    """Where a synthetic set comes from. All fields are None if synth did not make it."""

    recipe: str | None = None
    conditional: bool | None = None
    labels: str | None = (
        None  # who gave them: conditional (the generator), classifier, random, none
    )
    labeller: str | None = None  # protocol of the classifier that labelled it
    images_shown: int | None = None  # real images, in training
    training_seed: int | None = None
    generation_seed: int | None = None
    augmentation: str | None = None  # policy by which images were changed after the generator
    trained_on: str | None = None  # fingerprint of the real images
    run: str | None = None  # its folder
    checkpoint: str | None = None  # sha256 of the weights
    # Both are None if the run does not select its checkpoint
    chosen: str | None = None  # best, last or the name of a checkpoint
    run_length: int | None = None  # real images shown in the whole run
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

    format: str  # a name in synth.formats.FORMATS
    sha256: str  # of the images' bytes, then the labels'
    classes: tuple[str, ...]
    recipe: str
    labels: str
    generation_seed: Annotated[int, on_disk("seed")]
    dataset_key: Annotated[str, on_disk("source")]  # for --dataset
    dataset: str = ""  # the real images' own name
    count: int = 0
    per_class: list[int] | None = None
    candidates: int | None = None  # images made to get these
    commit: str | None = None
    command: str | None = None
    generation_environment: Annotated[Environment | None, on_disk("environment")] = None
    schema: int = 1
