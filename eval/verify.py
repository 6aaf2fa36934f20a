"""Does a record hold? Its evaluation done again from what it recorded, and compared.

Bit for bit on a CPU with the same versions, where the same arithmetic gives the same numbers;
elsewhere within the spread that the record itself shows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from eval.aggregate import build_tables
from eval.evaluate import Places
from eval.evaluator import Judge
from eval.metrics import Metrics
from eval.protocols import find_protocol
from eval.records import Record, predictions_path, read_record, read_records
from eval.repetition import as_recorded, batches_again, judge_again
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_arrays
from synth.environment import PACKAGES

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
    lie where a repetition's would, by the spread of the record's seeds or, of a generator trained
    anew, of its row's runs. Raises `SynthError` when there is nothing to compare: the real splits
    are others, what is needed is not there, or there is no spread to go by.
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
        batches, images = batches_again(found, judge, places, Path(scratch))
        units = _run_means(path) if stage == "train" else record.accuracies
        if not found.exact and len(units) < 2:
            what = (
                "run of this entry is" if stage == "train" else "classifier seed is in the record"
            )
            raise SynthError(
                f"{path}: cannot be verified here: bits need not repeat "
                f"({'; '.join(found.differences)}), and only one {what}, whose spread is unknown"
            )
        with as_recorded(record.environment):
            again = judge.evaluate(record.entry, batches, images)
        _compare_scores(found, again, predictions_path(path.parent.parent, record), judge)
        if not found.exact:
            repeated = 1 if stage == "train" else len(units)
            found.add(*_within(units, float(np.mean(again.accuracies)), repeated), always=True)
        if record.metrics is not None:
            _compare_metrics(found, record.metrics, again.metrics)
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


def _compare_metrics(found: Verification, recorded: Metrics, again: Metrics | None) -> None:
    """All figures besides the accuracy, to 1e-9 of each: sums of float64 may take another order."""
    old, new = (
        {name: value for name, value in _leaves(asdict(m)) if not name.startswith("seconds")}
        for m in (recorded, again or Metrics({}))
    )
    other = [name for name in old if not _equal(old[name], new.get(name))]
    found.add(
        "same other figures",
        not other and old.keys() == new.keys(),
        f"{', '.join(recorded.groups)}" + (f"; not {', '.join(other)}" if other else ""),
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number in nested dicts and lists, with the way to it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12) or (old != old and new != new)
    return bool(old == new)


def _within(units: list[float], again: float, repeated: int) -> tuple[str, bool, str]:
    """Is the new mean where a repetition's would be in 95 % of all cases?

    units: what varies, in [0, 1]: accuracies by classifier seed, or by run. `again` is the mean of
    `repeated` new ones. The difference of both means has the variance s² (1/n + 1/repeated), so
    this is Student's prediction interval. The record's own interval, for the true mean, would turn
    away one honest repetition in six to ten (Cumming & Maillardet 2006, Psychological Methods
    11:217).
    """
    count, mean = len(units), float(np.mean(units))
    half = float(
        stdtrit(count - 1, 0.975) * np.std(units, ddof=1) * (1 / count + 1 / repeated) ** 0.5
    )
    slack = 1e-12  # where all units agree, the interval is a point
    met = abs(again - mean) <= half + slack
    place = f"{100 * (mean - half):.2f} to {100 * (mean + half):.2f} %"
    return "within", met, f"{100 * again:.2f} % in {place}, a repetition's interval"


def _run_means(path: Path) -> list[float]:
    """Mean accuracy of every run in the record's row of its leaderboard."""
    for table in build_tables(read_records(path.parent.parent)):
        for row in table.rows:
            if path.stem in [record.id for record in row.records]:
                return [float(np.mean(record.accuracies)) for record in row.records]
    return []
