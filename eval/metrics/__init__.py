"""Metrics: numbers about a labelled set besides its score.

A metric is one public module in this package that holds `METRIC`, or a plug-in's entry point in the
group `eval.metrics`. Its names in `--metrics`, its columns in the leaderboard and its paragraph in
METHOD.md follow from this declaration.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING, Any

from synth.base.errors import SynthError, UsageError
from synth.base.progress import say
from synth.base.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from synth.data import ImageSet

SCORE = "cas"  # the accuracy: it is always measured, and it is a valid word in --metrics
CLASSIFIER = "classifier"  # the feature space that is always there
NOTHING = "–"  # stands in tables where there is no value

Extractor = Callable[["Tensor"], "Tensor"]  # uint8 (N, 3, 32, 32) → float (N, D)


@dataclass(frozen=True)
class Column:
    """One column of the leaderboard.

    value: where it is found in what a record holds of the metric, e.g. "pixels.share", or a
    function of that and of the baselines' accuracies by kind, e.g. "real". "" is all of it.
    """

    key: str  # in leaderboard.csv; "" for a column that only people see
    title: str  # in tables for people; "" for a column that stands in the csv alone
    format: str = "{}"  # "%": a share in percent; "points": a difference of shares in points
    doc: str = ""  # for the legend; neighbours with the same doc share one sentence
    value: str | Callable[[Any, Mapping[str, float]], Any] = ""

    def read(self, found: Any, baselines: Mapping[str, float]) -> float | None:
        """The number in this column, if there is one. Raises TypeError for anything else."""
        if callable(self.value):
            found = self.value(found, baselines)
        else:
            for key in self.value.split(".") if self.value else ():
                found = {**found}.get(key) if found is not None else None
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise TypeError(f"{self.key} is {found!r}, which is no number")
        return found

    def show(self, value: Any) -> str:
        """The value as text for people."""
        if value is None or value != value:
            return NOTHING
        if self.format in ("%", "points"):
            return f"{100 * value:{'+' if self.format == 'points' else ''}.2f}"
        return self.format.format(value)


@dataclass(frozen=True)
class RealReference:
    """What sets are measured against: both real splits, and what networks see in them."""

    train: ImageSet
    test: ImageSet  # held out; what is measured against it chooses nothing
    extractors: Mapping[str, Extractor]  # by feature space
    label: Callable[[Tensor], Tensor]  # features of `CLASSIFIER` → its classes, int64 (N,)
    _known: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def features(self, space: str = CLASSIFIER) -> tuple[Tensor, Tensor]:
        """Of the training and the test split, computed once for each space."""
        if space not in self._known:
            extract = self.extractors[space]
            self._known[space] = extract(self.train.images), extract(self.test.images)
        return self._known[space]


@dataclass(frozen=True)
class Subject:
    """The labelled set under measurement, and what metrics need to measure it."""

    images: ImageSet
    real: RealReference
    score: Callable[[ImageSet], list[float]]  # accuracies, by seed, of training on another set
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def features(self, space: str = CLASSIFIER) -> Tensor:
        """Float (N, D), computed once for each space, after those of the real images."""
        if space not in self._known:
            self.real.features(space)
            self._known[space] = self.real.extractors[space](self.images.images)
        return self._known[space]


@dataclass(frozen=True)
class Metric:
    """One metric: what it is called, what it computes, and how that is shown.

    compute: subject → what a record holds: a JSON value. Raises ValueError where the set has too
    few images; the set then goes without the metric.
    calibrate: the same measure between parts of the real data, for the record of *real*:
    `{feature space: {name: number}}`.
    flag: what the records of one row hold → why this entry is not what it seems, or None.
    """

    name: str  # in --metrics
    key: str  # in a record; metrics that share one give dicts, which are joined
    doc: str  # for METHOD.md: how it is computed, and where it comes from
    columns: tuple[Column, ...]
    compute: Callable[[Subject], Any]
    position: int = 1000  # metrics are computed and shown in this order
    default: bool = True  # measured when --metrics is not given
    feature_space: str | None = CLASSIFIER  # the features that it needs
    applies_to: Callable[[Any], bool] = lambda entry: True  # by `entry.kind` and `entry.labels`
    calibrate: Callable[[RealReference], dict[str, Any]] | None = None
    flag: Callable[[list[Any]], str | None] | None = None


METRICS: Registry[Metric] = Registry(
    "--metrics", "eval.metrics", modules="eval.metrics", attribute="METRIC"
)


@cache
def in_order() -> tuple[Metric, ...]:
    """All metrics by position. Raises `SynthError` for a plug-in that declares another name."""
    for name, metric in METRICS.items():
        if getattr(metric, "name", None) != name:
            raise SynthError(f"--metrics {name}: its plug-in holds no metric of this name")
    return tuple(sorted(METRICS.values(), key=lambda metric: (metric.position, metric.name)))


def all_columns() -> list[Column]:
    """The columns of all metrics, in the order of the leaderboard."""
    return [column for metric in in_order() for column in metric.columns]


def parse_metrics(text: str = "default", feature_space: str = CLASSIFIER) -> tuple[str, ...]:
    """`all`, `default`, or names with commas between them → names; the score is always there.

    `all` leaves out metrics in other feature spaces than the classifier's. `feature_space` adds
    those of that space to their counterparts. Raises `UsageError` for an unknown name.
    """
    own = [m for m in in_order() if m.feature_space in (None, CLASSIFIER)]
    words = {"all": own, "default": [metric for metric in own if metric.default]}
    names = [name.strip() for name in text.split(",")]
    chosen = words.get(text.strip()) or [METRICS.find(name) for name in names if name != SCORE]
    spaces = dict.fromkeys([CLASSIFIER, *(m.feature_space for m in in_order() if m.feature_space)])
    if feature_space not in spaces:
        raise UsageError(f"--feature-space {feature_space}: choose {' or '.join(spaces)}")
    if feature_space != CLASSIFIER:
        there = {m.key: m for m in in_order() if m.feature_space == feature_space}
        added = [there[metric.key] for metric in chosen if metric.key in there]
        if not added:
            partners = " or ".join(metric.name for metric in own if metric.key in there)
            raise UsageError(f"--feature-space {feature_space}: goes with --metrics {partners}")
        chosen = [*chosen, *added]
    return (SCORE, *(metric.name for metric in in_order() if metric in chosen))


def measure(subject: Subject, names: Iterable[str]) -> dict[str, Any]:
    """What a record holds of these metrics of a labelled set, and the seconds that each took."""
    chosen = [metric for metric in in_order() if metric.name in set(names)]
    start = time.perf_counter()
    for space in dict.fromkeys(m.feature_space for m in chosen if m.feature_space):
        subject.features(space)
    seconds = {"features": time.perf_counter() - start}
    return _collect([(m.name, m.key, m.compute) for m in chosen], subject, seconds)


def calibrate(real: RealReference, names: Iterable[str]) -> dict[str, Any]:
    """What the record of the real training split holds: distances between real images."""
    chosen = [metric for metric in in_order() if metric.name in set(names) and metric.calibrate]
    return _collect([(m.name, "calibration", m.calibrate) for m in chosen], real, {})


def _collect(work: Iterable[Any], of: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """A record's metrics; work: (name, key, compute). What raises ValueError is left out."""
    found: dict[str, Any] = dict.fromkeys([*(m.key for m in in_order()), "calibration"])
    for name, key, compute in work:
        start = time.perf_counter()
        try:
            found = merge(found, {key: compute(of)})
        except ValueError as error:
            say(f"{name}: not measured: {error}")
        seconds[name] = time.perf_counter() - start
    return {"seconds": {name: round(value, 2) for name, value in seconds.items()}, **found}


def merge(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    """A record's metrics, with those of `new` in place of them where it has some."""
    merged = dict(old or {})
    for key, value in (new or {}).items():
        if isinstance(value, dict):
            merged[key] = {**(merged.get(key) or {}), **value}
        elif value is not None or key not in merged:
            merged[key] = value
    return merged


def measured(metrics: dict[str, Any] | None) -> tuple[str, ...]:
    """The names of the metrics that a record holds, without those that are not installed here."""
    seconds = (metrics or {}).get("seconds", {})
    return tuple(metric.name for metric in in_order() if metric.name in seconds)


def column_values(
    metrics: dict[str, Any] | None, baselines: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The values of a record's metrics by key of their column, without absent ones and without
    metrics that are not installed here."""
    values = {
        column.key: column.read(found, baselines or {})
        for metric in in_order()
        for column in metric.columns
        if (found := (metrics or {}).get(metric.key)) is not None
    }
    return {key: value for key, value in values.items() if value is not None}


def flags(rows: Iterable[dict[str, Any] | None]) -> list[str]:
    """Why an entry is not what it seems, from the metrics of all records of its row."""
    held = [metrics for metrics in rows if metrics]
    found = (
        metric.flag([metrics[metric.key] for metrics in held if metrics.get(metric.key)])
        for metric in in_order()
        if metric.flag is not None
    )
    return [text for text in found if text]


def check(metrics: Any) -> None:
    """Raises ValueError where what a record holds of its metrics is damaged."""
    try:
        if metrics is not None:
            set(metrics["seconds"])
            column_values(metrics)
            flags([metrics])
            for numbers in (metrics.get("calibration") or {}).values():
                sum(numbers.values())
    except (TypeError, AttributeError, LookupError, ArithmeticError, ValueError) as error:
        raise ValueError(f"its metrics are damaged: {error!r}") from error


def legend(columns: Iterable[Column]) -> str:
    """What columns mean, in Markdown; neighbours with the same doc share a sentence."""
    shown = [column for column in columns if column.title and column.doc]
    sentences = []
    for doc, alike in groupby(shown, key=lambda column: column.doc):
        sentences.append(f"{', '.join(f'**{column.title}**' for column in alike)}: {doc}.")
    return " ".join(sentences)


def describe() -> str:
    """All metrics for METHOD.md, in Markdown: a paragraph each, with columns and sources."""
    return "\n".join(wrap(f"`{m.name}`. {legend(m.columns)} {m.doc}", "- ") for m in in_order())


def wrap(text: str, bullet: str = "") -> str:
    """Markdown text in lines of 100 characters."""
    words = re.sub(r"\s+", " ", text).strip()
    indent = " " * len(bullet)
    return fill(
        bullet + words,
        100,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
