"""report.html: the tables, and the samples, losses and confusion matrix of each entry."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import numpy as np

from eval.aggregate import Row, Table
from eval.leaderboard import frames_for_people
from eval.records import Record, plot_path
from synth.base.files import atomic_file, write_text
from synth.base.progress import say

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; white-space: nowrap }
th:nth-child(2), td:nth-child(2) { text-align: left }
.plots { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start }
figure { margin: 0 } figcaption { color: #555; font-size: 13px }
img { max-width: 34em; border: 1px solid #ddd }
.confusion th, .confusion td { border: 0; padding: .2em .5em; text-align: right; font-size: 12px }
img.samples { image-rendering: pixelated; width: 22em }
"""
PNG = b"\x89PNG\r\n\x1a\n"  # the first bytes of such a file
CAPTIONS = {"samples": "samples, one class per row", "losses": "losses and outputs of D"}


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
    """Writes report.html; it needs no other file."""
    body = ["<h1>synth: what a generator is worth</h1>"]
    for table in tables:
        body.append(f"<h2>{html.escape(table.title)}</h2>")
        body += [frame.to_html(index=False, border=0) for frame in frames_for_people(table)]
        body += [_section(results, row) for row in table.rows]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>synth report</title>"
        f"<style>{STYLE}</style>{''.join(body)}</html>\n"
    )
    path = results / "report.html"
    write_text(path, page)
    return path


def _section(results: Path, row: Row) -> str:
    record = row.records[-1]
    plots = [_plot(results, record, name) for name in CAPTIONS]
    flag = f", <strong>{html.escape(row.flag)}</strong>" if row.flag else ""
    return (
        f"<h3>{html.escape(row.entry)}: {100 * row.accuracy:.2f} % "
        f"({row.shown_interval}){flag}</h3>"
        f"<p><code>{html.escape(str(record.environment.get('command', '')))}</code> "
        f"({html.escape(str(record.environment.get('device')))}, record {html.escape(record.id)})"
        f"</p><div class='plots'>{''.join(plots)}{_confusion(record)}</div>"
    )


def _plot(results: Path, record: Record, name: str) -> str:
    path = plot_path(results, record, name)
    if not path.exists():
        return ""
    data, caption = base64.b64encode(path.read_bytes()).decode(), CAPTIONS[name]
    return (
        f"<figure><img class='{name}' alt='{caption}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _confusion(record: Record) -> str:
    """The confusion matrix over all classifier seeds, in percent of each true class."""
    counts = np.sum([score.confusion for score in record.scores], axis=0)
    percent = 100 * counts / counts.sum(1, keepdims=True)
    head = "".join(f"<th>{column}</th>" for column in range(len(counts)))
    body = ""
    for row, values in enumerate(percent):
        cells = (
            f"<td style='background: rgb(8 81 156 / {value:.0f}%);"
            f"color: {'white' if value > 55 else 'inherit'}'>{value:.0f}</td>"
            for value in values
        )
        body += f"<tr><th>{row}</th>{''.join(cells)}</tr>"
    return (
        f"<figure><table class='confusion'><tr><th></th>{head}</tr>{body}</table>"
        "<figcaption>true class × predicted class, % of the row</figcaption></figure>"
    )
