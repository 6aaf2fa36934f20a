"""The stages joined: the only module that knows both sides, `synth` (makes) and `eval` (judges).

Each stage writes one folder or file and can be run again from the one before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.classifier import choose_classifier_precision, predict, train_classifier
from eval.leaderboard import Table, write_leaderboard
from eval.protocol import (
    MakeBatches,
    Protocol,
    Score,
    disk_batches,
    find_protocol,
    score,
    stream_batches,
)
from eval.records import (
    Entry,
    RealSplits,
    Record,
    find_record,
    make_record,
    read_records,
    write_record,
)
from eval.references import pca_gaussian, real_same_size
from eval.report import keep_figures, write_report
from synth.data import ImageSet, load_test_images, load_training_images
from synth.environment import describe_environment
from synth.errors import SynthError, UsageError
from synth.files import numbered_folders, portable, read_json, sha256
from synth.generation import Generated, ShortClass, fresh_batch, generate, generate_labelled
from synth.progress import progress_bar, say
from synth.recipes import Recipe
from synth.runs import Run, RunConfig, all_runs, load_generator, open_run
from synth.synthetic import Format, SyntheticSet, read_synthetic, write_synthetic
from synth.training import check_trainable, choose_training_precision, train

TICKS = 16  # about so many checkpoints in a run
LABELLER_PROTOCOL = "fixed-v1"
SUFFIXES = {"conditional": "", "classifier": " + pseudo-labels", "random": " + random labels"}


@dataclass(frozen=True)
class Places:
    """Where things are read and written."""

    data_root: Path | None = None
    runs: Path = Path("runs")
    datasets: Path = Path("datasets")
    results: Path = Path("results")


# Training


def plan_run(
    recipe: Recipe,
    source: str,
    images: ImageSet,
    length: int | None,
    epochs: int | None,
    seed: int,
    precision: str,
    device: torch.device,
    tick: int | None = None,
) -> RunConfig:
    """The resolved configuration of a run, before anything is written."""
    if length is not None and epochs is not None:
        raise UsageError("--images and --epochs: give one of them")
    if epochs is not None:
        length = epochs * len(images)
    length = recipe.training.images if length is None else length
    if length < 1:
        raise UsageError(f"--images {length}: must be 1 or more")
    check_trainable(recipe, images)
    chosen, reason = choose_training_precision(precision, recipe, len(images.classes), device)
    say(f"precision {chosen}: {reason}")
    return RunConfig(
        recipe=recipe,
        dataset=images.name,
        source=source,
        fingerprint=images.fingerprint,
        training_size=len(images),
        classes=images.classes,
        images=length,
        tick=tick or default_tick(length),
        seed=seed,
        precision=chosen,
    )


def default_tick(length: int) -> int:
    """A sixteenth of the run, to the next power of two in thousands: 64k for a million."""
    thousands = max(1, length // TICKS // 1000)
    return 1000 << (thousands - 1).bit_length()


def train_run(run: Run, images: ImageSet, device: torch.device) -> None:
    """Trains a run to its end, from its last checkpoint."""
    if images.fingerprint != run.config.fingerprint:
        raise SynthError(
            f"{run.folder}: was trained on other images ({run.config.dataset}, "
            f"{run.config.fingerprint[:12]}) than {images.name} ({images.fingerprint[:12]}); "
            "give the same --dataset and --data-root"
        )
    shown = 0
    with progress_bar(f"train {run.folder.name}", run.config.images, "images") as advance:

        def progress(now: int) -> None:
            nonlocal shown
            advance(now - shown)
            shown = now

        train(run, images, device, progress)


# Generation


def generate_set(
    run: Run,
    per_class: int,
    seed: int,
    places: Places,
    device: torch.device,
    label_with: str | None = None,
    labeller: tuple[str, Callable[[], Callable[[Tensor], Tensor]]] | None = None,
    form: Format = "npz",
) -> Path:
    """Writes a synthetic set from a run; returns its folder.

    labeller: the name of its protocol, and what makes it; for `label_with="classifier"`.
    """
    generator = load_generator(run.weights, device)
    config, classes = run.config, run.config.classes
    if config.recipe.conditional and label_with is not None:
        raise UsageError(f"--label-with {label_with}: {run.folder} is conditional")
    labels = label_with or ("conditional" if config.recipe.conditional else "none")
    made: Generated
    label = labeller[1]() if labeller and label_with == "classifier" else None
    with progress_bar(
        f"generate from {run.folder.name}", per_class * len(classes), "images"
    ) as bar:
        if label is not None:
            made = generate_labelled(generator, label, classes, per_class, seed, bar)
        else:
            made = generate(generator, len(classes), per_class, seed, bar)
    if label_with == "random":
        made = made._replace(labels=torch.arange(len(classes)).repeat_interleave(per_class).numpy())
    environment = describe_environment(device)
    origin = {
        "classes": list(classes),
        "labels": labels,
        "labeller": labeller[0] if label is not None and labeller else None,
        "candidates": made.candidates,
        "seed": seed,
        "recipe": config.recipe.name,
        "conditional": config.recipe.conditional,
        "dataset": config.dataset,
        "source": config.source,
        "trained_on": config.fingerprint,
        "training_seed": config.seed,
        "images_shown": run.images_shown(),
        "run": portable(run.folder),
        "checkpoint": sha256(run.weights),
        "commit": environment["commit"],
        "command": environment["command"],
        "environment": environment,
    }
    slug = f"{config.slug}-{labels}" if label_with else config.slug
    return write_synthetic(places.datasets, slug, made.images, made.labels, origin, form)


def make_labeller(
    real: ImageSet, protocol: Protocol, device: torch.device, precision: str
) -> Callable[[Tensor], Tensor]:
    """The fixed classifier, trained on the real training split by the protocol with seed 0."""
    with progress_bar("train the labeller on real images", protocol.steps, "steps") as advance:
        classifier = train_classifier(
            disk_batches(protocol, real, device)(0),
            protocol.steps,
            len(real.classes),
            0,
            device,
            precision,
            advance,
        )
    return lambda images: predict(classifier, images).argmax(1)


# Evaluation


@dataclass(frozen=True)
class Judge:
    """One protocol on one pair of real splits, on one device: what an evaluation needs."""

    protocol: Protocol
    train: ImageSet
    test: ImageSet
    places: Places
    device: torch.device
    precision: str
    seeds: int

    @property
    def real(self) -> RealSplits:
        return RealSplits.of(self.train, self.test)

    def known(self, entry: Entry) -> Record | None:
        records = read_records(self.places.results)
        return find_record(records, entry, self.protocol, self.real, self.seeds)

    def evaluate(self, entry: Entry, batches: MakeBatches) -> Record:
        """Scores one entry and writes its record; a failure is a record too."""
        start = time.perf_counter()
        steps = self.protocol.steps * self.seeds
        try:
            with progress_bar(f"evaluate {entry.name}", steps, "steps") as advance:
                result = score(
                    self.protocol,
                    batches,
                    self.test,
                    self.device,
                    self.precision,
                    self.seeds,
                    advance,
                )
        except Exception as error:
            self.record_failure(entry, f"{type(error).__name__}: {error}")
            raise
        record = self._write(entry, result, time.perf_counter() - start)
        accuracies = ", ".join(f"{100 * value:.2f}" for value in record.accuracies)
        say(f"{entry.name}: accuracy {accuracies} % ({record.seconds:.0f} s)")
        return record

    def record_failure(self, entry: Entry, error: str) -> None:
        self._write(entry, None, 0.0, error)

    def _write(
        self, entry: Entry, result: Score | None, seconds: float, error: str | None = None
    ) -> Record:
        environment = describe_environment(self.device)
        record = make_record(
            entry, self.protocol, self.real, result, environment, self.precision, seconds, error
        )
        write_record(self.places.results, record, result.predictions if result else None)
        return record


def make_judge(
    protocol: str,
    source: str,
    places: Places,
    device: torch.device,
    precision: str = "auto",
    seeds: int | None = None,
) -> Judge:
    """Loads both real splits; this is where the test split is read."""
    chosen = find_protocol(protocol)
    seeds = chosen.seeds if seeds is None else seeds
    if seeds < 1:
        raise UsageError(f"--classifier-seeds {seeds}: must be 1 or more")
    train = load_training_images(source, places.data_root)
    test = load_test_images(source, places.data_root)
    train.require_labels()
    test.require_labels()
    resolved, reason = choose_classifier_precision(precision, device)
    say(f"precision {resolved}: {reason}")
    return Judge(chosen, train, test, places, device, resolved, seeds)


def synthetic_entry(synthetic: SyntheticSet, protocol: Protocol) -> Entry:
    """The record's entry for a synthetic set; a foreign one is named after its folder."""
    manifest, streams = synthetic.manifest, protocol.data == "stream"
    labels = manifest.get("labels", "conditional")
    recipe = manifest.get("recipe")
    return Entry(
        kind="synthetic",
        name=(recipe or synthetic.images.name) + SUFFIXES.get(labels, ""),
        count=protocol.steps * protocol.batch if streams else len(synthetic.images),
        sha256=None if streams else manifest.get("sha256") or synthetic.images.fingerprint,
        folder=portable(synthetic.folder),
        recipe=recipe,
        conditional=manifest.get("conditional"),
        labels=labels,
        images_shown=manifest.get("images_shown"),
        training_seed=manifest.get("training_seed"),
        generation_seed=manifest.get("seed"),
        trained_on=manifest.get("trained_on"),
        run=manifest.get("run"),
        checkpoint=manifest.get("checkpoint"),
    )


def failed_entry(run: Run, wanted: dict[str, Any]) -> Entry:
    """The record's entry for a set that the run's generator could not fill."""
    config = run.config
    return Entry(
        kind="synthetic",
        name=config.recipe.name + SUFFIXES[wanted["labels"]],
        count=wanted["count"],
        sha256=None,
        recipe=config.recipe.name,
        conditional=config.recipe.conditional,
        labels=wanted["labels"],
        images_shown=run.images_shown(),
        training_seed=config.seed,
        generation_seed=wanted["seed"],
        trained_on=config.fingerprint,
        run=portable(run.folder),
        checkpoint=wanted["checkpoint"],
    )


def evaluate_set(judge: Judge, synthetic: SyntheticSet) -> Record:
    """Scores a synthetic set on disk, or under a streaming protocol the run it came from."""
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
    entry = synthetic_entry(synthetic, judge.protocol)
    if judge.protocol.data == "disk":
        batches = disk_batches(judge.protocol, images, judge.device)
    else:
        batches = _stream_of_run(judge, synthetic)
    record = judge.evaluate(entry, batches)
    figures = {"samples": synthetic.folder / "preview.png"}
    if entry.run is not None:
        figures["losses"] = Path(entry.run) / "losses.png"
    keep_figures(judge.places.results, record, figures)
    return record


def _stream_of_run(judge: Judge, synthetic: SyntheticSet) -> MakeBatches:
    folder, manifest = synthetic.folder, synthetic.manifest
    if manifest.get("labels") != "conditional" or "run" not in manifest:
        raise SynthError(
            f"{folder}: {judge.protocol.name} draws fresh samples from a conditional run, and "
            "this set comes from none; use --protocol fixed-v1"
        )
    run = open_run(Path(manifest["run"]))
    if sha256(run.weights) != manifest["checkpoint"]:
        raise SynthError(f"{run.weights}: has changed since {folder} was made; generate it again")
    generator = load_generator(run.weights, judge.device)
    return stream_batches(
        judge.protocol,
        lambda count, random: fresh_batch(generator, len(judge.test.classes), count, random),
    )


def ensure_references(judge: Judge, per_class: int) -> None:
    """Evaluates the ceilings and floors that have no record yet for sets of this size."""
    count = per_class * len(judge.train.classes)
    fingerprint = judge.train.fingerprint
    references: list[tuple[Entry, Callable[[], ImageSet]]] = [
        (Entry("real", "real", len(judge.train), fingerprint), lambda: judge.train),
        (
            Entry("real-same-size", "real, same size", count, None),
            lambda: real_same_size(judge.train, per_class),
        ),
        (
            Entry("pca-gaussian", "PCA + Gaussian per class", count, None),
            lambda: pca_gaussian(judge.train, per_class),
        ),
    ]
    for entry, make in references:
        if judge.known(entry) is None:
            images = make()
            complete = replace(entry, sha256=images.fingerprint)
            judge.evaluate(complete, disk_batches(judge.protocol, images, judge.device))
    if judge.protocol.data == "disk":
        _ensure_unconditional(judge, per_class)


def _ensure_unconditional(judge: Judge, per_class: int) -> None:
    """The newest unconditional run on the same images, with pseudo-labels and random labels."""
    for run in reversed(all_runs(judge.places.runs)):
        config = run.config
        if (
            not config.recipe.conditional
            and config.fingerprint == judge.train.fingerprint
            and run.finished()
        ):
            for label_with in ("classifier", "random"):
                ensure_evaluated(judge, run, per_class, 0, label_with)
            return


def ensure_evaluated(
    judge: Judge, run: Run, per_class: int, seed: int, label_with: str | None
) -> None:
    """Generates and evaluates what this run gives, unless set or record are there already."""
    labeller = (
        judge.protocol.name,
        lambda: make_labeller(judge.train, judge.protocol, judge.device, judge.precision),
    )
    wanted = {
        "checkpoint": sha256(run.weights),
        "labels": label_with or "conditional",
        "labeller": judge.protocol.name if label_with == "classifier" else None,
        "count": per_class * len(run.config.classes),
        "seed": seed,
    }
    folder = find_set(judge.places.datasets, wanted)
    if folder is None:
        try:
            folder = generate_set(
                run, per_class, seed, judge.places, judge.device, label_with, labeller
            )
        except ShortClass as error:  # a baseline that collapsed is a result, not the end
            say(f"{run.folder}: {error}")
            judge.record_failure(failed_entry(run, wanted), str(error))
            return
    synthetic = read_synthetic(folder)
    if judge.known(synthetic_entry(synthetic, judge.protocol)) is None:
        evaluate_set(judge, synthetic)


def find_set(root: Path, wanted: dict[str, Any]) -> Path | None:
    """The newest data set in `root` whose manifest holds all of `wanted`."""
    for folder in reversed(numbered_folders(root)):
        path = folder / "manifest.json"
        if path.exists() and wanted.items() <= _hashable(read_json(path)):
            return folder
    return None


def _hashable(manifest: dict[str, Any]) -> set[tuple[str, Any]]:
    return {(k, v) for k, v in manifest.items() if not isinstance(v, dict | list)}


def publish(results: Path) -> list[Table]:
    """Rewrites the leaderboard and the report from the records."""
    tables = write_leaderboard(results)
    write_report(results, tables)
    return tables


# All of it


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
) -> list[Table]:
    """Trains, generates and evaluates every recipe and seed, skipping what is there already."""
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: must be 1 or more")
    judge = make_judge(protocol, source, places, device, precision, classifier_seeds)
    for recipe in recipes:
        check_trainable(recipe, judge.train)
    with progress_bar("benchmark", len(recipes) * seeds + 1, "stages") as advance:
        for recipe in recipes:
            for seed in range(seeds):
                run = find_or_train(recipe, source, judge.train, length, seed, precision, judge)
                for labels in [None] if recipe.conditional else ["classifier", "random"]:
                    ensure_evaluated(judge, run, per_class, 0, labels)
                publish(places.results)
                advance(1)
        ensure_references(judge, per_class)
    return publish(places.results)


def find_or_train(
    recipe: Recipe,
    source: str,
    images: ImageSet,
    length: int | None,
    seed: int,
    precision: str,
    judge: Judge,
) -> Run:
    """The run of this recipe, data, length and seed: found, resumed or made."""
    wanted = (recipe, images.fingerprint, length or recipe.training.images, seed)
    for run in reversed(all_runs(judge.places.runs)):
        config = run.config
        if (config.recipe, config.fingerprint, config.images, config.seed) == wanted:
            break
    else:
        config = plan_run(recipe, source, images, length, None, seed, precision, judge.device)
        run = Run.create(judge.places.runs, config, describe_environment(judge.device))
    if not run.finished():
        train_run(run, images, judge.device)
        say(f"trained {run.folder}")
    return run
