"""Sets judged: an entry of the leaderboard for each, with the references that stand beside it.

With `pipeline.py`, which makes what is judged here, the only module that knows both sides, `synth`
and `eval`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval import labeller as labelling
from eval.aggregate import Table
from eval.baselines import copier, first_of_each_class, pca_gaussian, real_same_size
from eval.evaluator import Judge
from eval.leaderboard import write_leaderboard
from eval.metrics import TENTH
from eval.metrics.neighbours import Memorisation
from eval.protocols import Protocol
from eval.real_classifier import real_protocol
from eval.records import Entry, Record, figure_path
from eval.report import keep_figures, write_report
from eval.score import MakeBatches, disk_batches
from eval.selection import sample_batches
from synth.base.errors import SynthError
from synth.base.files import numbered_folders, portable, read_json
from synth.base.progress import say
from synth.data import ImageSet
from synth.generation import ShortClass, describe_origin, generate_set
from synth.runs import Run, all_runs, open_run, weights_of_hash
from synth.synthetic_set import SyntheticSet, read_synthetic
from synth.visuals import save_grid

PAIRS, PAIRS_IN_A_ROW = 40, 10
SUFFIXES = {"conditional": "", "classifier": " + pseudo-labels", "random": " + random labels"}


@dataclass(frozen=True)
class Places:
    """Where things are read and written."""

    data_root: Path | None = None
    runs: Path = Path("runs")
    datasets: Path = Path("datasets")
    results: Path = Path("results")

    @property
    def references(self) -> Path:
        """Sets that were made to read scores by: never what a user means by the newest set."""
        return self.datasets / "references"


def entry_of(
    manifest: dict[str, Any], name: str, count: int, digest: str | None, folder: str | None
) -> Entry:
    """The record's entry for a set with this manifest; without one it is called `name`."""
    labels, chosen = manifest.get("labels", "conditional"), manifest.get("chosen")
    suffix = SUFFIXES.get(labels, "") + (f", {chosen} checkpoint" if chosen else "")
    return Entry(
        kind="synthetic",
        name=manifest.get("recipe", name) + suffix,
        count=count,
        sha256=digest,
        folder=folder,
        recipe=manifest.get("recipe"),
        conditional=manifest.get("conditional"),
        labels=labels,
        images_shown=manifest.get("images_shown"),
        training_seed=manifest.get("training_seed"),
        generation_seed=manifest.get("seed"),
        trained_on=manifest.get("trained_on"),
        run=manifest.get("run"),
        checkpoint=manifest.get("checkpoint"),
        labeller=manifest.get("labeller"),
        config=manifest.get("config"),
        training_environment=manifest.get("training_environment"),
        generation_environment=manifest.get("environment"),
        training_log=manifest.get("training_log"),
        chosen=chosen,
        run_length=manifest.get("run_length"),
    )


def synthetic_entry(synthetic: SyntheticSet, protocol: Protocol) -> Entry:
    images, manifest, folder = synthetic.images, synthetic.manifest, portable(synthetic.folder)
    if protocol.data == "stream":
        return entry_of(manifest, images.name, protocol.steps * protocol.batch, None, folder)
    digest = manifest.get("sha256") or images.fingerprint
    return entry_of(manifest, images.name, len(images), digest, folder)


def evaluate_set(
    judge: Judge, synthetic: SyntheticSet, runs: Path, closest_pairs: Path | None = None
) -> Record:
    """Scores a synthetic set on disk, or under a streaming protocol the run it came from.

    closest_pairs: a PNG to write of the images nearest to training images; it shows real images.
    """
    images, folder = synthetic.images, synthetic.folder
    if images.labels is None:
        raise SynthError(
            f"{folder}: has no labels; generate it with --label-with classifier, or from a "
            "conditional run"
        )
    if len(images.classes) != len(judge.test.classes) or (
        synthetic.manifest and images.classes != judge.test.classes
    ):
        raise SynthError(
            f"{folder}: has the classes {', '.join(images.classes)}, but {judge.test.name} has "
            f"{', '.join(judge.test.classes)}; choose the right --dataset"
        )
    if judge.protocol.data == "disk":
        batches = disk_batches(judge.protocol, images, judge.device)
    else:
        batches = _stream_of_run(judge, synthetic, runs)
    entry = synthetic_entry(synthetic, judge.protocol)

    def show(found: Memorisation) -> None:
        if closest_pairs is not None:
            save_closest_pairs(found, images, judge.train, closest_pairs)

    record = judge.evaluate(entry, batches, images, show)
    figures = {"samples": folder / "preview.png"}
    if entry.run is not None:
        figures["losses"] = _find_run(entry.run, runs) / "losses.png"
    keep_figures(judge.results, record, figures)
    return record


def save_closest_pairs(
    found: Memorisation, images: ImageSet, training: ImageSet, path: Path
) -> None:
    """Draws each synthetic image above the training image that it is nearest to, the nearest
    pair first."""
    pairs = torch.from_numpy(found.closest_pairs(PAIRS))
    rows = [
        torch.cat([images.images[part[:, 0]], training.images[part[:, 1]]])
        for part in pairs.split(PAIRS_IN_A_ROW)
    ]
    save_grid(torch.cat(rows), path, columns=min(PAIRS_IN_A_ROW, len(pairs)))
    say(f"{path}: the closest pairs; it shows real images")


def _find_run(recorded: str, runs: Path) -> Path:
    """A run's folder as recorded, or of that name in the folder of runs."""
    path = Path(recorded)
    return path if path.is_dir() else runs / path.name


def _stream_of_run(judge: Judge, synthetic: SyntheticSet, runs: Path) -> MakeBatches:
    folder, manifest = synthetic.folder, synthetic.manifest
    if manifest.get("labels") != "conditional" or "run" not in manifest:
        raise SynthError(
            f"{folder}: {judge.protocol.name} draws fresh samples from a conditional run, and "
            "this set comes from none; use --protocol fixed-v1"
        )
    run = open_run(_find_run(manifest["run"], runs))
    weights = weights_of_hash(run, manifest.get("checkpoint"))
    if weights is None:
        raise SynthError(
            f"{run.folder}: its weights have changed since {folder} was made; generate it again"
        )
    return sample_batches(judge.protocol, weights, len(judge.test.classes), judge.device)


def ensure_references(judge: Judge, per_class: int, places: Places) -> None:
    """Evaluates the ceilings and floors that have no record yet for sets of this size, or none
    with the figures that are asked for.

    A streaming protocol has one, the real training split: the others are sets of a size.
    """
    real, count = judge.train, per_class * len(judge.train.classes)
    sources: list[tuple[Entry, Callable[[], ImageSet]]] = [
        (Entry("real", "real", len(real), real.fingerprint), lambda: real)
    ]
    if judge.protocol.data == "disk":
        sources += [
            (
                Entry("real-same-size", "real, same size", count, None),
                lambda: real_same_size(real, per_class),
            ),
            (
                Entry("pca-gaussian", "PCA + Gaussian per class", count, None),
                lambda: pca_gaussian(real, per_class),
            ),
            (Entry("copier", "copier", count, None), lambda: copier(real, per_class)),
        ]
    if judge.protocol.data == "disk" and "augmentation" in judge.groups:
        tenth = first_of_each_class(real, TENTH)
        entry = Entry("real-tenth", "real, a tenth", len(tenth), tenth.fingerprint)
        sources.append((entry, lambda: tenth))
    for entry, make in sources:
        if judge.known(entry) is None:
            images = make()
            entry = replace(entry, sha256=images.fingerprint)
            batches = disk_batches(judge.protocol, images, judge.device)
            record = judge.evaluate(entry, batches, images)
            if entry.kind == "pca-gaussian":  # real images are not ours to show
                _keep_samples(judge.results, record, images)
    if judge.protocol.data == "disk":
        _ensure_baseline(judge, per_class, places)


def _keep_samples(results: Path, record: Record, images: ImageSet) -> None:
    first = [torch.where(images.require_labels() == i)[0][:10] for i in range(len(images.classes))]
    save_grid(images.images[torch.cat(first)], figure_path(results, record, "samples"), 10)


def _ensure_baseline(judge: Judge, per_class: int, places: Places) -> None:
    """The newest unconditional run with pseudo-labels, and one of them, which does not matter, with
    random labels: chance."""
    for run in reversed(all_runs(places.runs)):
        config = run.config
        own_data = config.fingerprint == judge.train.fingerprint
        if own_data and not config.recipe.conditional and run.finished():
            ensure_evaluated(judge, run, per_class, places, "classifier")
            if not judge.knows_chance(per_class * len(config.classes)):
                ensure_evaluated(judge, run, per_class, places, "random")
            return


def ensure_evaluated(
    judge: Judge, run: Run, per_class: int, places: Places, label_with: str | None = None
) -> None:
    """Generates and evaluates what this run gives, unless set or record are there already.

    A run that collapsed, and so cannot fill a class, is a result: it is recorded, and does not stop
    the rest.
    """
    protocol = real_protocol(judge.protocol)
    labeller = protocol.name if label_with == "classifier" else None
    origin = describe_origin(run, 0, label_with, labeller)
    root = places.references if label_with else places.datasets
    count = per_class * len(run.config.classes)
    failed = entry_of(origin, run.folder.name, count, None, None)
    folder = find_set(root, {**origin, "count": count})
    if folder is None and judge.known_failure(failed):
        return
    try:
        folder = folder or generate_set(
            run,
            per_class,
            0,
            root,
            judge.device,
            label_with,
            lambda: labelling.train_labeller(
                judge.train, protocol, judge.device, run.config.precision
            ),
            labeller,
        )
    except ShortClass as error:
        say(f"{run.folder}: {error}")
        judge.record_failure(failed, str(error))
        return
    synthetic = read_synthetic(folder)
    if judge.known(synthetic_entry(synthetic, judge.protocol)) is None:
        evaluate_set(judge, synthetic, places.runs)


def find_set(root: Path, wanted: dict[str, Any]) -> Path | None:
    """The newest data set in `root` whose manifest holds all of `wanted`."""
    for folder in reversed(numbered_folders(root)):
        path = folder / "manifest.json"
        if path.exists():
            manifest = read_json(path)
            if all(manifest.get(key) == value for key, value in wanted.items()):
                return folder
    return None


def publish(results: Path) -> list[Table]:
    """Rewrites the leaderboard and the report from the records."""
    if not (results / "records").is_dir():
        raise SynthError(f"{results}: holds no records; make one with: synth evaluate")
    tables = write_leaderboard(results)
    write_report(results, tables)
    return tables
