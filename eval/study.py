"""A study: variants of a recipe against their base, scored on a part of the training split alone.

A study is a TOML file:

    dataset = "svhn"          # its training split; the test split is never opened
    recipe = "cdcgan"         # the base
    set = ["training.batch=64"]  # its hyperparameters that are changed
    images = 200_000          # length of each training, in real images shown
    seeds = 2                 # training runs of each variant
    per_class = 3000
    protocol = "fixed-v1"
    classifier_seeds = 3
    generate = { augment = "digits-v1" }   # options of generation, for all variants

    [variants.balanced]
    set = ["training.balanced=true"]

    [variants.flow]
    recipe = "flow"           # instead of the base and its changes

    [variants.shifted]
    generate = { augment = "geometry-v1" }  # instead of those above

The real data is `svhn:validation`: generators and classifiers learn from the first four fifths of
the training split, and are scored on the last fifth. Runs, sets and records are those of `synth
benchmark`, so a study that was stopped goes on where it was, and several processes can do it at
once. What has a record is done, even where its run and set are gone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field
from pydantic.dataclasses import dataclass

from eval.benchmark import Plan, ensure_scored, is_begun
from eval.compare import compare_records_with_base
from eval.evaluate import baseline_entry, ensure_baseline, publish
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.metrics import wrap
from eval.records import RealSplits, Record
from eval.spread import ALONE, Spread, share
from eval.statistics import Comparison
from eval.tables import narrow, to_markdown
from synth.base.errors import UsageError
from synth.base.files import atomic_file, write_json, write_text
from synth.base.locks import do_all
from synth.base.progress import progress_bar
from synth.base.schema import CLOSED, Count, Text, dump, parse
from synth.data import VALIDATION
from synth.generation import DEFAULTS, Sampling
from synth.published import find_recipe
from synth.recipes import RecipeBase, override, read_toml

BASE = "base"
BASELINES = ("real", "real-augmented")


@dataclass(frozen=True, config=CLOSED)
class Variant:
    """What a variant changes."""

    recipe: Text | None = None  # instead of the base and its changes
    set: tuple[str, ...] = ()  # hyperparameters, as for --set
    generate: Sampling | None = None  # by default that of the study


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Study:
    """The content of a study's file."""

    dataset: Text
    recipe: Text
    set: tuple[str, ...] = ()  # hyperparameters of the base, as for --set
    images: Count
    seeds: Count = 1
    per_class: Count = 3000
    protocol: Text = "fixed-v1"
    classifier_seeds: Count = 3
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    generate: Sampling = DEFAULTS
    variants: Annotated[dict[str, Variant], Field(min_length=1)]

    def sampling(self, variant: str) -> Sampling:
        return self.variants.get(variant, Variant()).generate or self.generate


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


def read_study(path: Path) -> Study:
    """Raises `UsageError` that names the file and the wrong value."""
    study = parse(Study, read_toml(path), f"{path}", UsageError)
    if ":" in study.dataset:
        raise UsageError(f"{path}: dataset is {study.dataset}; leave out what follows the colon")
    for name in study.variants:
        if name == BASE or not re.fullmatch(r"[\w ,.+-]+", name):
            raise UsageError(
                f"{path}: a variant is called {name!r}; use letters, digits, spaces and , . + - "
                f"for a name other than {BASE}"
            )
    for name, recipe in recipes_of(study):
        if not recipe.conditional:
            raise UsageError(f"{path}: {name} is unconditional, and a study scores labelled sets")
    return study


def recipes_of(study: Study) -> Iterator[tuple[str, RecipeBase]]:
    """The base and all variants with their recipes."""
    for name, variant in {BASE: Variant(), **study.variants}.items():
        start = find_recipe(variant.recipe or study.recipe, None)
        changes = variant.set if variant.recipe else (*study.set, *variant.set)
        changed = ", ".join([start.name, *changes])
        yield name, replace(override(start, *changes), name=" ".join(changed.split()))


def run_study(
    path: Path, device: torch.device, workspace: Workspace, spread: Spread = ALONE
) -> list[Result]:
    """Trains, generates and scores all variants, skipping what is done. Writes `<name>.json`,
    `<name>.md` and `<name>.png` into `workspace.results`, and the records below it."""
    study, within = read_study(path), replace(workspace, results=workspace.results / path.stem)
    done = do_tasks(path, device, within, spread)
    baselines = done[-len(BASELINES) :]
    records: dict[str, list[Record]] = {variant: [] for _, variant in runs_of(study)}
    for (_, variant), record in zip(runs_of(study), done, strict=False):
        records[variant].append(record)
    publish(within.results)
    others = [of_variant for variant, of_variant in records.items() if variant != BASE]
    compared = [None, *compare_records_with_base(within.results, records[BASE], others)]
    results = list(map(_result, records, records.values(), compared))
    _write(within.results, study, results, baselines)
    return results


def do_tasks(
    path: Path, device: torch.device, workspace: Workspace, spread: Spread = ALONE
) -> list[Record]:
    """The record of each of `tasks_of`. Those that have none yet are trained and scored."""
    study = read_study(path)
    evaluator = study_evaluator(study, device, workspace)
    tasks = tasks_of(study, evaluator)
    whole = partial(do_tasks, path, device, workspace)
    real = evaluator.real
    parts = [partial(do_one, study, device, real, number) for number in range(len(tasks))]
    share(spread, whole, parts, workspace, device, partial(begun, study, evaluator))
    with progress_bar(f"study {path.stem}", len(tasks), "tasks") as advance:

        def told(task: Callable[[], Record]) -> Record:
            record = task()
            advance(1)
            return record

        return do_all([partial(told, task) for task in tasks])


def study_evaluator(study: Study, device: torch.device, workspace: Workspace) -> Evaluator:
    scoring = Scoring(study.protocol, device, study.precision, study.classifier_seeds)
    return make_evaluator(scoring, study.dataset + VALIDATION, workspace)


def runs_of(study: Study) -> list[tuple[int, str]]:
    """Seed and variant of each training."""
    return list(product(range(study.seeds), (BASE, *study.variants)))


def plan_of(study: Study) -> Plan:
    recipes, key = [recipe for _, recipe in recipes_of(study)], study.dataset + VALIDATION
    return Plan(recipes, key, study.seeds, study.per_class, study.images)


def tasks_of(study: Study, evaluator: Evaluator) -> list[Callable[[], Record]]:
    """A task for each of `runs_of`, then for each baseline. They do not need each other."""
    chosen, plan = dict(recipes_of(study)), plan_of(study)

    def evaluate_run(seed: int, variant: str) -> Record:
        record = ensure_scored(plan, chosen[variant], seed, evaluator, study.sampling(variant))
        assert record is not None  # a conditional run fills every class
        return record

    return [
        *(partial(evaluate_run, *run) for run in runs_of(study)),
        *(partial(ensure_baseline, evaluator, kind, study.per_class) for kind in BASELINES),
    ]


def begun(study: Study, evaluator: Evaluator) -> list[bool]:
    """Which of `tasks_of` have something in the workspace: a run, or a record."""
    chosen, plan = dict(recipes_of(study)), plan_of(study)
    entries = [baseline_entry(evaluator, kind, study.per_class) for kind in BASELINES]
    return [
        *(
            is_begun(plan, chosen[variant], seed, evaluator, study.sampling(variant))
            for seed, variant in runs_of(study)
        ),
        *(evaluator.find(entry) is not None for entry in entries),
    ]


def do_one(
    study: Study, device: torch.device, real: RealSplits, number: int, workspace: Workspace
) -> None:
    """Does one task of `tasks_of`. Raises `SynthError` if the real data are others here."""
    evaluator = study_evaluator(study, device, workspace)
    evaluator.require(real)
    do_all([tasks_of(study, evaluator)[number]])


def _result(variant: str, records: list[Record], compared: Comparison | None) -> Result:
    logs = [record.entry.training_log or [] for record in records]
    seconds = mean(training_seconds(log) for log in logs)
    return Result(
        variant,
        mean(mean(record.accuracies) for record in records),
        mean(max(record.accuracies) - min(record.accuracies) for record in records),
        compared.difference if compared else None,
        compared.low if compared else None,
        compared.high if compared else None,
        compared.scope if compared else None,
        mean(log[-1]["images"] for log in logs) / seconds,
        seconds,
        tuple(record.id for record in records),
    )


def training_seconds(log: list[dict[str, Any]]) -> float:
    """The time in the steps of a run, from the log of its ticks."""
    shown = [0, *(line["images"] for line in log)]
    found = [line.get("images_per_second") for line in log]
    rates = [rate if isinstance(rate, int | float) and rate > 0 else math.nan for rate in found]
    ticks = zip(shown, shown[1:], rates, strict=False)
    return float(sum((after - before) / rate for before, after, rate in ticks))


# What a study leaves


def _write(path: Path, study: Study, results: list[Result], baselines: list[Record]) -> None:
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
            "changes": ", ".join(map("`{}`".format, _changes(study, result.variant))) or "–",
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
    options = ", ".join(map("`{}`".format, _options(study.generate))) or "no options"
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


def _changes(study: Study, name: str) -> list[str]:
    """What a variant changes, as options of the command line."""
    variant = study.variants.get(name, Variant())
    recipe = [f"--recipe {variant.recipe}"] if variant.recipe else []
    generation = variant.generate and (_options(variant.generate) or ["no options of generate"])
    return [*recipe, *variant.set, *(generation or [])]


def _options(sampling: Sampling) -> list[str]:
    """The options of `synth generate` that are not at their defaults."""
    return [
        f"--{name.replace('_', '-')} {value}"
        for name, value in asdict(sampling).items()
        if value != getattr(DEFAULTS, name)
    ]


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
