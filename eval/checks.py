"""A record compared with a repetition of its evaluation: what is the same, and what need not be.

Equal arithmetic on equal machines gives equal bits, so there every bit must be the same. Elsewhere
the new score must lie within the spread that the record itself shows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from sklearn.metrics import confusion_matrix

from eval import chain
from eval.evaluator import Evaluator, Workspace
from eval.metrics import flags, measured
from eval.records import Entry, Record, predictions_path
from eval.repeat import Again, find_weights
from eval.scoring import SeedScore
from eval.verification import Verification, differing
from synth.base.errors import SynthError
from synth.base.files import read_arrays, read_json
from synth.checkpoints import load_tensors, old_sha256
from synth.data import ImageSet
from synth.environment import MACHINE
from synth.provenance import COPIES
from synth.runs import RunConfig

# What the record itself shows


def check_itself(found: Verification, path: Path, workspace: Workspace) -> None:
    """The record against itself, its predictions and the files that it rests on, without computing
    anything."""
    record, predictions = found.record, predictions_path(path.parent.parent, found.record)
    try:
        made = f"{datetime.fromisoformat(record.date):%Y%m%dT%H%M%S}"
    except ValueError:
        made = record.date
    same = record.id == path.stem and record.id.startswith(made)
    detail = f"id {record.id}, file {path.name}, date {record.date}"
    found.add("same id", same, "name of the file and date" if same else detail, always=True)
    if found.stage == "record" and same and predictions.exists():
        own = _agree(record, read_arrays(predictions))
        found.add("scores agree with predictions", own, "and with one another", always=True)
    if not found.chained:
        found.unchecked["chain"] = "the record has none"
        return
    for link in chain.check(read_json(path), predictions, workspace):
        if link.state == "not at hand":
            found.unchecked[link.name] = link.detail
        else:
            met = link.state == "same"
            found.add(f"chain: {link.name}", met, f"{link.detail}, {link.state}", always=True)


def _agree(record: Record, arrays: dict[str, np.ndarray]) -> bool:
    """Do scores and predictions agree, as far as can be told without the test split?"""
    predicted, right = arrays.get("predictions"), arrays.get("correct")
    shape = (len(record.scores), record.real.test_size)
    if predicted is None or predicted.shape != shape or predicted.dtype.kind != "u":
        return False
    if right is not None and (right.shape != shape or right.dtype != np.bool_):
        return False
    for seed, score in enumerate(record.scores):
        classes, row = len(score.recalls), predicted[seed]
        if [len(line) for line in score.confusion] != [classes] * classes or row.max() >= classes:
            return False
        table = np.array(score.confusion)
        same = (table.sum(0) == np.bincount(row, minlength=classes)).all()
        if right is not None:
            hits = np.bincount(row[right[seed]], minlength=classes)
            same = same and (table.diagonal() == hits).all()
        if not same or not _follows(score, table):
            return False
    return True


# Before anything is computed


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
        if stage == "train" and recorded.get("processes", 1) != 1:
            found.differences.append(f"{stage}: by {recorded['processes']} processes, now by one")
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
            for key in (*MACHINE, "threads", "blas_threads", "deterministic", "processes"):
                was, became = recorded.get(key), later.get(key)
                if became != was:
                    at = f"resumed at {later.get('images')} images with {key} {became}"
                    found.differences.append(f"{stage}: {at}, started with {was}")
        for key in ("commit", "code"):
            was, became = str(recorded.get(key))[:13], str(now[key])[:13]
            if key in recorded and was != became:
                found.notes.append(f"{stage}: {key} {was}, now {became}")


def compare_content(found: Verification, again: Again, workspace: Workspace) -> None:
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


def compare_descriptions(found: Verification, again: Again, evaluator: Evaluator) -> None:
    """What decides an entry's name, rank, row and table must be what its set or run says of itself,
    and what the protocol and the real splits are."""
    record, old = found.record, found.record.entry
    # The content is compared elsewhere; a folder is a place; the chain covers the manifest's bytes.
    names = {each.name for each in fields(Entry)} - {"sha256", "folder", "manifest"}
    if again.weights is not None:  # its set was made now
        names -= {"run", "training_environment", "generation_environment"}
    if found.stage == "train":
        names -= {
            "checkpoint",
            "mixture",
            "training_log",
        }  # compared elsewhere, where bits must be the same
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
    old = chain.without_speeds(found.record.entry.training_log)
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
        tables = ((s, confusion_matrix(truth, p, labels=range(len(s.recalls)))) for s, p in rows)
        own = all(s.confusion == table.tolist() and _follows(s, table) for s, table in tables)
        own = own and np.array_equal(old.get("correct", right), right)
    found.add("record agrees with its own predictions", own, "scores of each seed", always=True)
    same = all(np.array_equal(old[name], new[name]) for name in old)
    found.add("same predictions", same, f"{shape[0]} × {shape[1]:,}")
    was, now = ([asdict(replace(s, seconds=0.0)) for s in r.scores] for r in (record, again))
    accuracies = ", ".join(f"{100 * value:.2f}" for value in again.accuracies)
    found.add_equal("same scores", differing(was, now, "scores"), f"accuracy {accuracies} %")


def _follows(score: SeedScore, table: np.ndarray) -> bool:
    """Do these scores follow from this confusion? All but the calibration, which needs more."""
    if not (table >= 0).all() or not (table.sum(1) > 0).all():
        return False
    recalls = table.diagonal() / table.sum(1)
    figures = score.accuracy, score.balanced_accuracy, *score.recalls
    return figures == (table.trace() / table.sum(), recalls.mean(), *recalls)


def compare_metrics(
    found: Verification, recorded: dict[str, Any], again: dict[str, Any] | None
) -> None:
    """All metrics besides the accuracy, to 1e-9 of each: sums of float64 may take another order."""
    was, now = ({**(metrics or {}), "seconds": None} for metrics in (recorded, again))
    others = differing(was, now, "metrics", _equal)
    found.add_equal("same metrics", others, ", ".join(measured(recorded)))
    # A warning is not for rounding to take away. Another generator may have earned it or not.
    flag, same = flags([recorded]), flags([recorded]) == flags([again])
    found.add("same flag", same, "; ".join(flag) or "none", always=found.stage != "train")


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
