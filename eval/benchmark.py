"""Recipes × seeds, all stages: trained, generated, evaluated; what is there already is skipped.

Several processes can do the same benchmark at once. Each run, set, record and baseline is a task
that one of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
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
    ensure_chance,
    ensure_evaluated,
    newest_unconditional,
    publish,
)
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator, metrics_for
from eval.protocols import PROTOCOLS
from eval.records import RealSplits, Record
from eval.spread import ALONE, Spread, share
from eval.training import plan_training, train
from synth.base.errors import SynthError, UsageError
from synth.base.locks import Busy, do_all, task
from synth.base.progress import progress_bar, say
from synth.environment import describe_environment
from synth.generation import DEFAULTS, Sampling, check_count
from synth.recipes import RecipeBase
from synth.runs import Run, RunConfig, all_runs
from synth.set_generation import sampling_of
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
    do_tasks(plan, scoring, workspace, spread)
    return publish(workspace.results)


def do_tasks(plan: Plan, scoring: Scoring, workspace: Workspace, spread: Spread = ALONE) -> None:
    """`benchmark`, but for the leaderboard at the end: one of the processes writes that."""
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
    whole = partial(do_tasks, plan, scoring, workspace)
    real = evaluator.real
    parts = [partial(do_one, plan, scoring, real, number) for number in range(len(tasks))]
    share(spread, whole, parts, workspace, scoring.device, partial(begun, plan, evaluator))
    if unconditional and not streams:  # the machines of a cluster do not wait for each other
        tasks = [*tasks, partial(_chance, plan, evaluator)]
    with progress_bar("benchmark", len(tasks), "tasks") as advance:
        do_all([partial(_then, task, advance) for task in tasks])
        ensure_baselines(evaluator, plan.per_class)


def tasks_of(plan: Plan, evaluator: Evaluator) -> list[Callable[[], object]]:
    """A task for each run, and for each baseline. They do not need each other."""

    def evaluate_run(recipe: RecipeBase, seed: int) -> None:
        ensure_scored(plan, recipe, seed, evaluator)
        publish(evaluator.workspace.results)

    runs = product(plan.recipes, range(plan.seeds))
    return [
        *(partial(evaluate_run, *run) for run in runs),
        *baseline_tasks(evaluator, plan.per_class),
    ]


def _chance(plan: Plan, evaluator: Evaluator) -> None:
    """Random labels. Raises `Busy` while no unconditional generator is trained."""
    run = newest_unconditional(evaluator)
    if run is not None:
        return ensure_chance(evaluator, run, plan.per_class)
    recipes = [recipe for recipe in plan.recipes if not recipe.conditional]
    for recipe, seed in product(recipes, range(plan.seeds)):
        if find_scored(plan, recipe, seed, evaluator) is None:  # otherwise its run is gone
            raise Busy(f"training of {recipe.name}, seed {seed}: another process is at it")


def begun(plan: Plan, evaluator: Evaluator) -> list[bool]:
    """Which of `tasks_of` have something in the workspace: a run, or a record."""
    runs = product(plan.recipes, range(plan.seeds))
    kinds = baselines_beside(evaluator)
    entries = [baseline_entry(evaluator, kind, plan.per_class) for kind in kinds]
    return [
        *(is_begun(plan, recipe, seed, evaluator) for recipe, seed in runs),
        *(evaluator.find(entry) is not None for entry in entries),
    ]


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


def ensure_scored(
    plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator, sampling: Sampling = DEFAULTS
) -> Record | None:
    """Trains, generates and evaluates one run, skipping what is there already. Where its record is
    there, run and set may be gone.

    Returns the record, or None for a run that cannot fill every class. Raises `Busy` if another
    process does it.
    """
    known = find_scored(plan, recipe, seed, evaluator, sampling)
    if known is not None:
        return known
    run = find_or_train(plan, recipe, seed, evaluator)
    return ensure_evaluated(evaluator, run, plan.per_class, _label_with(recipe), sampling)


def is_begun(
    plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator, sampling: Sampling = DEFAULTS
) -> bool:
    """Whether `ensure_scored` finds a run, or has nothing left to do."""
    known = find_run(plan, recipe, seed, evaluator)
    return known is not None or find_scored(plan, recipe, seed, evaluator, sampling) is not None


def find_scored(
    plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator, sampling: Sampling = DEFAULTS
) -> Record | None:
    """The newest record of a set that `ensure_scored` would make, with all metrics asked for."""
    labels = _label_with(recipe) or "conditional"
    policy = recipe.augment if sampling.augment is None else sampling.augment
    sampled = replace(sampling, augment=policy)
    for record in reversed(evaluator.records()):
        entry = record.entry
        made = entry.labels, entry.generation_seed, entry.count, sampling_of(entry)
        if made != (labels, 0, plan.per_class * len(evaluator.train.classes), sampled):
            continue
        with suppress(SynthError):  # a recipe that this version does not know
            config = RunConfig.from_json(entry.config or {}, record.id)
            shown = entry.images_shown or 0
            default = entry.chosen == "best" if config.select else shown >= config.total_images
            metrics = metrics_for(entry, evaluator.metrics)
            answers = record.answers(entry, evaluator.seeds, metrics)
            if default and answers and _fits(config, plan, recipe, seed, evaluator):
                return record
    return None


def _label_with(recipe: RecipeBase) -> str | None:
    return None if recipe.conditional else "classifier"


def find_or_train(plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator) -> Run:
    """The run of `find_run`, resumed if it is not finished; or else a new one.

    Raises `Busy` if another process trains it.
    """
    precision = evaluator.asked
    images, device, workspace = evaluator.train, evaluator.device, evaluator.workspace
    wanted = fitted, _, length, _, select = _wanted(plan, recipe, seed, evaluator)
    key = replace(fitted, citation="", assumed=""), *wanted[1:], precision
    with task(workspace.runs, f"training of {recipe.name}, seed {seed}", *key):
        run = find_run(plan, recipe, seed, evaluator)
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


def find_run(plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator) -> Run | None:
    """The newest run of this recipe, data, length, seed and selection, finished or not.

    With `auto` any precision will do. Otherwise a run in another one is not taken.
    """
    runs = reversed(all_runs(evaluator.workspace.runs))
    return next((run for run in runs if _fits(run.config, plan, recipe, seed, evaluator)), None)


def _fits(c: RunConfig, plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator) -> bool:
    known = c.recipe, c.fingerprint, c.total_images, c.seed, c.select
    one_precision = len(c.family.precisions) == 1  # whatever is asked for
    fits = one_precision or evaluator.asked in ("auto", c.precision)
    return fits and known == _wanted(plan, recipe, seed, evaluator)


def _wanted(
    plan: Plan, recipe: RecipeBase, seed: int, evaluator: Evaluator
) -> tuple[RecipeBase, str, int, int, str | None]:
    """What a run must have to be taken: recipe, fingerprint, length, seed, selection."""
    images = evaluator.train
    recipe = recipe.fitted(images.side, images.grey)
    select = selection.SELECTION.name if plan.select and recipe.conditional else None
    return recipe, images.fingerprint, plan.length or recipe.total_images, seed, select
