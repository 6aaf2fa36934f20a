"""Records → rows and tables: one table per protocol and real data set; they are never mixed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pandas as pd

from eval.metrics import Calibration, Metrics
from eval.records import Record
from eval.statistics import Interval, interval
from synth.base.errors import SynthError
from synth.recipes import Recipe

# Columns of a frame besides rank, entry, accuracy and its interval: scores, then figures.
SCORES = (
    "balanced_accuracy",
    "calibration_error",
    "ratio_to_real",
    "flag",
    "training_images",
    "images_shown",
    "recipe_images",
    "seeds",
    "arithmetic",
    "date",
    "commit",
)
COUNTS = ("rank", "images_shown", "recipe_images")  # whole numbers, where there is one
FIGURES = (
    *(
        f"{space}{key}"
        for space in ("", "inception_")
        for key in ("fid", "kid", "kid_std", "precision", "recall", "density", "coverage")
    ),
    "gan_test",
    "near_copies_pixels",
    "near_copies_features",
    "diversity",
    "real_diversity",
    "augmented",
    "augmented_gain",
    "augmented_tenth",
    "augmented_tenth_gain",
)


@dataclass(frozen=True)
class Row:
    """One entry: the runs of one recipe, length and size, a record for each."""

    entry: str
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
    figures: dict[str, float]  # those of FIGURES that were measured; means over generator runs
    flag: str | None  # why this entry is not what it seems
    records: tuple[Record, ...]  # one for each generator run, oldest first

    @property
    def accuracy(self) -> float:
        """Mean over generator runs of the mean over classifier seeds."""
        return self.interval.mean

    @property
    def is_reference(self) -> bool:
        """References have no rank: what they are worth is known beforehand."""
        entry = self.records[0].entry
        return entry.kind != "synthetic" or entry.labels != "conditional"


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
    def calibration(self) -> dict[str, Calibration]:
        """By feature space: distances between real images, from the record of *real*."""
        for row in self.rows:
            metrics = row.records[-1].metrics
            if metrics is not None and metrics.calibration is not None:
                return metrics.calibration
        return {}

    def to_frame(self) -> pd.DataFrame:
        """Numbers as they are; accuracies and shares as fractions, gains of them too."""
        ranks = iter(range(1, len(self.rows) + 1))
        frame: pd.DataFrame = pd.DataFrame(
            [
                {
                    "rank": None if row.is_reference else next(ranks),
                    "entry": row.entry,
                    "accuracy": row.accuracy,
                    "interval_low": row.interval.low,
                    "interval_high": row.interval.high,
                    "interval_covers": row.interval.covers,
                    **{key: getattr(row, key) for key in SCORES},
                    **{key: row.figures.get(key) for key in FIGURES},
                }
                for row in self.rows
            ]
        ).astype({**dict.fromkeys(COUNTS, "Int64"), **dict.fromkeys(FIGURES, float)})
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


def _rows(records: list[Record]) -> list[Row]:
    newest: dict[tuple[Any, ...], Record] = {}
    for record in records:  # oldest first; more classifier seeds go before newer
        known = newest.get(record.entry.identity)
        best = record if known is None or len(record.scores) >= len(known.scores) else known
        if known is not None and known.metrics is not None:  # figures of the same content
            best = replace(best, metrics=known.metrics.updated(record.metrics))
        elif record.metrics is not None:
            best = replace(best, metrics=record.metrics)
        newest[record.entry.identity] = best
    entries: dict[tuple[Any, ...], dict[str | None, Record]] = defaultdict(dict)
    for record in sorted(newest.values(), key=lambda record: record.id):  # oldest first
        entry = record.entry
        own_data = entry.trained_on in (None, record.real.train_fingerprint)
        name = entry.name if own_data else f"{entry.name} (trained on other data)"
        run = entry.checkpoint or entry.sha256  # of several sets of one run the newest counts
        recipe = _recipe(record)  # its length aside: what counts is the run's
        dials = recipe and replace(recipe, training=replace(recipe.training, images=0))
        entries[name, entry.count, entry.length, dials][run] = record
    reals: dict[str, float] = {
        record.entry.kind: mean(record.accuracies)
        for record in newest.values()
        if record.entry.kind in ("real", "real-tenth")
    }
    rows = [_row(name, list(runs.values()), reals) for (name, *_), runs in entries.items()]
    return sorted(rows, key=lambda row: -row.accuracy)


def _recipe(record: Record) -> Recipe | None:
    """What the generator was trained by; older ones get the dials that came later at their
    defaults. None where no generator of synth made it."""
    if record.entry.config is None:
        return None
    try:
        return Recipe.from_json(record.entry.config["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise SynthError(
            f"{record.id}: its recipe is damaged or from another version ({error})"
        ) from error


def _row(name: str, records: list[Record], reals: dict[str, float]) -> Row:
    """records: one for each generator run."""
    newest = max(records, key=lambda record: record.date)
    counts = sorted({len(record.scores) for record in records})
    per_set = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    found = interval([record.accuracies for record in records])
    spaces = {space for r in records if r.metrics for space in r.metrics.flags}
    scores = [record.scores for record in records]
    recipe = _recipe(newest)
    return Row(
        entry=name,
        interval=found,
        balanced_accuracy=mean(mean(s.balanced_accuracy for s in seeds) for seeds in scores),
        calibration_error=mean(mean(s.calibration_error for s in seeds) for seeds in scores),
        ratio_to_real=found.mean / reals["real"] if reals.get("real") else None,
        training_images=newest.entry.count,
        images_shown=newest.entry.length,
        recipe_images=recipe.training.images if recipe else None,
        seeds=f"{len(records)} × {per_set}",
        arithmetic="/".join(sorted({record.precision for record in records})),
        date=newest.date[:10],
        commit=newest.environment.get("commit"),
        figures=_mean_figures(records, reals),
        flag=f"near copies ({', '.join(sorted(spaces, reverse=True))})" if spaces else None,
        records=tuple(records),
    )


def _mean_figures(records: list[Record], reals: dict[str, float]) -> dict[str, float]:
    """The figures of FIGURES, each the mean over the records that hold it."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in _figures(record.metrics, reals).items():
            if value is not None:
                found[key].append(value)
    return {key: mean(values) for key, values in found.items()}


def _figures(metrics: Metrics | None, reals: dict[str, float]) -> dict[str, float | None]:
    if metrics is None:
        return {}
    figures: dict[str, float | None] = {"gan_test": metrics.gan_test}
    for space, fidelity in (metrics.fidelity or {}).items():
        prefix = "" if space == "classifier" else f"{space}_"
        figures |= {prefix + key: value for key, value in vars(fidelity).items()}
    for space, copies in (metrics.memorisation or {}).items():
        figures[f"near_copies_{space}"] = copies.share
    if metrics.diversity is not None:
        figures |= {"diversity": metrics.diversity.mean, "real_diversity": metrics.diversity.real}
    if metrics.augmentation is not None:
        for key, values, kind in (
            ("augmented", metrics.augmentation.all, "real"),
            ("augmented_tenth", metrics.augmentation.tenth, "real-tenth"),
        ):
            figures[key] = mean(values)
            figures[f"{key}_gain"] = mean(values) - reals[kind] if kind in reals else None
    return figures
