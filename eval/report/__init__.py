"""report.html: one page with the charts, the tables and the samples of all entries.

It needs no other file and no server. The functions here turn tables into plain values; the layout
is in `page.html`, `parts.html`, `style.css` and `script.js` beside them.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.aggregate import ONE_RUN, RANK, Row, Table
from eval.metrics import NOTHING
from eval.records import Record, plot_path
from eval.report import charts
from eval.report.grids import MOST_CLASSES, grids_of, shade
from eval.report.samples import encode_samples
from eval.tables import STARRED, agreement_lines, default_first
from synth.base.files import atomic_file, write_text
from synth.base.progress import say

PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of such a file
MISTAKES = 5  # the most frequent ones of an entry
PAGE = Environment(
    loader=PackageLoader("eval.report", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGE.filters |= {"percent": lambda share: f"{100 * share:.2f}", "shade": shade}


def keep_plots(results: Path, record: Record, plots: dict[str, Path]) -> None:
    """Copies an entry's plots into `results`, so that the report does not need its data set.

    plots: name (`samples`, `losses`) → PNG; files that do not exist are skipped.
    """
    for name, source in plots.items():
        if source.is_file():
            data = source.read_bytes()
            if not data.startswith(PNG):
                say(f"skipped: {source}: is no PNG file")
                continue
            with atomic_file(plot_path(results, record, name)) as temporary:
                temporary.write_bytes(data)


def write_report(results: Path, tables: list[Table]) -> Path:
    """Writes report.html."""
    records = [record for table in tables for row in table.rows for record in row.records]
    paths = {record.id: plot_path(results, record, "samples") for record in records}
    samples = encode_samples((paths[each.id], len(each.scores[0].recalls)) for each in records)
    places = {each.id: samples.place.get(paths[each.id]) for each in records}
    legends: dict[tuple[str, str], str] = {}  # title and text → id

    def legend_id(title: str, text: str) -> str:
        return legends.setdefault((title, plain(text)), f"legend-{len(legends)}")

    page = PAGE.get_template("page.html").render(
        sections=[
            describe_table(table, f"table-{number}", places)
            for number, table in enumerate(default_first(tables))
        ],
        samples=samples,
        agreement=agreement_lines(tables),
        legends=legends,
        legend_id=legend_id,
        absent=NOTHING,
        rank=plain(RANK)[0].upper() + plain(RANK)[1:],
        starred=f"{ONE_RUN} {STARRED}",
    )
    path = results / "report.html"
    write_text(path, page)
    return path


def plain(text: str) -> str:
    """Without the marks of Markdown."""
    return re.sub(r"`|(?<=\w)\*|\*(?=\w)", "", " ".join(text.split()))


def describe_table(table: Table, name: str, places: dict[str, int | None]) -> dict[str, Any]:
    """A section of the page. places: of each record's samples, by its id."""
    axis, classes = charts.accuracy_axis(table), class_names(table)
    letters = ("".join(pair) for pair in product(["", *ascii_lowercase], ascii_lowercase))
    entries = [
        {
            "id": f"{name}-{number}",
            "key": str(row.rank or next(letters)),  # in the charts
            **describe_row(row, classes, places),
            **charts.dot(row, axis),
        }
        for number, row in enumerate(table.rows)
    ]
    return {
        "id": name,
        "table": table,
        "entries": entries,
        "best": next((entry for entry in entries if entry["row"].rank == 1), None),
        "runs": sum(len(row.records) for row in table.rows),
        "classes": classes,
        "axis": axis,
        "lines": charts.reference_lines(table, axis),
        "scatters": charts.scatter_plots(table, axis),
        "grids": grids_of(table, classes),
    }


def describe_row(row: Row, classes: list[str], places: dict[str, int | None]) -> dict[str, Any]:
    """An entry: its scores as text, its runs and its confusions."""
    counts = np.sum([each.confusion for record in row.records for each in record.scores], axis=0)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return {
        "row": row,
        "kind": "baseline" if row.is_baseline else "ranked",
        "runs": [
            {
                "record": record,
                "samples": places[record.id],
                "losses": charts.loss_charts(record),
            }
            for record in row.records
        ],
        "small": next((p for r in row.records if (p := places[r.id]) is not None), None),
        "confusion": shares if len(classes) <= MOST_CLASSES else None,
        "mistakes": mistakes(shares, classes),
    }


def mistakes(shares: np.ndarray, classes: list[str]) -> list[tuple[str, str, float]]:
    """The most frequent confusions: true class, predicted class, share of the true class.

    shares: (K, K), true class × predicted class.
    """
    wrong = np.where(np.eye(len(shares), dtype=bool), 0.0, shares)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    pairs = [divmod(int(place), len(shares)) for place in largest]
    return [(classes[a], classes[b], float(wrong[a, b])) for a, b in pairs if wrong[a, b] > 0]


def class_names(table: Table) -> list[str]:
    """From a generator's configuration; numbers where none has them."""
    count = len(table.rows[0].newest.scores[0].recalls)
    for row in table.rows:
        found = row.newest.entry.config
        names = found.get("classes") if isinstance(found, dict) else None
        if isinstance(names, list) and len(names) == count:
            return [str(name) for name in names]
    return [str(number) for number in range(count)]
