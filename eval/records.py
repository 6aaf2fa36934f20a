"""One JSON file per evaluation, never overwritten: what was scored, how, and what came out.

The dataclasses are the schema. A failed evaluation is a record too (`error` says why, `scores` is
empty). Paths are relative to where the command ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic.dataclasses import dataclass

from eval.chain import seal
from eval.metrics import check, measured
from eval.protocols import Protocol
from eval.score import Score, SeedScore
from synth.base.errors import SynthError
from synth.base.files import atomic_file, read_json, slug, write_json
from synth.base.schema import CLOSED, dump, on_disk, parse
from synth.data import ImageSet
from synth.provenance import Provenance

SCHEMA = 1


@dataclass(frozen=True, config=CLOSED)
class Entry(Provenance):
    """What the classifier was trained on."""

    kind: str  # synthetic, or a name in eval.baselines.BASELINES
    name: str  # as it stands in the leaderboard, e.g. "dcgan + pseudo-labels"
    count: int  # images on disk (a stream's: images drawn)
    sha256: str | None  # of the images and labels; None for a stream
    folder: str | None = None  # of the synthetic set
    manifest: str | None = None  # sha256 of its manifest.json

    @property
    def length(self) -> int | None:
        """Images shown by runs that are one row: which checkpoint is the best differs by seed."""
        return self.run_length if self.chosen == "best" else self.images_shown

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two evaluations of the same content. A baseline follows from the real data."""
        if self.kind == "synthetic":
            return self.kind, self.name, self.count, self.sha256, self.checkpoint
        return self.kind, self.count


@dataclass(frozen=True, config=CLOSED)
class RealSplits:
    """The real data that the score refers to."""

    name: str
    train_fingerprint: str
    train_size: int
    test_fingerprint: str
    test_size: int

    @staticmethod
    def of(train: ImageSet, test: ImageSet) -> RealSplits:
        """Named as both splits are, or after both where they differ."""
        name = train.name if train.name == test.name else f"{train.name} + {test.name}"
        return RealSplits(name, train.fingerprint, len(train), test.fingerprint, len(test))


@dataclass(frozen=True, config=CLOSED)
class Record:
    """One evaluation."""

    id: str
    date: str  # UTC, ISO 8601
    entry: Entry
    protocol: dict[str, Any]  # Protocol.to_json()
    real: RealSplits
    scores: list[SeedScore]  # one per classifier seed
    environment: dict[str, Any]  # synth.environment.describe_environment()
    precision: str
    seconds: float
    error: str | None = None
    # How the real data was asked for, e.g. svhn. In a recipe, `source` is the citation.
    dataset_key: Annotated[str | None, on_disk("source")] = None
    metrics: dict[str, Any] | None = None  # see `eval.metrics.measure`; None with the score alone
    chain: dict[str, str | None] | None = None  # see `eval.chain`; None in older records
    schema: int = SCHEMA

    @property
    def accuracies(self) -> list[float]:
        return [score.accuracy for score in self.scores]

    def is_under(self, protocol: Protocol, real: RealSplits) -> bool:
        return self.protocol["hash"] == protocol.hash and self.real == real

    def answers(self, entry: Entry, seeds: int, metrics: Iterable[str] = ()) -> bool:
        """True for a good record of the same content with as many seeds and all of `metrics`."""
        enough = self.error is None and len(self.scores) >= seeds
        same = self.entry.identity == entry.identity
        return enough and same and set(metrics) <= set(measured(self.metrics))


def record_id(now: datetime, entry: Entry, protocol: Protocol, real: RealSplits) -> str:
    """Ids sort by time."""
    return f"{now:%Y%m%dT%H%M%S%f}-{slug(real.name)}-{slug(entry.name)}-{protocol.name}"


def write_record(results: Path, record: Record, score: Score | None) -> Path:
    """Writes `records/<id>.json`, and beside it `predictions/<id>.npz`: which class each classifier
    gave every test image, and whether it was right, so that comparing needs no test split. Closes
    the record's chain."""
    path = results / "records" / f"{record.id}.json"
    if path.exists():
        raise SynthError(f"{path}: is there already, and records are not overwritten")
    if score is not None:
        with atomic_file(predictions_path(results, record)) as temporary:
            np.savez_compressed(temporary, predictions=score.predictions, correct=score.correct)
    value = dump(replace(record, chain=None))
    write_json(path, {**value, "chain": seal(value, predictions_path(results, record))})
    return path


def predictions_path(results: Path, record: Record) -> Path:
    """npz: `predictions` (uint8, or uint16 with more than 256 classes) and `correct` (bool), both
    (seeds, N). Older ones lack the latter."""
    return results / "predictions" / f"{record.id}.npz"


def plot_path(results: Path, record: Record, name: str) -> Path:
    """A plot kept of the entry, where it has one: `samples` or `losses`."""
    return results / "figures" / f"{record.id}-{name}.png"


def read_record(path: Path) -> Record:
    """Raises `SynthError` that names the file where it is damaged."""
    record = parse(Record, read_json(path), f"{path}: is no record of this version")
    try:
        check(record.metrics)
        if {"name", "hash", "data"} - record.protocol.keys():
            raise ValueError("its protocol is damaged")
        if record.error is None and not record.scores:
            raise ValueError("it has neither scores nor an error")
    except ValueError as error:
        raise SynthError(f"{path}: is no record of this version: {error}") from error
    return record


def read_records(results: Path) -> list[Record]:
    """All records in `results`, oldest first."""
    return [read_record(path) for path in sorted((results / "records").glob("*.json"))]
