"""Does a record hold? Its evaluation is repeated (`eval.repeat`), and two records are compared.

All bits must be the same on a CPU with the same versions, where the same arithmetic gives the same
numbers. Elsewhere the new score must lie within the spread that the record itself shows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from eval.aggregate import build_tables
from eval.evaluator import Evaluator, Workspace
from eval.metrics import measured
from eval.protocols import PROTOCOLS
from eval.records import Entry, Record, predictions_path, read_record, read_records
from eval.repeat import Again, Stage, as_recorded, evaluator_again, find_weights, make_again
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_arrays
from synth.checkpoints import load_tensors, old_sha256
from synth.data import ImageSet
from synth.environment import PACKAGES, describe_environment

# What makes an entry's name, rank and row. It must be what the set or the run says of itself.
DESCRIPTION = (
    *("kind", "name", "count", "labels", "recipe", "conditional"),
    *("labeller", "teacher", "chosen", "run_length"),
    *("augmentation", "rejection", "rejecter", "latent_scale"),
)
SEEDS = ("training_seed", "generation_seed", "trained_on")
SAME = ("python", *PACKAGES, "platform", "device", "kernels")  # bits depend on these


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
        """True if every bit must be the same."""
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
    path: Path,
    stage: Stage,
    workspace: Workspace,
    dataset_key: str | None = None,
    device: str = "auto",
) -> Verification:
    """Repeats a record's evaluation, from its data set (`evaluate`), from its generator's
    checkpoint (`generate`) or from the real training split (`train`), and compares.

    Nothing is written to the record's folder. All bits must be the same with the same versions on
    a CPU; the recorded number of threads is set, since rounding depends on it. Elsewhere the new
    mean must lie where a repetition's would: by the spread of the record's seeds or, where the
    generator is trained anew, of its row's runs. Raises `SynthError` when there is nothing to
    compare: the real splits are others, something is missing, or no spread is known.
    """
    record = read_record(path)
    if record.error is not None:
        raise SynthError(f"{path}: is the record of a failure ({record.error}): nothing to verify")
    if record.entry.kind != "synthetic" and stage != "evaluate":
        raise UsageError(f"--from {stage}: {record.entry.name} has no generator; leave it out")
    if PROTOCOLS.find(record.protocol["name"]).hash != record.protocol["hash"]:
        raise SynthError(
            f"{path}: {record.protocol['name']} is another protocol now "
            f"({record.protocol['hash']} in the record); check out its commit "
            f"{record.environment.get('commit')}"
        )
    found = Verification(record, stage)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / folder for folder in ("runs", "datasets", "results")]
        scratch = Workspace(workspace.data_root, *folders)
        evaluator = evaluator_again(record, scratch, dataset_key, device)
        _compare_environments(found, describe_environment(evaluator.device))
        again = make_again(record, stage, evaluator, workspace)
        units = _run_means(path) if stage == "train" else record.accuracies
        if not found.exact and len(units) < 2:
            one = "run of this entry is" if stage == "train" else "classifier seed is in the record"
            raise SynthError(
                f"{path}: cannot be verified here: bits need not repeat "
                f"({'; '.join(found.differences)}), and only one {one}, whose spread is unknown"
            )
        _compare_content(found, again, workspace)
        with as_recorded(record.environment):
            repeated = evaluator.evaluate(again.entry, again.source)
        _compare_entries(found, again.entry)
        _compare_scores(found, repeated, predictions_path(path.parent.parent, record), evaluator)
        if not found.exact:
            new = 1 if stage == "train" else len(units)
            found.add(*_within(units, float(np.mean(repeated.accuracies)), new), always=True)
        if record.metrics is not None:
            _compare_metrics(found, record.metrics, repeated.metrics)
    return found


# Two records compared


def _compare_environments(found: Verification, now: dict[str, Any]) -> None:
    """Notes how the environment of each repeated stage differs from the one at hand."""
    record, entry = found.record, found.record.entry
    stages: dict[str, dict[str, Any] | None] = {"evaluate": record.environment}
    if found.stage != "evaluate" and record.protocol["data"] == "disk":
        stages["generate"] = entry.generation_environment
    if found.stage == "train":
        stages["train"] = entry.training_environment
    for stage, recorded in stages.items():
        if recorded is None:
            found.differences.append(f"{stage}: its environment is not in the record")
            continue
        if not now["device"].startswith("CPU"):
            found.differences.append(f"{stage}: on a GPU, which need not repeat its bits")
        for key in SAME:
            if recorded.get(key) != now.get(key):
                found.differences.append(f"{stage}: {key} {recorded.get(key)}, now {now.get(key)}")
        if recorded.get("commit") != now.get("commit"):
            found.notes.append(f"{stage}: commit {recorded.get('commit')}, now {now.get('commit')}")


def _compare_content(found: Verification, again: Again, workspace: Workspace) -> None:
    """The checkpoint and the set, by their sha256."""
    old, new = found.record.entry, again.entry
    if again.weights is not None:
        same, detail = new.checkpoint == old.checkpoint, f"sha256 {str(new.checkpoint)[:12]}"
        same = same or old_sha256(again.weights) == old.checkpoint
        if not same:  # perhaps in its metadata alone, which grows with the versions of synth
            try:
                same = _same_tensors(again.weights, find_weights(old, workspace))
                detail += ", compared tensor by tensor: the files' metadata differ"
            except SynthError:
                detail += "; the first one is not there to be compared tensor by tensor"
        found.add("same checkpoint", same, detail)
    if isinstance(again.source, ImageSet):
        what = "same data set" if old.kind == "synthetic" else "same training set"
        found.add(what, new.sha256 == old.sha256, f"sha256 {str(new.sha256)[:12]}")


def _same_tensors(one: Path, other: Path) -> bool:
    a, b = load_tensors(one)[0], load_tensors(other)[0]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _compare_entries(found: Verification, again: Entry) -> None:
    """What decides an entry's name, rank and row must be what its set or run says of itself."""
    old = found.record.entry
    exact = ["checkpoint", "mixture"] if found.stage != "train" else []
    if found.stage != "train" or old.chosen != "best":  # trained anew, another may be the best
        exact.append("images_shown")
    names = (*DESCRIPTION, *(SEEDS if old.kind == "synthetic" else ()), *exact)
    pairs = [(name, getattr(old, name), getattr(again, name)) for name in names]
    other = [f"{name} is {was!r}, not {now!r}" for name, was, now in pairs if was != now]
    detail = "; ".join(other) or "name, labels and what else decides its row"
    found.add("same description", not other, detail, always=True)


def _compare_scores(
    found: Verification, again: Record, recorded: Path, evaluator: Evaluator
) -> None:
    record = found.record
    old = read_arrays(recorded) if recorded.exists() else {}
    if "predictions" not in old:
        raise SynthError(f"{recorded}: is missing, and so the predictions cannot be compared")
    new = read_arrays(predictions_path(evaluator.workspace.results, again))
    truth = evaluator.test.require_labels().numpy()
    shape = (len(record.scores), record.real.test_size)
    own = False
    if old["predictions"].shape == shape:
        right = old["predictions"] == truth
        means = [float(row.mean()) for row in right]
        own = means == record.accuracies and np.array_equal(old.get("correct", right), right)
    found.add("record agrees with its own predictions", own, "accuracy of each seed", always=True)
    same = all(np.array_equal(old[name], new[name]) for name in old)
    found.add("same predictions", same, f"{shape[0]} × {shape[1]:,}")
    scores = [[replace(s, seconds=0.0) for s in r.scores] for r in (record, again)]
    accuracies = ", ".join(f"{100 * value:.2f}" for value in again.accuracies)
    found.add("same scores", scores[0] == scores[1], f"accuracy {accuracies} %")


def _compare_metrics(
    found: Verification, recorded: dict[str, Any], again: dict[str, Any] | None
) -> None:
    """All metrics besides the accuracy, to 1e-9 of each: sums of float64 may take another order."""
    old, new = dict(_leaves(recorded)), dict(_leaves(again or {}))
    other = [name for name in old if not _equal(old[name], new.get(name))]
    detail = ", ".join(measured(recorded)) + (f"; not {', '.join(other)}" if other else "")
    found.add("same metrics", not other and old.keys() == new.keys(), detail)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number in nested dicts and lists, with the way to it; without times."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif value is not None and not name.startswith("seconds"):
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
