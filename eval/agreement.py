"""Do two protocols rank the entries alike? Whether a ranking depends on the classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from eval.statistics import rank_correlation

if TYPE_CHECKING:
    from eval.aggregate import Row, Table

FEWEST = 3  # entries in common: fewer are hardly a ranking


def agreement_lines(tables: Sequence[Table]) -> list[str]:
    """One line for each two protocols that have tables on the same real splits, with three entries
    or more in common: how alike they rank these entries, by mean accuracy."""
    lines = []
    for a, b in combinations(tables, 2):
        if a.protocol == b.protocol or not (a.rows and b.rows) or _splits(a) != _splits(b):
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


def _splits(table: Table) -> Any:
    return table.rows[0].records[0].real


def _scores(table: Table, sized: bool) -> dict[tuple[Any, ...], float]:
    """Accuracy by what makes an entry the same under two protocols. A stream has no set of a size;
    where several sizes would then be one entry, it is left out."""

    def key(row: Row) -> tuple[Any, ...]:
        return row.entry, row.images_shown, row.training_images if sized else None

    counts = Counter(map(key, table.rows))
    return {key(row): row.accuracy for row in table.rows if counts[key(row)] == 1}
