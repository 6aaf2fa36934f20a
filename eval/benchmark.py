"""Recipes × seeds, all stages: trained, generated, evaluated; what is there already is skipped.

Several processes can do the same benchmark at once. Each run, set, record and baseline is a task
that one of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from eval import selection
from eval.aggregate import Table
from eval.evaluate import (
    baseline_entry,
    baseline_tasks,
    baselines_beside,
    ensure_baselines,
    ensure_evaluated,
    publish,
)
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.protocols import PROTOCOLS
from eval.records import RealSplits
from eval.spread import ALONE, Spread, share
from eval.training import plan_training, train
from synth.base.errors import UsageError
from synth.base.locks import do_all, task
from synth.base.progress import progress_bar, say
from synth.environment import describe_environment
from synth.generation import check_count
from synth.recipes import RecipeBase
from synth.runs import Run, all_runs
from synth.training import training_parts


@dataclass(frozen=True)
class Plan:
    """What a benchmark trains and generates."""

    recipes: Sequence[RecipeBase]
    dataset_key: str
    seeds: int  # training runs of each recipe
    per_class: int
    length: int | None = None  # real images shown; by default the recipe's
    select: bool = False  # conditional recipes choose their checkpoint; the others use their last


def benchmark(
    plan: Plan, scoring: Scoring, workspace: Workspace, spread: Spread = ALONE
) -> list[Table]:
    """Trains, generates and evaluates every recipe and seed, skipping what is there already."""
    if plan.seeds < 1:
        raise UsageError(f"--seeds {plan.seeds}: must be 1 or more")
    check_count(plan.per_class)
    streams = PROTOCOLS.find(scoring.protocol).data == "stream"
    unconditional = [recipe.name for recipe in plan.recipes if not recipe.conditional]
    if streams and unconditional:
        raise UsageError(
            f"--protocol {scoring.protocol}: draws labelled samples, which {unconditional[0]} does "
            "not make; leave it out of --recipes"
        )
    evaluator = make_evaluator(scoring, plan.dataset_key, workspace)
    for recipe in plan.recipes:
        training_parts(recipe, evaluator.train, plan.select and recipe.conditional)
    tasks = tasks_of(plan, evaluator)
    whole = partial(benchmark, plan, scoring, workspace)
    real = evaluator.real
    parts = [partial(do_one, plan, scoring, real, number) for number in range(len(tasks))]
    share(spread, whole, parts, workspace, scoring.device, partial(begun, plan, evaluator))
    with progress_bar("benchmark", len(tasks), "tasks") as advance:
        do_all([partial(_then, task, advance) for task in tasks])
        ensure_baselines(evaluator, plan.per_class)
    return publish(workspace.results)


def tasks_of(plan: Plan, evaluator: Evaluator) -> list[Callable[[], object]]:
    """A task for each run, and for each baseline. They do not need each other."""

    def evaluate_run(recipe: RecipeBase, seed: int) -> None:
        run = find_or_train(plan, recipe, seed, evaluator.asked, evaluator)
        label_with = None if recipe.conditional else "classifier"
        ensure_evaluated(evaluator, run, plan.per_class, label_with)
        publish(evaluator.workspace.results)

    runs = product(plan.recipes, range(plan.seeds))
    return [
        *(partial(evaluate_run, *run) for run in runs),
        *baseline_tasks(evaluator, plan.per_class),
    ]


def begun(plan: Plan, evaluator: Evaluator) -> list[bool]:
    """Which of `tasks_of` have something in the workspace: a run, or the record of a baseline."""
    runs = [
        find_run(plan, recipe, seed, evaluator.asked, evaluator)
        for recipe, seed in product(plan.recipes, range(plan.seeds))
    ]
    kinds = baselines_beside(evaluator)
    entries = [baseline_entry(evaluator, kind, plan.per_class) for kind in kinds]
    return [found is not None for found in (*runs, *map(evaluator.find, entries))]


def do_one(
    plan: Plan, scoring: Scoring, real: RealSplits, number: int, workspace: Workspace
) -> None:
    """Does one task of `tasks_of`. Raises `SynthError` if the real data are others here."""
    evaluator = make_evaluator(scoring, plan.dataset_key, workspace)
    evaluator.require(real)
    do_all([tasks_of(plan, evaluator)[number]])


def _then(task: Callable[[], object], advance: Callable[[int], None]) -> None:
    task()
    advance(1)


def find_or_train(
    plan: Plan, recipe: RecipeBase, seed: int, precision: str, evaluator: Evaluator
) -> Run:
    """The run of `find_run`, resumed if it is not finished; or else a new one.

    Raises `Busy` if another process trains it.
    """
    images, device, workspace = evaluator.train, evaluator.device, evaluator.workspace
    wanted = fitted, _, length, _, select = _wanted(plan, recipe, seed, evaluator)
    key = replace(fitted, citation="", assumed=""), *wanted[1:], precision
    with task(workspace.runs, f"training of {recipe.name}, seed {seed}", *key):
        run = find_run(plan, recipe, seed, precision, evaluator)
        if run is None:
            selects = select is not None
            config = plan_training(
                fitted, plan.dataset_key, images, length, seed, precision, device, select=selects
            )
            run = Run.create(workspace.runs, config, describe_environment(device))
        if not run.finished():
            train(run, images, device, saved=workspace.saved)
            say(f"trained {run.folder}")
    return run


def find_run(
    plan: Plan, recipe: RecipeBase, seed: int, precision: str, evaluator: Evaluator
) -> Run | None:
    """The newest run of this recipe, data, length, seed and selection, finished or not.

    With `auto` any precision will do. Otherwise a run in another one is not taken.
    """
    wanted = _wanted(plan, recipe, seed, evaluator)
    for run in reversed(all_runs(evaluator.workspace.runs)):
        c = run.config
        known = c.recipe, c.fingerprint, c.total_images, c.seed, c.select
        one_precision = len(c.family.precisions) == 1  # whatever is asked for
        if known == wanted and (one_precision or precision in ("auto", c.precision)):
            return run
    return None


def _wanted(
    plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator
) -> tuple[RecipeBase, str, int, int, str | None]:
    """What a run must have to be taken: recipe, fingerprint, length, seed, selection."""
    images = evaluator.train
    recipe = recipe.fitted(images.side, images.grey)
    select = selection.SELECTION.name if plan.select and recipe.conditional else None
    return recipe, images.fingerprint, plan.length or recipe.total_images, seed, select
