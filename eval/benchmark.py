"""Recipes × seeds, all stages: trained, generated, evaluated; what is there already is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from eval import selection
from eval.aggregate import Table
from eval.evaluate import Places, ensure_evaluated, ensure_references, publish
from eval.evaluator import Judge, make_judge
from eval.protocols import find_protocol
from synth.base.errors import UsageError
from synth.base.progress import progress_bar, say
from synth.environment import describe_environment
from synth.generation import check_count
from synth.recipes import Recipe
from synth.runs import Run, all_runs
from synth.training import check_trainable, plan_run, train_run


def benchmark(
    recipes: Sequence[Recipe],
    seeds: int,
    source: str,
    length: int | None,
    per_class: int,
    protocol: str,
    classifier_seeds: int | None,
    precision: str,
    places: Places,
    device: torch.device,
    select: bool = False,
    groups: tuple[str, ...] = (),
) -> list[Table]:
    """Trains, generates and evaluates every recipe and seed, skipping what is there already.

    select: conditional recipes choose their checkpoint; the others, baselines, use their last.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be 1 or more")
    check_count(per_class)
    streams = find_protocol(protocol).data == "stream"
    unconditional = [recipe.name for recipe in recipes if not recipe.conditional]
    if streams and unconditional:
        raise UsageError(
            f"--protocol {protocol}: draws labelled samples, which {unconditional[0]} does not "
            "make; leave it out of --recipes"
        )
    judge = make_judge(
        protocol,
        source,
        places.data_root,
        places.results,
        device,
        precision,
        classifier_seeds,
        groups,
    )
    for recipe in recipes:
        check_trainable(recipe, judge.train, select and recipe.conditional)
    with progress_bar("benchmark", len(recipes) * seeds + 1, "stages") as advance:
        for recipe in recipes:
            for seed in range(seeds):
                run = find_or_train(
                    recipe, source, judge, length, seed, precision, places.runs, select
                )
                label_with = None if recipe.conditional else "classifier"
                ensure_evaluated(judge, run, per_class, places, label_with)
                publish(places.results)
                advance(1)
        ensure_references(judge, per_class, places)
    return publish(places.results)


def find_or_train(
    recipe: Recipe,
    source: str,
    judge: Judge,
    length: int | None,
    seed: int,
    precision: str,
    runs: Path,
    select: bool = False,
) -> Run:
    """The run of this recipe, data, length, seed and selection: found, resumed or made."""
    images = judge.train
    select = select and recipe.conditional
    protocol = selection.SELECTION.name if select else None
    wanted = (recipe, images.fingerprint, length or recipe.training.images, seed, protocol)
    for run in reversed(all_runs(runs)):
        config = run.config
        known = config.recipe, config.fingerprint, config.images, config.seed, config.select
        if known == wanted:
            break
    else:
        config = plan_run(
            recipe, source, images, length, seed, precision, judge.device, select=protocol
        )
        run = Run.create(runs, config, describe_environment(judge.device))
    if not run.finished():
        train_run(run, images, judge.device, selection.checkpoint_scorer(run, judge.device))
        say(f"trained {run.folder}")
    return run
