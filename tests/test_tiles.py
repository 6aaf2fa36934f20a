"""tiles.c against torch's convolutions in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from synth.ops import dispatch, tiles
from synth.ops.tiles import Geometry
from tests.test_kernels import ROUNDING, close, random_map

SHAPES = st.sampled_from([(4, 2, 1), (3, 1, 1), (5, 2, 2), (4, 1, 0), (2, 3, 0)])


@pytest.fixture(autouse=True)
def units() -> None:
    if not dispatch.supports_tiles(torch.empty(32, 32, 1, 1, dtype=torch.bfloat16)):
        pytest.skip("no matrix units here")


def random_kernel(outputs: int, channels: int, side: int, seed: int) -> Tensor:
    return random_map(outputs, channels, side, side, seed=seed) / (side * channels**0.5)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 70),
    channels=st.sampled_from([32, 64, 96]),
    outputs=st.sampled_from([32, 96, 128]),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    shape=SHAPES,
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_convolution_transposed_and_weight_gradient(
    batch: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    shape: tuple[int, int, int],
    bias: bool,
    seed: int,
) -> None:
    side, stride, padding = shape
    geometry = Geometry(stride, padding)
    x = random_map(batch, channels, *size, seed=seed)
    kernel = random_kernel(outputs, channels, side, seed + 1)
    at_outputs = torch.randn(outputs) if bias else None
    at_channels = torch.randn(channels) if bias else None

    exact = F.conv2d(x.double(), kernel.double(), _double(at_outputs), stride, padding)
    close(tiles.convolve(x, kernel, at_outputs, geometry), exact, ROUNDING)

    y = random_map(*exact.shape, seed=seed + 2)
    exact = F.conv_transpose2d(y.double(), kernel.double(), _double(at_channels), stride, padding)
    ours = tiles.convolve(y, kernel, at_channels, Geometry(stride, padding, 0))
    close(ours, exact, ROUNDING)

    at_kernel = torch.nn.grad.conv2d_weight(
        x.double(), kernel.shape, y.double(), stride=stride, padding=padding
    )
    close(tiles.weight_gradient(x, y, kernel, geometry), at_kernel, 1e-5)


def test_a_transposed_convolution_can_reach_one_line_further() -> None:
    y, kernel = random_map(3, 64, 4, 4), random_kernel(64, 32, 5, 0)
    exact = F.conv_transpose2d(y.double(), kernel.double(), None, 2, 2, 1)
    assert exact.shape[2:] == (8, 8)
    close(tiles.convolve(y, kernel, None, Geometry(2, 2, 1)), exact, ROUNDING)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, kernel = random_map(33, 64, 8, 8), random_kernel(128, 64, 4, 0)
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = tiles.convolve(x, kernel, None, Geometry(2, 1))
            back = tiles.convolve(y, kernel, None, Geometry(2, 1, 0))
            outcomes.append([y, back, tiles.weight_gradient(x, y, kernel, Geometry(2, 1))])
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_torchs_own_products_are_left_as_they_were() -> None:
    """oneDNN remembers how it laid the units' tiles out; ours must not linger."""
    left, right = random_map(1, 1, 48, 80)[0, 0], random_map(1, 1, 80, 40)[0, 0]
    before = left @ right
    x, kernel = random_map(2, 32, 4, 4), random_kernel(32, 32, 4, 0)
    for _ in range(3):
        tiles.convolve(x, kernel, None, Geometry(2, 1))
        assert torch.equal(left @ right, before)


def test_what_is_not_a_number_stays_so() -> None:
    x, kernel = random_map(2, 32, 4, 4), random_kernel(32, 32, 4, 0)
    x[1, 3, 0, 0] = float("nan")
    y = tiles.convolve(x, kernel, None, Geometry(2, 1))
    assert y[1, :, 0, 0].isnan().all()
    assert y[0].isfinite().all()


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.double()
