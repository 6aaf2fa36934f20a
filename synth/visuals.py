"""Plots: grids of samples, and loss curves. Uses no global state of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from synth.base.files import atomic_file

OUTPUTS = {"d_real", "d_fake"}  # a discriminator's mean outputs, in [0, 1]
NAMES = {"d_loss": "discriminator", "g_loss": "generator", "d_real": "D(real)", "d_fake": "D(fake)"}


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Writes images uint8 (N, 3, H, W) as one PNG, with `columns` images in a row."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255)
    with atomic_file(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, optimize=True)


def draw_losses(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots the losses of a log over the images shown. log: one entry per tick.

    For a GAN it adds the discriminator's mean output on real and fake images. If both are near 0.5,
    the discriminator cannot tell them apart. If a recipe measures the loss on held-out images, that
    is plotted too.
    """
    shown = [line["images"] / 1000 for line in log]
    panels = [("loss", [key for key in log[-1] if key.endswith("loss")])]
    if log[-1].keys() >= OUTPUTS:
        panels.append(("mean output", sorted(OUTPUTS, reverse=True)))
    figure = Figure(figsize=(7, 2.25 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    at, heldout = _heldout_losses(log)
    if heldout:
        rows[0].plot(at, heldout, lw=0.7, color="0.6", label="discriminator, held-out images")
    for axes, (title, keys) in zip(rows, panels, strict=True):
        for key in keys:
            axes.plot(
                shown,
                [_number(line.get(key)) for line in log],
                marker=".",
                label=NAMES.get(key, key),
            )
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    if len(panels) > 1:
        rows[1].set_ylim(0, 1)
    rows[-1].set_xlabel("real images shown (thousands)")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})


def _number(value: object) -> float:
    """NaN, which is not drawn, where a log has no number."""
    return value if isinstance(value, int | float) else math.nan


def _heldout_losses(log: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Thousands of images shown, and losses. A tick's losses are spaced evenly in the tick."""
    at: list[float] = []
    losses: list[float] = []
    before = 0
    for line in log:
        found = line.get("heldout_d_losses", [])
        found = list(map(_number, found)) if isinstance(found, list) else []
        at += np.linspace(line["images"], before, len(found), endpoint=False)[::-1].tolist()
        losses += found
        before = line["images"]
    return [images / 1000 for images in at], losses
