"""A record compared with a repetition of its evaluation: what is the same, and what need not be.

Equal arithmetic on equal machines gives equal bits, so there every bit must be the same. Elsewhere
the new score must lie within the spread that the record itself shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from sklearn.metrics import confusion_matrix

from eval.evaluator import Evaluator, Workspace
from eval.metrics import measured
from eval.records import Entry, Record, predictions_path
from eval.repeat import Again, Stage, find_weights
from eval.score import SeedScore
from synth.base.errors import SynthError
from synth.base.files import read_arrays
from synth.checkpoints import load_tensors
from synth.data import ImageSet
from synth.environment import MACHINE
from synth.provenance import COPIES
from synth.runs import RunConfig

SPEEDS = ("images_per_second", "memory_mib")  # in a training log
SHOWN = 5  # differences that are told one by one


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
    unknown: list[str] = field(default_factory=list)  # what the record does not say of them
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """True if every bit must be the same."""
        return not self.differences and not self.unknown

    @property
    def repeated(self) -> bool:
        """True if every bit is the same."""
        return all(check.met for check in self.checks)

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
        return "holds, bit for bit" if self.repeated else "holds, within its interval"

    def add(self, what: str, met: bool, detail: str, always: bool = False) -> None:
        """A check that is needed where bits must be the same, or `always`."""
        self.checks.append(Check(what, met, always or self.exact, detail))

    def add_equal(
        self, what: str, differing: Iterator[str], detail: str, always: bool = False
    ) -> None:
        """A check that is met if nothing differs. Otherwise its detail names what differs."""
        found = list(differing)
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        self.add(what, not found, "; ".join([*found[:SHOWN], *more]) or detail, always)

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record.id,
            "from": self.stage,
            "holds": self.holds,
            "exact": self.exact,
            "verdict": self.verdict,
            "differences": self.differences,
            "unknown": self.unknown,
            "notes": self.notes,
            "checks": [asdict(check) for check in self.checks],
        }

    def to_text(self) -> str:
        lines = [f"{self.record.id}, from {self.stage}"]
        lines += [f"differs       {line}" for line in self.differences]
        lines += [f"unknown       {line}" for line in self.unknown]
        lines += [f"note          {line}" for line in self.notes]
        for check in self.checks:
            word = "yes" if check.met else "NO" if check.needed else "no, and need not"
            lines.append(f"{check.what}: {word} ({check.detail})")
        return "\n".join([*lines, f"verdict       {self.verdict}"])


def differing(
    old: Any, new: Any, name: str = "", same: Callable[[Any, Any], bool] = eq
) -> Iterator[str]:
    """Every value that differs in nested dicts and lists, with the way to it. None is no value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            way = f"{name}.{key}" if name else str(key)
            yield from differing(old.get(key), new.get(key), way, same)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            yield f"{name} has {len(old)} values, not {len(new)}"
        for index, pair in enumerate(zip(old, new, strict=False)):
            yield from differing(*pair, f"{name}.{index}", same)
    elif not same(old, new):
        yield f"{name} is {old!r}, not {new!r}"


# Before anything is computed


def check_name(found: Verification, path: Path) -> None:
    """The id is the file's name, and begins with the date."""
    record = found.record
    try:
        made = f"{datetime.fromisoformat(record.date):%Y%m%dT%H%M%S}"
    except ValueError:
        made = record.date
    same = record.id == path.stem and record.id.startswith(made)
    detail = f"id {record.id}, file {path.name}, date {record.date}"
    found.add("same id", same, "name of the file and date" if same else detail, always=True)


def compare_environments(found: Verification, now: dict[str, Any]) -> None:
    """Notes how the environment of each repeated stage differs from the one at hand."""
    record, entry = found.record, found.record.entry
    stages: dict[str, dict[str, Any] | None] = {"evaluate": record.environment}
    if found.stage != "evaluate" and record.protocol["data"] == "disk":
        stages["generate"] = entry.generation_environment
    if found.stage == "train":
        stages["train"] = entry.training_environment
    for stage, recorded in stages.items():
        if recorded is None:
            found.unknown.append(f"{stage}: its environment")
            continue
        if not now["device"].startswith("CPU"):
            found.differences.append(f"{stage}: on a GPU, which need not repeat its bits")
        lacking = []
        for key in MACHINE:
            was = recorded.get(key)
            # No compiler made kernels where there are none.
            if was is None and (key != "compiler" or recorded.get("kernels", True)):
                lacking.append(key)
            elif was != now[key]:
                found.differences.append(f"{stage}: {key} {was}, now {now[key]}")
        if lacking:
            found.unknown.append(f"{stage}: {', '.join(lacking)}")
        for later in recorded.get("resumed", []):  # a repetition runs through in the first one
            for key in (*MACHINE, "threads", "blas_threads", "deterministic"):
                was, became = recorded.get(key), later.get(key)
                if became != was:
                    at = f"resumed at {later.get('images')} images with {key} {became}"
                    found.differences.append(f"{stage}: {at}, started with {was}")
        if recorded.get("commit") != now.get("commit"):
            found.notes.append(f"{stage}: commit {recorded.get('commit')}, now {now.get('commit')}")


def compare_content(found: Verification, again: Again, workspace: Workspace) -> None:
    """The checkpoint and the set, by their sha256."""
    old, new = found.record.entry, again.entry
    if again.weights is not None:
        same, detail = new.checkpoint == old.checkpoint, f"sha256 {str(new.checkpoint)[:12]}"
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


def compare_descriptions(found: Verification, again: Again, evaluator: Evaluator) -> None:
    """What decides an entry's name, rank, row and table must be what its set or run says of itself,
    and what the protocol and the real splits are."""
    record, old = found.record, found.record.entry
    names = {each.name for each in fields(Entry)} - {"sha256", "folder"}  # content; a place
    if again.weights is not None:  # its set was made now
        names -= {"run", "training_environment", "generation_environment"}
    if found.stage == "train":
        names -= {"checkpoint", "training_log"}  # compared elsewhere, where bits must be the same
        if old.chosen == "best":  # trained anew, another may be the best
            names.remove("images_shown")
    # Older records lack some copies of the run's files.
    names -= {name for name in COPIES if getattr(old, name) is None}
    pairs = [
        ({name: _comparable(entry, old, name) for name in names} for entry in (old, again.entry)),
        ({"protocol": record.protocol}, {"protocol": evaluator.protocol.to_json()}),
        ({"real": asdict(record.real)}, {"real": asdict(evaluator.real)}),
    ]
    detail = "name, labels and what else decides its row"
    others = (text for was, now in pairs for text in differing(was, now))
    found.add_equal("same description", others, detail, always=True)


def _comparable(entry: Entry, old: Entry, name: str) -> Any:
    """A value of an entry. The configuration has the keys of this version, and the log ends where
    that of `old` does: the run may have gone on since."""
    value = getattr(entry, name)
    if name == "config" and value is not None:
        try:
            return RunConfig.from_json(value, "").to_json()
        except SynthError:
            return value
    if name == "training_log" and value and old.training_log:
        last = old.training_log[-1].get("images")
        return [line for line in value if line.get("images", 0) <= (last or 0)]
    return value


def compare_logs(found: Verification, again: Entry) -> None:
    """The training log, without its speed and memory."""
    if found.record.entry.training_log is None:
        return
    old = [
        {key: value for key, value in line.items() if key not in SPEEDS}
        for line in found.record.entry.training_log
    ]
    new = again.training_log or []
    if len(old) == len(new):  # newer versions log more: what the record lacks is not compared
        new = [{key: line.get(key) for key in was} for was, line in zip(old, new, strict=True)]
    found.add_equal("same training log", differing(old, new, "training_log"), f"{len(old)} ticks")


# After the repetition


def compare_scores(
    found: Verification, again: Record, recorded: Path, evaluator: Evaluator
) -> None:
    """The predictions and what follows from them."""
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
        rows = zip(record.scores, old["predictions"], strict=True)
        own = all(_follows(score, truth, row) for score, row in rows)
        own = own and np.array_equal(old.get("correct", right), right)
    found.add("record agrees with its own predictions", own, "scores of each seed", always=True)
    same = all(np.array_equal(old[name], new[name]) for name in old)
    found.add("same predictions", same, f"{shape[0]} × {shape[1]:,}")
    was, now = ([asdict(replace(s, seconds=0.0)) for s in r.scores] for r in (record, again))
    accuracies = ", ".join(f"{100 * value:.2f}" for value in again.accuracies)
    found.add_equal("same scores", differing(was, now, "scores"), f"accuracy {accuracies} %")


def _follows(score: SeedScore, truth: np.ndarray, predicted: np.ndarray) -> bool:
    """Are these the scores of these predictions? All but the calibration, which needs more."""
    table = confusion_matrix(truth, predicted, labels=range(len(score.recalls)))
    recalls = table.diagonal() / table.sum(1)
    figures = score.accuracy, score.balanced_accuracy, *score.recalls
    expected = table.trace() / table.sum(), recalls.mean(), *recalls
    return score.confusion == table.tolist() and figures == expected


def compare_metrics(
    found: Verification, recorded: dict[str, Any], again: dict[str, Any] | None
) -> None:
    """All metrics besides the accuracy, to 1e-9 of each: sums of float64 may take another order."""
    was, now = ({**(metrics or {}), "seconds": None} for metrics in (recorded, again))
    others = differing(was, now, "metrics", _equal)
    found.add_equal("same metrics", others, ", ".join(measured(recorded)))


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-12) or (old != old and new != new)
    return bool(old == new)


def within(units: list[float], again: float, repeated: int) -> tuple[str, bool, str]:
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
