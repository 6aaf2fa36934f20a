"""Does a record hold? Its evaluation done again from what it recorded, and compared.

Bit for bit on a CPU with the same versions, where the same arithmetic gives the same numbers;
elsewhere within the spread that the record itself shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import binomtest

from eval.judge import Judge, make_judge
from eval.protocol import MakeBatches, disk_batches, find_protocol, stream_batches
from eval.records import Entry, Record, predictions_path, read_record
from eval.references import pca_gaussian, real_same_size
from eval.statistics import interval
from pipeline import check_same_images, train_labeller, train_run
from scoring import Places
from synth.data import ImageSet
from synth.environment import (
    PACKAGES,
    describe_environment,
    is_deterministic,
    make_deterministic,
    pick_device,
)
from synth.errors import SynthError, UsageError
from synth.files import numbered_folders, read_arrays, read_json, sha256
from synth.generation import fresh_batch, generate_as
from synth.runs import Run, RunConfig, load_generator, load_tensors, read_metadata
from synth.synthetic import content_hash, read_synthetic

Stage = Literal["evaluate", "generate", "train"]
SAME = ("python", *PACKAGES, "platform", "device", "deterministic")  # what bits depend on
# The references that follow from the real training split: kind → (split, images per class) → set.
REBUILD: dict[str, Callable[[ImageSet, int], ImageSet]] = {
    "real": lambda real, per_class: real,
    "real-same-size": real_same_size,
    "pca-gaussian": pca_gaussian,
}


@dataclass(frozen=True)
class Check:
    """One thing compared. The record holds if all that is `needed` is `met`."""

    what: str
    met: bool
    needed: bool
    detail: str


@dataclass
class Verification:
    """What was compared, and what came out."""

    record: Record
    stage: Stage
    differences: list[str] = field(default_factory=list)  # of the environments
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Must every bit be the same?"""
        return not self.differences

    @property
    def holds(self) -> bool:
        return all(check.met for check in self.checks if check.needed)

    @property
    def verdict(self) -> str:
        if not self.holds:
            failed = [check.what for check in self.checks if check.needed and not check.met]
            return f"does not hold: {', '.join(failed)}"
        return "holds, bit for bit" if self.exact else "holds, within its interval"

    def add(self, what: str, met: bool, detail: str, always: bool = False) -> None:
        """A check that is needed where bits must be the same, or `always`."""
        self.checks.append(Check(what, met, always or self.exact, detail))

    def meet(self, stage: str, recorded: dict[str, Any] | None, now: dict[str, Any]) -> None:
        """Notes how the environment of a stage differs from the one at hand."""
        if recorded is None:
            self.differences.append(f"{stage}: its environment is not in the record")
            return
        if not now["device"].startswith("CPU"):
            self.differences.append(f"{stage}: on a GPU, which need not repeat its bits")
        for key in SAME:
            if recorded.get(key) != now.get(key):
                self.differences.append(f"{stage}: {key} {recorded.get(key)}, now {now.get(key)}")
        if recorded.get("commit") != now.get("commit"):
            self.notes.append(f"{stage}: commit {recorded.get('commit')}, now {now.get('commit')}")

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record.id,
            "from": self.stage,
            "holds": self.holds,
            "exact": self.exact,
            "verdict": self.verdict,
            "differences": self.differences,
            "notes": self.notes,
            "checks": [asdict(check) for check in self.checks],
        }

    def to_text(self) -> str:
        lines = [f"{self.record.id}, from {self.stage}"]
        lines += [f"differs       {line}" for line in self.differences]
        lines += [f"note          {line}" for line in self.notes]
        for check in self.checks:
            word = "yes" if check.met else "NO" if check.needed else "no, and need not"
            lines.append(f"{check.what}: {word} ({check.detail})")
        return "\n".join([*lines, f"verdict       {self.verdict}"])


def find_record_file(results: Path, name: str) -> Path:
    """The record at this path, or with this id (a beginning that no other shares is enough)."""
    if name.endswith(".json"):
        return Path(name)
    found = sorted((results / "records").glob("*.json"))
    found = [path for path in found if name and path.stem.startswith(name)]
    if len(found) != 1:
        many = f"begins {len(found)} ids; write more of one" if found else "no such record"
        raise UsageError(f"{name}: {many} in {results / 'records'}")
    return found[0]


def verify(
    path: Path, stage: Stage, places: Places, source: str | None = None, device: str = "auto"
) -> Verification:
    """Repeats a record's evaluation, from its data set (`evaluate`), from its generator's
    checkpoint (`generate`) or from the real training split (`train`), and compares.

    Nothing is written to the record's folder. With the same versions on a CPU, in the recorded
    number of threads, on which rounding depends, all bits must be the same; else the new mean must
    lie in the record's interval, see `_within`. Raises `SynthError` when there is nothing to
    compare: the real splits are others, or what is needed is not there.
    """
    record = read_record(path)
    if record.error is not None:
        raise SynthError(f"{path}: is the record of a failure ({record.error}): nothing to verify")
    if record.entry.kind != "synthetic" and stage != "evaluate":
        raise UsageError(f"--from {stage}: {record.entry.name} has no generator; leave it out")
    if find_protocol(record.protocol["name"]).hash != record.protocol["hash"]:
        raise SynthError(
            f"{path}: {record.protocol['name']} is another protocol now "
            f"({record.protocol['hash']} in the record); check out its commit "
            f"{record.environment.get('commit')}"
        )
    found = Verification(record, stage)
    with tempfile.TemporaryDirectory() as scratch:
        judge = _judge_again(record, places, source, device, Path(scratch))
        with _as_recorded(record.environment) as environment:
            found.meet("evaluate", record.environment, environment(judge.device))
        batches = _batches_again(found, judge, places, Path(scratch))
        with _as_recorded(record.environment):
            again = judge.evaluate(record.entry, batches)
        _compare_scores(found, again, predictions_path(path.parent.parent, record), judge)
    return found


def _judge_again(
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
def _as_recorded(
    recorded: dict[str, Any] | None,
) -> Iterator[Callable[[torch.device], dict[str, Any]]]:
    """Computes as the record says that it was done: rounding depends on the number of threads."""
    recorded = recorded or {}
    threads, deterministic = torch.get_num_threads(), is_deterministic()
    torch.set_num_threads(recorded.get("threads", threads))
    if recorded.get("deterministic"):
        make_deterministic()
    try:
        yield describe_environment
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


# What the classifier was trained on


def _batches_again(found: Verification, judge: Judge, places: Places, scratch: Path) -> MakeBatches:
    entry, protocol = found.record.entry, judge.protocol
    if entry.kind != "synthetic":
        with _as_recorded(found.record.environment):
            images = REBUILD[entry.kind](judge.train, entry.count // len(judge.train.classes))
        found.add("same training set", images.fingerprint == entry.sha256, "rebuilt from the split")
        return disk_batches(protocol, images, judge.device)
    if found.stage == "evaluate" and protocol.data == "disk":
        images = _find_set(entry, places)
        found.add("same data set", True, f"found by its sha256 as {images.name}", always=True)
        return disk_batches(protocol, images, judge.device)
    if found.stage == "train":
        weights = _train_again(found, judge, places, scratch)
    else:
        weights = _find_weights(entry, places)
        found.add("same checkpoint", True, f"found by its sha256: {weights}", always=True)
    if protocol.data == "disk":
        images = _generate_again(found, judge, weights)
        return disk_batches(protocol, images, judge.device)
    generator = load_generator(weights, judge.device)
    classes = len(judge.test.classes)
    return stream_batches(
        protocol, lambda count, random: fresh_batch(generator, classes, count, random)
    )


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
    with _as_recorded(entry.training_environment) as describe:
        environment = describe(judge.device)
        found.meet("train", entry.training_environment, environment)
        run = Run.create(scratch / "runs", config, environment)
        train_run(run, judge.train, judge.device)
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
    with _as_recorded(entry.generation_environment) as describe:
        found.meet("generate", entry.generation_environment, describe(judge.device))
        labeller = None
        if label_with == "classifier":
            check_same_images(Run(weights.parent, config), judge.train)
            if entry.labeller is None:
                raise SynthError(f"{found.record.id}: says no labeller; use --from evaluate")
            labeller = train_labeller(
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


# What came out


def _compare_scores(found: Verification, again: Record, recorded: Path, judge: Judge) -> None:
    record = found.record
    if not recorded.exists():
        raise SynthError(f"{recorded}: is missing, and so the predictions cannot be compared")
    old = read_arrays(recorded)
    new = read_arrays(predictions_path(judge.results, again))
    truth = judge.test.require_labels().numpy()
    shape = (len(record.scores), record.real.test_size)
    own = (
        old["predictions"].shape == shape
        and [float(np.mean(row == truth)) for row in old["predictions"]] == record.accuracies
    )
    found.add("record agrees with its own predictions", own, "accuracy of each seed", always=True)
    same = all(np.array_equal(old[name], new[name]) for name in old)
    found.add("same predictions", same, f"{shape[0]} × {shape[1]:,}")
    figures = [[replace(s, seconds=0.0) for s in r.scores] for r in (record, again)]
    accuracies = ", ".join(f"{100 * value:.2f}" for value in again.accuracies)
    found.add("same figures", figures[0] == figures[1], f"accuracy {accuracies} %")
    found.add(*_within(record, again), always=True)


def _within(record: Record, again: Record) -> tuple[str, bool, str]:
    """Is the new mean where a repetition's would be in 95 % of all cases?

    The record's interval is for the true mean over seeds (`statistics.interval`). A repetition's
    mean scatters about that as much again, so its own interval is √2 as wide: without it, one
    honest repetition in six to ten would fall outside (Cumming & Maillardet 2006, Psychological
    Methods 11:217). With one seed there is no spread to go by: then it is the binomial interval
    (Wilson's) of that many test images.
    """
    first, mean = interval([record.accuracies]), float(np.mean(again.accuracies))
    if first.low is not None and first.high is not None:
        half = 2**0.5 * (first.high - first.low) / 2
        low, high, kind = first.mean - half, first.mean + half, "a repetition's interval"
    else:
        size = record.real.test_size
        wilson = binomtest(round(first.mean * size), size).proportion_ci(method="wilson")
        low, high, kind = wilson.low, wilson.high, "one seed has no interval; the binomial one"
    slack = 1e-12  # where all seeds agree, the interval is a point
    met = low - slack <= mean <= high + slack
    return "within", met, f"{100 * mean:.2f} % in {100 * low:.2f} to {100 * high:.2f} %, {kind}"
