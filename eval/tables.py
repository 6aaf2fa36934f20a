"""Tables: LEADERBOARD.md, leaderboard.csv and the output of the commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text
from scipy.stats import kendalltau, spearmanr

from eval.aggregate import ONE_RUN, SCORES, Table, build_tables, cell
from eval.metrics import NOTHING, Column, all_columns, describe, legend, wrap
from eval.protocols import DEFAULT
from eval.records import plot_path, read_records
from eval.verified import depths
from synth.base.files import write_text
from synth.base.names import in_csv, in_markdown
from synth.base.terminal import COLUMNS, fit

# The marks around its place in METHOD.md
METHOD = ("<!-- metrics: made by synth leaderboard -->", "<!-- end -->")
VERIFIED = "verified"  # the key of a column
HEADLINE = ["rank", "entry", "accuracy %", "95 % interval", "ratio to real", "seeds"]
FLAGGED = "†"  # marks flagged entries in the headline table
WIDTH = 100  # of the tables in LEADERBOARD.md, in characters
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
    return pd.DataFrame([{c.title: c.show(cell(c, row)) for c in shown} for row in table.rows])


def format_metrics(table: Table) -> pd.DataFrame | None:
    """The metrics as text, without empty columns; None if all are empty."""
    held = {key for row in table.rows for key, value in row.metrics.items() if value == value}
    shown = [column for column in all_columns() if column.key in held]
    rows = [[row.entry, *(c.show_with_interval(row.metrics) for c in shown)] for row in table.rows]
    titles = ["entry", *(column.title for column in shown)]
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
    means = training_means(table)
    text = means.map(Column("", "", "{:.3f}").show)
    text.insert(0, "entry", [table.rows[place].entry for place in means.index])
    return None if means.empty else text


def training_means(table: Table) -> pd.DataFrame:
    """`training_values`, as means over runs. A row for each entry with a log, by its place."""
    found: dict[int, dict[str, float]] = {}
    for place, row in enumerate(table.rows):
        values = pd.DataFrame([training_values(r.entry.training_log or []) for r in row.records])
        if not values.empty:
            found[place] = values.mean().to_dict()
    return pd.DataFrame(list(found.values()), index=list(found))


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


def headline(table: Table) -> pd.DataFrame:
    """The narrow table: what each entry is worth. `notes` explains its marks."""
    marked = [f"{row.entry} {FLAGGED}" if row.flag else row.entry for row in table.rows]
    return format_scores(table)[HEADLINE].assign(entry=marked)


def notes(table: Table) -> list[str]:
    """What the marks in the headline table mean."""
    starred = any(row.shown_interval.endswith(ONE_RUN) for row in table.rows)
    flagged = [f"{FLAGGED} {row.entry}: {row.flag}" for row in table.rows if row.flag]
    return [f"{ONE_RUN} {STARRED}"] * starred + flagged


def details(table: Table) -> list[pd.DataFrame]:
    """More about the scores, metrics of the sets, training, calibration."""
    scores = format_scores(table).drop(columns=[title for title in HEADLINE if title != "entry"])
    found = scores, format_metrics(table), format_training(table), format_calibration(table)
    return [frame for frame in found if frame is not None]


def default_first(tables: Iterable[Table]) -> list[Table]:
    """In the order for people: on the same real data, the default protocol comes first."""
    return sorted(tables, key=lambda table: (table.real, table.protocol != DEFAULT))


def link_plots(results: Path, table: Table, place: int) -> tuple[pd.DataFrame, str] | None:
    """Links in Markdown to the plots of each entry's runs, and where the links lead; None without
    plots. place: of the table in the page."""
    rows: list[dict[str, str]] = []
    targets: list[str] = []
    for row in table.rows:
        links: dict[str, str] = {}
        for name in ("samples", "losses"):
            runs = []
            for run, path in enumerate((plot_path(results, each, name) for each in row.records), 1):
                if path.exists():
                    target = f"{place}.{len(targets)}"
                    targets.append(f"[{target}]: {path.relative_to(results).as_posix()}")
                    runs.append(f"[{run}][{target}]")
            links[name] = ", ".join(runs) or NOTHING
        if set(links.values()) != {NOTHING}:
            rows.append({"entry": row.entry, **links})
    return (pd.DataFrame(rows), "\n".join(targets)) if rows else None


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table with aligned columns; `DataFrame.to_markdown` needs one more dependency."""
    cells = [[in_markdown(cell) for cell in row] for row in [frame.columns, *frame.values]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, row, widths)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def in_parts(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Parts of at most `WIDTH` characters, where columns allow it; each begins with the first
    column, and lacks the rows that have no value in it."""
    first, *others = frame.columns
    room = {title: 3 + max(map(len, [title, *frame[title]])) for title in frame}
    parts: list[list[str]] = []
    for title in others:
        if not parts or sum(room[name] for name in [first, *parts[-1], title]) >= WIDTH:
            parts.append([])
        parts[-1].append(title)
    return [frame.loc[(frame[part] != NOTHING).any(axis=1), [first, *part]] for part in parts]


def to_text(table: Table, wide: bool = False) -> str:
    """For the terminal: all columns, or the headline table in 80 columns, where a long name takes
    several lines."""
    frame, marks = headline(table), notes(table)
    if wide:
        first, *others = (each.to_string(index=False) for each in (frame, *details(table)))
        return "\n\n".join(["\n".join([first, *marks]), *others])
    return "\n".join([narrow(frame, "entry"), *map(fit, marks)])


def narrow(frame: pd.DataFrame, names: str) -> str:
    """A table of texts in 80 columns. Its column `names` takes the room that the others leave, and
    several lines where that is too little."""
    printed = Printed(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    room = COLUMNS
    for title in frame:
        head = "\n".join(title.rsplit(" ", 1))
        printed.add_column(head, justify="left" if title == names else "right", no_wrap=True)
        if title != names:
            room -= 2 + max(map(len, [*head.splitlines(), *frame[title]]))
    for row in frame.assign(**{names: frame[names].map(partial(fill, width=room))}).values:
        printed.add_row(*map(Text, row))
    console = Console(width=COLUMNS, color_system=None)
    with console.capture() as captured:
        console.print(printed)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def to_frame(tables: list[Table]) -> pd.DataFrame:
    """All tables in one, with the columns `real` and `protocol`. The column `verified` stands at
    the end, where a row was."""
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    whole = pd.concat(frames or [pd.DataFrame(columns=[VERIFIED])], ignore_index=True)
    verified = whole.pop(VERIFIED)
    return whole.assign(**{VERIFIED: verified}) if verified.notna().any() else whole


def to_csv(tables: list[Table]) -> str:
    """leaderboard.csv."""
    whole = to_frame(tables)
    for column in whole.select_dtypes(include=["object", "string"]):
        whole[column] = whole[column].map(in_csv)
    return str(whole.to_csv(index=False))


def to_page(results: Path, tables: list[Table]) -> str:
    """LEADERBOARD.md."""
    parts = ["# Leaderboard", wrap(INTRODUCTION)]
    for place, table in enumerate(default_first(tables)):
        parts += [
            f"## {in_markdown(table.title)}",
            to_markdown(headline(table)),
            *(in_markdown(note).replace("*", r"\*") for note in notes(table)),
        ]
        parts += [to_markdown(part) for frame in details(table) for part in in_parts(frame)]
        links = link_plots(results, table, place)
        parts += [] if links is None else [to_markdown(links[0]), links[1]]
    parts += [f"{in_markdown(line)}." for line in agreement_lines(tables)]
    legends = legend(shown_scores(tables)), METRICS_OF_SETS + legend(all_columns()), OTHER_TABLES
    return "\n\n".join([*parts, "## Columns", *map(wrap, legends)]) + "\n"


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


INTRODUCTION = """`synth leaderboard` makes this page from `records/`. Edit neither. The first table
under each title says what an entry is worth. Those below it have further columns, and leave out
entries that have no value in them. The end of the page explains all columns. METHOD.md has the
details."""
STARRED = "covers classifier seeds alone: one generator run, or none"
METRICS_OF_SETS = "Metrics of the sets are means over generator runs. "
OTHER_TABLES = """The table with **D loss** has means over the second half of training: the losses
of both networks and the outputs of the discriminator. **±**: standard deviation of a loss over
ticks. **step ±**: its standard deviation over the steps of a tick. The recipe defines whether the D
loss is the mean or the sum of its real and fake halves. The table of *real images* has distances
between real images. The last table links the samples (one class per row) and loss curves of each
generator run."""
