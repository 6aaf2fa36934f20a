"""The measurements of growth run; what they measure is in results/growth.json."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import growth


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
