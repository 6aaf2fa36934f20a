"""Does a record hold? Its evaluation is repeated (`eval.repeat`) and compared (`eval.checks`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from eval import checks
from eval.aggregate import build_tables
from eval.checks import Verification
from eval.evaluator import Workspace
from eval.protocols import PROTOCOLS
from eval.records import predictions_path, read_record, read_records
from eval.repeat import Stage, as_recorded, evaluator_again, make_again
from synth.base.errors import SynthError, UsageError
from synth.environment import describe_environment


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

    Nothing is written to the record's folder, and no cached classifier is read. All bits must be
    the same with the same versions on a CPU; the recorded number of threads is set, since rounding
    depends on it. Elsewhere, and where the record does not say on what it was made, other bits are
    no fault. The new mean must then lie where a repetition's would: by the spread of the record's
    seeds or, where the generator is trained anew, of its row's runs. Raises `SynthError`
    when there is nothing to compare: the real splits are others, something is missing, or no spread
    is known.
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
    checks.check_name(found, path)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / folder for folder in ("runs", "datasets", "results", "cache")]
        scratch = Workspace(workspace.data_root, *folders)
        evaluator = evaluator_again(record, scratch, dataset_key, device)
        checks.compare_environments(found, describe_environment(evaluator.device))
        units = _run_means(path) if stage == "train" else record.accuracies
        if found.differences:
            _require_spread(found, path, units)
        again = make_again(record, stage, evaluator, workspace)
        checks.compare_content(found, again, workspace)
        with as_recorded(record.environment):
            repeated = evaluator.evaluate(again.entry, again.source)
        checks.compare_descriptions(found, again, evaluator)
        if stage == "train":
            checks.compare_logs(found, again.entry)
        checks.compare_scores(
            found, repeated, predictions_path(path.parent.parent, record), evaluator
        )
        if record.metrics is not None:
            checks.compare_metrics(found, record.metrics, repeated.metrics)
        if not found.exact and not found.repeated and found.holds:
            _require_spread(found, path, units)
            new = 1 if stage == "train" else len(units)
            found.add(*checks.within(units, float(np.mean(repeated.accuracies)), new), always=True)
    return found


def _require_spread(found: Verification, path: Path, units: list[float]) -> None:
    """Raises `SynthError` where bits need not repeat, and no spread tells what may come instead."""
    if len(units) < 2:
        one = "run of this entry" if found.stage == "train" else "classifier seed"
        unknown = [f"the record does not say {each}" for each in found.unknown]
        raise SynthError(
            f"{path}: cannot be verified here: bits need not repeat "
            f"({'; '.join([*found.differences, *unknown])}), and only one {one} is in the records, "
            "whose spread is unknown"
        )


def _run_means(path: Path) -> list[float]:
    """Mean accuracy of every run in the record's row of its leaderboard."""
    for table in build_tables(read_records(path.parent.parent)):
        for row in table.rows:
            if path.stem in [record.id for record in row.records]:
                return [float(np.mean(record.accuracies)) for record in row.records]
    return []
