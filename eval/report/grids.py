"""The tables of the report as cells."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from eval.aggregate import SCORES, Row, Table, cell
from eval.metrics import NOTHING, Column, all_columns, column_values
from eval.tables import format_calibration, training_means

MOST_CLASSES = 20  # in a heat map
TRAINING = """mean over the second half of training. ±: standard deviation over ticks; step ±: over
the steps of a tick"""
RECALL = "share of the test images of this class that are classified right, in percent"
RUNS = {
    "run": "runs are generators with different weights; in the other tables they share a row",
    "training seed": "of the generator",
    "accuracy %": "mean over the classifiers",
    "of each classifier %": "accuracies by the seed of the classifier",
    "FID": "of this run's set",
    "record": "the name of its file in records/",
}


REAL_IMAGES = {
    "real images": "which real images are compared",
    "feature space": "of which network the features are compared",
}


class Cell(NamedTuple):
    text: str
    value: float | None = None  # to sort by; without one, by the text
    note: str = ""
    shade: int | None = None  # in a heat map, 0 to 10


class Grid(NamedTuple):
    """A table."""

    title: str
    heads: list[tuple[str, str]]  # title and legend of each column
    rows: Sequence[tuple[int | None, list[Cell]]]  # place of the entry in its table, and the cells
    about: str = ""


def grids_of(table: Table, classes: list[str]) -> list[Grid]:
    """The tables below the charts, without empty ones. classes: their names."""
    made = scores(table), metrics(table), recalls(table, classes), runs(table), training(table)
    return [grid for grid in (*made, calibration(table)) if grid.heads and grid.rows]


def number(column: Column, value: Any) -> Cell:
    known = isinstance(value, int | float) and value == value
    return Cell(column.show(value), value if known else None)


def heads(columns: list[Column]) -> list[tuple[str, str]]:
    return [(column.title, column.doc) for column in columns]


def scores(table: Table) -> Grid:
    columns = [each for each in SCORES if each.title and each.key not in ("rank", "entry")]
    rows = [
        (at, [number(each, cell(each, row)) for each in columns])
        for at, row in enumerate(table.rows)
    ]
    return Grid("Scores", heads(columns), rows)


def metrics(table: Table) -> Grid:
    """Metrics of the sets; those with a value of real images say how they compare with it."""
    held = {key for row in table.rows for key in row.metrics}
    columns = [column for column in all_columns() if column.key in held and column.title]

    def show(column: Column, row: Row) -> Cell:
        value, real = row.metrics.get(column.key), row.metrics.get(column.real)
        found = number(column, value)._replace(text=column.show_with_interval(row.metrics))
        if value is None or not real:
            return found
        return found._replace(note=f"{value / real:.2f} × real")

    rows = [
        (at, [show(each, row) for each in columns])
        for at, row in enumerate(table.rows)
        if row.metrics
    ]
    return Grid("Metrics of the sets", heads(columns), rows, "Means over generator runs.")


def recalls(table: Table, classes: list[str]) -> Grid:
    """A heat map of entries and classes; empty if there are too many classes."""
    rows = []
    for at, row in enumerate(table.rows):
        shares = np.mean([score.recalls for each in row.records for score in each.scores], axis=0)
        rows.append((at, [Cell(f"{100 * x:.0f}", float(x), shade=shade(x)) for x in shares]))
    titles = [(name, RECALL) for name in classes] if len(classes) <= MOST_CLASSES else []
    return Grid("Recall of each class", titles, rows, "In percent, over all runs and classifiers.")


def shade(share: float) -> int:
    return round(10 * min(max(share, 0.0), 1.0))


def runs(table: Table) -> Grid:
    """Every run of every entry."""
    rows: list[tuple[int | None, list[Cell]]] = []
    for at, row in enumerate(table.rows):
        for run, record in enumerate(row.records, 1):
            seed, accuracy = record.entry.training_seed, mean(record.accuracies)
            fid = column_values(record.metrics).get("fid")
            cells = [
                Cell(f"{run}", run),
                Cell(NOTHING if seed is None else f"{seed}", seed),
                Cell(f"{100 * accuracy:.2f}", accuracy),
                Cell(", ".join(f"{100 * each:.2f}" for each in record.accuracies)),
                number(Column("fid", "FID", "{:.2f}"), fid),
                Cell(record.id),
            ]
            rows.append((at, cells))
    return Grid("Every run", list(RUNS.items()), rows)


def training(table: Table) -> Grid:
    means = training_means(table)
    columns = [Column(title, title, "{:.3f}", TRAINING) for title in means]
    rows = [
        (place, [number(column, value) for column, value in zip(columns, values, strict=True)])
        for place, values in zip(means.index, means.values.tolist(), strict=True)
    ]
    return Grid("Training", heads(columns), rows, "Means over the runs that have a log.")


def calibration(table: Table) -> Grid:
    frame = format_calibration(table)
    if frame is None:
        return Grid("", [], [])
    docs = {column.title: column.doc for column in all_columns()} | REAL_IMAGES
    rows = [(None, [Cell(str(text)) for text in row]) for row in frame.values]
    titles = [(title, docs[title]) for title in frame]
    about = "Distances between real images: what FID and KID are where nothing is generated."
    return Grid("Real images", titles, rows, about)
