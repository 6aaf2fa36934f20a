"""A record's evaluation done again by the ordinary pipeline, in a scratch folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from eval.entries import Given, brought_of, entry_of, read_for
from eval.evaluate import generate_described
from eval.evaluator import Evaluator, Scoring, Source, Workspace, make_evaluator
from eval.metrics import measured
from eval.records import Entry, Record
from eval.selection import sample_batches
from eval.training import train
from eval.verified import Stage
from synth.base.errors import SynthError
from synth.base.files import numbered_folders, sha256
from synth.checkpoints import read_metadata
from synth.environment import (
    describe_environment,
    make_deterministic,
    pick_device,
)
from synth.generation import Sampling
from synth.runs import Run, RunConfig
from synth.set_generation import describe_provenance, needs_classifier, sampling_of
from synth.synthetic_set import read_manifest
from synth.training import check_same_images


@dataclass(frozen=True)
class Again:
    """An entry that was made again, and what its classifiers are trained on."""

    entry: Entry
    source: Source
    weights: Path | None = None  # of the generator, where it took part


def evaluator_again(
    record: Record, scratch: Workspace, dataset_key: str | None, device: str
) -> Evaluator:
    """The evaluator of the record, which writes into `scratch`. Raises `SynthError` where the real
    splits are others."""
    if device == "auto" and record.environment.get("device", "").startswith("CPU"):
        device = "cpu"
    scoring = Scoring(
        record.protocol["name"],
        pick_device(device),
        record.precision,
        len(record.scores),
        measured(record.metrics),
    )
    evaluator = make_evaluator(scoring, dataset_key or record.dataset_key or "svhn", scratch)
    for split in ("train", "test"):
        ours = getattr(evaluator.real, f"{split}_fingerprint")
        theirs = getattr(record.real, f"{split}_fingerprint")
        if ours != theirs:
            raise SynthError(
                f"--data-root: its {split} split of {evaluator.real.name} ({ours[:12]}) is not the "
                f"record's, {record.real.name} ({theirs[:12]}); give the one that was scored on"
            )
    if evaluator.real.name != record.real.name:
        raise SynthError(
            f"--data-root: its images are the record's, but named {evaluator.real.name} here, and "
            f"{record.real.name} in the record; SVHN's own files are named svhn, and all others "
            "after their folder"
        )
    return evaluator


@contextmanager
def as_recorded(recorded: dict[str, Any] | None) -> Iterator[None]:
    """Computes with the recorded numbers of threads, of torch and of numpy's linear algebra, since
    rounding depends on both, and deterministically where the record says so."""
    recorded = recorded or {}
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(recorded.get("threads", threads))
    if recorded.get("deterministic"):
        make_deterministic()
    try:
        with threadpool_limits(recorded.get("blas_threads"), user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def make_again(record: Record, stage: Stage, evaluator: Evaluator, original: Workspace) -> Again:
    """Makes the record's entry again from this stage on, in the evaluator's folders.

    original: the folders to find sets and runs in.
    """
    entry, protocol, scratch = record.entry, evaluator.protocol, evaluator.workspace
    classes = len(evaluator.train.classes)
    if entry.kind != "synthetic":
        with as_recorded(record.environment):
            return Again(*evaluator.build(entry.kind, entry.count // classes))
    weights = None
    if stage == "evaluate" and protocol.data == "disk":
        return _set_again(entry, evaluator, original)
    else:
        if stage == "train":
            run, checkpoint = _train_again(record, evaluator), entry.chosen
        else:
            run, checkpoint = _find_run(entry, original)
        weights, seed = run.find_checkpoint(checkpoint), entry.generation_seed
        if protocol.data == "stream":
            plain = Sampling(augment="none")  # a stream has the generator's own samples
            described = replace(
                describe_provenance(run, seed or 0, checkpoint=checkpoint, sampling=plain),
                config=run.config.to_json(),
                training_log=run.read_log(),
            )
            batches = sample_batches(protocol, weights, classes, evaluator.device)
            return Again(entry_of(described, protocol.steps * protocol.batch), batches, weights)
        if seed is None:
            raise SynthError(f"{record.id}: says no generation seed; use --from evaluate")
        classifier = entry.labeller or entry.rejecter
        if needs_classifier(entry):
            check_same_images(run, evaluator.train)
            if classifier is None:
                raise SynthError(f"{record.id}: says no labeller; use --from evaluate")
        described = describe_provenance(
            run, seed, entry.labels, classifier, checkpoint, sampling_of(entry)
        )
        per_class = entry.count // classes
        with as_recorded(entry.generation_environment):
            folder = generate_described(evaluator, run, per_class, described, scratch.datasets)
    given = read_for(evaluator, folder)
    return Again(given.entry, given.synthetic.images, weights)


def _set_again(entry: Entry, evaluator: Evaluator, original: Workspace) -> Again:
    """The data set of the entry's sha256, where it was or in the folder of data sets. Of several,
    the first one that says of itself what the entry says."""
    was = [Path(entry.folder)] if entry.folder else []
    made = (*numbered_folders(original.datasets), *numbered_folders(original.baselines))
    found: list[Given] = []
    told = brought_of(entry, evaluator.test.classes)
    for folder in (*was, *made):
        manifest = read_manifest(folder)
        if manifest is None and entry.brought:
            with suppress(SynthError):  # another set may be there now
                given = read_for(evaluator, folder, told)
                found += [given] if given.entry.sha256 == entry.sha256 else []
        elif manifest is not None and manifest.sha256 == entry.sha256:
            found.append(read_for(evaluator, folder))
            if manifest.description() == entry.description():
                return Again(found[-1].entry, found[-1].synthetic.images)
    if found:
        return Again(found[0].entry, found[0].synthetic.images)
    raise SynthError(
        f"{entry.folder or entry.name}: there is no data set of the sha256 "
        f"{str(entry.sha256)[:12]} there or in --datasets {original.datasets}; find it, or make it "
        "again with --from generate"
    )


def _find_run(entry: Entry, original: Workspace) -> tuple[Run, str]:
    """The run with the checkpoint of the entry's sha256, and the name of that checkpoint."""
    weights = find_weights(entry, original)
    kept = weights.parent.name == "checkpoints"
    folder = weights.parent.parent if kept else weights.parent
    run = Run(folder, RunConfig.from_json(read_metadata(weights)["config"], weights))
    if entry.chosen and sha256(run.find_checkpoint(entry.chosen)) == entry.checkpoint:
        return run, entry.chosen
    return run, weights.stem if kept else "last"


def find_weights(entry: Entry, original: Workspace) -> Path:
    """The checkpoint of the entry's sha256, where it was or in the folder of runs."""
    if entry.checkpoint is None:
        raise SynthError(f"{entry.name}: no generator of synth made it; use --from evaluate")
    was = [Path(entry.run)] if entry.run else []
    for folder in (*was, *numbered_folders(original.runs)):
        kept = sorted(folder.glob("checkpoints/*.safetensors"))
        for weights in (folder / "generator.safetensors", *kept):
            if weights.exists() and sha256(weights) == entry.checkpoint:
                return weights
    raise SynthError(
        f"{entry.run}: there is no checkpoint of the sha256 {entry.checkpoint[:12]} there or in "
        f"--runs {original.runs}; find it, or make it again with --from train"
    )


def _train_again(record: Record, evaluator: Evaluator) -> Run:
    if record.entry.config is None:
        raise SynthError(
            f"{record.id}: is older than configurations in records, so its run cannot be "
            "trained again; use --from generate"
        )
    config, device = RunConfig.from_json(record.entry.config, record.id), evaluator.device
    log = record.entry.training_log
    shown = log[-1].get("images", 0) if log else config.total_images
    if shown < config.total_images:
        raise SynthError(
            f"{record.id}: its run had shown {shown:,} of {config.total_images:,} images, and "
            "training it again would not stop there; use --from generate"
        )
    with as_recorded(record.entry.training_environment):
        run = Run.create(evaluator.workspace.runs, config, describe_environment(device))
        train(run, evaluator.train, device, evaluator.workspace.cache)
    return run
