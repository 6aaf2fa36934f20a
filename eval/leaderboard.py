"""Tables for people: LEADERBOARD.md, the csv, and what the commands print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from eval.aggregate import SCORES, Table, build_tables, cell
from eval.agreement import agreement_lines
from eval.metrics import NOTHING, Column, all_columns, describe, legend, wrap
from eval.records import plot_path, read_records
from synth.base.files import write_text

METHOD = "<!-- metrics: made by synth leaderboard -->", "<!-- end -->"  # around a part of METHOD.md
LOGGED = {
    "d_loss": "D loss",
    "g_loss": "G loss",
    "d_real": "D(real)",
    "d_fake": "D(fake)",
    "heldout_d_losses": "held-out D loss",
}
CALIBRATION = (
    ("fid_{}", "FID", "{:.2f}"),
    ("kid_{}", "KID", "{:.3g}"),
    ("kid_{}_std", "± of KID", "{:.3g}"),
)


def format_scores(table: Table) -> pd.DataFrame:
    """The scores as text, for people."""
    shown = [column for column in SCORES if column.title]
    rows = [[c.show(cell(c, row)) for c in shown] for row in table.rows]
    return pd.DataFrame(rows, columns=[column.title for column in shown])


def format_metrics(table: Table) -> pd.DataFrame | None:
    """The metrics as text, without columns that hold none; None without any."""
    held = {key for row in table.rows for key, value in row.metrics.items() if value == value}
    shown = [column for column in all_columns() if column.key in held]
    rows = [
        [row.entry, row.flag or NOTHING, *(c.show(row.metrics.get(c.key)) for c in shown)]
        for row in table.rows
    ]
    titles = ["entry", "flag", *(column.title for column in shown)]
    return pd.DataFrame(rows, columns=titles) if shown else None


def format_calibration(table: Table) -> pd.DataFrame | None:
    """Distances between real images as text; None where they were not measured."""
    parts = {
        "halves": "training split: one half and the other",
        "test": "training split and test split",
    }
    rows = [
        {"real images": words, "feature space": space}
        | {
            title: Column("", title, form).show(found.get(key.format(part)))
            for key, title, form in CALIBRATION
        }
        for space, found in table.calibration.items()
        for part, words in parts.items()
    ]
    return pd.DataFrame(rows) if rows else None


def format_training(table: Table) -> pd.DataFrame | None:
    """How the generators' training went, as text; None where no record has its log."""
    rows = []
    for row in table.rows:
        logs = [log for record in row.records if (log := record.entry.training_log)]
        values = [found for log in logs if (found := training_values(log))]
        if values:
            means = pd.DataFrame(values).mean()
            rows.append({"entry": row.entry, **means.map(Column("", "", "{:.3f}").show)})
    return pd.DataFrame(rows).fillna(NOTHING) if rows else None


def training_values(log: list[dict[str, Any]]) -> dict[str, float]:
    """Of the second half of a run's ticks: means, and standard deviations: `±` from tick to tick
    (of the held-out loss from one measurement to the next), `step ±` from step to step within a
    tick. What the log does not have is left out; another family of generators may have none."""
    ticks = pd.DataFrame(log[len(log) // 2 :])
    found: dict[str, float] = {}
    for key, title in LOGGED.items():
        if key in ticks:
            values = ticks[key].explode().astype(float)  # some are lists
            found[title] = values.mean()
            if "loss" in title:
                found[f"± of {title}"] = values.std()
    for key, title in (("d_loss_std", "D loss"), ("g_loss_std", "G loss")):
        if key in ticks:
            found[f"step ± of {title}"] = ticks[key].pow(2).mean() ** 0.5
    return found


def frames_for_people(table: Table) -> list[pd.DataFrame]:
    """What stands under a table's title: scores, metrics of the sets, training, calibration."""
    frames = [
        format_scores(table),
        format_metrics(table),
        format_training(table),
        format_calibration(table),
    ]
    return [frame for frame in frames if frame is not None]


def link_plots(results: Path, table: Table) -> pd.DataFrame | None:
    """Links in Markdown to the plots of each entry's runs; None where no entry has any."""
    rows = []
    for row in table.rows:
        links = {"entry": row.entry}
        for name in ("samples", "losses"):
            paths = enumerate((plot_path(results, each, name) for each in row.records), 1)
            kept = [(run, path.relative_to(results)) for run, path in paths if path.exists()]
            links[name] = ", ".join(f"[{run}]({path.as_posix()})" for run, path in kept) or NOTHING
        if links["samples"] != NOTHING or links["losses"] != NOTHING:
            rows.append(links)
    return pd.DataFrame(rows) if rows else None


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; pandas' own `to_markdown` would need one more dependency."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_csv(tables: list[Table]) -> str:
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    return str((pd.concat(frames) if frames else pd.DataFrame()).to_csv(index=False))


def to_page(results: Path, tables: list[Table]) -> str:
    """LEADERBOARD.md."""
    parts = [header()]
    for table in tables:
        parts.append(f"## {table.title}\n")
        shown = [*frames_for_people(table), link_plots(results, table)]
        parts += [f"{to_markdown(frame)}\n" for frame in shown if frame is not None]
    return "\n".join([*parts, *(f"{line}.\n" for line in agreement_lines(tables))])


def write_leaderboard(results: Path) -> list[Table]:
    """Writes LEADERBOARD.md and leaderboard.csv from the records in `results`, and what METHOD.md
    there says of metrics."""
    tables = build_tables(read_records(results))
    write_text(results / "LEADERBOARD.md", to_page(results, tables))
    write_text(results / "leaderboard.csv", to_csv(tables))
    method = results / "METHOD.md"
    text = method.read_text(encoding="utf-8") if method.exists() else ""
    if all(mark in text for mark in METHOD):
        before, _, rest = text.partition(METHOD[0])
        after = rest.partition(METHOD[1])[2]
        write_text(method, f"{before}{METHOD[0]}\n{describe()}\n{METHOD[1]}{after}")
    return tables


def header() -> str:
    """What the tables of LEADERBOARD.md say, from the docs of their columns."""
    scores, metrics = legend(SCORES), legend(all_columns())
    paragraphs = (INTRODUCTION + scores, METRICS_OF_SETS + metrics, OTHER_TABLES)
    return "# Leaderboard\n\n" + "\n\n".join(map(wrap, paragraphs)) + "\n"


INTRODUCTION = "Made from `records/` by `synth leaderboard`; edit neither. METHOD.md says more. "
METRICS_OF_SETS = "The second table has metrics of the sets themselves, means over generator runs. "
OTHER_TABLES = """The table with **D loss** has the networks' losses and the discriminator's mean
outputs over the second half of training. **±**: how much a loss changes from tick to tick. **step
±**: from one step to the next. Losses are the recipe's own, the mean of real and fake half or their
sum. The table of *real images* has distances between those. The last one links samples, one class
a row, and loss curves, by generator run."""
