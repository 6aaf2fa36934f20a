"""The main job on real SVHN, at a length that only shows that it works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from eval.scoring import disk_batches, score
from synth.data import load_test_images, load_training_images
from tests.conftest import FAST, Ran, needs_bf16


def test_the_three_commands_on_real_svhn(
    synth: Callable[..., Ran], svhn_part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real digits teach the fixed classifier something in 60 steps, and hardly trained fakes
    teach it next to nothing: had the real images leaked into the set, this would show."""
    short = Protocol("short-v1", "disk", steps=60, batch=128, seeds=1)
    monkeypatch.setitem(PROTOCOLS.entries, short.name, short)
    monkeypatch.setenv("SYNTH_DATA", str(svhn_part))
    assert synth("train", "--conditional", "--images", "2k", "--precision", FAST).code == 0
    assert synth("generate", "--per-class", "100").code == 0
    ran = synth("evaluate", "--protocol", "short-v1", "--precision", FAST)
    assert ran.code == 0, ran.err
    assert "svhn-part, short-v1 (4,434 real training images, 8,000 test images)" in ran.out
    records = {record.entry.name: record for record in read_records(Path("results"))}
    assert records["real"].accuracies[0] > 0.3
    assert records["cdcgan-v2 + digits-v1"].accuracies[0] < 0.3
    assert records["cdcgan-v2 + digits-v1"].real.name == "svhn-part"


@needs_bf16
def test_the_score_in_bf16_is_the_one_in_fp32_within_the_seeds_spread(svhn_part: Path) -> None:
    """The fast path (bf16 products, fused kernels) against torch's operations in fp32."""
    protocol = Protocol("short-v1", "disk", steps=120, batch=128, seeds=3)
    train, test = load_training_images("svhn", svhn_part), load_test_images("svhn", svhn_part)
    scores = {}
    for precision in ("fp32", "bf16"):
        batches = disk_batches(protocol, train, torch.device("cpu"))
        result = score(protocol, batches, test, torch.device("cpu"), precision)
        scores[precision] = np.array([seed.accuracy for seed in result.seeds])
    assert min(scores["fp32"].min(), scores["bf16"].min()) > 0.4, scores
    spread = max(values.std(ddof=1) for values in scores.values())
    assert abs(scores["fp32"].mean() - scores["bf16"].mean()) < 2 * spread, scores
