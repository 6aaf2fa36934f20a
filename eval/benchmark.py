"""Recipes × seeds, all stages: trained, generated, evaluated; what is there already is skipped."""

from __future__ import annotations

from collections.abc import Sequence

from eval import selection
from eval.aggregate import Table
from eval.evaluate import ensure_baselines, ensure_evaluated, publish
from eval.evaluator import Evaluator, Settings, make_evaluator
from eval.protocols import PROTOCOLS
from synth.base.errors import UsageError
from synth.base.progress import progress_bar, say
from synth.environment import describe_environment
from synth.generation import check_count
from synth.recipes import RecipeBase
from synth.runs import Run, all_runs
from synth.training import plan_run, train_run, training_parts


def benchmark(
    recipes: Sequence[RecipeBase],
    seeds: int,
    dataset_key: str,
    length: int | None,
    per_class: int,
    settings: Settings,
    select: bool = False,
) -> list[Table]:
    """Trains, generates and evaluates every recipe and seed, skipping what is there already.

    select: conditional recipes choose their checkpoint; the others, baselines, use their last.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be 1 or more")
    check_count(per_class)
    streams = PROTOCOLS.find(settings.protocol).data == "stream"
    unconditional = [recipe.name for recipe in recipes if not recipe.conditional]
    if streams and unconditional:
        raise UsageError(
            f"--protocol {settings.protocol}: draws labelled samples, which {unconditional[0]} "
            "does not make; leave it out of --recipes"
        )
    workspace, evaluator = settings.workspace, make_evaluator(settings, dataset_key)
    for recipe in recipes:
        training_parts(recipe, evaluator.train, select and recipe.conditional)
    with progress_bar("benchmark", len(recipes) * seeds + 1, "stages") as advance:
        for recipe in recipes:
            for seed in range(seeds):
                run = find_or_train(recipe, evaluator, length, seed, settings, select)
                label_with = None if recipe.conditional else "classifier"
                ensure_evaluated(evaluator, run, per_class, workspace, label_with)
                publish(workspace.results)
                advance(1)
        ensure_baselines(evaluator, per_class, workspace)
    return publish(workspace.results)


def find_or_train(
    recipe: RecipeBase,
    evaluator: Evaluator,
    length: int | None,
    seed: int,
    settings: Settings,
    select: bool = False,
) -> Run:
    """The run of this recipe, data, length, seed and selection: found, resumed or made."""
    images, runs = evaluator.train, settings.workspace.runs
    protocol = selection.SELECTION.name if select and recipe.conditional else None
    wanted = (recipe, images.fingerprint, length or recipe.total_images, seed, protocol)
    for run in reversed(all_runs(runs)):
        config = run.config
        known = config.recipe, config.fingerprint, config.total_images, config.seed, config.select
        if known == wanted:
            break
    else:
        config = plan_run(
            recipe,
            evaluator.dataset_key,
            images,
            length,
            seed,
            settings.precision,
            evaluator.device,
            select=protocol,
        )
        run = Run.create(runs, config, describe_environment(evaluator.device))
    if not run.finished():
        train_run(run, images, evaluator.device, selection.checkpoint_scorer(run, evaluator.device))
        say(f"trained {run.folder}")
    return run
