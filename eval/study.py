"""A study: variants of a recipe against their base, scored on a part of the training split alone.

The real data is `svhn:validation`: generators and classifiers learn from the first four fifths of
the training split, and are scored on the last fifth. Runs, sets and records are those of `synth
benchmark`, so a study that was stopped goes on where it was, and several processes can do it at
once. What has a record is done, even where its run and set are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from eval.benchmark import Plan, ensure_scored, is_begun
from eval.compare import compare_records_with_base
from eval.evaluate import baseline_entry, ensure_baseline, publish
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.records import RealSplits, Record
from eval.spread import ALONE, Spread, share
from eval.statistics import Comparison
from eval.study_file import BASE, Study, read_study, recipes_of
from eval.study_page import Result, write_study
from synth.base.locks import do_all
from synth.base.progress import progress_bar
from synth.data import VALIDATION
from synth.recipes import RecipeBase

BASELINES = ("real", "real-augmented")


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
    write_study(within.results, study, results, baselines)
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


def planned(study: Study, variant: str) -> tuple[Plan, RecipeBase]:
    """The benchmark of a variant, and its only recipe."""
    recipe, key = dict(recipes_of(study))[variant], study.dataset + VALIDATION
    count, length = study.count(variant), study.length(variant)
    return Plan([recipe], key, study.seeds, count, length), recipe


def tasks_of(study: Study, evaluator: Evaluator) -> list[Callable[[], Record]]:
    """A task for each of `runs_of`, then for each baseline. They do not need each other."""

    def evaluate_run(seed: int, variant: str) -> Record:
        plan, recipe = planned(study, variant)
        record = ensure_scored(plan, recipe, seed, evaluator, study.sampling(variant))
        assert record is not None  # a conditional run fills every class
        return record

    return [
        *(partial(evaluate_run, *run) for run in runs_of(study)),
        *(partial(ensure_baseline, evaluator, kind, study.per_class) for kind in BASELINES),
    ]


def begun(study: Study, evaluator: Evaluator) -> list[bool]:
    """Which of `tasks_of` have something in the workspace: a run, or a record."""

    def is_run_begun(seed: int, variant: str) -> bool:
        plan, recipe = planned(study, variant)
        return is_begun(plan, recipe, seed, evaluator, study.sampling(variant))

    entries = [baseline_entry(evaluator, kind, study.per_class) for kind in BASELINES]
    return [
        *(is_run_begun(*run) for run in runs_of(study)),
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
