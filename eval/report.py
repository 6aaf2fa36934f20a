"""One page to look at: the tables, and for each entry its samples, losses and confusion matrix."""

from __future__ import annotations

import base64
import html
import shutil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from eval.leaderboard import Row, Table, format_frame
from eval.records import Record
from synth.files import atomic_file, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; white-space: nowrap }
th:nth-child(2), td:nth-child(2) { text-align: left }
.figures { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start }
figure { margin: 0 } figcaption { color: #555; font-size: 13px }
img { max-width: 34em; border: 1px solid #ddd }
img.samples { image-rendering: pixelated; width: 22em }
"""


def keep_figures(results: Path, record: Record, figures: dict[str, Path]) -> None:
    """Copies an entry's pictures beside its record, so that the report outlives its data set.

    figures: name (`samples`, `losses`) → PNG; those that don't exist are passed over.
    """
    for name, source in figures.items():
        if source.exists():
            with atomic_file(results / "figures" / f"{record.id}-{name}.png") as temporary:
                shutil.copyfile(source, temporary)


def write_report(results: Path, tables: list[Table]) -> Path:
    """Writes report.html, which needs no other file."""
    body = ["<h1>synth: what a generator is worth</h1>"]
    for table in tables:
        body.append(f"<h2>{html.escape(table.title)}</h2>")
        body.append(format_frame(table).to_html(index=False, border=0))
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
    files = [
        ("samples", "samples", "samples, one row per class"),
        ("losses", "losses", "losses and D's outputs while training"),
    ]
    figures = [
        _figure(path, kind, caption)
        for kind, name, caption in files
        if (path := results / "figures" / f"{record.id}-{name}.png").exists()
    ]
    confusion = results / "figures" / f"{record.id}-confusion.png"
    if not confusion.exists():
        draw_confusion(record, confusion)
    figures.append(_figure(confusion, "confusion", "true class × predicted class, % of the row"))
    spread = "" if row.spread is None else f" ± {100 * row.spread:.2f}"
    return (
        f"<h3>{html.escape(row.entry)}: {100 * row.accuracy:.2f}{spread} %</h3>"
        f"<p><code>{html.escape(record.environment.get('command', ''))}</code> "
        f"({html.escape(str(record.environment.get('device')))}, record {html.escape(record.id)})"
        f"</p><div class='figures'>{''.join(figures)}</div>"
    )


def _figure(path: Path, kind: str, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure><img class='{kind}' alt='{html.escape(caption)}' "
        f"src='data:image/png;base64,{data}'><figcaption>{html.escape(caption)}</figcaption>"
        "</figure>"
    )


def draw_confusion(record: Record, path: Path) -> None:
    """The confusion matrix over all classifier seeds, in percent of each true class."""
    counts = np.sum([score.confusion for score in record.scores], axis=0)
    percent = 100 * counts / counts.sum(1, keepdims=True)
    figure = Figure(figsize=(4.2, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        colour = "white" if value > 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(counts)))
    axes.set_yticks(range(len(counts)))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=80, metadata={"Software": None})
