"""One protocol on one pair of real splits: scores entries, and writes a record of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from eval.baselines import BASELINES
from eval.classifier_training import choose_classifier_precision
from eval.features import FEATURE_SPACES, features, label
from eval.metrics import (
    CLASSIFIER,
    METRICS,
    Extractor,
    RealReference,
    Subject,
    calibrate,
    in_order,
    measure,
)
from eval.protocols import PROTOCOLS, Protocol, protocol_for
from eval.real_classifier import real_classifier, real_protocol, train_classify
from eval.records import (
    Entry,
    RealSplits,
    Record,
    read_record,
    read_records,
    record_id,
    write_record,
)
from eval.scoring import MakeBatches, Score, disk_batches, score
from synth.base.errors import SynthError, UsageError
from synth.base.files import check_writable
from synth.base.progress import progress_bar, say
from synth.data import ImageSet, load_test_images, load_training_images
from synth.environment import describe_environment
from synth.generation import Classify
from synth.ops.native import describe_kernels
from synth.training import Saved

Source = ImageSet | MakeBatches  # what classifiers learn from: a finished set, or fresh samples


def metrics_for(entry: Entry, asked: Sequence[str]) -> list[str]:
    """Those of the metrics that mean something for this entry, without the score."""
    baseline = BASELINES.get(entry.kind)
    fitting = baseline.metrics if baseline is not None else None
    known = [name for name in asked if name in METRICS and METRICS[name].applies_to(entry)]
    return [name for name in known if fitting is None or name in fitting]


@dataclass(frozen=True)
class Workspace:
    """The folders that commands read and write."""

    data_root: Path | None = None
    runs: Path = Path("runs")
    datasets: Path = Path("datasets")
    results: Path = Path("results")
    cache: Path | None = None  # of classifiers of real images; None is the user's
    saved: Saved | None = None  # called after each checkpoint of a training in `runs`

    @property
    def baselines(self) -> Path:
        """Sets that were made to read scores by. The newest set of a user is never one of them."""
        return self.datasets / "references"


@dataclass(frozen=True)
class Scoring:
    """How a command scores sets."""

    protocol: str
    device: torch.device
    precision: str = "auto"
    seeds: int | None = None  # by default the protocol's
    metrics: tuple[str, ...] = ()  # as `eval.metrics.parse_metrics` gives them


@dataclass(frozen=True)
class Evaluator:
    """Applies a protocol to sets. The test split in it gives scores and metrics, and no choice."""

    protocol: Protocol
    train: ImageSet
    test: ImageSet
    workspace: Workspace
    device: torch.device
    precision: str
    seeds: int
    dataset_key: str  # what the real splits are asked for by, e.g. svhn
    metrics: tuple[str, ...]
    extractors: Mapping[str, Extractor]  # besides the classifier's
    asked: str = "auto"  # precision; with auto, records in any precision will do

    @cached_property
    def real(self) -> RealSplits:
        return RealSplits.of(self.train, self.test)

    @cached_property
    def real_reference(self) -> RealReference:
        chosen = real_protocol(self.protocol)
        cache = self.workspace.cache
        classifier = real_classifier(self.train, chosen, self.device, self.precision, cache)
        own: Extractor = partial(features, classifier)
        extractors = {CLASSIFIER: own, **self.extractors}
        return RealReference(self.train, self.test, extractors, partial(label, classifier))

    @cached_property
    def teacher(self) -> Classify:
        """The teacher of the baselines, trained on the real training split."""
        protocol = PROTOCOLS.find(str(self.protocol.teacher))
        cache = self.workspace.cache
        return train_classify(self.train, protocol, self.device, self.precision, cache)

    def require(self, real: RealSplits) -> None:
        """Raises `SynthError` unless these are the real splits of this machine, too."""
        theirs, ours = asdict(self.real), asdict(real)
        differing = [name for name in ours if theirs[name] != ours[name]]
        other = [f"{name} {theirs[name]!s:.12}, here {ours[name]!s:.12}" for name in differing]
        if other:
            raise SynthError(
                f"{self.dataset_key}: a machine of the cluster has other real data "
                f"({'; '.join(other)}); put the same in --data-root of each"
            )

    def build(self, kind: str, per_class: int) -> tuple[Entry, ImageSet]:
        """A baseline: its entry, and the set to train on."""
        baseline = BASELINES.find(kind)
        taught = (self.teacher,) if baseline.needs_teacher else ()
        images = baseline.build(self.train, per_class, *taught)
        labeller = self.protocol.teacher if baseline.needs_teacher else None
        entry = Entry(kind, baseline.name, len(images), images.fingerprint, labeller=labeller)
        return entry, images

    def records(self) -> list[Record]:
        """Those that are there under this protocol, on these splits, in the precision asked for."""
        records = read_records(self.workspace.results, quiet=True)
        under = [record for record in records if record.is_under(self.protocol, self.real)]
        return [record for record in under if self.asked in ("auto", record.precision)]

    def find(self, entry: Entry) -> Record | None:
        """The newest record of this entry with all metrics that are asked for, if there is one."""
        metrics = metrics_for(entry, self.metrics)
        found = (r for r in reversed(self.records()) if r.answers(entry, self.seeds, metrics))
        return next(found, None)

    def evaluate(self, entry: Entry, source: Source) -> Record:
        """Scores one entry and writes its record; a failure is a record too."""
        start = time.perf_counter()
        try:
            result = self._score(f"evaluate {entry.name}", source, self._protocol_of(entry))
            metrics = self._measure(entry, source) if isinstance(source, ImageSet) else None
        except Exception as error:
            self.write(entry, error=f"{type(error).__name__}: {error}")
            raise
        record = self.write(entry, result, time.perf_counter() - start, metrics)
        accuracies = ", ".join(f"{100 * value:.2f}" for value in record.accuracies)
        say(f"{entry.name}: accuracy {accuracies} % ({record.seconds:.0f} s)")
        return record

    def _protocol_of(self, entry: Entry) -> Protocol:
        baseline = BASELINES.get(entry.kind)
        by_teacher = baseline is not None and baseline.by_teacher
        return PROTOCOLS.find(str(self.protocol.teacher)) if by_teacher else self.protocol

    def _score(self, title: str, source: Source, protocol: Protocol) -> Score:
        device, precision, seeds = self.device, self.precision, self.seeds
        if not isinstance(source, ImageSet):
            batches = source
        else:
            batches = disk_batches(protocol, source, device)
            if self._is_real(source) and real_protocol(protocol) == protocol:
                cache = self.workspace.cache
                known = partial(real_classifier, self.train, protocol, device, precision, cache)
                return score(protocol, batches, self.test, device, precision, seeds, known=known)
        with progress_bar(title, protocol.steps * seeds, "steps") as advance:
            return score(protocol, batches, self.test, device, precision, seeds, advance)

    def _is_real(self, images: ImageSet) -> bool:
        """True for the whole real training split."""
        as_many = len(images) == len(self.train)
        return as_many and images.fingerprint == self.train.fingerprint

    def _measure(self, entry: Entry, images: ImageSet) -> dict[str, Any] | None:
        names = metrics_for(entry, self.metrics)
        if not names:
            return None
        baseline = BASELINES.get(entry.kind)
        if baseline is not None and baseline.calibrates:
            return calibrate(self.real_reference, names)

        def accuracies(union: ImageSet) -> list[float]:
            result = self._score(f"augment with {entry.name}", union, self.protocol)
            return [seed.accuracy for seed in result.seeds]

        return measure(Subject(images, self.real_reference, accuracies), names)

    def write(
        self,
        entry: Entry,
        result: Score | None = None,
        seconds: float = 0.0,
        metrics: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> Record:
        """Writes a record of a score, or of an error."""
        now = datetime.now(timezone.utc)
        record = Record(
            id=record_id(now, entry, self.protocol, self.real),
            date=now.isoformat(timespec="seconds"),
            entry=entry,
            protocol=self.protocol.to_json(),
            real=self.real,
            scores=result.seeds if result else [],
            environment=describe_environment(self.device),
            precision=self.precision,
            seconds=round(seconds, 2),
            error=error,
            dataset_key=self.dataset_key,
            metrics=metrics,
        )
        return read_record(write_record(self.workspace.results, record, result))


def make_evaluator(scoring: Scoring, dataset_key: str, workspace: Workspace) -> Evaluator:
    """Loads both real splits; this is where the test split is read.

    Under a stream there are no metrics: they are of a set on disk, and stand in the table of
    `fixed-v1`. Raises `SynthError` where a feature space is asked for whose weights are not there.
    """
    protocol, device = PROTOCOLS.find(scoring.protocol), scoring.device
    seeds = protocol.seeds if scoring.seeds is None else scoring.seeds
    if seeds < 1:
        raise UsageError(f"--classifier-seeds {seeds}: must be 1 or more")
    metrics = () if protocol.data == "stream" else scoring.metrics
    spaces = {metric.feature_space for metric in in_order() if metric.name in metrics}
    extractors = {name: load(device) for name, load in FEATURE_SPACES.items() if name in spaces}
    say(f"reads {dataset_key}")
    train = load_training_images(dataset_key, workspace.data_root)
    test = load_test_images(dataset_key, workspace.data_root)
    if train.side != protocol.side:
        protocol = protocol_for(protocol.name, train.side)
        say(f"{train.name}: images are {train.side}×{train.side}, so that {protocol.name} scores")
    train.require_labels()
    test.require_labels()
    check_writable(workspace.results / "records")
    describe_environment(device)  # of the code as it is loaded, before hours pass
    precision, why = choose_classifier_precision(scoring.precision, device, protocol)
    say(f"precision {precision}: {why}")
    say(describe_kernels(device, precision))
    return Evaluator(
        protocol,
        train,
        test,
        workspace,
        device,
        precision,
        seeds,
        dataset_key,
        metrics,
        extractors,
        scoring.precision,
    )
