"""The charts of the report as numbers: places in percent of a chart's width or height."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise, product
from statistics import mean
from typing import Any, NamedTuple

from eval.aggregate import Row, Table
from eval.metrics import Column
from eval.records import Record
from eval.tables import LOGGED

LINES = {  # baselines by their kind: name, and what it is
    "real": ("real", "the real training images"),
    "real-augmented": ("real + augmentation", "real training images, changed at random"),
}
OUTPUTS = ("d_real", "d_fake")
LOSS = Column("", "", "{:.3f}")
SMALLEST, LARGEST = 1e-9, 1e15  # on a logarithmic axis
ALIKE = 1.1  # ratio of lengths that count as the same
LABEL = 7.0, 6.0  # room that the label of a point takes, in percent of a chart


class Axis(NamedTuple):
    ticks: list[tuple[float, str]]  # (place, label)
    place: Callable[[float], float]  # value → place in [0, 100]


def percent_axis(values: Sequence[float]) -> Axis:
    """From a multiple of ten to another. values: fractions; those outside [0, 1] are clipped."""
    low = min(10 * math.floor(10 * max(min(values), 0)), 90)
    high = max(10 * math.ceil(10 * min(max(values), 1)), low + 10)
    ticks = range(low, high + 1, 20 if high - low > 60 else 10)

    def place(value: float) -> float:
        return min(max(100 * (100 * value - low) / (high - low), 0.0), 100.0)

    return Axis([(place(tick / 100), f"{tick} %") for tick in ticks], place)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis of positive values, with ticks at 1, 2, 5, 10, …"""
    low, high = 0.9 * min(values), 1.1 * max(values)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    round_ones = [digit * 10.0**power for power, digit in product(decades, (1, 2, 5))]
    first = max(value for value in round_ones if value <= low)
    last = min(value for value in round_ones if value >= high)
    shown = [value for value in round_ones if first <= value <= last]
    if len(shown) > 7:
        shown = [value for value in shown if math.log10(value).is_integer()]

    def place(value: float) -> float:
        return 100 * math.log(value / first) / math.log(last / first)

    return Axis([(place(value), short(value)) for value in shown], place)


def short(value: float) -> str:
    """2500000 → 2.5M"""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e4 else f"{value:g}"


# Scores


def accuracy_axis(table: Table) -> Axis:
    ends = [row.interval.low for row in table.rows] + [row.interval.high for row in table.rows]
    found = [end for end in ends if end is not None] + [row.accuracy for row in table.rows]
    return percent_axis([*found, chance(table)])


def chance(table: Table) -> float:
    """The accuracy of a guess: one over the number of classes."""
    return 1 / len(table.rows[0].newest.scores[0].recalls)


def reference_lines(table: Table, axis: Axis) -> list[dict[str, Any]]:
    """Lines that the scores are read by, from left to right: chance, real images, and real images
    with augmentation."""
    rows = {row.newest.entry.kind: row for row in reversed(table.rows)}
    lines = [
        {"name": name, "value": rows[kind].accuracy, "about": about, **dot(rows[kind], axis)}
        for kind, (name, about) in LINES.items()
        if kind in rows
    ]
    guess, classes = chance(table), len(table.rows[0].newest.scores[0].recalls)
    about = f"a guess among {classes} classes"
    lines.append(
        {"name": "chance", "value": guess, "about": about, "at": axis.place(guess), "range": None}
    )
    return sorted(lines, key=lambda line: line["at"])


def dot(row: Row, axis: Axis) -> dict[str, Any]:
    """A score with the interval and what it rests on: the runs, or the seeds of the only run."""
    low, high = row.interval.low, row.interval.high
    single = [each for record in row.records for each in record.accuracies]
    units = [mean(record.accuracies) for record in row.records] if len(row.records) > 1 else single
    return {
        "at": axis.place(row.accuracy),
        "range": None if low is None or high is None else (axis.place(low), axis.place(high)),
        "units": [axis.place(unit) for unit in units] if len(units) > 1 else [],
    }


def scatter_plots(table: Table, axis: Axis) -> list[dict[str, Any]]:
    """FID against score, and score over images shown, where lengths of one recipe are joined.

    A plot needs two entries that have a value.
    """
    fid = {at: row.metrics.get("fid") for at, row in enumerate(table.rows)}
    length = {at: row.newest.entry.length for at, row in enumerate(table.rows)}
    plots = [
        {"title": "FID against score", "x_title": "FID", **_points(table, axis, fid)},
        {
            "title": "Score over images shown",
            "x_title": "real images shown to the generator",
            **_points(table, axis, length),
        },
    ]
    points = sorted(plots[1]["points"], key=lambda point: point["x"])
    points.sort(key=lambda point: table.rows[point["entry"]].entry)
    groups = groupby(points, lambda point: table.rows[point["entry"]].entry)
    plots[1]["joined"] = [pair for _, group in groups for pair in pairwise(list(group))]
    if points and max(p["value"] for p in points) < ALIKE * min(p["value"] for p in points):
        plots[1]["note"] = "All of these were shown about the same number of images."
    return [plot for plot in plots if len(plot["points"]) > 1]


def _points(table: Table, axis: Axis, values: Mapping[int, float | None]) -> dict[str, Any]:
    """The scores over other figures of the entries. values: figures by the entry's place."""
    known = {at: x for at, x in values.items() if x is not None and SMALLEST < x < LARGEST}
    x_axis = log_axis(list(known.values()) or [1])
    points: list[dict[str, Any]] = [
        {"entry": at, "x": x_axis.place(x), "value": x, "label": False, **dot(table.rows[at], axis)}
        for at, x in known.items()
    ]
    # Ranked entries get their labels first, as far as there is room.
    for point in sorted(points, key=lambda point: table.rows[point["entry"]].is_baseline):
        point["label"] = not any(
            other["label"]
            and abs(point["x"] - other["x"]) < LABEL[0]
            and abs(point["at"] - other["at"]) < LABEL[1]
            for other in points
        )
    return {"x_axis": x_axis, "points": points, "joined": [], "note": ""}


# Training


def loss_charts(record: Record) -> list[dict[str, Any]]:
    """The losses of a run, and the discriminator's mean outputs, over the images shown."""
    log = [tick for tick in record.entry.training_log or [] if _number(tick.get("images"))]
    losses = dict.fromkeys(key for tick in log for key in tick if key.endswith("loss"))
    made = (_lines("loss", log, losses), _lines("mean output of D", log, OUTPUTS))
    return [chart for chart in made if chart["lines"]]


def _lines(title: str, log: list[dict[str, Any]], keys: Iterable[str]) -> dict[str, Any]:
    """These values of a log as lines, from 0 (or the lowest one) to 1 (or the highest one)."""
    held = [key for key in keys if any(_number(tick.get(key)) for tick in log)]
    known = [[tick for tick in log if _number(tick.get(key))] for key in held]
    values = [tick[key] for key, ticks in zip(held, known, strict=True) for tick in ticks]
    low, high = min([0, *values]), max([1, *values])
    last = max([1, *(tick["images"] for tick in log)])

    def place(tick: dict[str, Any], key: str) -> tuple[float, float]:
        return 100 * tick["images"] / last, 100 * (high - tick[key]) / (high - low)

    return {
        "title": title,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": short(last),
        "lines": [
            {
                "name": LOGGED.get(key, key),
                "places": [place(tick, key) for tick in ticks],
                "ends": (LOSS.show(ticks[0][key]), LOSS.show(ticks[-1][key])),
            }
            for key, ticks in zip(held, known, strict=True)
        ],
        "numbers": [
            (
                f"{tick['images']:,}",
                [LOSS.show(tick[key] if _number(tick.get(key)) else None) for key in held],
            )
            for tick in log
        ],
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
