"""Metrics: numbers about a labelled set besides its score.

A metric is a public module in this package with the constant `METRIC`, or a plug-in's entry point
in the group `eval.metrics`. This declaration defines its name in `--metrics`, its columns in the
leaderboard and its paragraph in METHOD.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING, Any, TypeVar, cast

from synth.base.errors import SynthError, UsageError
from synth.base.progress import say
from synth.base.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from synth.data import ImageSet

SCORE = "cas"  # the accuracy: always measured, and a valid name in --metrics
CLASSIFIER = "classifier"  # the feature space that needs no other network
LARGEST = 1e300  # of a metric
LIMITS = {"%": (0, 1), "points": (-1, 1)}  # of columns in these formats
NOTHING = "–"  # in tables for people, where there is no value

T = TypeVar("T")
Extractor = Callable[["Tensor"], "Tensor"]  # uint8 (N, 3, 32, 32) → float (N, D)


@dataclass(frozen=True)
class Column:
    """One column of the leaderboard.

    value: the path to the number in the metric's value in a record, e.g. "pixels.share" ("": the
    value itself), or a function of that value.
    against: a kind of baseline. The value is then a list of accuracies by classifier seed, and the
    column is their gain over that baseline, over all runs, with an interval.
    """

    key: str  # in leaderboard.csv; "": not there
    title: str  # in tables for people; "": not there
    format: str = "{}"  # "%": in percent; "points": a difference in percentage points
    doc: str = ""  # for the legend; see `legend`
    value: str | Callable[[Any], Any] = ""
    against: str | None = None
    # Key of the column with the same figure of real images, where neither more nor less is better
    real: str = ""

    @property
    def keys(self) -> list[str]:
        """The key, and those of the ends of the interval, if it has one."""
        return [self.key, *([f"{self.key}_low", f"{self.key}_high"] if self.against else [])]

    def read(self, found: Any) -> float | None:
        """The number in this column, or None. Raises TypeError for anything else."""
        found = self.look_up(found)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise TypeError(f"{self.key} is {found!r}, which is no number")
        return found

    def look_up(self, found: Any) -> Any:
        """What is at `value` in a metric's value, or None."""
        if callable(self.value):
            return self.value(found)
        for key in self.value.split(".") if self.value else ():
            found = {**found}.get(key) if found is not None else None
        return found

    def show(self, value: Any) -> str:
        """The value as text for people."""
        if value is None or value != value:
            return NOTHING
        if self.format in ("%", "points"):
            return f"{100 * value:{'+' if self.format == 'points' else ''}.2f}"
        return self.format.format(value)

    def show_with_interval(self, values: Mapping[str, Any]) -> str:
        """Its value in `values`, and its interval if that has one."""
        text = self.show(values.get(self.key))
        ends = [values.get(f"{self.key}_{end}") for end in ("low", "high")]
        return text if None in ends else f"{text} ({' to '.join(map(self.show, ends))})"


@dataclass(frozen=True)
class RealReference:
    """Both real splits and their features, for comparison with synthetic sets."""

    train: ImageSet
    test: ImageSet  # held out; no choice depends on it
    extractors: Mapping[str, Extractor]  # by feature space
    label: Callable[[Tensor], Tensor]  # features in `CLASSIFIER` → classes, int64 (N,)
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` gives: it is called once for a name, whatever sets are compared."""
        if name not in self._known:
            self._known[name] = compute()
        return cast("T", self._known[name])

    def features(self, space: str = CLASSIFIER) -> tuple[Tensor, Tensor]:
        """Of the training and the test split, computed once per space."""
        extract = self.extractors[space]

        def compute() -> tuple[Tensor, Tensor]:
            return extract(self.train.images), extract(self.test.images)

        return self.once(f"features, {space}", compute)


@dataclass(frozen=True)
class Subject:
    """The labelled set to measure, and what metrics need for it."""

    images: ImageSet
    real: RealReference
    score: Callable[[ImageSet], list[float]]  # accuracies by seed after training on another set
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def features(self, space: str = CLASSIFIER) -> Tensor:
        """Float (N, D), computed once per space, after those of the real images."""
        if space not in self._known:
            self.real.features(space)
            self._known[space] = self.real.extractors[space](self.images.images)
        return self._known[space]


@dataclass(frozen=True)
class Metric:
    """The declaration of a metric.

    compute: subject → its JSON value in a record. Raises ValueError if the set has too few images;
    its value is then None, and it counts as measured.
    calibrate: the same between parts of the real data, for the record of *real*: `{feature space:
    {name: number}}`.
    flag: the values in the records of one row → a warning about this entry, or None.
    """

    name: str  # in --metrics: its module's name with dashes, or the name of its entry point
    key: str  # in a record; metrics with the same key return dicts, which are merged
    doc: str  # for METHOD.md: computation and source
    columns: tuple[Column, ...]
    compute: Callable[[Subject], Any]
    position: int = 1000  # order of computing and showing; built-in ones have 10 to 60
    # Measured when --metrics is not given. Baselines whose records lack it are evaluated again.
    default: bool = True
    # Of the features that it reads, for which a classifier is trained. None: it reads pixels alone.
    feature_space: str | None = CLASSIFIER
    applies_to: Callable[[Any], bool] = lambda entry: True  # reads `kind` and `labels` of the entry
    calibrate: Callable[[RealReference], dict[str, Any]] | None = None
    flag: Callable[[list[Any]], str | None] | None = None
    formerly: str = ""  # the metric that measured the same in older records, besides its own


METRICS: Registry[Metric] = Registry(
    "--metrics", "eval.metrics", Metric, modules="eval.metrics", attribute="METRIC"
)


@cache
def in_order() -> tuple[Metric, ...]:
    """All metrics by position. Raises `SynthError` if a plug-in's metric has another name."""
    for name, metric in METRICS.items():
        if getattr(metric, "name", None) != name:
            raise SynthError(f"--metrics {name}: its METRIC has another name, {metric.name}")
    return tuple(sorted(METRICS.values(), key=lambda metric: (metric.position, metric.name)))


def all_columns() -> list[Column]:
    """The columns of all metrics, in the order of the leaderboard."""
    return [column for metric in in_order() for column in metric.columns]


def parse_metrics(text: str = "default", feature_space: str = CLASSIFIER) -> tuple[str, ...]:
    """`all`, `default`, or names separated by commas → names, always with the score.

    `all` means all in the feature space of the classifier. `feature_space` adds the metrics of
    another space with the same keys. Raises `UsageError` for an unknown name.
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
    """The `metrics` of a record: the values of these metrics, and the seconds that each took."""
    chosen = [metric for metric in in_order() if metric.name in set(names)]
    start = time.perf_counter()
    for space in dict.fromkeys(m.feature_space for m in chosen if m.feature_space):
        subject.features(space)
    seconds = {"features": time.perf_counter() - start}
    return _collect([(m.name, m.key, m.compute) for m in chosen], subject, seconds)


def calibrate(real: RealReference, names: Iterable[str]) -> dict[str, Any]:
    """The `metrics` of the record of *real*: distances between real images."""
    chosen = [metric for metric in in_order() if metric.name in set(names) and metric.calibrate]
    return _collect([(m.name, "calibration", m.calibrate) for m in chosen], real, {})


def _collect(work: Iterable[Any], of: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """work: (name, key, compute). Metrics that raise ValueError are left out."""
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
    """The metrics of a record, updated with those that `new` has."""
    merged = dict(old or {})
    for key, value in (new or {}).items():
        if isinstance(value, dict):
            known = merged.get(key)
            merged[key] = {**(known if isinstance(known, dict) else {}), **value}
        elif value is not None or key not in merged:
            merged[key] = value
    return merged


def measured(metrics: dict[str, Any] | None) -> tuple[str, ...]:
    """The names of the metrics in a record that are installed here."""
    values = metrics or {}
    seconds = values.get("seconds", {})

    def formerly(metric: Metric) -> bool:
        found = values.get(metric.key) if metric.formerly in seconds else None
        return found is not None and all(c.look_up(found) is not None for c in metric.columns)

    return tuple(m.name for m in in_order() if m.name in seconds or formerly(m))


def column_values(metrics: dict[str, Any] | None) -> dict[str, float]:
    """The values of a record's installed metrics by key of their column, without absent ones."""
    values = {
        column.key: column.read(found)
        for metric in in_order()
        for column in metric.columns
        if column.against is None
        if (found := (metrics or {}).get(metric.key)) is not None
    }
    return {key: value for key, value in values.items() if value is not None}


def gain_values(
    rows: Iterable[dict[str, Any] | None],
) -> Iterator[tuple[Column, list[list[float]]]]:
    """The columns with `against`, and the accuracies of all runs that have them."""
    held = [metrics for metrics in rows if metrics]
    for metric in in_order():
        for column in metric.columns:
            if column.against is not None:
                found = [column.look_up(metrics.get(metric.key)) for metrics in held]
                runs = [list(map(float, run)) for run in found if run]
                if runs:
                    yield column, runs


def flags(rows: Iterable[dict[str, Any] | None]) -> list[str]:
    """Warnings about an entry, from the metrics of all records of its row."""
    held = [metrics for metrics in rows if metrics]
    found = (
        metric.flag([metrics[metric.key] for metrics in held if metrics.get(metric.key)])
        for metric in in_order()
        if metric.flag is not None
    )
    return [text for text in found if text]


def check(metrics: Any) -> None:
    """Raises ValueError if the metrics of a record are damaged."""
    try:
        if metrics is not None:
            set(metrics["seconds"])
            values = column_values(metrics)
            for column in all_columns():
                value = values.get(column.key, 0.0)
                column.show(value)
                least, most = LIMITS.get(column.format, (-LARGEST, LARGEST))
                if value < least or value > most:
                    raise ValueError(f"{column.key} is {value}")
            flags([metrics])
            list(gain_values([metrics]))
            for numbers in (metrics.get("calibration") or {}).values():
                for key, value in numbers.items():
                    if abs(value) > LARGEST:
                        raise ValueError(f"{key} is {value}")
    except (TypeError, AttributeError, LookupError, ArithmeticError, ValueError) as error:
        raise ValueError(f"its metrics are damaged: {error!r}") from error


def legend(columns: Iterable[Column]) -> str:
    """The docs of columns in Markdown; neighbours with the same doc share a sentence."""
    shown = [column for column in columns if column.title and column.doc]
    return " ".join(
        f"{', '.join(f'**{column.title}**' for column in alike)}: {doc}."
        for doc, alike in groupby(shown, key=lambda column: column.doc)
    )


def describe() -> str:
    """All metrics in Markdown for METHOD.md: a paragraph each, with columns and sources."""
    return "\n".join(wrap(f"`{m.name}`. {legend(m.columns)} {m.doc}", "- ") for m in in_order())


def wrap(text: str, bullet: str = "") -> str:
    """Markdown text in lines of 100 characters."""
    return fill(
        bullet + " ".join(text.split()),
        100,
        subsequent_indent=" " * len(bullet),
        break_on_hyphens=False,
        break_long_words=False,
    )
