"""The measurements run; what they measured is in results/."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import growth, precision, tuned
from benchmarks.__main__ import over_peers
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


@pytest.mark.parametrize("name", ["no switches", "all but torch.compile"])
def test_tuned_loops_take_steps(
    drawn: ImageSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile takes a minute and is left out."""
    for size in ("BATCH", "CLASSIFIER_BATCH"):
        monkeypatch.setattr(tuned.peers, size, 8)
    monkeypatch.setattr(tuned, "SAMPLED", 8)
    assert drawn.labels is not None
    for loop in (tuned.train, tuned.sample, tuned.classify):
        steps = loop(tuned.SWITCHES[name], drawn.images, drawn.labels)
        next(steps)
        next(steps)


def test_synth_is_compared_with_the_best_of_each_kind() -> None:
    rates = {"synth": [6.0], "synth, fp32": [4.0], "examples loop": [2.0], "torch, all": [3.0]}
    told = over_peers({**rates, "torch, no switches": [2.5], "torch, all but bf16": [2.0]})
    assert told == (
        "3.00× the fastest loop that people write (examples loop); "
        "2.00× torch with its best switches (torch, all); "
        "1.60× torch with its best switches in fp32, synth in fp32 (torch, no switches)"
    )
