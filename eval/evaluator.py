"""One protocol on one pair of real splits: scores entries, and writes a record of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from eval.classifier_training import choose_classifier_precision
from eval.inception_features import load_inception
from eval.metrics import INCEPTION, Extractor, Metrics, RealSide, calibrate, measure
from eval.metrics.neighbours import Memorisation
from eval.protocols import Protocol, find_protocol
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
class Judge:
    """What an evaluation needs. Holds the test split, which nothing but `evaluate` reads."""

    protocol: Protocol
    train: ImageSet
    test: ImageSet
    results: Path
    device: torch.device
    precision: str
    seeds: int
    source: str  # what the real splits are asked for by, e.g. svhn
    groups: tuple[str, ...] = ()  # of figures besides the accuracy; see eval.metrics.GROUPS
    inception: Extractor | None = None

    @cached_property
    def real(self) -> RealSplits:
        return RealSplits.of(self.train, self.test)

    @cached_property
    def real_side(self) -> RealSide:
        chosen = real_protocol(self.protocol)
        classifier = real_classifier(self.train, chosen, self.device, self.precision)
        return RealSide(self.train, self.test, classifier, self.inception)

    def known(self, entry: Entry) -> Record | None:
        """The record of this entry under this protocol on these splits, if there is one that holds
        all figures that are asked for."""
        records = read_records(self.results)
        return find_record(records, entry, self.protocol, self.real, self.seeds, self.groups)

    def knows_chance(self, count: int) -> bool:
        """Is there a record of random labels on any set of this size? Its figures don't matter."""
        records = read_records(self.results)
        entries = [record.entry for record in records]
        chance = [e for e in entries if e.labels == "random" and e.count == count]
        known = (find_record(records, e, self.protocol, self.real, self.seeds) for e in chance)
        return any(record is not None for record in known)

    def known_failure(self, entry: Entry) -> Record | None:
        """The record that says that this entry could not be made, if there is one."""
        return find_failure(read_records(self.results), entry, self.protocol, self.real)

    def evaluate(
        self,
        entry: Entry,
        batches: MakeBatches,
        images: ImageSet | None = None,
        show: Callable[[Memorisation], None] = lambda found: None,
    ) -> Record:
        """Scores one entry and writes its record; a failure is a record too.

        images: the set that the batches come from, to measure its other figures; without it there
        are none. `show` is told of the near copies in pixels.
        """
        start = time.perf_counter()
        try:
            result = self._score(f"evaluate {entry.name}", batches)
            metrics = None if images is None else self._measure(entry, images, show)
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

    def _measure(
        self, entry: Entry, images: ImageSet, show: Callable[[Memorisation], None]
    ) -> Metrics | None:
        groups = entry.groups(self.groups)
        if not groups:
            return None
        if entry.kind == "real":
            return calibrate(self.real_side)

        def accuracies(union: ImageSet) -> list[float]:
            batches = disk_batches(self.protocol, union, self.device)
            return [s.accuracy for s in self._score(f"augment with {entry.name}", batches).seeds]

        return measure(images, self.real_side, groups, accuracies, show)

    def record_failure(self, entry: Entry, error: str) -> None:
        self._write(entry, None, 0.0, error)

    def _write(
        self,
        entry: Entry,
        result: Score | None,
        seconds: float,
        error: str | None = None,
        metrics: Metrics | None = None,
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
            self.source,
            metrics,
        )
        write_record(self.results, record, result)
        return record


def make_judge(
    protocol: str,
    source: str,
    data_root: Path | None,
    results: Path,
    device: torch.device,
    precision: str = "auto",
    seeds: int | None = None,
    groups: tuple[str, ...] = (),
) -> Judge:
    """Loads both real splits; this is where the test split is read.

    groups: of figures besides the accuracy (see `eval.metrics.parse_groups`). Under a stream there
    are none: they are of a set on disk, and stand in the table of `fixed-v1`. Raises `SynthError`
    where Inception is asked for and its weights are not there.
    """
    chosen = find_protocol(protocol)
    seeds = chosen.seeds if seeds is None else seeds
    if seeds < 1:
        raise UsageError(f"--classifier-seeds {seeds}: must be 1 or more")
    if chosen.data == "stream":
        groups = ()
    inception = load_inception(device) if INCEPTION in groups else None
    train = load_training_images(source, data_root)
    test = load_test_images(source, data_root)
    train.require_labels()
    test.require_labels()
    check_writable(results / "records")
    git_commit()  # of the code as it is loaded, before hours pass
    resolved, reason = choose_classifier_precision(precision, device, chosen.classifier)
    say(f"precision {resolved}: {reason}")
    return Judge(chosen, train, test, results, device, resolved, seeds, source, groups, inception)
