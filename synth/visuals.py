"""Pictures for people: grids of samples and loss curves. No global matplotlib state."""

from __future__ import annotations

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
    """Writes uint8 (N, 3, H, W) as one PNG, `columns` in a row."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255)
    with atomic_file(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, optimize=True)


def draw_losses(log: Sequence[dict[str, Any]], path: Path) -> None:
    """The log's losses by images shown and, of a GAN, D's mean output on real and on fake images.

    D(real) and D(fake) near 1 and 0 mean a discriminator that wins. Both near 0.5 mean a generator
    that the discriminator cannot tell from the data. Where a recipe measures it, the loss on
    held-out images is drawn too, several times a tick.
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
            axes.plot(shown, [line[key] for line in log], marker=".", label=NAMES.get(key, key))
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    if len(panels) > 1:
        rows[1].set_ylim(0, 1)
    rows[-1].set_xlabel("real images shown (thousands)")
    save_figure(figure, path)


def _heldout_losses(log: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Where (thousands of images) and what; those of a tick lie evenly between it and the last."""
    at: list[float] = []
    losses: list[float] = []
    before = 0
    for line in log:
        found = line.get("heldout_d_losses", [])
        at += np.linspace(line["images"], before, len(found), endpoint=False)[::-1].tolist()
        losses += found
        before = line["images"]
    return [images / 1000 for images in at], losses


def save_figure(figure: Figure, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})
