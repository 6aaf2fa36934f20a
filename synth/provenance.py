"""Where a synthetic set comes from: one description, from the run to the manifest to the record."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

from pydantic.dataclasses import dataclass

from synth.base.schema import OPEN, on_disk

COPIES = ("config", "training_environment", "generation_environment", "training_log")
Environment = dict[str, Any]  # synth.environment.describe_environment()


@dataclass(frozen=True, kw_only=True, config=OPEN)
class Provenance:
    """What a manifest and a record say alike. All is None for a set that synth did not make."""

    recipe: str | None = None
    conditional: bool | None = None
    labels: str | None = None  # conditional, classifier, random, none
    labeller: str | None = None  # protocol of the labelling classifier
    images_shown: int | None = None  # to the generator in training
    training_seed: int | None = None
    generation_seed: int | None = None
    trained_on: str | None = None  # fingerprint of the real images
    run: str | None = None  # its folder
    checkpoint: str | None = None  # sha256 of the weights
    # Where the run selects its checkpoint: best, last or a name, and the images it showed in all
    chosen: str | None = None
    run_length: int | None = None
    config: dict[str, Any] | None = None  # the run's config.json
    training_environment: Environment | None = None
    generation_environment: Environment | None = None
    training_log: list[dict[str, Any]] | None = None  # log.jsonl

    def description(self) -> dict[str, Any]:
        """What is known before anything is generated: all but copies of the run's files."""
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
