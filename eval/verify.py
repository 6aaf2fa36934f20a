"""Does a record hold? Its chain is checked (`eval.chain`), its evaluation repeated (`eval.repeat`),
and both are compared (`eval.checks`)."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import checks
from eval.aggregate import build_tables
from eval.evaluator import Evaluator, Workspace
from eval.protocols import PROTOCOLS
from eval.records import Record, predictions_path, read_record, read_records
from eval.repeat import as_recorded, evaluator_again, make_again
from eval.verification import Verification
from eval.verified import Stage, keep_note
from synth.base.errors import SynthError, UsageError
from synth.base.locks import scratch_folder
from synth.base.progress import progress_bar
from synth.base.terminal import fit
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
    cache: Path | None = None,
) -> Verification:
    """Checks a record against itself and its chain of hashes (`record`: in a second, see
    `eval.chain`), and then repeats its evaluation: from its data set (`evaluate`), from its
    generator's checkpoint (`generate`) or from the real training split (`train`).

    Nothing is written to the record's folder, and no cached classifier is read; cache: a folder for
    those that verifications share. All bits must be the same with the same versions on a CPU; the
    recorded number of threads is set, since rounding depends on it. Elsewhere, and where the record
    does not say on what it was made, other bits are no fault. The new mean must then lie where a
    repetition's would: by the spread of the record's seeds or, where the generator is trained anew,
    of its row's runs. Raises `SynthError` when there is nothing to compare: the real splits are
    others, something is missing, or no spread is known.
    """
    record = read_record(path)
    if stage != "record":
        _check_possible(path, record, stage)
    found = Verification(record, stage)
    checks.check_itself(found, path, workspace)
    if stage != "record":
        with scratch_folder(Path(tempfile.gettempdir())) as scratch_root:
            runs, datasets, results, own = (
                scratch_root / folder for folder in ("runs", "datasets", "results", "cache")
            )
            scratch = Workspace(workspace.data_root, runs, datasets, results, cache or own)
            try:
                evaluator = evaluator_again(record, scratch, dataset_key, device)
                _repeat(found, path, evaluator, workspace)
            except SynthError as error:
                if found.holds:
                    raise
                found.notes.append(f"no repetition: {error}")
    return found


def _check_possible(path: Path, record: Record, stage: Stage) -> None:
    """Raises `SynthError` where there is nothing to repeat."""
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


def _repeat(found: Verification, path: Path, evaluator: Evaluator, workspace: Workspace) -> None:
    """Repeats the record's evaluation in the evaluator's folders, and compares."""
    record, stage = found.record, found.stage
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
    checks.compare_scores(found, repeated, predictions_path(path.parent.parent, record), evaluator)
    if record.metrics is not None:
        checks.compare_metrics(found, record.metrics, repeated.metrics)
    if not found.exact and not found.repeated and found.holds:
        _require_spread(found, path, units)
        new = 1 if stage == "train" else len(units)
        found.add(*checks.within(units, float(np.mean(repeated.accuracies)), new), always=True)


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


def require_chain(found: Verification, path: Path) -> None:
    """Raises `SynthError` where a check of the chain was asked for, and there is none."""
    if found.stage == "record" and not found.chained:
        raise SynthError(
            f"{path}: has no chain (it is older than chains, or lost its own), so that nothing can "
            "be told without computing; use --from evaluate"
        )


# A folder of results


@dataclass(frozen=True)
class Outcome:
    """How deep one record of a folder holds."""

    record: str
    depth: str  # the stage from which it holds, or what is wrong
    holds: bool | None  # None: it could not be told
    detail: str


def verify_all(
    stage: Stage, workspace: Workspace, dataset_key: str | None = None, device: str = "auto"
) -> list[Outcome]:
    """Verifies all records in `workspace.results`, oldest first, and notes how deep each one holds
    (see `eval.verified`). Baselines have no generator: of
    them the evaluation is repeated at most. What cannot be repeated is checked by its chain."""
    paths = sorted((workspace.results / "records").glob("*.json"))
    if not paths:
        raise SynthError(f"{workspace.results}: holds no records")
    with (
        scratch_folder(Path(tempfile.gettempdir())) as cache,
        progress_bar(f"verify {workspace.results}", len(paths), "records") as advance,
    ):
        outcomes = []
        for path in paths:
            outcomes.append(_outcome(path, stage, workspace, dataset_key, device, cache))
            advance(1)
    return outcomes


def _outcome(path: Path, stage: Stage, workspace: Workspace, *options: Any) -> Outcome:
    hindrance = ""
    try:
        record = read_record(path)
        if stage in ("generate", "train") and record.entry.kind != "synthetic":
            stage = "evaluate"
        try:
            found = verify(path, stage, workspace, *options)
        except SynthError as error:
            hindrance = f"; not from {stage}: {error}"
            found = verify(path, "record", workspace)
        keep_note(path, found)
    except SynthError as error:
        return Outcome(path.stem, "does not hold", False, str(error))
    unchecked = f"; not checked: {', '.join(found.unchecked)}" if found.unchecked else ""
    detail = found.verdict + unchecked + hindrance
    if not found.holds:
        return Outcome(path.stem, "does not hold", False, detail)
    if found.stage == "record" and not found.chained:
        return Outcome(path.stem, "no chain", None, hindrance.removeprefix("; "))
    return Outcome(path.stem, found.stage, True, detail)


def table_of(outcomes: list[Outcome], wide: bool = False) -> str:
    """The records, and a sum at the end. wide: each in one line."""
    if wide:
        width = max(len(outcome.record) for outcome in outcomes)
        lines = [f"{'record':<{width}}  {'holds from':<13}  detail"]
        lines += [f"{each.record:<{width}}  {each.depth:<13}  {each.detail}" for each in outcomes]
    else:
        lines = [f"{'holds from':<13}  record"]
        for each in outcomes:
            lines.append(fit(f"{each.depth:<13}  {each.record}", 15))
            if each.detail:
                lines.append(fit(f"{'':15}{each.detail}", 15))
    counts = Counter(f"{'from ' * bool(each.holds)}{each.depth}" for each in outcomes)
    total = ", ".join(f"{count} {depth}" for depth, count in counts.items())
    return "\n".join([*map(str.rstrip, lines), fit(f"{len(outcomes)} records: {total}")])
