"""One protocol on one pair of real splits: scores entries, and writes a record of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from eval.protocols import PROTOCOLS, Protocol
from eval.real_classifier import real_classifier, real_protocol
from eval.records import (
    Entry,
    RealSplits,
    Record,
    find_failure,
    find_record,
    make_record,
    read_records,
    write_record,
)
from eval.score import MakeBatches, Score, disk_batches, score
from synth.base.errors import UsageError
from synth.base.files import check_writable
from synth.base.progress import progress_bar, say
from synth.data import ImageSet, load_test_images, load_training_images
from synth.environment import describe_environment, git_commit


@dataclass(frozen=True)
class Workspace:
    """The folders that commands read and write."""

    data_root: Path | None = None
    runs: Path = Path("runs")
    datasets: Path = Path("datasets")
    results: Path = Path("results")

    @property
    def baselines(self) -> Path:
        """Sets that were made to read scores by. The newest set of a user is never one of them."""
        return self.datasets / "references"


@dataclass(frozen=True)
class Settings:
    """What the commands that score sets are told."""

    workspace: Workspace
    protocol: str
    device: torch.device
    precision: str = "auto"
    seeds: int | None = None  # number of classifiers; None: the protocol's
    metrics: tuple[str, ...] = ()  # as `eval.metrics.parse_metrics` gives them


def metrics_for(entry: Entry, asked: Sequence[str]) -> list[str]:
    """Those of the metrics that mean something for this entry, without the score."""
    baseline = BASELINES.get(entry.kind)
    fitting = baseline.metrics if baseline is not None else None
    return [
        name
        for name in asked
        if name in METRICS
        and METRICS[name].applies_to(entry)
        and (fitting is None or name in fitting)
    ]


@dataclass(frozen=True)
class Evaluator:
    """Applies a protocol to sets. The test split in it gives scores and metrics, and no choice."""

    protocol: Protocol
    train: ImageSet
    test: ImageSet
    results: Path
    device: torch.device
    precision: str
    seeds: int
    dataset_key: str  # what the real splits are asked for by, e.g. svhn
    metrics: tuple[str, ...] = ()  # as `eval.metrics.parse_metrics` gives them
    extractors: Mapping[str, Extractor] = field(default_factory=dict)  # besides the classifier's

    @cached_property
    def real(self) -> RealSplits:
        return RealSplits.of(self.train, self.test)

    @cached_property
    def real_reference(self) -> RealReference:
        chosen = real_protocol(self.protocol)
        classifier = real_classifier(self.train, chosen, self.device, self.precision)
        extractors: dict[str, Extractor] = {CLASSIFIER: partial(features, classifier)}
        extractors |= self.extractors
        return RealReference(self.train, self.test, extractors, partial(label, classifier))

    def known(self, entry: Entry) -> Record | None:
        """The record of this entry under this protocol on these splits, if there is one that holds
        all metrics that are asked for."""
        records, metrics = read_records(self.results), metrics_for(entry, self.metrics)
        return find_record(records, entry, self.protocol, self.real, self.seeds, metrics)

    def knows_chance(self, count: int) -> bool:
        """Is there a record of random labels on any set of this size? Its metrics don't matter."""
        records = read_records(self.results)
        entries = [record.entry for record in records]
        chance = [e for e in entries if e.labels == "random" and e.count == count]
        known = (find_record(records, e, self.protocol, self.real, self.seeds) for e in chance)
        return any(record is not None for record in known)

    def known_failure(self, entry: Entry) -> Record | None:
        """The record that says that this entry could not be made, if there is one."""
        return find_failure(read_records(self.results), entry, self.protocol, self.real)

    def evaluate(
        self, entry: Entry, batches: MakeBatches, images: ImageSet | None = None
    ) -> Record:
        """Scores one entry and writes its record; a failure is a record too.

        images: the set that the batches come from, for its metrics; without it there are none.
        """
        start = time.perf_counter()
        try:
            result = self._score(f"evaluate {entry.name}", batches)
            metrics = None if images is None else self._measure(entry, images)
        except Exception as error:
            self.record_failure(entry, f"{type(error).__name__}: {error}")
            raise
        record = self._write(entry, result, time.perf_counter() - start, metrics=metrics)
        accuracies = ", ".join(f"{100 * value:.2f}" for value in record.accuracies)
        say(f"{entry.name}: accuracy {accuracies} % ({record.seconds:.0f} s)")
        return record

    def _score(self, title: str, batches: MakeBatches) -> Score:
        with progress_bar(title, self.protocol.steps * self.seeds, "steps") as advance:
            return score(
                self.protocol,
                batches,
                self.test,
                self.device,
                self.precision,
                self.seeds,
                advance,
            )

    def _measure(self, entry: Entry, images: ImageSet) -> dict[str, Any] | None:
        names = metrics_for(entry, self.metrics)
        if not names:
            return None
        if entry.kind == "real":
            return calibrate(self.real_reference, names)

        def accuracies(union: ImageSet) -> list[float]:
            batches = disk_batches(self.protocol, union, self.device)
            return [s.accuracy for s in self._score(f"augment with {entry.name}", batches).seeds]

        return measure(Subject(images, self.real_reference, accuracies), names)

    def record_failure(self, entry: Entry, error: str) -> None:
        self._write(entry, None, 0.0, error)

    def _write(
        self,
        entry: Entry,
        result: Score | None,
        seconds: float,
        error: str | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> Record:
        environment = describe_environment(self.device)
        record = make_record(
            entry,
            self.protocol,
            self.real,
            result,
            environment,
            self.precision,
            seconds,
            error,
            self.dataset_key,
            metrics,
        )
        write_record(self.results, record, result)
        return record


def make_evaluator(settings: Settings, dataset_key: str) -> Evaluator:
    """Loads both real splits; this is where the test split is read. Raises `SynthError` where a
    feature space is asked for whose weights are not there."""
    chosen, device = PROTOCOLS.find(settings.protocol), settings.device
    seeds = chosen.seeds if settings.seeds is None else settings.seeds
    if seeds < 1:
        raise UsageError(f"--classifier-seeds {seeds}: must be 1 or more")
    # Metrics are of a set on disk; a stream's stand in the table of fixed-v1.
    metrics = settings.metrics if chosen.data == "disk" else ()
    spaces = {metric.feature_space for metric in in_order() if metric.name in metrics}
    extractors = {name: load(device) for name, load in FEATURE_SPACES.items() if name in spaces}
    train = load_training_images(dataset_key, settings.workspace.data_root)
    test = load_test_images(dataset_key, settings.workspace.data_root)
    train.require_labels()
    test.require_labels()
    results = settings.workspace.results
    check_writable(results / "records")
    git_commit()  # of the code as it is loaded, before hours pass
    precision, reason = choose_classifier_precision(settings.precision, device, chosen.classifier)
    say(f"precision {precision}: {reason}")
    return Evaluator(
        chosen, train, test, results, device, precision, seeds, dataset_key, metrics, extractors
    )
