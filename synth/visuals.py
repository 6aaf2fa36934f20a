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


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Writes uint8 (N, 3, H, W) as one PNG, `columns` in a row."""
    grid = make_grid(images, nrow=columns, padding=1, pad_value=255)
    with atomic_file(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy()).save(temporary, optimize=True)


def draw_losses(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses of both networks and D's mean output on real and on fake images, by images shown.

    D(real) and D(fake) near 1 and 0 mean a discriminator that wins; both near 0.5, a generator
    that the discriminator cannot tell from the data. Where a recipe measures it, also the
    discriminator's loss on held-out images, several times a tick.
    """
    shown = [line["images"] / 1000 for line in log]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    losses, outputs = figure.subplots(2, 1, sharex=True)
    at, heldout = _heldout_losses(log)
    if heldout:
        losses.plot(at, heldout, lw=0.7, color="0.6", label="discriminator, held-out images")
    for axes, keys, label in (
        (losses, {"d_loss": "discriminator", "g_loss": "generator"}, "loss"),
        (outputs, {"d_real": "D(real)", "d_fake": "D(fake)"}, "mean output"),
    ):
        for key, name in keys.items():
            axes.plot(shown, [line[key] for line in log], marker=".", label=name)
        axes.set_ylabel(label)
        axes.legend(loc="best")
        axes.grid(alpha=0.3)
    outputs.set_ylim(0, 1)
    outputs.set_xlabel("real images shown (thousands)")
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
