"""The measurements run; what they measured is in results/."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import growth, precision
from eval.protocols import PROTOCOLS, Protocol
from eval.scoring import disk_batches, score
from synth.data import ImageSet

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("axis", "size"),
    [
        (growth.images_shown, 256),
        (growth.images_generated, 20),
        (growth.classifier_steps, 2),
        (growth.records, 3),
    ],
)
def test_an_axis_can_be_measured(axis: Callable[[int], float], size: int) -> None:
    assert axis(size) > 0


def test_precisions_are_compared_in_pairs(drawn: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Protocol("fixed-v1", "disk", steps=2, batch=32, seeds=3)
    monkeypatch.setitem(PROTOCOLS.entries, "fixed-v1", short)
    (pair,) = precision.measure("real", drawn, drawn, 1)
    expected = score(short, disk_batches(short, drawn, CPU), drawn, CPU, "bf16", 1)
    assert pair["bf16"] == expected.seeds[0].accuracy
    pairs = [
        {"trained_on": "a", "seed": 0, "fp32": 0.75, "bf16": 0.72},
        {"trained_on": "b", "seed": 0, "fp32": 0.65, "bf16": 0.64},
        {"trained_on": "real", "seed": 0, "fp32": 0.9, "bf16": 0.8},
    ]
    figures = precision.summary(pairs)
    assert figures["generated"] == pytest.approx(
        {"pairs": 2, "mean": 2.0, "half_interval": 12.7062 * 1.0}, rel=1e-4
    )
    assert figures["real"] == {"pairs": 1, "mean": pytest.approx(10), "half_interval": None}
