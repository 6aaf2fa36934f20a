"""Tables: LEADERBOARD.md, leaderboard.csv and the output of the commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import kendalltau, spearmanr

from eval.aggregate import SCORES, Table, build_tables, cell
from eval.metrics import NOTHING, Column, all_columns, describe, legend, wrap
from eval.records import plot_path, read_records
from eval.verified import depths
from synth.base.files import write_text
from synth.base.names import in_csv, in_markdown

# The marks around its place in METHOD.md
METHOD = ("<!-- metrics: made by synth leaderboard -->", "<!-- end -->")
VERIFIED = "verified"  # the key of a column
FEWEST = 3  # entries in common, for a rank correlation
LOGGED = {
    "d_loss": "D loss",
    "g_loss": "G loss",
    "d_real": "D(real)",
    "d_fake": "D(fake)",
    "heldout_d_losses": "held-out D loss",
}
CALIBRATION = (
    Column("fid_{}", "FID", "{:.2f}"),
    Column("kid_{}", "KID", "{:.3g}"),
    Column("kid_{}_std", "± of KID", "{:.3g}"),
)
PARTS = {"halves": "two halves of the training split", "test": "training split and test split"}


def shown_scores(tables: Sequence[Table]) -> list[Column]:
    """The columns of scores for people: `verified` only where a row was."""
    noted = any(row.verified for table in tables for row in table.rows)
    return [column for column in SCORES if column.title and (noted or column.key != VERIFIED)]


def format_scores(table: Table) -> pd.DataFrame:
    """The scores as text."""
    shown = shown_scores([table])
    rows = [{c.key: cell(c, row) for c in SCORES} for row in table.rows]
    return pd.DataFrame([{c.title: c.show_with_interval(row) for c in shown} for row in rows])


def format_metrics(table: Table) -> pd.DataFrame | None:
    """The metrics as text, without empty columns; None if all are empty."""
    held = {key for row in table.rows for key, value in row.metrics.items() if value == value}
    shown = [column for column in all_columns() if column.key in held]
    rows = [
        [row.entry, row.flag or NOTHING, *(c.show_with_interval(row.metrics) for c in shown)]
        for row in table.rows
    ]
    titles = ["entry", "flag", *(column.title for column in shown)]
    return pd.DataFrame(rows, columns=titles) if shown else None


def format_calibration(table: Table) -> pd.DataFrame | None:
    """Distances between real images as text; None if they were not measured."""
    rows = [
        {"real images": words, "feature space": space}
        | {c.title: c.show(found.get(c.key.format(part))) for c in CALIBRATION}
        for space, found in table.calibration.items()
        for part, words in PARTS.items()
    ]
    return pd.DataFrame(rows) if rows else None


def format_training(table: Table) -> pd.DataFrame | None:
    """Training losses as text; None if no record has a training log."""
    rows = []
    for row in table.rows:
        values = pd.DataFrame([training_values(r.entry.training_log or []) for r in row.records])
        if not values.empty:
            rows.append({"entry": row.entry, **values.mean().map(Column("", "", "{:.3f}").show)})
    return pd.DataFrame(rows).fillna(NOTHING) if rows else None


def training_values(log: list[dict[str, Any]]) -> dict[str, float]:
    """Means and standard deviations over the second half of a run's ticks, by title.

    `±` is from tick to tick (held-out loss: from one measurement to the next), `step ±` from step
    to step within a tick. Values that the log lacks are left out.
    """
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
    """The tables below a title: scores, metrics of the sets, training, calibration."""
    formats = format_scores, format_metrics, format_training, format_calibration
    return [frame for make in formats if (frame := make(table)) is not None]


def link_plots(results: Path, table: Table) -> pd.DataFrame | None:
    """Links in Markdown to the plots of each entry's runs; None without plots."""
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
    """A GitHub table; `DataFrame.to_markdown` needs one more dependency."""
    rows = [[in_markdown(cell) for cell in row] for row in [frame.columns, *frame.values]]
    rows.insert(1, ["---"] * len(frame.columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_csv(tables: list[Table]) -> str:
    """leaderboard.csv. The column `verified` stands at the end, where a row was."""
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    whole = pd.concat(frames or [pd.DataFrame(columns=[VERIFIED])])
    for column in whole.select_dtypes(include=["object", "string"]):
        whole[column] = whole[column].map(in_csv)
    verified = whole.pop(VERIFIED)
    if verified.notna().any():
        whole[VERIFIED] = verified
    return str(whole.to_csv(index=False))


def to_page(results: Path, tables: list[Table]) -> str:
    """LEADERBOARD.md."""
    metrics = METRICS_OF_SETS + legend(all_columns())
    paragraphs = INTRODUCTION + legend(shown_scores(tables)), metrics, OTHER_TABLES
    parts = ["# Leaderboard\n", *(f"{wrap(text)}\n" for text in paragraphs)]
    for table in tables:
        parts.append(f"## {in_markdown(table.title)}\n")
        shown = [*frames_for_people(table), link_plots(results, table)]
        parts += [f"{to_markdown(frame)}\n" for frame in shown if frame is not None]
    lines = map(in_markdown, agreement_lines(tables))
    return "\n".join([*parts, *(f"{line}.\n" for line in lines)])


def write_leaderboard(results: Path) -> list[Table]:
    """Writes LEADERBOARD.md, leaderboard.csv and the part of METHOD.md about metrics."""
    tables = build_tables(read_records(results), depths(results))
    write_text(results / "LEADERBOARD.md", to_page(results, tables))
    write_text(results / "leaderboard.csv", to_csv(tables))
    method = results / "METHOD.md"
    if method.exists():
        text, part = method.read_text(encoding="utf-8"), f"\n{describe()}\n".join(METHOD)
        write_text(method, re.sub("(?s)" + ".*?".join(METHOD), lambda _: part, text, count=1))
    return tables


def agreement_lines(tables: list[Table]) -> list[str]:
    """Does a ranking depend on the classifier? A line for each pair of protocols with three entries
    or more in common on the same real splits: the rank correlations of the mean accuracies.

    Spearman's rho, with mean ranks for ties (Spearman 1904), and Kendall's tau-b (Kendall 1945).
    A stream has no size. Beside one, an entry with several sizes is left out.
    """
    lines = []
    for a, b in combinations(tables, 2):
        if a.protocol == b.protocol or a.splits != b.splits:
            continue
        on_disk = all(table.rows[0].newest.protocol["data"] == "disk" for table in (a, b))
        same = ["entry", "images_shown", *(["training_images"] if on_disk else [])]
        sides = [table.to_frame().drop_duplicates(same, keep=False) for table in (a, b)]
        shared = sides[0].merge(sides[1], on=same)[["accuracy_x", "accuracy_y"]]
        if len(shared) >= FEWEST and shared.nunique().min() > 1:
            spearman, kendall = (of(*shared.T.values).statistic for of in (spearmanr, kendalltau))
            lines.append(
                f"{a.protocol} and {b.protocol} rank {len(shared)} entries on {a.real}: "
                f"Spearman {spearman:.3f}, Kendall {kendall:.3f}"
            )
    return lines


INTRODUCTION = (
    "`synth leaderboard` makes this page from `records/`. Edit neither. METHOD.md has the details. "
)
METRICS_OF_SETS = "The second table has metrics of the sets, as means over generator runs. "
OTHER_TABLES = """The table with **D loss** has means over the second half of training: the losses
of both networks and the outputs of the discriminator. **±**: standard deviation of a loss over
ticks. **step ±**: its standard deviation over the steps of a tick. The recipe defines whether the D
loss is the mean or the sum of its real and fake halves. The table of *real images* has distances
between real images. The last table links the samples (one class per row) and loss curves of each
generator run."""
