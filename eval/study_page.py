"""What a study found: its results as a page, for the terminal, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import pandas as pd
from matplotlib.figure import Figure

from eval.metrics import wrap
from eval.records import Record
from eval.study_file import Study, options_of
from eval.tables import narrow, to_markdown
from synth.base.files import atomic_file, write_json, write_text
from synth.base.schema import dump


@dataclass(frozen=True)
class Result:
    """One variant: its score on the validation part, and its cost."""

    variant: str
    accuracy: float  # mean over runs and classifier seeds
    spread: float  # largest minus smallest accuracy of the classifiers of one set, mean over runs
    difference: float | None  # from the base, in accuracy; None for the base
    low: float | None  # 95 % interval of the difference
    high: float | None
    covers: str | None  # what the interval covers
    images_per_second: float  # of training, mean over runs
    training_seconds: float
    records: tuple[str, ...]


def write_study(path: Path, study: Study, results: list[Result], baselines: list[Record]) -> None:
    """Writes `<path>.json`, `.md` and `.png`."""
    value = {
        "study": dump(study),
        "real": dump(baselines[0].real),
        "results": list(map(asdict, results)),
        "baselines": {record.entry.name: mean(record.accuracies) for record in baselines},
    }
    write_json(path.with_suffix(".json"), value)
    write_text(path.with_suffix(".md"), to_page(path.name, study, results, baselines))
    with atomic_file(path.with_suffix(".png")) as temporary:
        draw(results).savefig(temporary, dpi=90, metadata={"Software": None})


def to_page(name: str, study: Study, results: list[Result], baselines: list[Record]) -> str:
    """The study as Markdown. Accuracies are in percent, differences in points."""
    split = baselines[0].real
    rows = [
        {
            "variant": result.variant,
            "changes": ", ".join(map("`{}`".format, study.changes(result.variant))) or "–",
            "accuracy %": f"{100 * result.accuracy:.1f}",
            "difference": _points(result.difference),
            "95 % interval": _interval(result),
            "classifiers differ by": f"{100 * result.spread:.1f}",
            "images/s": f"{result.images_per_second:,.0f}",
            "seconds of training": f"{result.training_seconds:,.0f}",
        }
        for result in sorted(results, key=lambda result: -result.accuracy)
    ]
    scopes = sorted({result.covers for result in results if result.covers})
    options = ", ".join(map("`{}`".format, options_of(study.generate))) or "no options"
    base = ", ".join(map("`{}`".format, [study.recipe, *study.set]))
    text = f"""`synth study` made this page. The base is {base}. Each variant has
    {study.seeds} training run(s) of {study.images:,} real images shown. Each run made
    {study.per_class:,} images of each class with {options} of `synth generate`, if nothing else is
    said. {study.protocol} scored them with {study.classifier_seeds} classifier seeds. Generators
    and classifiers learned from the first {split.train_size:,} images of the training split
    ({split.name}). The score is the accuracy on its last {split.test_size:,}. The test split took
    no part. Differences are from the base, in points, paired over images. Their intervals compare
    {" or ".join(scopes) or "nothing"}. They assume that the scores of all variants scatter alike,
    so their spread is estimated from all of them together. Each interval is for its own variant:
    among twenty variants equal to the base, about one has an interval without zero."""
    beside = [f"*{each.entry.name}* {100 * mean(each.accuracies):.1f} %" for each in baselines]
    return "\n\n".join(
        [
            f"# Study: {name}",
            wrap(text),
            to_markdown(pd.DataFrame(rows)),
            f"Training sets without a generator: {', '.join(beside)}.",
            f"![differences from the base]({name}.png)\n",
        ]
    )


def to_text(results: list[Result], baselines: Mapping[str, float]) -> str:
    """For the terminal, in 80 columns. baselines: their accuracies in [0, 1], by name."""
    rows = [(each.accuracy, each.variant, each.difference, _interval(each)) for each in results]
    rows += [(accuracy, f"{name} images", None, "–") for name, accuracy in baselines.items()]
    shown = [
        (name, f"{100 * accuracy:.1f}", _points(difference), between)
        for accuracy, name, difference, between in sorted(rows, key=lambda row: -row[0])
    ]
    columns = ["variant", "accuracy %", "difference", "95 % interval"]
    return narrow(pd.DataFrame(shown, columns=columns), "variant")


def _interval(result: Result) -> str:
    return f"{_points(result.low)} to {_points(result.high)}" if result.low is not None else "–"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def draw(results: list[Result]) -> Figure:
    """The differences from the base with their intervals, in points."""
    shown = [result for result in results if result.difference is not None]
    shown.sort(key=lambda result: result.difference or 0.0)
    figure = Figure(figsize=(7, 1 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", lw=0.8)
    for place, result in enumerate(shown):
        middle, low, high = result.difference or 0.0, result.low or 0.0, result.high or 0.0
        axes.plot([100 * low, 100 * high], [place, place], color="C0")
        axes.plot([100 * middle], [place], "o", color="C0")
    axes.set_yticks(range(len(shown)), [result.variant for result in shown])
    axes.set_xlabel("difference from the base, in points")
    return figure
