"""Records → rows and tables: one table per protocol and real data set; they are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from statistics import mean
from typing import Any

import pandas as pd

from eval.metrics import NOTHING, Column, all_columns, column_values, flags, merge
from eval.records import Record
from eval.statistics import Interval, interval

ONE_RUN = "*"  # beside an interval that covers classifier seeds alone
ANY = object()
# What takes no part in a configuration: prose, and the length, which is the run's.
NO_PART = {"source": ANY, "assumed": ANY, "images": ANY, "training": {"images": ANY}}


@dataclass(frozen=True)
class Row:
    """One entry: the runs of one configuration, length and size, a record for each."""

    entry: str
    rank: int | None  # baselines have none: what they are worth is known beforehand
    interval: Interval  # over generator runs and classifier seeds
    balanced_accuracy: float
    calibration_error: float
    ratio_to_real: float | None
    training_images: int
    images_shown: int | None
    recipe_images: int | None  # the length that its recipe names
    seeds: str  # generator runs × classifier seeds
    arithmetic: str  # precision of the classifiers' training
    date: str
    commit: str | None
    metrics: dict[str, float]  # by key of their column; means over the runs that have them
    flag: str | None  # why this entry is not what it seems
    records: tuple[Record, ...]  # one for each generator run, oldest first

    @property
    def accuracy(self) -> float:
        """Mean over generator runs of the mean over classifier seeds."""
        return self.interval.mean

    @property
    def shown_interval(self) -> str:
        """In percent; marked where it covers classifier seeds alone."""
        if self.interval.low is None or self.interval.high is None:
            return NOTHING
        mark = f" {ONE_RUN}" if self.interval.runs == 1 else ""
        return f"{100 * self.interval.low:.2f} to {100 * self.interval.high:.2f}{mark}"

    @property
    def is_baseline(self) -> bool:
        entry = self.records[0].entry
        return entry.kind != "synthetic" or entry.labels != "conditional"


RANK = """entries have one whose generator was told the labels, and so have sets of others' making.
The others are there to read them by: pseudo-labels come from a classifier that saw every real
label, and the copier returns training images"""
ACCURACY = "of the classifier after its last step on the entry alone, on the real test split"
INTERVAL = f"""of the accuracy, over generator runs and classifier seeds; marked `{ONE_RUN}`, it
covers classifier seeds alone: there is one generator run, or none for a baseline"""
FLAG = "near copies of training images, more than chance and a small mismatch give"
SHOWN = "real images that the generator's training showed"
LENGTH = "how many its recipe names; for a published recipe the published number"

# A column's value is an attribute of the row: by default that of its key.
SCORES = (
    Column("rank", "rank", "{:d}", RANK),
    Column("entry", "entry"),
    Column("accuracy", "accuracy %", "%", ACCURACY),
    Column("", "95 % interval", "{}", INTERVAL, "shown_interval"),
    Column("interval_low", "", value="interval.low"),
    Column("interval_high", "", value="interval.high"),
    Column("interval_covers", "", value="interval.covers"),
    Column("balanced_accuracy", "balanced %", "%", "mean of the classes' recalls"),
    Column("calibration_error", "ECE %", "%", "expected calibration error"),
    Column("ratio_to_real", "ratio to real", "{:.3f}", "accuracy over that of *real*"),
    Column("flag", "flag", "{}", FLAG),
    Column("training_images", "training images", "{:,}"),
    Column("images_shown", "GAN images shown", "{:,}", SHOWN),
    Column("recipe_images", "recipe's length", "{:,}", LENGTH),
    Column("seeds", "seeds", "{}", "generator runs × classifier seeds"),
    Column("arithmetic", "arithmetic", "{}", "precision of the classifiers' training"),
    Column("date", "date"),
    Column("commit", "commit"),
)
COUNTS = ("{:d}", "{:,}")  # formats of whole numbers


def cell(column: Column, row: Row) -> Any:
    """What stands in a column of `SCORES`."""
    return attrgetter(str(column.value or column.key))(row)


@dataclass(frozen=True)
class Table:
    """The rows of one protocol on one pair of real splits, best first."""

    protocol: str
    protocol_hash: str
    real: str
    train_size: int
    test_size: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return (
            f"{self.real}, {self.protocol} "
            f"({self.train_size:,} real training images, {self.test_size:,} test images)"
        )

    @property
    def calibration(self) -> dict[str, dict[str, float]]:
        """By feature space: distances between real images, from the record of *real*."""
        found = ((row.records[-1].metrics or {}).get("calibration") for row in self.rows)
        return next((value for value in found if value), {})

    def to_frame(self) -> pd.DataFrame:
        """Numbers as they are; accuracies and shares as fractions, gains of them too."""
        scores, metrics = [column for column in SCORES if column.key], all_columns()
        frame: pd.DataFrame = pd.DataFrame(
            [
                {column.key: cell(column, row) for column in scores}
                | {column.key: row.metrics.get(column.key) for column in metrics}
                for row in self.rows
            ]
        ).astype(
            {column.key: "Int64" for column in scores if column.format in COUNTS}
            | {column.key: float for column in metrics}
        )
        return frame


def build_tables(records: list[Record]) -> list[Table]:
    """Groups good records into tables, and generator seeds into rows.

    Of several records of the same content, the one with most classifier seeds counts, then the
    newest.
    """
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.error is None:
            groups[record.protocol["name"], record.protocol["hash"], record.real].append(record)
    tables = [
        Table(name, digest, real.name, real.train_size, real.test_size, tuple(_rows(group)))
        for (name, digest, real), group in groups.items()
    ]
    return sorted(tables, key=lambda table: (table.real, table.protocol))


def _rows(records: list[Record]) -> Iterator[Row]:
    """The rows of one table, best first, with their ranks."""
    newest = _newest_of_each_content(records)
    entries: dict[tuple[Any, ...], dict[str | None, Record]] = defaultdict(dict)
    for record in sorted(newest, key=lambda record: record.id):  # oldest first
        entry = record.entry
        own_data = entry.trained_on in (None, record.real.train_fingerprint)
        name = entry.name if own_data else f"{entry.name} (trained on other data)"
        run = entry.checkpoint or entry.sha256  # of several sets of one run the newest counts
        same = name, entry.count, entry.length, configuration_hash(entry.config)
        entries[same][run] = record
    baselines = {r.entry.kind: mean(r.accuracies) for r in newest if r.entry.kind != "synthetic"}
    rows = [_row(name, list(runs.values()), baselines) for (name, *_), runs in entries.items()]
    rank = 0
    for row in sorted(rows, key=lambda row: -row.accuracy):
        rank += not row.is_baseline
        yield row if row.is_baseline else replace(row, rank=rank)


def _newest_of_each_content(records: list[Record]) -> Iterable[Record]:
    """With such metrics as only an older record of the same content holds."""
    newest: dict[tuple[Any, ...], Record] = {}
    for record in records:  # oldest first; more classifier seeds go before newer
        known = newest.get(record.entry.identity)
        best = record if known is None or len(record.scores) >= len(known.scores) else known
        metrics = merge(known.metrics if known else None, record.metrics)
        newest[record.entry.identity] = replace(best, metrics=metrics or None)
    return newest.values()


def _row(name: str, records: list[Record], baselines: Mapping[str, float]) -> Row:
    """records: one for each generator run. baselines: accuracies by kind."""
    newest = max(records, key=lambda record: record.date)
    counts = sorted({len(record.scores) for record in records})
    per_set = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    found = interval([record.accuracies for record in records])
    scores = [record.scores for record in records]
    held: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in column_values(record.metrics, baselines).items():
            held[key].append(value)
    return Row(
        entry=name,
        rank=None,
        interval=found,
        balanced_accuracy=mean(mean(s.balanced_accuracy for s in seeds) for seeds in scores),
        calibration_error=mean(mean(s.calibration_error for s in seeds) for seeds in scores),
        ratio_to_real=found.mean / baselines["real"] if baselines.get("real") else None,
        training_images=newest.entry.count,
        images_shown=newest.entry.length,
        recipe_images=recipe_length(newest.entry.config),
        seeds=f"{len(records)} × {per_set}",
        arithmetic="/".join(sorted({record.precision for record in records})),
        date=newest.date[:10],
        commit=newest.environment.get("commit"),
        metrics={key: mean(values) for key, values in held.items()},
        flag="; ".join(flags(record.metrics for record in records)) or None,
        records=tuple(records),
    )


# What made a generator


def configuration_hash(config: Any) -> str | None:
    """Equal for runs that differ in their seed or length alone; None where there is no recipe.

    It reads a configuration of any version and of any family of generators. Prose and the length
    are left out, and values at their defaults, which older records lack.
    """
    recipe = _plain(_at(config, "recipe"))
    if recipe is None:
        return None
    family = config.get("family", "gan")
    if isinstance(recipe, dict):
        recipe = _without(recipe, NO_PART)
        recipe = _without(recipe, _gan_defaults() if family == "gan" else {})
    text = json.dumps([family, recipe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_length(config: Any) -> int | None:
    """The length that a recipe names, in real images shown."""
    found = _at(config, "recipe", "training", "images") or _at(config, "recipe", "images")
    return found if isinstance(found, int) else None


def _at(value: Any, *keys: str) -> Any:
    """What stands at the end of the way, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _plain(value: Any) -> Any:
    """As read from a JSON file, with 1 and 1.0 the same."""
    return json.loads(json.dumps(value), parse_int=float)


@cache
def _gan_defaults() -> dict[str, Any]:
    from synth.base.schema import dump
    from synth.recipes import Recipe

    return dict(_plain(dump(Recipe(name="-", citation="", conditional=False))))


def _without(value: dict[str, Any], left_out: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, without what is equal to its counterpart in `left_out`, or has `ANY` there."""
    kept = {}
    for key, inner in value.items():
        other = left_out.get(key)
        if isinstance(inner, dict) and isinstance(other, dict):
            inner, other = _without(inner, other), {}
        if key not in left_out or (other is not ANY and inner != other):
            kept[key] = inner
    return kept
