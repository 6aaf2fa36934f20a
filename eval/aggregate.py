"""Records → rows and tables: one table per protocol and pair of real splits."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from statistics import mean
from typing import Any

import pandas as pd

from eval.metrics import (
    NOTHING,
    Column,
    all_columns,
    column_values,
    flags,
    gain_values,
    merge,
)
from eval.records import RealSplits, Record
from eval.statistics import Interval, difference_interval, interval, ratio_interval
from eval.verified import least

ONE_RUN = "*"  # marks an interval that covers classifier seeds alone
# Not part of a configuration: prose, and the length, which is the run's.
NO_PART = {("source",), ("assumed",), ("images",), ("training", "images")}


@dataclass(frozen=True)
class Row:
    """One entry: all runs of one configuration, length and size."""

    entry: str
    rank: int | None  # None for baselines
    interval: Interval  # over generator runs and classifier seeds
    balanced_accuracy: float
    calibration_error: float
    ratio_to_real: float | None
    ratio_interval: tuple[float, float] | None
    recipe_images: int | None  # see `recipe_length`
    seeds: str  # generator runs × classifier seeds
    arithmetic: str  # precision of the classifiers' training
    date: str
    commit: str | None
    verified: str | None  # how deep all of its records were, see `eval.verified`; None: not
    metrics: dict[str, float]  # by key of their column; means over the runs that have them
    flag: str | None  # a warning about this entry
    newest: Record
    records: tuple[Record, ...]  # one for each generator run, oldest first

    @property
    def accuracy(self) -> float:
        return self.interval.mean

    @property
    def ratio_low(self) -> float | None:
        return self.ratio_interval[0] if self.ratio_interval else None

    @property
    def ratio_high(self) -> float | None:
        return self.ratio_interval[1] if self.ratio_interval else None

    @property
    def shown_ratio_interval(self) -> str:
        return (
            NOTHING
            if self.ratio_interval is None
            else "{:.3f} to {:.3f}".format(*self.ratio_interval)
        )

    @property
    def shown_interval(self) -> str:
        """In percent; marked if it covers classifier seeds alone."""
        if self.interval.low is None or self.interval.high is None:
            return NOTHING
        mark = f" {ONE_RUN}" if self.interval.runs == 1 else ""
        return f"{100 * self.interval.low:.2f} to {100 * self.interval.high:.2f}{mark}"

    @property
    def help(self) -> str:
        """What knew the labels of real images, besides the generator. Empty for a baseline."""
        entry = self.records[0].entry
        if entry.kind != "synthetic":
            return ""
        if entry.labels != "conditional":
            return LABELS.get(str(entry.labels), str(entry.labels))
        if entry.rejection is not None:
            return AT_GENERATION
        return LABELS_ONLY if entry.teacher is None else IN_TRAINING

    @property
    def is_baseline(self) -> bool:
        return self.help not in (LABELS_ONLY, IN_TRAINING)


LABELS_ONLY, IN_TRAINING = "labels only", "teacher in training"
AT_GENERATION = "teacher at generation"
LABELS = {"classifier": "labeller", "random": "random labels"}
HELP = f"""what a generator had besides labelled images. A teacher is a classifier of the real
images, trained with augmentation. *{IN_TRAINING}*: it guided the training. *{AT_GENERATION}*: it
rejected images. *labeller*: a classifier gave the labels"""
RANK = """only label-conditional entries without help at generation, and sets that were made
elsewhere, are ranked; the others are baselines. Pseudo-labels come from a classifier that was
trained on all real labels, and the train-copy baseline (`copier`) returns training images"""
ACCURACY = "on the real test split, of the classifier after its last step on the entry alone"
INTERVAL = f"""of the accuracy, over generator runs and classifier seeds. An interval with
`{ONE_RUN}` covers classifier seeds alone, because there is one generator run, or none"""
RATIO = "interval of the ratio to real, over generator runs and classifier seeds of both"
FLAG = "the set has more near copies of training images than held-out images explain"
NAME = "what the classifier was trained on"
COUNT = "number of images that the classifier was trained on"
SHOWN = "real images shown in the training of the generator"
VERIFIED = """how deep `synth verify` found here that it holds. `record`: the chains of hashes in
its records; `evaluate`: their scores, computed again; `generate`: their sets, made again; `train`:
their generators, trained again; `fails`: one record does not hold"""
LENGTH = "the number of real images in its recipe; for a published recipe the published one"

# The value of a column is an attribute of the row, by default the one named by its key.
SCORES = (
    Column("rank", "rank", "{:d}", RANK),
    Column("entry", "entry", doc=NAME),
    Column("help", "help", doc=HELP),
    Column("accuracy", "accuracy %", "%", ACCURACY),
    Column("", "95 % interval", "{}", INTERVAL, "shown_interval"),
    Column("interval_low", "", value="interval.low"),
    Column("interval_high", "", value="interval.high"),
    Column("interval_covers", "", value="interval.covers"),
    Column("balanced_accuracy", "balanced %", "%", "mean of the classes' recalls"),
    Column("calibration_error", "ECE %", "%", "expected calibration error"),
    Column("ratio_to_real", "ratio to real", "{:.3f}", "accuracy over that of *real*"),
    Column("", "95 % of ratio", "{}", RATIO, "shown_ratio_interval"),
    Column("ratio_to_real_low", "", value="ratio_low"),
    Column("ratio_to_real_high", "", value="ratio_high"),
    Column("flag", "flag", "{}", FLAG),
    Column("training_images", "training images", "{:,}", COUNT, "newest.entry.count"),
    Column("images_shown", "GAN images shown", "{:,}", SHOWN, "newest.entry.length"),
    Column("recipe_images", "recipe's length", "{:,}", LENGTH),
    Column("seeds", "seeds", "{}", "generator runs × classifier seeds"),
    Column("arithmetic", "arithmetic", "{}", "precision of the classifiers' training"),
    Column("date", "date", doc="of the newest record"),
    Column("commit", "commit", doc="of the code that scored the newest record"),
    Column("verified", "verified", "{}", VERIFIED),  # where there is a note, see `to_csv`
)
COUNTS = ("{:d}", "{:,}")  # formats of whole numbers


def cell(column: Column, row: Row) -> Any:
    """The value of a row in a column of `SCORES`."""
    return attrgetter(str(column.value or column.key))(row)


@dataclass(frozen=True)
class Table:
    """The rows of one protocol on one pair of real splits, best first."""

    protocol: str
    splits: RealSplits
    rows: tuple[Row, ...]

    @property
    def real(self) -> str:
        return self.splits.name

    @property
    def title(self) -> str:
        train, test = self.splits.train_size, self.splits.test_size
        sizes = f"{train:,} real training images, {test:,} test images"
        return f"{self.real}, {self.protocol} ({sizes})"

    @property
    def calibration(self) -> dict[str, dict[str, float]]:
        """Distances between real images by feature space, from the record of *real*."""
        found = ((row.records[-1].metrics or {}).get("calibration") for row in self.rows)
        return next((value for value in found if value), {})

    def to_frame(self) -> pd.DataFrame:
        """Numbers without rounding; accuracies, shares and gains as fractions."""
        scores = [column for column in SCORES if column.key]
        metrics = [key for column in all_columns() for key in column.keys]
        rows = [
            {column.key: cell(column, row) for column in scores}
            | {key: row.metrics.get(key) for key in metrics}
            for row in self.rows
        ]
        counts = {column.key: "Int64" for column in scores if column.format in COUNTS}
        return pd.DataFrame(rows).astype(counts | dict.fromkeys(metrics, float))


def build_tables(records: list[Record], verified: Mapping[str, str] | None = None) -> list[Table]:
    """Tables of all records without an error; runs with different generator seeds share a row.

    Runs in fp32 and in bf16 are two rows. Of several runs with one seed in a row the newest counts:
    they are not independent, since they share their first weights and their batches. Of several
    records of the same content, one with the most classifier seeds counts: the newest.

    verified: record id → how deep it was verified, see `eval.verified.depths`.
    """
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.error is None:
            groups[record.protocol["name"], record.protocol["hash"], record.real].append(record)
    tables = [
        Table(name, real, tuple(_rows(group, verified or {})))
        for (name, _, real), group in groups.items()
    ]
    return sorted(tables, key=lambda table: (table.real, table.protocol))


def _rows(records: list[Record], verified: Mapping[str, str]) -> Iterator[Row]:
    """The rows of one table, best first, with their ranks."""
    newest, sources = _newest_of_each_content(records)
    entries: dict[tuple[Any, ...], dict[Any, Record]] = defaultdict(dict)
    for record in sorted(newest, key=lambda record: record.id):  # oldest first
        entry = record.entry
        own_data = entry.trained_on in (None, record.real.train_fingerprint)
        name = entry.name if own_data else f"{entry.name} (trained on other data)"
        run = (
            entry.checkpoint or entry.sha256 if entry.training_seed is None else entry.training_seed
        )
        # Sets of different people can have one name; --name says which ones belong together
        content = entry.sha256 if entry.brought and entry.method is None else entry.method
        same = name, entry.count, entry.length, configuration_key(entry.config), content
        entries[same, str(_at(entry.config, "precision"))][run] = record
    baselines = {r.entry.kind: r.accuracies for r in newest if r.entry.kind != "synthetic"}
    several = Counter(same for same, _ in entries)
    named = Counter(same[0] for same in several)
    rows = [
        _row(
            _shown_name(same[0], precision, list(runs.values()), several[same], named[same[0]]),
            list(runs.values()),
            baselines,
            least(verified.get(id, "") for run in runs.values() for id in sources[run.id]),
        )
        for (same, precision), runs in entries.items()
    ]
    rank = 0
    for row in sorted(rows, key=lambda row: -row.accuracy):
        rank += not row.is_baseline
        yield row if row.is_baseline else replace(row, rank=rank)


def _shown_name(
    name: str, precision: str, records: list[Record], precisions: int, rows: int
) -> str:
    """The name of a row, with what tells it from others of that name."""
    entry = records[0].entry
    if precisions > 1:
        return f"{name} (trained in {precision})"
    return f"{name} ({str(entry.sha256)[:6]})" if rows > 1 and entry.brought else name


def _newest_of_each_content(
    records: list[Record],
) -> tuple[list[Record], dict[str, tuple[str, ...]]]:
    """Each also has the metrics that only an older record of the same content has. The second value
    has the ids of all records that its figures are from, by its id."""
    newest: dict[tuple[Any, ...], Record] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for record in records:  # oldest first
        known = newest.get(record.entry.identity)
        sources[record.id] = (record.id,)
        if known is not None:
            metrics = merge(known.metrics, record.metrics)
            best = record if len(record.scores) >= len(known.scores) else known
            if best is known or metrics != record.metrics:
                sources[best.id] = *sources[known.id], record.id
            record = replace(best, metrics=metrics or None)
        newest[record.entry.identity] = record
    return list(newest.values()), sources


def _row(
    name: str,
    records: list[Record],
    baselines: Mapping[str, list[float]],
    verified: str | None,
) -> Row:
    """records: one per generator run. baselines: accuracies by classifier seed, by kind."""
    newest = max(records, key=lambda record: record.date)
    scores = [record.scores for record in records]
    counts = [len(seeds) for seeds in scores]
    per_set = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    runs = [record.accuracies for record in records]
    found, real = interval(runs), baselines.get("real")
    values = [column_values(record.metrics) for record in records]
    keys = dict.fromkeys(key for held in values for key in held)
    return Row(
        entry=name,
        rank=None,
        interval=found,
        balanced_accuracy=mean(mean(s.balanced_accuracy for s in seeds) for seeds in scores),
        calibration_error=mean(mean(s.calibration_error for s in seeds) for seeds in scores),
        ratio_to_real=found.mean / mean(real) if real and mean(real) else None,
        ratio_interval=ratio_interval(runs, real) if real and newest.entry.kind != "real" else None,
        recipe_images=recipe_length(newest.entry.config),
        seeds=f"{len(records)} × {per_set}",
        arithmetic="/".join(sorted({record.precision for record in records})),
        date=newest.date[:10],
        commit=newest.environment.get("commit"),
        verified=verified,
        metrics={key: mean(held[key] for held in values if key in held) for key in keys}
        | _gains([record.metrics for record in records], baselines),
        flag="; ".join(flags(record.metrics for record in records)) or None,
        newest=newest,
        records=tuple(records),
    )


def _gains(
    metrics: list[dict[str, Any] | None], baselines: Mapping[str, list[float]]
) -> dict[str, float]:
    """The gains of a row over baselines with their intervals, by key of their column."""
    values: dict[str, float] = {}
    for column, runs in gain_values(metrics):
        baseline = baselines.get(str(column.against))
        if baseline:
            values[column.key] = mean(map(mean, runs)) - mean(baseline)
            ends = difference_interval(runs, baseline)
            if ends is not None:
                values |= {f"{column.key}_low": ends[0], f"{column.key}_high": ends[1]}
    return values


def configuration_key(config: Any) -> str | None:
    """Equal for runs that differ in their seed or length alone; None without a recipe.

    The configuration may be of any version and any family of generators. Values at their defaults
    do not count, because older records lack them.
    """
    recipe = _at(config, "recipe")
    if recipe is None:
        return None
    family = config.get("family", "gan")
    defaults = _gan_defaults() if family == "gan" else {}
    own = {
        path: value
        for path, value in _leaves(recipe).items()
        if path not in NO_PART and (path not in defaults or value != defaults[path])
    }
    return repr((family, sorted(own.items())))


def recipe_length(config: Any) -> int | None:
    """The length in a recipe, in real images shown."""
    found = _at(config, "recipe", "training", "images") or _at(config, "recipe", "images")
    return found if isinstance(found, int) and 0 <= found < 1 << 63 else None


def _at(value: Any, *keys: str) -> Any:
    """The value at this path in nested dicts, or None."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _leaves(value: Any) -> dict[tuple[str, ...], Any]:
    """The values in nested dicts by their paths; integers as floats, since 1 and 1.0 are equal."""
    if not isinstance(value, dict):
        return {(): json.loads(json.dumps(value, sort_keys=True), parse_int=float)}
    return {
        (key, *path): leaf for key, inner in value.items() for path, leaf in _leaves(inner).items()
    }


@cache
def _gan_defaults() -> dict[tuple[str, ...], Any]:
    from synth.base.schema import dump
    from synth.recipes import Recipe

    return _leaves(dump(Recipe(name="-", citation="", conditional=False)))
