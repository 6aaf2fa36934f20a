"""Records → tables. One table per protocol and real data set; they are never mixed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd

from eval.agreement import agreement_lines
from eval.records import Record, read_records
from synth.files import atomic_file, write_text

COLUMNS = {
    "rank": "rank",
    "entry": "entry",
    "accuracy": "accuracy %",
    "spread": "±",
    "balanced_accuracy": "balanced %",
    "ratio_to_real": "ratio to real",
    "training_images": "training images",
    "images_shown": "GAN images shown",
    "seeds": "seeds",
    "precision": "precision",
    "date": "date",
    "commit": "commit",
}


@dataclass(frozen=True)
class Row:
    """One entry: all records of one recipe, length and size, over its generator seeds."""

    entry: str
    accuracy: float  # mean over generator runs of the mean over classifier seeds
    spread: float | None  # standard deviation over all of them; None for a single one
    balanced_accuracy: float
    ratio_to_real: float | None
    training_images: int
    images_shown: int | None
    seeds: str  # generator runs × classifier seeds
    precision: str  # of the classifiers' training
    date: str
    commit: str | None
    records: tuple[Record, ...]

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

    def to_frame(self) -> pd.DataFrame:
        """Numbers as they are; accuracies as fractions."""
        ranks = iter(range(1, len(self.rows) + 1))
        frame: pd.DataFrame = pd.DataFrame(
            [
                {
                    "rank": None if row.is_reference else next(ranks),
                    **{key: getattr(row, key) for key in COLUMNS if key != "rank"},
                }
                for row in self.rows
            ],
            columns=list(COLUMNS),
        ).astype({"rank": "Int64", "images_shown": "Int64"})
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
        if known is None or len(record.scores) >= len(known.scores):
            newest[record.entry.identity] = record
    entries: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in newest.values():
        entry = record.entry
        own_data = entry.trained_on in (None, record.real.train_fingerprint)
        name = entry.name if own_data else f"{entry.name} (trained on other data)"
        entries[name, entry.count, entry.length].append(record)
    reals = [r for r in newest.values() if r.entry.kind == "real"]
    ceiling = mean(reals[0].accuracies) if reals else None
    rows = [_row(name, group, ceiling) for (name, _, _), group in entries.items()]
    return sorted(rows, key=lambda row: -row.accuracy)


def _row(name: str, records: list[Record], ceiling: float | None) -> Row:
    accuracies = [value for record in records for value in record.accuracies]
    accuracy = mean(mean(record.accuracies) for record in records)
    newest = max(records, key=lambda record: record.date)
    counts = sorted({len(record.scores) for record in records})
    per_set = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = len({record.entry.checkpoint or record.entry.sha256 for record in records})
    return Row(
        entry=name,
        accuracy=accuracy,
        spread=stdev(accuracies) if len(accuracies) > 1 else None,
        balanced_accuracy=mean(mean(s.balanced_accuracy for s in r.scores) for r in records),
        ratio_to_real=accuracy / ceiling if ceiling else None,
        training_images=newest.entry.count,
        images_shown=newest.entry.length,
        seeds=f"{runs} × {per_set}",
        precision="/".join(sorted({record.precision for record in records})),
        date=newest.date[:10],
        commit=newest.environment.get("commit"),
        records=tuple(records),
    )


def format_frame(table: Table) -> pd.DataFrame:
    """The table as text, for people: percent with two digits, `–` where there is nothing."""

    def number(form: str) -> Any:
        return lambda value: "–" if pd.isna(value) else form.format(value)

    frame = table.to_frame()
    forms = {
        "rank": "{:d}",
        "spread": "{:.2f}",
        "accuracy": "{:.2f}",
        "balanced_accuracy": "{:.2f}",
        "ratio_to_real": "{:.3f}",
        "training_images": "{:,}",
        "images_shown": "{:,}",
        "commit": "{}",
    }
    for column in ("accuracy", "spread", "balanced_accuracy"):
        frame[column] = frame[column].astype(float) * 100
    for column, form in forms.items():
        frame[column] = frame[column].map(number(form)).astype(str)
    named: pd.DataFrame = frame.rename(columns=COLUMNS)
    return named


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; pandas' own `to_markdown` would need one more dependency."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_leaderboard(results: Path) -> list[Table]:
    """Writes LEADERBOARD.md and leaderboard.csv from the records in `results`."""
    tables = build_tables(read_records(results))
    parts = [HEADER, *(f"## {t.title}\n\n{to_markdown(format_frame(t))}\n" for t in tables)]
    parts += [f"{line}.\n" for line in agreement_lines(tables)]
    write_text(results / "LEADERBOARD.md", "\n".join(parts))
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    with atomic_file(results / "leaderboard.csv") as temporary:
        (pd.concat(frames) if frames else pd.DataFrame()).to_csv(temporary, index=False)
    return tables


HEADER = """# Leaderboard

Made from `records/` by `synth leaderboard`; edit neither. **accuracy**: of the fixed classifier,
trained on the entry alone, on the real test split after its last step. **±**: standard deviation
over generator runs and classifier seeds together; **seeds**: generator runs × classifier seeds.
**ratio to real**: accuracy over that of *real*. Entries with a rank were told their labels; the
others are there to read them by: pseudo-labels, for one, come from a classifier that saw every real
label.
"""
