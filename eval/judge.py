"""One protocol on one pair of real splits: scores entries, and writes a record of each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from eval.classifier import choose_classifier_precision
from eval.protocol import MakeBatches, Protocol, Score, find_protocol, score
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
from synth.data import ImageSet, load_test_images, load_training_images
from synth.environment import describe_environment, git_commit
from synth.errors import UsageError
from synth.files import check_writable
from synth.progress import progress_bar, say


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

    @cached_property
    def real(self) -> RealSplits:
        return RealSplits.of(self.train, self.test)

    def known(self, entry: Entry) -> Record | None:
        """The record of this entry under this protocol on these splits, if there is one."""
        return find_record(read_records(self.results), entry, self.protocol, self.real, self.seeds)

    def known_failure(self, entry: Entry) -> Record | None:
        """The record that says that this entry could not be made, if there is one."""
        return find_failure(read_records(self.results), entry, self.protocol, self.real)

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
            entry,
            self.protocol,
            self.real,
            result,
            environment,
            self.precision,
            seconds,
            error,
            self.source,
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
) -> Judge:
    """Loads both real splits; this is where the test split is read."""
    chosen = find_protocol(protocol)
    seeds = chosen.seeds if seeds is None else seeds
    if seeds < 1:
        raise UsageError(f"--classifier-seeds {seeds}: must be 1 or more")
    train = load_training_images(source, data_root)
    test = load_test_images(source, data_root)
    train.require_labels()
    test.require_labels()
    check_writable(results / "records")
    git_commit()  # of the code as it is loaded, before hours pass
    resolved, reason = choose_classifier_precision(precision, device, chosen.classifier)
    say(f"precision {resolved}: {reason}")
    return Judge(chosen, train, test, results, device, resolved, seeds, source)
