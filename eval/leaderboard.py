"""Tables for people: LEADERBOARD.md, the csv, and what the commands print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from eval.aggregate import Table, build_tables
from eval.agreement import agreement_lines
from eval.records import figure_path, read_records
from eval.statistics import Interval
from synth.base.files import atomic_file, write_text

TITLES = {
    "rank": "rank",
    "entry": "entry",
    "accuracy": "accuracy %",
    "interval": "95 % interval",
    "balanced_accuracy": "balanced %",
    "calibration_error": "ECE %",
    "ratio_to_real": "ratio to real",
    "flag": "flag",
    "training_images": "training images",
    "images_shown": "GAN images shown",
    "recipe_images": "recipe's length",
    "seeds": "seeds",
    "arithmetic": "arithmetic",
    "date": "date",
    "commit": "commit",
}
# Figures of the set, in a table of their own; how each is shown. Those of Inception's space, which
# few have weights for, stand there where a record holds them.
FORMS = {
    "fid": ("FID", "{:.2f}"),
    "kid": ("KID", "{:.3g}"),
    "kid_std": ("± of KID", "{:.3g}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "density": ("density", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "inception_fid": ("Inception FID", "{:.2f}"),
    "inception_kid": ("Inception KID", "{:.4f}"),
    "inception_kid_std": ("± of Inception KID", "{:.4f}"),
    "inception_precision": ("Inception precision", "{:.3f}"),
    "inception_recall": ("Inception recall", "{:.3f}"),
    "inception_density": ("Inception density", "{:.3f}"),
    "inception_coverage": ("Inception coverage", "{:.3f}"),
    "gan_test": ("GAN-test %", "%"),
    "near_copies_pixels": ("near copies, pixels %", "%"),
    "near_copies_features": ("near copies, features %", "%"),
    "diversity": ("diversity", "{:.1f}"),
    "real_diversity": ("real's", "{:.1f}"),
    "augmented": ("with real %", "%"),
    "augmented_gain": ("gain", "{:+.2f}"),
    "augmented_tenth": ("with a tenth %", "%"),
    "augmented_tenth_gain": ("gain on it", "{:+.2f}"),
}
ONE_RUN = "*"  # beside an interval that covers classifier seeds alone


def format_frame(table: Table) -> pd.DataFrame:
    """The scores as text, for people: percent with two digits, `–` where there is nothing."""
    frame = table.to_frame()
    forms = {
        "rank": "{:d}",
        "accuracy": "%",
        "balanced_accuracy": "%",
        "calibration_error": "%",
        "ratio_to_real": "{:.3f}",
        "flag": "{}",
        "training_images": "{:,}",
        "images_shown": "{:,}",
        "recipe_images": "{:,}",
        "commit": "{}",
    }
    for column, form in forms.items():
        frame[column] = frame[column].map(_shown(form)).astype(str)
    frame["interval"] = [format_interval(row.interval) for row in table.rows]
    named: pd.DataFrame = frame[list(TITLES)].rename(columns=TITLES)
    return named


def format_interval(interval: Interval) -> str:
    """In percent; marked where it covers classifier seeds alone."""
    if interval.low is None or interval.high is None:
        return "–"
    mark = f" {ONE_RUN}" if interval.runs == 1 else ""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}{mark}"


def format_figures(table: Table) -> pd.DataFrame | None:
    """The other figures as text, without columns that hold none; None without any."""
    frame = table.to_frame()
    held = frame[list(FORMS)].dropna(axis=1, how="all")
    if held.empty:
        return None
    shown: pd.DataFrame = pd.DataFrame(
        {"entry": frame["entry"], "flag": frame["flag"].map(_shown("{}"))}
    )
    for key in held.columns:
        title, form = FORMS[key]
        scale = 100 if key.endswith("_gain") else 1  # in points
        shown[title] = (held[key] * scale).map(_shown(form)).astype(str)
    return shown


def format_calibration(table: Table) -> pd.DataFrame | None:
    """Distances between real images as text; None where they were not measured."""
    rows = [
        {
            "real images": title,
            "feature space": space,
            "FID": f"{getattr(found, f'fid_{part}'):.2f}",
            "KID": f"{getattr(found, f'kid_{part}'):.3g}",
            "± of KID": f"{getattr(found, f'kid_{part}_std'):.3g}",
        }
        for space, found in table.calibration.items()
        for part, title in (
            ("halves", "training split: one half and the other"),
            ("test", "training split and test split"),
        )
    ]
    return pd.DataFrame(rows) if rows else None


def format_training(table: Table) -> pd.DataFrame | None:
    """How the generators' training went, as text; None where no record has its log."""
    rows = []
    for row in table.rows:
        logs = [log for record in row.records if (log := record.entry.training_log)]
        figures = [training_figures(log) for log in logs]
        if figures:
            means = pd.DataFrame(figures).mean()
            rows.append({"entry": row.entry, **means.map(_shown("{:.3f}"))})
    return pd.DataFrame(rows).fillna("–") if rows else None


def training_figures(log: list[dict[str, Any]]) -> dict[str, float]:
    """Of the second half of a run's ticks: means, and standard deviations: `±` from tick to tick
    (of the held-out loss from one measurement to the next), `step ±` from step to step within a
    tick, where the log has it."""
    ticks = pd.DataFrame(log[len(log) // 2 :])
    columns = {"D loss": ticks["d_loss"], "G loss": ticks["g_loss"]}
    columns |= {"D(real)": ticks["d_real"], "D(fake)": ticks["d_fake"]}
    if "heldout_d_losses" in ticks:
        columns["held-out D loss"] = ticks["heldout_d_losses"].explode().astype(float)
    figures: dict[str, float] = {}
    for title, values in columns.items():
        figures[title] = values.mean()
        if "loss" in title:
            figures[f"± of {title}"] = values.std()
    for key, title in (("d_loss_std", "D loss"), ("g_loss_std", "G loss")):
        if key in ticks:
            figures[f"step ± of {title}"] = ticks[key].pow(2).mean() ** 0.5
    return figures


def frames_for_people(table: Table) -> list[pd.DataFrame]:
    """What stands under a table's title: scores, figures of the sets, training, calibration."""
    frames = [
        format_frame(table),
        format_figures(table),
        format_training(table),
        format_calibration(table),
    ]
    return [frame for frame in frames if frame is not None]


def link_figures(results: Path, table: Table) -> pd.DataFrame | None:
    """Links in Markdown to the pictures of each entry's runs; None where no entry has any."""
    rows = []
    for row in table.rows:
        links = {"entry": row.entry}
        for name in ("samples", "losses"):
            paths = enumerate((figure_path(results, each, name) for each in row.records), 1)
            kept = [(run, path.relative_to(results)) for run, path in paths if path.exists()]
            links[name] = ", ".join(f"[{run}]({path.as_posix()})" for run, path in kept) or "–"
        if links["samples"] != "–" or links["losses"] != "–":
            rows.append(links)
    return pd.DataFrame(rows) if rows else None


def _shown(form: str) -> Any:
    """A function from value to text; `%` is percent with two digits."""
    if form == "%":
        return lambda value: "–" if pd.isna(value) else f"{100 * value:.2f}"
    return lambda value: "–" if pd.isna(value) else form.format(value)


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table; pandas' own `to_markdown` would need one more dependency."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_leaderboard(results: Path) -> list[Table]:
    """Writes LEADERBOARD.md and leaderboard.csv from the records in `results`."""
    tables = build_tables(read_records(results))
    parts = [HEADER]
    for table in tables:
        parts.append(f"## {table.title}\n")
        shown = [*frames_for_people(table), link_figures(results, table)]
        parts += [f"{to_markdown(frame)}\n" for frame in shown if frame is not None]
    parts += [f"{line}.\n" for line in agreement_lines(tables)]
    write_text(results / "LEADERBOARD.md", "\n".join(parts))
    frames = [table.to_frame().assign(real=table.real, protocol=table.protocol) for table in tables]
    with atomic_file(results / "leaderboard.csv") as temporary:
        (pd.concat(frames) if frames else pd.DataFrame()).to_csv(temporary, index=False)
    return tables


HEADER = """# Leaderboard

Made from `records/` by `synth leaderboard`; edit neither. **accuracy**: of the fixed classifier,
trained on the entry alone, on the real test split after its last step. **95 % interval**: of that
mean, over generator runs and classifier seeds; marked `*`, there is one generator run (or, of a
reference, no generator), and it covers classifier seeds alone. **seeds**: generator runs ×
classifier seeds. **ECE**: expected calibration error. **ratio to real**: accuracy over that of
*real*. **flag**: near copies of training images, more than chance and a small mismatch give.
Entries with a rank were told their labels; the others are there to read them by: pseudo-labels, for
one, come from a classifier that saw every real label, and the copier returns training images.
**GAN images shown**: real images that the generator's training showed; **recipe's length**: how
many its recipe names, for a published recipe the published number.

The second table has figures of the sets themselves, means over generator runs. **FID** to
**coverage**: against the real training split, in the features of the fixed classifier trained on
that split; they depend on the number of images. **GAN-test**: that classifier's accuracy on the
set (none for pseudo-labels, which are its own). **near copies**: share of images that stand out as
near to one training image, relative to its neighbours, as only 0.1 % of the test split do: 0.1 % is
what no memorisation gives. **diversity**: modes within a class, beside the real training split's.
**with real**, **with a tenth**: accuracy when trained on the set and on the real training split, or
a tenth of it; **gain**: in points, over those real images alone. The table with **D loss** has
the networks' losses and the discriminator's mean outputs over the second half of training, **±**,
how much a loss changes from tick to tick, and **step ±**, from one step to the next; losses are the
recipe's own, the mean of real and fake half or their sum. The table of *real images* has the same
distances between those. The last one links samples, one class a row, and loss curves, by generator
run.
"""
