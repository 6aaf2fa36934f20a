"""What `eval.train`, `eval.score` and `eval.leaderboard` are: training with a teacher, and scoring
from Python, by the functions of the commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from eval.aggregate import Row, Table, build_tables
from eval.evaluate import ensure_baseline
from eval.evaluator import Evaluator, Scoring, Workspace, make_evaluator
from eval.metrics import parse_metrics
from eval.protocols import DEFAULT, PROTOCOLS
from eval.records import Entry, Record, read_records
from eval.tables import headline, notes, to_frame
from eval.training import plan_training
from eval.training import train as fit
from eval.verified import depths
from synth.base.errors import SynthError, UsageError
from synth.base.locks import do_all
from synth.base.schema import parse
from synth.data import ImageSet
from synth.environment import pick_device
from synth.interface import Generator, data_folder, train_by
from synth.recipes import RecipeBase

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def train(
    recipe: str | RecipeBase | None = None,
    dataset: str = "svhn",
    *,
    images: int | None = None,
    seed: int = 0,
    data_root: Path | str | None = None,
    out: Path | str = "runs",
    device: str = "auto",
    precision: str = "auto",
) -> Generator:
    """`synth.train`, also for recipes that a teacher guides: a classifier of the real images, which
    `eval` trains and hands down, as the command `synth train` does."""
    return train_by(
        plan_training, fit, recipe, dataset, images, seed, data_root, out, device, precision
    )


@dataclass(frozen=True, repr=False)
class Result:
    """The score of one labelled set. In a notebook it shows itself as a table.

    record: its evaluation, with the confusion matrix of each classifier in `record.scores`. real:
    the evaluation of the real training images under the same protocol.
    """

    record: Record
    real: Record

    @property
    def name(self) -> str:
        return self.record.entry.name

    @property
    def accuracy(self) -> float:
        """Accuracy on the real test split in [0, 1], mean over the classifiers."""
        return self._row.accuracy

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each classifier, in the order of their seeds."""
        return self.record.accuracies

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy over the classifiers, not clipped to [0, 1]. None if there
        is one classifier. It does not cover other sets of the same method: score several sets under
        one name, and see `leaderboard`."""
        low, high = self._row.interval.low, self._row.interval.high
        return None if low is None or high is None else (low, high)

    @property
    def ratio_to_real(self) -> float | None:
        """The accuracy over that of the real training images. None if theirs is 0."""
        return self._row.ratio_to_real

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """95 % interval of `ratio_to_real`, over the classifiers of both."""
        return self._row.ratio_interval

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that were asked for, by their columns in leaderboard.csv, such as `fid`."""
        return self._row.metrics

    @property
    def flag(self) -> str | None:
        """A warning about the set, such as that of near copies of training images; or None."""
        return self._row.flag

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the score with its interval between the lines of chance and of real images.

        axes: of matplotlib, to draw into; by default new ones. Returns them.
        """
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(figsize=(6, 1.6), layout="constrained")
        low, high = self.interval or (self.accuracy, self.accuracy)
        around = 100 * np.array([[self.accuracy - low], [high - self.accuracy]])
        chance = 1 / len(self.record.scores[0].recalls)
        real = float(np.mean(self.real.accuracies))
        axes.axvline(100 * chance, color="grey", linestyle=":", label="chance")
        axes.axvline(100 * real, color="black", linestyle="--", label="real images")
        axes.errorbar([100 * self.accuracy], [self.name], xerr=around, fmt="o", capsize=4)
        axes.set_xlabel(f"accuracy % on {self.record.real.name}, {self.record.protocol['name']}")
        axes.legend(fontsize="small")
        return axes

    def __repr__(self) -> str:
        shown, ratio = self._row.shown_interval, self.ratio_to_real
        of_real = "" if ratio is None else f", {ratio:.3f} of real"
        where = f"{self.record.protocol['name']} on {self.record.real.name}"
        return f"<{self.name}: accuracy {100 * self.accuracy:.2f} % ({shown}){of_real}, {where}>"

    def _repr_html_(self) -> str:
        """The rows of the leaderboard for the set and the real images."""
        marks = "".join(f"<p>{escape(note)}</p>" for note in notes(self._table))
        table: str = headline(self._table).to_html(index=False, border=0)
        return f"<p>{escape(self._table.title)}</p>{table}{marks}"

    @cached_property
    def _table(self) -> Table:
        (table,) = build_tables([self.real, self.record])
        return table

    @cached_property
    def _row(self) -> Row:
        return next(row for row in self._table.rows if row.newest.id == self.record.id)


def score(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    dataset: str = "svhn",
    protocol: str = DEFAULT,
    name: str | None = None,
    seed: int | None = None,
    metrics: str = "cas",
    data_root: Path | str | None = None,
    results: Path | str = "results",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Trains the protocol's classifiers on these images alone, and scores them on the real test
    split of `dataset`, as the command `synth evaluate` does.

    images: uint8 (N, height, width, 3), RGB from 0 to 255, of the size of the real ones. labels:
    whole numbers (N,), places in the classes of `dataset`; every class needs an image.
    dataset: a name that `synth datasets` lists. protocol: one on finished sets, such as `fixed-v1`.
    name: of the row in the leaderboard; by default `images`. seed: of the training of the
    generator; sets with one name and several seeds are the runs of one row. metrics: as for
    `--metrics`, such as `fidelity,diversity`; `cas` is the accuracy alone. data_root: folder of the
    real data; by default the environment variable SYNTH_DATA.

    It writes a record into `results`, and one of the real images if there is none. `synth
    leaderboard` reads them. Where `results` has a record of the same images, name and protocol with
    these metrics, that is the result, and nothing is trained.

    Raises `SynthError` if the images do not fit the dataset, or if an argument has a value that
    cannot work.
    """
    chosen = PROTOCOLS.find(protocol)
    if chosen.data != "disk":
        raise UsageError(f"protocol {protocol}: draws fresh samples from a run; use {DEFAULT}")
    scoring = Scoring(protocol, pick_device(device), precision, None, parse_metrics(metrics))
    workspace = Workspace(data_folder(data_root), results=Path(results))
    evaluator = make_evaluator(scoring, dataset, workspace)
    shown = "images" if name is None else name
    given = image_set(images, labels, shown, evaluator.test)
    described = {
        "kind": "synthetic",
        "name": shown,
        "count": len(given),
        "sha256": given.fingerprint,
        "labels": "conditional",
        "training_seed": seed,
        "method": name,
    }
    entry = parse(Entry, described, "score", UsageError)
    known = evaluator.find(entry)
    if known is None or known.entry != entry:
        known = evaluator.evaluate(entry, given)
    return Result(known, _real_record(evaluator))


def _real_record(evaluator: Evaluator) -> Record:
    """Waits if another process evaluates it."""
    (record,) = do_all([lambda: ensure_baseline(evaluator, "real", 1)])
    return record


def image_set(images: np.ndarray, labels: np.ndarray, name: str, test: ImageSet) -> ImageSet:
    """Arrays as they are for `score` → images of the classes of `test`. Raises `UsageError` if they
    do not fit."""
    pixels, targets = np.asarray(images), np.asarray(labels)
    channels, *sides = test.images.shape[1:]
    shape = (*sides, channels)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or len(pixels) == 0:
        wanted = ", ".join(map(str, shape))
        raise UsageError(f"images: {pixels.dtype} {pixels.shape}; give uint8 (N, {wanted})")
    if targets.dtype.kind not in "iu" or targets.shape != pixels.shape[:1]:
        found = f"labels: {targets.dtype} {targets.shape}"
        raise UsageError(f"{found}; give whole numbers ({len(pixels)},), one for each image")
    if targets.min() < 0 or targets.max() >= len(test.classes):
        most = len(test.classes) - 1
        raise UsageError(f"labels: {targets.min()} to {targets.max()}; give numbers 0 to {most}")
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    made = ImageSet(tensor, torch.from_numpy(targets.astype(np.int64)), test.classes, name, "train")
    made.require_labels()
    return made


def leaderboard(results: Path | str | Iterable[Result] = "results") -> pd.DataFrame:
    """The rows of the leaderboard, with the columns of leaderboard.csv.

    results: a folder of results, or results of `score`. Sets of one name, size and protocol are the
    runs of one row: its `interval_low` and `interval_high` are over these runs. Accuracies, shares
    and gains are in [0, 1]. Rows of different `real` data or `protocol` are not comparable.
    Raises `SynthError` if a folder has no records.
    """
    if not isinstance(results, Path | str):
        records = {each.id: each for result in results for each in (result.real, result.record)}
        return to_frame(build_tables(sorted(records.values(), key=lambda record: record.id)))
    records_there = read_records(Path(results))
    if not records_there:
        raise SynthError(f"{results}: holds no records; make one with: synth evaluate")
    return to_frame(build_tables(records_there, depths(Path(results))))
