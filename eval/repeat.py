"""A record's evaluation done again by the ordinary pipeline, in a scratch folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from threadpoolctl import threadpool_limits

from eval.baselines import BASELINES
from eval.evaluate import entry_of, generate_described, synthetic_entry
from eval.evaluator import Evaluator, Scoring, Source, Workspace, make_evaluator
from eval.metrics import measured
from eval.records import Entry, Record
from eval.selection import checkpoint_scorer, sample_batches
from synth.base.errors import SynthError
from synth.base.files import numbered_folders, sha256
from synth.checkpoints import load_tensors, read_metadata
from synth.environment import (
    PACKAGES,
    describe_environment,
    is_deterministic,
    make_deterministic,
    pick_device,
)
from synth.generation import describe_provenance
from synth.runs import Run, RunConfig
from synth.synthetic_set import SyntheticSet, read_manifest, read_synthetic
from synth.training import check_same_images, train_run

Stage = Literal["evaluate", "generate", "train"]
SAME = ("python", *PACKAGES, "platform", "device", "kernels", "deterministic")  # bits depend on


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
    def failed(self) -> list[str]:
        return [check.what for check in self.checks if check.needed and not check.met]

    @property
    def holds(self) -> bool:
        return not self.failed

    @property
    def verdict(self) -> str:
        if self.failed:
            return f"does not hold: {', '.join(self.failed)}"
        return "holds, bit for bit" if self.exact else "holds, within its interval"

    def add(self, what: str, met: bool, detail: str, always: bool = False) -> None:
        """A check that is needed where bits must be the same, or `always`."""
        self.checks.append(Check(what, met, always or self.exact, detail))

    def meet(
        self, stage: str, recorded: dict[str, Any] | None, device: torch.device
    ) -> dict[str, Any]:
        """Notes how the environment of a stage differs from the one at hand, and returns this."""
        now = describe_environment(device)
        if recorded is None:
            self.differences.append(f"{stage}: its environment is not in the record")
            return now
        if not now["device"].startswith("CPU"):
            self.differences.append(f"{stage}: on a GPU, which need not repeat its bits")
        for key in SAME:
            if recorded.get(key) != now.get(key):
                self.differences.append(f"{stage}: {key} {recorded.get(key)}, now {now.get(key)}")
        if recorded.get("commit") != now.get("commit"):
            self.notes.append(f"{stage}: commit {recorded.get('commit')}, now {now.get('commit')}")
        return now

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


def evaluator_again(
    record: Record, workspace: Workspace, dataset_key: str | None, device: str
) -> Evaluator:
    """The evaluator of the record. Raises `SynthError` where the real splits are others."""
    if device == "auto" and record.environment.get("device", "").startswith("CPU"):
        device = "cpu"
    scoring = Scoring(
        record.protocol["name"],
        pick_device(device),
        record.precision,
        len(record.scores),
        measured(record.metrics),
    )
    evaluator = make_evaluator(scoring, dataset_key or record.dataset_key or "svhn", workspace)
    for split in ("train", "test"):
        ours = getattr(evaluator.real, f"{split}_fingerprint")
        theirs = getattr(record.real, f"{split}_fingerprint")
        if ours != theirs:
            raise SynthError(
                f"--data-root: its {split} split of {evaluator.real.name} ({ours[:12]}) is not the "
                f"record's, {record.real.name} ({theirs[:12]}); give the one that was scored on"
            )
    return evaluator


@contextmanager
def as_recorded(recorded: dict[str, Any] | None) -> Iterator[None]:
    """Computes with the recorded numbers of threads, of torch and of numpy's linear algebra, since
    rounding depends on both, and deterministically where the record says so."""
    recorded = recorded or {}
    threads, deterministic = torch.get_num_threads(), is_deterministic()
    torch.set_num_threads(recorded.get("threads", threads))
    if recorded.get("deterministic"):
        make_deterministic()
    try:
        with threadpool_limits(recorded.get("blas_threads"), user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def make_again(
    found: Verification, evaluator: Evaluator, original: Workspace
) -> tuple[Entry, Source]:
    """The entry made again from the stage on that is asked for, and what classifiers learn from.

    original: the folders to find sets and runs in. The evaluator's own are empty.
    """
    record, entry, protocol = found.record, found.record.entry, evaluator.protocol
    classes = len(evaluator.train.classes)
    if entry.kind != "synthetic":
        baseline = BASELINES.find(entry.kind)
        with as_recorded(record.environment):
            images = baseline.build(evaluator.train, entry.count // classes)
        found.add("same training set", images.fingerprint == entry.sha256, "rebuilt from the split")
        return Entry(entry.kind, baseline.name, len(images), images.fingerprint), images
    if found.stage == "evaluate" and protocol.data == "disk":
        synthetic = read_synthetic(_find_set(entry, original))
        detail = f"found by its sha256 as {synthetic.images.name}"
        found.add("same data set", True, detail, always=True)
    else:
        if found.stage == "train":
            run, checkpoint = _train_again(found, evaluator, original)
        else:
            run, checkpoint = _find_run(found, original)
        if protocol.data == "stream":
            described = describe_provenance(run, entry.generation_seed or 0, None, None, checkpoint)
            weights = run.find_checkpoint(checkpoint)
            batches = sample_batches(protocol, weights, classes, evaluator.device)
            return entry_of(described, entry.count), batches
        synthetic = _generate_again(found, evaluator, run, checkpoint)
        digest = str(synthetic.manifest and synthetic.manifest.sha256)
        detail = f"generated again, sha256 {digest[:12]}"
        found.add("same data set", digest == entry.sha256, detail)
    return synthetic_entry(synthetic, protocol), synthetic.images


def _find_set(entry: Entry, original: Workspace) -> Path:
    """The data set of the entry's sha256, where it was or in the folder of data sets."""
    was = [Path(entry.folder)] if entry.folder else []
    made = (*numbered_folders(original.datasets), *numbered_folders(original.baselines))
    for folder in (*was, *made):
        manifest = read_manifest(folder)
        if manifest is not None:
            digest = manifest.sha256
        elif (folder / "images.npz").exists():
            digest = read_synthetic(folder).images.fingerprint
        else:
            continue
        if digest == entry.sha256:
            return folder
    raise SynthError(
        f"{entry.folder}: there is no data set of the sha256 {str(entry.sha256)[:12]} there or in "
        f"--datasets {original.datasets}; find it, or make it again with --from generate"
    )


def _generate_again(
    found: Verification, evaluator: Evaluator, run: Run, checkpoint: str | None
) -> SyntheticSet:
    record, entry = found.record, found.record.entry
    if entry.generation_seed is None:
        raise SynthError(f"{record.id}: says no generation seed; use --from evaluate")
    if entry.labels == "classifier":
        check_same_images(run, evaluator.train)
        if entry.labeller is None:
            raise SynthError(f"{record.id}: says no labeller; use --from evaluate")
    described = replace(entry, chosen=checkpoint)
    per_class, root = entry.count // len(evaluator.train.classes), evaluator.workspace.datasets
    with as_recorded(entry.generation_environment):
        found.meet("generate", entry.generation_environment, evaluator.device)
        return read_synthetic(generate_described(evaluator, run, per_class, described, root))


def _find_run(found: Verification, original: Workspace) -> tuple[Run, str | None]:
    """The run with the checkpoint of the entry's sha256, where it was or in the folder of runs, and
    the name of that checkpoint."""
    entry = found.record.entry
    weights = _find_weights(entry, original)
    found.add("same checkpoint", True, f"found by its sha256: {weights}", always=True)
    kept = weights.parent.name == "checkpoints"
    folder = weights.parent.parent if kept else weights.parent
    run = Run(folder, RunConfig.from_json(read_metadata(weights)["config"], weights))
    named = entry.chosen
    if named is not None and sha256(run.find_checkpoint(named)) == entry.checkpoint:
        return run, named
    return run, weights.stem if kept else "last"


def _find_weights(entry: Entry, original: Workspace) -> Path:
    if entry.checkpoint is None:
        raise SynthError(f"{entry.name}: no generator of synth made it; use --from evaluate")
    was = [Path(entry.run)] if entry.run else []
    for folder in (*was, *numbered_folders(original.runs)):
        kept = sorted(folder.glob("checkpoints/*.safetensors"))
        for weights in (*folder.glob("generator.safetensors"), *kept):
            if sha256(weights) == entry.checkpoint:
                return weights
    raise SynthError(
        f"{entry.run}: there is no checkpoint of the sha256 {entry.checkpoint[:12]} there or in "
        f"--runs {original.runs}; find it, or make it again with --from train"
    )


def _train_again(
    found: Verification, evaluator: Evaluator, original: Workspace
) -> tuple[Run, str | None]:
    """Trains the run again; returns it with the name of the record's checkpoint."""
    record, entry, device = found.record, found.record.entry, evaluator.device
    if entry.config is None:
        raise SynthError(
            f"{record.id}: is older than configurations in records, so its run cannot be "
            "trained again; use --from generate"
        )
    config = RunConfig.from_json(entry.config, record.id)
    with as_recorded(entry.training_environment):
        environment = found.meet("train", entry.training_environment, device)
        run = Run.create(evaluator.workspace.runs, config, environment)
        train_run(run, evaluator.train, device, checkpoint_scorer(run, device))
    weights = run.find_checkpoint(entry.chosen)
    if entry.chosen is None and run.images_shown(weights) != entry.images_shown:
        raise SynthError(f"{record.id}: no checkpoint at {entry.images_shown} images again")
    same, detail = (
        sha256(weights) == entry.checkpoint,
        f"{config.total_images:,} images shown again",
    )
    if not same:  # perhaps in its metadata alone, which grows with the versions of synth
        try:
            same = _same_tensors(weights, _find_weights(entry, original))
            detail += ", compared tensor by tensor: the files' metadata differ"
        except SynthError:
            detail += "; the first one is not there to be compared tensor by tensor"
    found.add("same checkpoint", same, detail)
    return run, entry.chosen


def _same_tensors(one: Path, other: Path) -> bool:
    a, b = load_tensors(one)[0], load_tensors(other)[0]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
