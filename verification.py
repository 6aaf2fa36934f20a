"""Does a record hold? Its evaluation done again from what it recorded, and compared.

Bit for bit on a CPU with the same versions, where the same arithmetic gives the same numbers;
elsewhere within the spread that the record itself shows.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from eval.judge import Judge
from eval.protocol import find_protocol
from eval.records import Record, predictions_path, read_record
from eval.statistics import interval
from repetition import as_recorded, batches_again, judge_again
from scoring import Places
from synth.environment import PACKAGES
from synth.errors import SynthError, UsageError
from synth.files import read_arrays

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
        judge = judge_again(record, places, source, device, Path(scratch))
        with as_recorded(record.environment) as environment:
            found.meet("evaluate", record.environment, environment(judge.device))
        batches = batches_again(found, judge, places, Path(scratch))
        with as_recorded(record.environment):
            again = judge.evaluate(record.entry, batches)
        _compare_scores(found, again, predictions_path(path.parent.parent, record), judge)
    return found


# What came out


def _compare_scores(found: Verification, again: Record, recorded: Path, judge: Judge) -> None:
    record = found.record
    old = read_arrays(recorded) if recorded.exists() else {}
    if "predictions" not in old:
        raise SynthError(f"{recorded}: is missing, and so the predictions cannot be compared")
    new = read_arrays(predictions_path(judge.results, again))
    truth = judge.test.require_labels().numpy()
    shape = (len(record.scores), record.real.test_size)
    own = False
    if old["predictions"].shape == shape:
        right = old["predictions"] == truth
        means = [float(row.mean()) for row in right]
        own = means == record.accuracies and np.array_equal(old.get("correct", right), right)
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
