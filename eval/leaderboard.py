"""Records → tables. One table per protocol and real data set; they are never mixed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from eval.agreement import agreement_lines
from eval.metrics import Calibration, Metrics
from eval.records import Record, read_records
from eval.statistics import Interval, interval
from synth.files import atomic_file, write_text

SCORES = {
    "rank": "rank",
    "entry": "entry",
    "accuracy": "accuracy %",
    "interval": "95 % interval",
    "balanced_accuracy": "balanced %",
    "calibration_error": "ECE %",
    "ratio_to_real": "ratio to real",
    "flag": "flag",
    "training_images": "training images",
    "images_shown": "GAN images shown",
    "seeds": "seeds",
    "arithmetic": "arithmetic",
    "date": "date",
    "commit": "commit",
}
# Figures of the set, in a table of their own; how each is shown. Those of Inception's space, which
# few have weights for, stand there where a record holds them.
FIGURES = {
    "fid": ("FID", "{:.2f}"),
    "kid": ("KID", "{:.3g}"),
    "kid_std": ("± of KID", "{:.2g}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "inception_fid": ("Inception FID", "{:.2f}"),
    "inception_kid": ("Inception KID", "{:.4f}"),
    "inception_precision": ("Inception precision", "{:.3f}"),
    "inception_recall": ("Inception recall", "{:.3f}"),
    "inception_density": ("Inception density", "{:.3f}"),
    "inception_coverage": ("Inception coverage", "{:.3f}"),
    "gan_test": ("GAN-test %", "%"),
    "near_copies_pixels": ("near copies, pixels %", "%"),
    "near_copies_features": ("near copies, features %", "%"),
    "diversity": ("diversity", "{:.1f}"),
    "real_diversity": ("real's", "{:.1f}"),
    "augmented": ("with real %", "%"),
    "augmented_gain": ("gain", "{:+.2f}"),
    "augmented_tenth": ("with a tenth %", "%"),
    "augmented_tenth_gain": ("gain on it", "{:+.2f}"),
}
ONE_RUN = "*"  # beside an interval that covers classifier seeds alone


@dataclass(frozen=True)
class Row:
    """One entry: all records of one recipe, length and size, over its generator seeds."""

    entry: str
    interval: Interval  # over generator runs and classifier seeds
    balanced_accuracy: float
    calibration_error: float
    ratio_to_real: float | None
    training_images: int
    images_shown: int | None
    seeds: str  # generator runs × classifier seeds
    arithmetic: str  # precision of the classifiers' training
    date: str
    commit: str | None
    figures: dict[str, float]  # those of FIGURES that were measured; means over generator runs
    flag: str | None  # why this entry is not what it seems
    records: tuple[Record, ...]

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
                    **{key: getattr(row, key) for key in PLAIN},
                    **{key: row.figures.get(key) for key in FIGURES},
                }
                for row in self.rows
            ]
        ).astype({"rank": "Int64", "images_shown": "Int64", **dict.fromkeys(FIGURES, float)})
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
    entries: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in newest.values():
        entry = record.entry
        own_data = entry.trained_on in (None, record.real.train_fingerprint)
        name = entry.name if own_data else f"{entry.name} (trained on other data)"
        entries[name, entry.count, entry.length].append(record)
    reals: dict[str, float] = {
        record.entry.kind: mean(record.accuracies)
        for record in newest.values()
        if record.entry.kind in ("real", "real-tenth")
    }
    rows = [_row(name, group, reals) for (name, _, _), group in entries.items()]
    return sorted(rows, key=lambda row: -row.accuracy)


def _row(name: str, records: list[Record], reals: dict[str, float]) -> Row:
    newest = max(records, key=lambda record: record.date)
    counts = sorted({len(record.scores) for record in records})
    per_set = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs: dict[str | None, list[float]] = defaultdict(list)  # two sets of one run are one run
    for record in records:
        runs[record.entry.checkpoint or record.entry.sha256] += record.accuracies
    found = interval(list(runs.values()))
    spaces = {space for r in records if r.metrics for space in r.metrics.flags}
    scores = [record.scores for record in records]
    return Row(
        entry=name,
        interval=found,
        balanced_accuracy=mean(mean(s.balanced_accuracy for s in seeds) for seeds in scores),
        calibration_error=mean(mean(s.calibration_error for s in seeds) for seeds in scores),
        ratio_to_real=found.mean / reals["real"] if reals.get("real") else None,
        training_images=newest.entry.count,
        images_shown=newest.entry.length,
        seeds=f"{len(runs)} × {per_set}",
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
    figures.pop("inception_kid_std", None)
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


PLAIN = [key for key in SCORES if key not in ("rank", "entry", "accuracy", "interval")]


def format_frame(table: Table) -> pd.DataFrame:
    """The scores as text, for people: percent with two digits, `–` where there is nothing."""
    frame = table.to_frame()
    forms = {
        "rank": "{:d}",
        "accuracy": "%",
        "balanced_accuracy": "%",
        "calibration_error": "%",
        "ratio_to_real": "{:.3f}",
        "flag": "{}",
        "training_images": "{:,}",
        "images_shown": "{:,}",
        "commit": "{}",
    }
    for column, form in forms.items():
        frame[column] = frame[column].map(_shown(form)).astype(str)
    frame["interval"] = [format_interval(row.interval) for row in table.rows]
    named: pd.DataFrame = frame[list(SCORES)].rename(columns=SCORES)
    return named


def format_interval(interval: Interval) -> str:
    """In percent; marked where it covers classifier seeds alone."""
    if interval.low is None or interval.high is None:
        return "–"
    mark = f" {ONE_RUN}" if interval.runs == 1 else ""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}{mark}"


def format_figures(table: Table) -> pd.DataFrame | None:
    """The other figures as text, without columns and rows that hold none; None without any."""
    frame = table.to_frame()
    held = frame[list(FIGURES)].dropna(axis=1, how="all").dropna(axis=0, how="all")
    if held.empty:
        return None
    shown: pd.DataFrame = pd.DataFrame(
        {"entry": frame["entry"], "flag": frame["flag"].map(_shown("{}"))}
    )
    shown = shown.reindex(held.index)
    for key in held.columns:
        title, form = FIGURES[key]
        scale = 100 if key.endswith("_gain") else 1  # in points
        shown[title] = (held[key] * scale).map(_shown(form)).astype(str)
    return shown


def format_calibration(table: Table) -> pd.DataFrame | None:
    """Distances between real images as text; None where they were not measured."""
    rows = [
        {
            "real images": title,
            "feature space": space,
            "FID": f"{getattr(found, f'fid_{part}'):.2f}",
            "KID": f"{getattr(found, f'kid_{part}'):.3g}",
            "± of KID": f"{getattr(found, f'kid_{part}_std'):.2g}",
        }
        for space, found in table.calibration.items()
        for part, title in (
            ("halves", "training split: one half and the other"),
            ("test", "training split and test split"),
        )
    ]
    return pd.DataFrame(rows) if rows else None


def frames_for_people(table: Table) -> list[pd.DataFrame]:
    """What stands under a table's title: scores, figures of the sets, calibration."""
    frames = [format_frame(table), format_figures(table), format_calibration(table)]
    return [frame for frame in frames if frame is not None]


def _shown(form: str) -> Any:
    """A function from value to text; `%` is percent with two digits."""
    if form == "%":
        return lambda value: "–" if pd.isna(value) else f"{100 * value:.2f}"
    return lambda value: "–" if pd.isna(value) else form.format(value)


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; pandas' own `to_markdown` would need one more dependency."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_leaderboard(results: Path) -> list[Table]:
    """Writes LEADERBOARD.md and leaderboard.csv from the records in `results`."""
    tables = build_tables(read_records(results))
    parts = [HEADER]
    for table in tables:
        parts.append(f"## {table.title}\n")
        parts += [f"{to_markdown(frame)}\n" for frame in frames_for_people(table)]
    parts += [f"{line}.\n" for line in agreement_lines(tables)]
    write_text(results / "LEADERBOARD.md", "\n".join(parts))
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    with atomic_file(results / "leaderboard.csv") as temporary:
        (pd.concat(frames) if frames else pd.DataFrame()).to_csv(temporary, index=False)
    return tables


HEADER = """# Leaderboard

Made from `records/` by `synth leaderboard`; edit neither. **accuracy**: of the fixed classifier,
trained on the entry alone, on the real test split after its last step. **95 % interval**: of that
mean, over generator runs and classifier seeds; marked `*`, there is one generator run (or, of a
reference, no generator), and it covers classifier seeds alone. **seeds**: generator runs ×
classifier seeds. **ECE**: expected calibration error. **ratio to real**: accuracy over that of
*real*. **flag**: near copies of training images, more than chance and a small mismatch give.
Entries with a rank were told their labels; the others are there to read them by: pseudo-labels, for
one, come from a classifier that saw every real label, and the copier returns training images.

The second table has figures of the sets themselves, means over generator runs. **FID** to
**coverage**: against the real training split, in the features of the fixed classifier trained on
that split; they depend on the number of images. **GAN-test**: that classifier's accuracy on the
set. **near copies**: share of images nearer to a training image than 99.9 % of the test split are,
so 0.1 % is what no memorisation gives. **diversity**: modes within a class, beside the real
training split's. **with real**, **with a tenth**: accuracy when trained on the set and on the real
training split, or a tenth of it; **gain**: in points, over those real images alone. The third table
has the same distances between real images.
"""
