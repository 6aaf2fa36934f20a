"""One JSON file per evaluation, never overwritten: what was scored, how, and what came out.

The dataclasses are the schema. A failed evaluation is a record too (`error` says why, `scores` is
empty). Paths are relative to where the command ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.metrics import GROUPS, INCEPTION, Metrics
from eval.protocols import Protocol
from eval.score import Score, SeedScore
from synth.base.errors import SynthError
from synth.base.files import atomic_file, read_json, slug, write_json
from synth.data import ImageSet

SCHEMA = 1
Kind = Literal["synthetic", "real", "real-same-size", "real-tenth", "pca-gaussian", "copier"]
# Groups of figures, besides the accuracy, that mean something: real images are real by definition.
NO_GROUPS: frozenset[str] = frozenset()
GROUPS_OF: dict[str, frozenset[str]] = {
    "real": frozenset({"fidelity", INCEPTION}),  # the distances between its parts
    "real-same-size": NO_GROUPS,
    "real-tenth": NO_GROUPS,
    "copier": frozenset({*GROUPS, INCEPTION} - {"cas", "augmentation"}),
}


@dataclass(frozen=True)
class Entry:
    """What the classifier was trained on."""

    kind: Kind
    name: str  # as it stands in the leaderboard, e.g. "dcgan + pseudo-labels"
    count: int  # images on disk (a stream's: images drawn)
    sha256: str | None  # of the images and labels; None for a stream
    folder: str | None = None  # of the synthetic set
    recipe: str | None = None
    conditional: bool | None = None
    labels: str | None = None  # conditional, classifier or random
    images_shown: int | None = None  # to the generator in its training
    training_seed: int | None = None
    generation_seed: int | None = None
    trained_on: str | None = None  # fingerprint of the generator's training images
    run: str | None = None
    checkpoint: str | None = None  # sha256 of the weights
    chosen: str | None = None  # best, last or a name, where the run selects its checkpoint
    run_length: int | None = None  # images that such a run showed in all
    labeller: str | None = None  # the protocol that the labelling classifier was trained by
    config: dict[str, Any] | None = None  # the run's config.json
    training_environment: dict[str, Any] | None = None  # the run's environment.json
    generation_environment: dict[str, Any] | None = None
    training_log: list[dict[str, Any]] | None = None  # the run's log.jsonl, a line per tick

    @property
    def length(self) -> int | None:
        """Images shown by runs that are one row: which checkpoint is the best differs by seed."""
        return self.run_length if self.chosen == "best" else self.images_shown

    def groups(self, asked: Sequence[str]) -> list[str]:
        """Those of the groups of figures that mean something for it, besides its accuracy.

        The classifier that gave pseudo-labels is the one that GAN-test would check them by; random
        labels, and real images again, add nothing to real ones.
        """
        fitting = GROUPS_OF.get(self.kind, {*GROUPS, INCEPTION} - {"cas"})
        senseless = {"classifier": "gan-test", "random": "augmentation"}.get(self.labels or "")
        return [name for name in asked if name in fitting and name != senseless]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two evaluations of the same content. A reference follows from the real data."""
        if self.kind == "synthetic":
            return self.kind, self.name, self.count, self.sha256, self.checkpoint
        return self.kind, self.count


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
    source: str | None = None  # how the real data was asked for, e.g. svhn
    metrics: Metrics | None = None  # None where the accuracy alone was asked for
    schema: int = SCHEMA

    @property
    def accuracies(self) -> list[float]:
        return [score.accuracy for score in self.scores]


def make_record(
    entry: Entry,
    protocol: Protocol,
    real: RealSplits,
    score: Score | None,
    environment: dict[str, Any],
    precision: str,
    seconds: float,
    error: str | None = None,
    source: str | None = None,
    metrics: Metrics | None = None,
) -> Record:
    now = datetime.now(timezone.utc)
    return Record(
        id=f"{now:%Y%m%dT%H%M%S%f}-{slug(real.name)}-{slug(entry.name)}-{protocol.name}",
        date=now.isoformat(timespec="seconds"),
        entry=entry,
        protocol=protocol.to_json(),
        real=real,
        scores=score.seeds if score else [],
        environment=environment,
        precision=precision,
        seconds=round(seconds, 2),
        error=error,
        source=source,
        metrics=metrics,
    )


def write_record(results: Path, record: Record, score: Score | None) -> Path:
    """Writes `records/<id>.json`, and beside it `predictions/<id>.npz`: which class each classifier
    gave every test image, and whether it was right, so that comparing needs no test split."""
    path = results / "records" / f"{record.id}.json"
    if path.exists():
        raise SynthError(f"{path}: is there already, and records are not overwritten")
    if score is not None:
        with atomic_file(predictions_path(results, record)) as temporary:
            np.savez_compressed(temporary, predictions=score.predictions, correct=score.correct)
    write_json(path, asdict(record))
    return path


def predictions_path(results: Path, record: Record) -> Path:
    """npz: `predictions` uint8 and `correct` bool, both (seeds, N); older ones lack the latter."""
    return results / "predictions" / f"{record.id}.npz"


def figure_path(results: Path, record: Record, name: str) -> Path:
    """A picture kept of the entry, where it has one: `samples` or `losses`."""
    return results / "figures" / f"{record.id}-{name}.png"


def read_record(path: Path) -> Record:
    value = read_json(path)
    try:
        return Record(
            **{
                **value,
                "entry": Entry(**value["entry"]),
                "real": RealSplits(**value["real"]),
                "scores": [SeedScore(**score) for score in value["scores"]],
                "metrics": Metrics.from_json(value.get("metrics")),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SynthError(
            f"{path}: is no record of this version ({error}); mend or remove it"
        ) from error


def read_records(results: Path) -> list[Record]:
    """All records in `results`, oldest first."""
    return [read_record(path) for path in sorted((results / "records").glob("*.json"))]


def find_record(
    records: list[Record],
    entry: Entry,
    protocol: Protocol,
    real: RealSplits,
    seeds: int,
    groups: Sequence[str] = (),
) -> Record | None:
    """The newest good record of the same content under the same protocol, splits and seeds, that
    holds the figures of `groups` (see `Entry.groups`)."""
    wanted = set(entry.groups(groups))
    for record in reversed(records):
        if (
            record.error is None
            and record.entry.identity == entry.identity
            and record.protocol["hash"] == protocol.hash
            and record.real == real
            and len(record.scores) >= seeds
            and wanted <= set(record.metrics.seconds if record.metrics else ())
        ):
            return record
    return None


def find_failure(
    records: list[Record], entry: Entry, protocol: Protocol, real: RealSplits
) -> Record | None:
    """The newest record that says that this entry could not be made."""
    for record in reversed(records):
        if (
            record.error is not None
            and record.entry == entry
            and record.protocol["hash"] == protocol.hash
            and record.real == real
        ):
            return record
    return None
