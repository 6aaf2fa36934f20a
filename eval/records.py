"""One JSON file per evaluation, never overwritten: what was scored, how, and what came out.

The dataclasses are the schema. A failed evaluation is a record too (`error` says why, `scores` is
empty). Paths are relative to where the command ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from eval.chain import seal
from eval.metrics import check, measured
from eval.protocols import Protocol
from eval.scoring import Score, SeedScore
from synth.base.errors import SynthError
from synth.base.files import atomic_file, read_json, slug, write_json
from synth.base.names import FileName, Line, Name
from synth.base.progress import say
from synth.base.schema import CLOSED, Number, Whole, dump, on_disk, parse
from synth.data import ImageSet
from synth.provenance import Environment, Provenance

PROTOCOL = {"name": str, "hash": str, "data": str}  # keys of a protocol that tables need


@dataclass(frozen=True, config=CLOSED)
class Entry(Provenance):
    """What the classifier was trained on."""

    kind: Name  # synthetic, or a name in eval.baselines.BASELINES
    name: Name  # as it stands in the leaderboard, e.g. "dcgan + pseudo-labels"
    count: Whole  # images on disk (a stream's: images drawn)
    sha256: Line | None  # of the images and labels; None for a stream
    folder: Line | None = None  # of the synthetic set
    manifest: Line | None = None  # sha256 of its manifest.json
    # Of a set that synth did not make; `training_seed` is what --seed said
    method: Name | None = None  # what --name said: sets of one method are runs of one row
    numbering: list[Whole] | None = None  # the real class of each of its own, where names differ
    resized: Whole | None = None  # side to which images of another size were resized

    @property
    def brought(self) -> bool:
        """True for a set that synth did not make."""
        return self.kind == "synthetic" and self.recipe is None and self.checkpoint is None

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

    name: Name
    train_fingerprint: Line
    train_size: Whole
    test_fingerprint: Line
    test_size: Whole

    @staticmethod
    def of(train: ImageSet, test: ImageSet) -> RealSplits:
        """Named as both splits are, or after both where they differ."""
        name = train.name if train.name == test.name else f"{train.name} + {test.name}"
        return RealSplits(name, train.fingerprint, len(train), test.fingerprint, len(test))


@dataclass(frozen=True, config=CLOSED)
class Record:
    """One evaluation."""

    id: FileName
    date: Line  # UTC, ISO 8601
    entry: Entry
    protocol: dict[str, Any]  # Protocol.to_json()
    real: RealSplits
    scores: list[SeedScore]  # one per classifier seed
    environment: Environment
    precision: Line
    seconds: Number
    error: str | None = None
    # How the real data was asked for, e.g. svhn. In a recipe, `source` is the citation.
    dataset_key: Annotated[Line | None, on_disk("source")] = None
    metrics: dict[str, Any] | None = None  # see `eval.metrics.measure`; None with the score alone
    chain: dict[str, str | None] | None = None  # see `eval.chain`; None in older records
    schema: Literal[1] = 1

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
    """Ids sort by time. They leave room in a file name for what is added."""
    names = slug(real.name)[:50], slug(entry.name), slug(protocol.name)[:50]
    return f"{now:%Y%m%dT%H%M%S%f}-{'-'.join(names)}"


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
    """Raises `SynthError` that names the file and the wrong value where it is damaged."""
    record = parse(Record, read_json(path), f"{path}: is no record of this version")
    try:
        _check(record, path)
    except ValueError as error:
        raise SynthError(f"{path}: is no record of this version: {error}") from error
    return record


def _check(record: Record, path: Path) -> None:
    """Raises ValueError if the record cannot be shown, or says what cannot be."""
    if record.id != path.stem:  # other files are named by it
        raise ValueError(f"id is {record.id!r}, and not the name of the file")
    if not all(isinstance(record.protocol.get(key), kind) for key, kind in PROTOCOL.items()):
        raise ValueError("its protocol is damaged")
    if not record.protocol["name"].isprintable():
        raise ValueError("protocol.name is no line of text")
    try:
        datetime.fromisoformat(record.date)
    except ValueError as error:
        raise ValueError(f"date is {record.date!r}") from error
    if record.error is None and not record.scores:
        raise ValueError("it has neither scores nor an error")
    for score in record.scores:
        sides = {len(score.recalls), len(score.confusion), *map(len, score.confusion)}
        if len(sides) > 1:
            raise ValueError(f"confusion of seed {score.seed} does not fit its recalls")
        if not all(map(any, score.confusion)):
            raise ValueError(f"confusion of seed {score.seed} lacks images of a class")
    check(record.metrics)


def read_records(results: Path, quiet: bool = False) -> list[Record]:
    """The records in `results`, oldest first. Names those that are damaged on stderr, unless
    `quiet`. Raises `SynthError` if the folder cannot be read."""
    folder, records = results / "records", []
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SynthError(f"{folder}: cannot be read ({error.strerror})") from error
    for path in paths:
        try:
            records.append(read_record(path))
        except SynthError as error:
            if not quiet:
                say(f"left out: {error}")
    return records
