"""Does one entry of the leaderboard beat another? It reads records alone, not the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.aggregate import Table, build_tables
from eval.records import Record, predictions_path, read_records
from eval.statistics import Comparison, compare, compare_with_base
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_arrays
from synth.base.terminal import fit


@dataclass(frozen=True)
class NamedComparison:
    """A comparison with the names of both entries."""

    a: str
    b: str
    protocol: str
    real: str
    result: Comparison

    def to_json(self) -> dict[str, Any]:
        named = {"a": self.a, "b": self.b, "protocol": self.protocol, "real": self.real}
        return {**named, **asdict(self.result), "covers": self.result.covers}

    def to_text(self) -> str:
        """For people; differences are in percentage points."""
        result = self.result
        verdict = {"A": f"{self.a} is better", "B": f"{self.b} is better"}
        seeds = " against ".join(
            f"{len(side)} × {'/'.join(map(str, sorted(set(side))))}" for side in result.seeds
        )
        lines = {
            "difference": f"{100 * result.difference:+.2f} points",
            "95 % interval": f"{100 * result.low:+.2f} to {100 * result.high:+.2f}",
            "p": f"{result.p_value:.2g}",
            "verdict": verdict.get(result.verdict, result.verdict),
            "covers": result.covers,
            "n": f"{seeds} (runs × classifier seeds), {result.images:,} test images",
        }
        body = [fit(f"{key:<14}{text}", 14) for key, text in lines.items()]
        return "\n".join([fit(f"{self.a} - {self.b}, {self.protocol} on {self.real}"), *body])


def compare_entries(
    results: Path, a: str, b: str, protocol: str, real: str | None = None
) -> NamedComparison:
    """Compares two entries under one protocol on one real data set; see `statistics.compare`.

    a, b: a name in the leaderboard, for all generator runs of that row, or a record id (or an
    unambiguous beginning of it), for that run alone. Raises `SynthError` if the file that says
    which test images were classified right is missing, too old or damaged.
    """
    tables = build_tables(read_records(results))
    if real is None:  # the entries may say which
        both = [each for each in tables if each.protocol == protocol and _holds(each, a, b)]
        tables = both or tables
    table = _find_table(tables, protocol, real)
    (name_a, records_a), (name_b, records_b) = (
        _find_entry(table, option, name) for option, name in (("A", a), ("B", b))
    )
    result = compare_records(results, records_a, records_b)
    return NamedComparison(name_a, name_b, table.protocol, table.real, result)


def compare_records(results: Path, *sides: Sequence[Record]) -> Comparison:
    """Compares two entries, each given by its records: one per generator run."""
    runs = [[_correct(results, record) for record in records] for records in sides]
    # A baseline has no generator runs: against several runs, each of its seeds counts as a run.
    several = max(map(len, runs)) > 1
    for index, records in enumerate(sides):
        if several and records[0].entry.kind != "synthetic":
            runs[index] = list(runs[index][0][:, None])
    return compare(*runs)


def compare_records_with_base(
    results: Path, base: Sequence[Record], others: Sequence[Sequence[Record]]
) -> list[Comparison]:
    """Compares each entry with the base; see `statistics.compare_with_base`."""
    runs = [[_correct(results, record) for record in records] for records in (base, *others)]
    return compare_with_base(runs[0], runs[1:])


def _find_table(tables: Sequence[Table], protocol: str, real: str | None) -> Table:
    under = [table for table in tables if table.protocol == protocol]
    on = [table for table in under if real in (None, table.real)]
    protocols = ", ".join(dict.fromkeys(table.protocol for table in tables))
    names = ", ".join(dict.fromkeys(table.real for table in under))
    if not under:
        mend = f"choose {protocols}" if tables else "make one with: synth evaluate"
        raise UsageError(f"--protocol {protocol}: no record uses it; {mend}")
    if not on:
        raise UsageError(f"--real {real}: no record of {protocol} uses it; choose {names}")
    if len({table.real for table in on}) > 1:
        raise UsageError(f"--real: the records of {protocol} use {names}; choose one")
    if len(on) > 1:
        raise SynthError(
            f"the records of {protocol} on {on[0].real} use {len(on)} different splits or versions "
            "of the same name; move them to separate folders, see --results"
        )
    return on[0]


def _holds(table: Table, *names: str) -> bool:
    """Whether all of them name an entry or begin the id of a record there."""
    entries = {row.entry for row in table.rows}
    ids = [record.id for row in table.rows for record in row.records]
    return all(
        name in entries or (name and any(each.startswith(name) for each in ids)) for name in names
    )


def _find_entry(table: Table, option: str, name: str) -> tuple[str, tuple[Record, ...]]:
    """The name of the entry, and its records: one per generator run."""
    rows = [row for row in table.rows if row.entry == name]
    if len(rows) == 1:
        return name, rows[0].records
    if rows:  # several sizes or lengths
        ids = ", ".join(record.id for row in rows for record in row.records)
        raise UsageError(f"{option} {name}: stands in {len(rows)} rows; choose a record: {ids}")
    records = [record for row in table.rows for record in row.records]
    found = [record for record in records if name and record.id.startswith(name)]
    ids = ", ".join(record.id for record in found)
    if len(found) == 1:
        return f"{found[0].entry.name} ({ids})", (found[0],)
    if found:
        raise UsageError(f"{option} {name}: begins the ids {ids}; give a longer part of one")
    names = ", ".join(row.entry for row in table.rows)
    raise UsageError(
        f"{option} {name!r}: no entry or record of {table.protocol} on {table.real}; choose {names}"
    )


def _correct(results: Path, record: Record) -> np.ndarray:
    """Which test images each classifier classified right: bool (seeds, N)."""
    path = predictions_path(results, record)
    correct = read_arrays(path, "correct").get("correct") if path.exists() else None
    if correct is None:
        wrong = "is missing, or too old to say which test images were classified right"
    elif correct.dtype != np.bool_ or correct.shape != (len(record.scores), record.real.test_size):
        wrong = f"correct is {correct.dtype} {correct.shape}, and does not fit its record"
    else:
        return correct
    raise SynthError(f"{path}: {wrong}; evaluate the entry again")
