"""Does a ranking depend on the classifier? Rank correlations between protocols."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from eval.statistics import rank_correlation

if TYPE_CHECKING:
    from eval.aggregate import Row, Table

FEWEST = 3  # entries in common


def agreement_lines(tables: Sequence[Table]) -> list[str]:
    """A line for each pair of protocols with three entries or more in common on the same real
    splits: the rank correlations of the mean accuracies."""
    lines = []
    for a, b in combinations(tables, 2):
        if a.protocol == b.protocol or a.splits != b.splits:
            continue
        sized = all(table.rows[0].records[0].protocol["data"] == "disk" for table in (a, b))
        first, second = _scores(a, sized), _scores(b, sized)
        shared = sorted(first.keys() & second.keys(), key=str)
        pairs = [(first[key], second[key]) for key in shared]
        if len(pairs) < FEWEST or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
            continue
        found = rank_correlation(*map(list, zip(*pairs, strict=True)))
        lines.append(
            f"{a.protocol} and {b.protocol} rank {found.n} entries on {a.real}: "
            f"Spearman {found.spearman:.3f}, Kendall {found.kendall:.3f}"
        )
    return lines


def _scores(table: Table, sized: bool) -> dict[tuple[Any, ...], float]:
    """Accuracies by keys that are equal for the same entry under two protocols.

    sized: keys contain the size of the set. A stream has none, so beside a stream they do not, and
    an entry with several sizes is left out.
    """

    def key(row: Row) -> tuple[Any, ...]:
        return row.entry, row.images_shown, row.training_images if sized else None

    counts = Counter(map(key, table.rows))
    return {key(row): row.accuracy for row in table.rows if counts[key(row)] == 1}
