"""Recipes × seeds, all stages: trained, generated, evaluated; what is there already is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from eval import selection
from eval.aggregate import Table
from eval.evaluate import ensure_baselines, ensure_evaluated, publish
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.protocols import PROTOCOLS
from eval.training import train
from synth.base.errors import UsageError
from synth.base.progress import progress_bar, say
from synth.environment import describe_environment
from synth.generation import check_count
from synth.recipes import RecipeBase
from synth.runs import Run, all_runs
from synth.training import plan_run, training_parts


@dataclass(frozen=True)
class Plan:
    """What a benchmark trains and generates."""

    recipes: Sequence[RecipeBase]
    dataset_key: str
    seeds: int  # training runs of each recipe
    per_class: int
    length: int | None = None  # real images shown; by default the recipe's
    select: bool = False  # conditional recipes choose their checkpoint; the others use their last


def benchmark(plan: Plan, scoring: Scoring, workspace: Workspace) -> list[Table]:
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
    with progress_bar("benchmark", len(plan.recipes) * plan.seeds + 1, "stages") as advance:
        for recipe, seed in product(plan.recipes, range(plan.seeds)):
            run = find_or_train(plan, recipe, seed, scoring.precision, evaluator)
            label_with = None if recipe.conditional else "classifier"
            ensure_evaluated(evaluator, run, plan.per_class, label_with)
            publish(workspace.results)
            advance(1)
        ensure_baselines(evaluator, plan.per_class)
    return publish(workspace.results)


def find_or_train(
    plan: Plan, recipe: RecipeBase, seed: int, precision: str, evaluator: Evaluator
) -> Run:
    """The run of this recipe, data, length, seed and selection: found, resumed or made.

    With `auto` any precision will do. Otherwise a run in another one is not taken.
    """
    images, device, runs = evaluator.train, evaluator.device, evaluator.workspace.runs
    select = selection.SELECTION.name if plan.select and recipe.conditional else None
    length = plan.length or recipe.total_images
    wanted = (recipe, images.fingerprint, length, seed, select)
    for run in reversed(all_runs(runs)):
        config = run.config
        known = config.recipe, config.fingerprint, config.total_images, config.seed, config.select
        one_precision = len(config.family.precisions) == 1  # whatever is asked for
        if known == wanted and (one_precision or precision in ("auto", config.precision)):
            break
    else:
        config = plan_run(
            recipe, plan.dataset_key, images, length, seed, precision, device, select=select
        )
        run = Run.create(runs, config, describe_environment(device))
    if not run.finished():
        train(run, images, device)
        say(f"trained {run.folder}")
    return run
