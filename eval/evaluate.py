"""Sets scored: a record for each, with the baselines that stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from eval import real_classifier
from eval.aggregate import Table
from eval.baselines import BASELINES
from eval.entries import Brought, Given, entry_of, read_for
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.metrics.memorisation import closest_pairs as find_closest_pairs
from eval.protocols import PROTOCOLS, TEACHER, protocol_for
from eval.real_classifier import real_protocol
from eval.records import Entry, Record, plot_path
from eval.report import keep_plots, write_report
from eval.scoring import MakeBatches
from eval.selection import sample_batches
from eval.tables import write_leaderboard
from synth.base.errors import SynthError
from synth.base.files import numbered_folders
from synth.base.locks import LOCKS, clear_leftovers, do_all, exclusive, task
from synth.base.progress import progress_bar, say
from synth.data import ImageSet
from synth.generation import DEFAULTS, Sampling, ShortClass
from synth.provenance import Provenance
from synth.runs import Run, open_run, runs_in_state, weights_of_hash
from synth.set_generation import describe_provenance, generate_set, needs_classifier
from synth.synthetic_set import (
    SyntheticSet,
    imitated,
    newest_synthetic,
    read_manifest,
)
from synth.visuals import save_grid

PAIRS, PAIRS_IN_A_ROW = 40, 10


# All sets of one command


def evaluate_sets(
    folders: Sequence[Path],
    scoring: Scoring,
    dataset_key: str | None,
    workspace: Workspace,
    baselines: bool,
    closest_pairs: Path | None = None,
    brought: Brought | None = None,
) -> tuple[list[Record], list[Table]]:
    """Scores the sets in `folders`, or the newest one, and the baselines that are missing beside
    them; rewrites the leaderboard. Returns the sets' records and all tables.

    dataset_key: the real data to score on; by default what a set imitates. brought: goes with sets
    that synth did not make; its seed is that of the first, and the next ones count from it.
    """
    folders = folders or [newest_synthetic(workspace.datasets)]
    keys = [dataset_key or imitated(folder) or "svhn" for folder in folders]
    evaluators = {key: make_evaluator(scoring, key, workspace) for key in dict.fromkeys(keys)}
    sets = []
    for number, (folder, key) in enumerate(zip(folders, keys, strict=True)):
        told = brought
        if brought is not None and brought.seed is not None:
            told = replace(brought, seed=brought.seed + number)
        sets.append((read_for(evaluators[key], folder, told), evaluators[key]))
    records = []
    with progress_bar("evaluate", len(sets), "sets") as advance:
        for given, evaluator in sets:
            records.append(evaluate_set(evaluator, given, closest_pairs))
            if baselines:
                count = len(given.synthetic.images)
                ensure_baselines(evaluator, count // len(evaluator.test.classes))
            advance(1)
    return records, publish(workspace.results)


# One set


def evaluate_set(evaluator: Evaluator, given: Given, closest_pairs: Path | None = None) -> Record:
    """Scores a synthetic set on disk, or under a streaming protocol the run it came from.

    closest_pairs: a PNG to write of the images nearest to training images; it shows real images.
    """
    synthetic, entry = given.synthetic, given.entry
    images, folder = synthetic.images, synthetic.folder
    on_disk = evaluator.protocol.data == "disk"
    source = images if on_disk else _stream_of_run(evaluator, synthetic)
    record = evaluator.evaluate(entry, source)
    if closest_pairs is not None:
        save_closest_pairs(images, evaluator.train, closest_pairs)
    results, plots = evaluator.workspace.results, {}
    if synthetic.manifest is None:
        save_samples(images, plot_path(results, record, "samples"))
    else:
        plots["samples"] = folder / "preview.png"
    if entry.run is not None:
        run = find_run_folder(entry.run, evaluator)
        if (
            weights_of_hash(run, entry.checkpoint) is not None
        ):  # it is that run, and no other folder
            plots["losses"] = run / "losses.png"
    keep_plots(results, record, plots)
    return record


def save_closest_pairs(images: ImageSet, training: ImageSet, path: Path) -> None:
    """Draws each synthetic image above the training image that it is nearest to, the nearest
    pair first."""
    pairs = torch.from_numpy(find_closest_pairs(training.images, images.images, PAIRS))
    rows = [
        torch.cat([images.images[part[:, 0]], training.images[part[:, 1]]])
        for part in pairs.split(PAIRS_IN_A_ROW)
    ]
    save_grid(torch.cat(rows), path, columns=min(PAIRS_IN_A_ROW, len(pairs)))
    say(f"{path}: the closest pairs; it shows real images")


def find_run_folder(recorded: str, evaluator: Evaluator) -> Path:
    """A run's folder as recorded, or of that name in the folder of runs."""
    path = Path(recorded)
    return path if path.is_dir() else evaluator.workspace.runs / path.name


def _stream_of_run(evaluator: Evaluator, synthetic: SyntheticSet) -> MakeBatches:
    folder, manifest, protocol = synthetic.folder, synthetic.manifest, evaluator.protocol
    if manifest is None or manifest.labels != "conditional" or manifest.run is None:
        raise SynthError(
            f"{folder}: {protocol.name} draws fresh samples from a conditional run, and "
            "this set comes from none; use --protocol fixed-v1"
        )
    run = open_run(find_run_folder(manifest.run, evaluator))
    weights = weights_of_hash(run.folder, manifest.checkpoint)
    if weights is None:
        raise SynthError(
            f"{run.folder}: its weights have changed since {folder} was made; generate it again"
        )
    return sample_batches(protocol, weights, len(evaluator.test.classes), evaluator.device)


# The baselines beside it


def ensure_baselines(evaluator: Evaluator, per_class: int) -> None:
    """Evaluates the baselines that have no record yet for sets of this size with the metrics that
    are asked for."""
    do_all(baseline_tasks(evaluator, per_class))
    if evaluator.protocol.data == "disk":
        do_all([partial(_ensure_unconditional, evaluator, per_class)])


def baseline_tasks(evaluator: Evaluator, per_class: int) -> list[Callable[[], Record | None]]:
    """A call of `ensure_baseline` for each baseline that stands beside these scores. It gives None
    if the teacher is too poor to make the baseline."""

    def ensure(kind: str, name: str) -> Record | None:
        try:
            return ensure_baseline(evaluator, kind, per_class)
        except ShortClass as error:  # does not stop the rest
            say(f"{name}: left out: {error}")
            return None

    return [partial(ensure, kind, BASELINES[kind].name) for kind in baselines_beside(evaluator)]


def baselines_beside(evaluator: Evaluator) -> list[str]:
    """The kinds of baselines that stand beside these scores."""
    protocol, metrics = evaluator.protocol, evaluator.metrics
    return [kind for kind, each in BASELINES.items() if each.stands_beside(protocol, metrics)]


def ensure_baseline(evaluator: Evaluator, kind: str, per_class: int) -> Record:
    """The record of this baseline, which is evaluated if there is none.

    Raises `Busy` if another process evaluates it.
    """
    baseline, asked = BASELINES[kind], baseline_entry(evaluator, kind, per_class)
    with _evaluation(evaluator, baseline.name, kind, asked.count):
        known = evaluator.find(asked)
        if known is not None:
            return known
        entry, images = evaluator.build(kind, per_class)
        record = evaluator.evaluate(entry, images)
    if baseline.shown:
        save_samples(images, plot_path(evaluator.workspace.results, record, "samples"))
    return record


def baseline_entry(evaluator: Evaluator, kind: str, per_class: int) -> Entry:
    """A baseline's entry without the set, to look for its record."""
    baseline = BASELINES[kind]
    balanced = per_class * len(evaluator.train.classes)
    count = balanced if baseline.balanced else len(evaluator.build(kind, per_class)[1])
    return Entry(kind, baseline.name, count, None)


def save_samples(images: ImageSet, path: Path) -> None:
    """Draws the first ten images of each class, one class a row."""
    labels = images.require_labels()
    columns = min(10, int(labels.bincount().min()))
    first = [torch.where(labels == i)[0][:columns] for i in range(len(images.classes))]
    save_grid(images.images[torch.cat(first)], path, columns)


def _evaluation(evaluator: Evaluator, name: str, *entry: object) -> AbstractContextManager[None]:
    """The task of evaluating an entry, for all processes that write into the same results."""
    key = evaluator.protocol.hash, evaluator.real, *entry
    return task(evaluator.workspace.results, f"evaluation of {name}", *key)


def _ensure_unconditional(evaluator: Evaluator, per_class: int) -> None:
    """Evaluates the newest unconditional run with pseudo-labels, and chance."""
    run = newest_unconditional(evaluator)
    if run is not None:
        ensure_evaluated(evaluator, run, per_class, "classifier")
        ensure_chance(evaluator, run, per_class)


def newest_unconditional(evaluator: Evaluator) -> Run | None:
    """The newest finished run of an unconditional recipe on the evaluator's training split."""
    for run in runs_in_state(evaluator.workspace.runs, finished=True):
        config = run.config
        if config.fingerprint == evaluator.train.fingerprint and not config.recipe.conditional:
            return run
    return None


def ensure_chance(evaluator: Evaluator, run: Run, per_class: int) -> None:
    """Evaluates an unconditional run with random labels, unless any such one has been evaluated:
    chance does not depend on the run."""
    wanted = "random", per_class * len(run.config.classes)
    if not any(
        record.answers(record.entry, evaluator.seeds)
        for record in evaluator.records()
        if (record.entry.labels, record.entry.count) == wanted
    ):
        ensure_evaluated(evaluator, run, per_class, "random")


def ensure_evaluated(
    evaluator: Evaluator,
    run: Run,
    per_class: int,
    label_with: str | None = None,
    sampling: Sampling = DEFAULTS,
) -> Record | None:
    """Generates and evaluates what this run gives, unless set or record are there already.

    A run that collapsed, and so cannot fill a class, is a result. It is recorded, and does not stop
    the rest. Returns the record, or None for such a run. Raises `Busy` if another process does it.
    """
    workspace = evaluator.workspace
    labels = label_with == "classifier"
    own = evaluator.protocol
    protocol = (real_protocol(own) if labels else protocol_for(TEACHER, own.side)).name
    provenance = describe_provenance(run, 0, label_with, protocol, None, sampling)
    root = workspace.baselines if label_with else workspace.datasets
    count = per_class * len(run.config.classes)
    failed = entry_of(provenance, count)
    key = replace(provenance, run=None), count  # the way to a run depends on the current folder
    with _evaluation(evaluator, failed.name, *key):
        failures = [record.entry for record in evaluator.records() if record.error is not None]
        try:
            with task(root, f"generation from {run.folder}", *key):
                folder = find_set(root, provenance, count)
                if folder is None and failed in failures:
                    return None
                folder = folder or generate_described(evaluator, run, per_class, provenance, root)
        except ShortClass as error:
            say(f"{run.folder}: {error}")
            evaluator.write(failed, error=str(error))
            return None
        given = read_for(evaluator, folder)
        return evaluator.find(given.entry) or evaluate_set(evaluator, given)


def generate_described(
    evaluator: Evaluator, run: Run, per_class: int, provenance: Provenance, root: Path
) -> Path:
    """Generates from `run` what `provenance` describes. A classifier that labels or rejects images
    learns from the real training split of the evaluator. Returns the folder of the set."""
    classify, device = None, evaluator.device
    if needs_classifier(provenance):
        protocol = PROTOCOLS.find(str(provenance.labeller or provenance.rejecter))
        classify = real_classifier.train_classify(
            evaluator.train, protocol, device, run.config.precision, evaluator.workspace.cache
        )
    return generate_set(run, provenance, per_class, root, device, classify)


def find_set(root: Path, provenance: Provenance, count: int) -> Path | None:
    """The newest data set in `root` of this size and description. Skips damaged sets with a
    message."""
    for folder in reversed(numbered_folders(root)):
        try:
            manifest = read_manifest(folder)
        except SynthError as error:
            say(f"skipped: {error}")
            continue
        if manifest is None or manifest.count != count:
            continue
        if manifest.description() == provenance.description():
            return folder
    return None


def publish(results: Path) -> list[Table]:
    """Rewrites the leaderboard and the report from the records.

    One process at a time, so that the last one sees the records of all. Clears what ended processes
    left in the folders there.
    """
    if not (results / "records").is_dir():
        raise SynthError(f"{results}: holds no records; make one with: synth evaluate")
    clear_leftovers(results, depth=1)
    with exclusive(results / LOCKS / "publish", "the leaderboard", wait=True):
        tables = write_leaderboard(results)
        write_report(results, tables)
    return tables
