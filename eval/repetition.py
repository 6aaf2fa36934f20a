"""A record's evaluation done again from what it recorded; `verification` compares the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits

from eval import labeller as labelling
from eval.baselines import copier, first_of_each_class, pca_gaussian, real_same_size
from eval.evaluate import Places
from eval.evaluator import Judge, make_judge
from eval.metrics import TENTH
from eval.protocols import find_protocol
from eval.records import Entry, Record
from eval.score import MakeBatches, disk_batches
from eval.selection import checkpoint_scorer, sample_batches
from synth.base.errors import SynthError
from synth.base.files import numbered_folders, read_json, sha256
from synth.checkpoints import load_tensors, read_metadata
from synth.data import ImageSet
from synth.environment import (
    describe_environment,
    is_deterministic,
    make_deterministic,
    pick_device,
)
from synth.generation import generate_as
from synth.runs import Run, RunConfig, load_generator
from synth.synthetic_set import content_hash, read_synthetic
from synth.training import check_same_images, train_run

if TYPE_CHECKING:
    from eval.verify import Verification

# The references that follow from the real training split: kind → (split, images per class) → set.
REBUILD: dict[str, Callable[[ImageSet, int], ImageSet]] = {
    "real": lambda real, per_class: real,
    "real-same-size": real_same_size,
    "real-tenth": lambda real, per_class: first_of_each_class(real, TENTH),
    "pca-gaussian": pca_gaussian,
    "copier": copier,
}


def judge_again(
    record: Record, places: Places, source: str | None, device: str, scratch: Path
) -> Judge:
    """The judge of the record, who writes into `scratch`. Raises where the real splits differ."""
    if device == "auto" and record.environment.get("device", "").startswith("CPU"):
        device = "cpu"
    judge = make_judge(
        record.protocol["name"],
        source or record.source or "svhn",
        places.data_root,
        scratch / "results",
        pick_device(device),
        record.precision,
        len(record.scores),
        tuple(record.metrics.groups) if record.metrics else (),
    )
    for split in ("train", "test"):
        ours = getattr(judge.real, f"{split}_fingerprint")
        theirs = getattr(record.real, f"{split}_fingerprint")
        if ours != theirs:
            raise SynthError(
                f"--data-root: its {split} split of {judge.real.name} ({ours[:12]}) is not the "
                f"record's, {record.real.name} ({theirs[:12]}); give the one that was scored on"
            )
    return judge


@contextmanager
def as_recorded(
    recorded: dict[str, Any] | None,
) -> Iterator[Callable[[torch.device], dict[str, Any]]]:
    """Computes as the record says that it was done: rounding depends on the number of threads, of
    torch (in the classifier and the generator) and of numpy's BLAS (in PCA)."""
    recorded = recorded or {}
    threads, deterministic = torch.get_num_threads(), is_deterministic()
    torch.set_num_threads(recorded.get("threads", threads))
    if recorded.get("deterministic"):
        make_deterministic()
    try:
        with threadpool_limits(recorded.get("blas_threads"), user_api="blas"):
            yield describe_environment
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def batches_again(
    found: Verification, judge: Judge, places: Places, scratch: Path
) -> tuple[MakeBatches, ImageSet | None]:
    """What the classifiers are trained on, and the set on disk that it comes from, if any."""
    entry, protocol = found.record.entry, judge.protocol
    if entry.kind != "synthetic":
        with as_recorded(found.record.environment):
            images = REBUILD[entry.kind](judge.train, entry.count // len(judge.train.classes))
        found.add("same training set", images.fingerprint == entry.sha256, "rebuilt from the split")
        return disk_batches(protocol, images, judge.device), images
    if found.stage == "evaluate" and protocol.data == "disk":
        images = _find_set(entry, places)
        found.add("same data set", True, f"found by its sha256 as {images.name}", always=True)
        return disk_batches(protocol, images, judge.device), images
    if found.stage == "train":
        weights = _train_again(found, judge, places, scratch)
    else:
        weights = _find_weights(entry, places)
        found.add("same checkpoint", True, f"found by its sha256: {weights}", always=True)
    if protocol.data == "disk":
        images = _generate_again(found, judge, weights)
        return disk_batches(protocol, images, judge.device), images
    return sample_batches(protocol, weights, len(judge.test.classes), judge.device), None


def _find_set(entry: Entry, places: Places) -> ImageSet:
    """The data set of the entry's sha256, where it was or in the folder of data sets."""
    was = [Path(entry.folder)] if entry.folder else []
    for folder in (
        *was,
        *numbered_folders(places.datasets),
        *numbered_folders(places.references),
    ):
        manifest, foreign = folder / "manifest.json", folder / "images.npz"
        if manifest.exists():
            if read_json(manifest).get("sha256") == entry.sha256:
                return read_synthetic(folder).images  # raises where its images are others
        elif foreign.exists():
            images = read_synthetic(folder).images
            if images.fingerprint == entry.sha256:
                return images
    raise SynthError(
        f"{entry.folder}: there is no data set of the sha256 {str(entry.sha256)[:12]} there or in "
        f"--datasets {places.datasets}; find it, or make it again with --from generate"
    )


def _find_weights(entry: Entry, places: Places) -> Path:
    """The checkpoint of the entry's sha256, where it was or in the folder of runs."""
    if entry.checkpoint is None:
        raise SynthError(f"{entry.name}: no generator of synth made it; use --from evaluate")
    was = [Path(entry.run)] if entry.run else []
    for folder in (*was, *numbered_folders(places.runs)):
        for weights in _all_weights(folder):
            if sha256(weights) == entry.checkpoint:
                return weights
    raise SynthError(
        f"{entry.run}: there is no checkpoint of the sha256 {entry.checkpoint[:12]} there or in "
        f"--runs {places.runs}; find it, or make it again with --from train"
    )


def _all_weights(run: Path) -> list[Path]:
    last = run / "generator.safetensors"
    return [*([last] if last.exists() else []), *sorted(run.glob("checkpoints/*.safetensors"))]


def _train_again(found: Verification, judge: Judge, places: Places, scratch: Path) -> Path:
    """Trains the run again in `scratch`; returns the checkpoint that the record is of."""
    entry = found.record.entry
    if entry.config is None:
        raise SynthError(
            f"{found.record.id}: is older than configurations in records, so its run cannot be "
            "trained again; use --from generate"
        )
    config = RunConfig.from_json(entry.config, Path(found.record.id))
    with as_recorded(entry.training_environment) as describe:
        environment = describe(judge.device)
        found.meet("train", entry.training_environment, environment)
        run = Run.create(scratch / "runs", config, environment)
        train_run(run, judge.train, judge.device, checkpoint_scorer(run, judge.device))
    shown = {read_metadata(path)["images"]: path for path in _all_weights(run.folder)}
    if entry.images_shown not in shown:
        raise SynthError(f"{found.record.id}: no checkpoint at {entry.images_shown} images again")
    weights = shown[entry.images_shown]
    detail = f"{config.images:,} images shown again"
    same = sha256(weights) == entry.checkpoint
    if not same:  # perhaps in its metadata alone, which grows with the versions of synth
        try:
            same = _same_tensors(weights, _find_weights(entry, places))
            detail += ", compared tensor by tensor: the files' metadata differ"
        except SynthError:
            detail += "; the first one is not there to be compared tensor by tensor"
    found.add("same checkpoint", same, detail)
    return weights


def _same_tensors(one: Path, other: Path) -> bool:
    a, b = load_tensors(one)[0], load_tensors(other)[0]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _generate_again(found: Verification, judge: Judge, weights: Path) -> ImageSet:
    entry = found.record.entry
    config = RunConfig.from_json(read_metadata(weights)["config"], weights)
    if entry.generation_seed is None:
        raise SynthError(f"{found.record.id}: says no generation seed; use --from evaluate")
    label_with = entry.labels if entry.labels in ("classifier", "random") else None
    with as_recorded(entry.generation_environment) as describe:
        found.meet("generate", entry.generation_environment, describe(judge.device))
        labeller = None
        if label_with == "classifier":
            check_same_images(Run(weights.parent, config), judge.train)
            if entry.labeller is None:
                raise SynthError(f"{found.record.id}: says no labeller; use --from evaluate")
            labeller = labelling.train_labeller(
                judge.train, find_protocol(entry.labeller), judge.device, config.precision
            )
        made = generate_as(
            load_generator(weights, judge.device),
            config.classes,
            entry.count // len(config.classes),
            entry.generation_seed,
            label_with,
            labeller,
        )
    digest = content_hash(made.images, made.labels)
    found.add("same data set", digest == entry.sha256, f"generated again, sha256 {digest[:12]}")
    assert made.labels is not None  # or the set could not have been scored
    images = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(made.labels)
    return ImageSet(images, labels, config.classes, entry.name, "train")
