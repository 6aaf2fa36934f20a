"""Convolutions on a CPU's matrix units, bf16 with fp32 sums: the side of tiles.c that torch sees.

oneDNN runs convolutions with a stride, and weight gradients, at a half to a sixth of what these
reach; see benchmarks/NOTES.md.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from synth.ops.native import native, usable

WIDTH = 32  # channels come in so many at a time, and images of a batch


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "height", "width", "channels", "lines", "columns", "outputs"),
            *("side", "stride", "padding"),
        )
    ]


def fit(kernel: Tensor) -> bool:
    """Can a convolution with this kernel (N, C, k, k) be taken here?"""
    even = kernel.shape[0] % WIDTH == 0 and kernel.shape[1] % WIDTH == 0
    return even and usable(kernel) and _library().tiles_usable() == 1


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """torch's conv2d: bf16 (B, C, H, W) → (B, N, h, w), channels-last, as kernel (N, C, k, k)."""
    side = kernel.shape[2]
    height, width = ((n + 2 * padding - side) // stride + 1 for n in x.shape[2:])
    y = _empty_map(len(x), kernel.shape[0], height, width)
    _convolve(x, kernel, bias, y, _shape(x, y, side, stride, padding), transposed=False)
    return y


def convolve_transposed(
    y: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int, extra: int = 0
) -> Tensor:
    """torch's conv_transpose2d: bf16 (B, N, h, w) → (B, C, H, W), by the same kernel (N, C, k, k);
    extra: torch's output_padding."""
    side = kernel.shape[2]
    height, width = ((n - 1) * stride - 2 * padding + side + extra for n in y.shape[2:])
    x = _empty_map(len(y), kernel.shape[1], height, width)
    _convolve(y, kernel, bias, x, _shape(x, y, side, stride, padding), transposed=True)
    return x


def weight_gradient(x: Tensor, gradient: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """From the input and the gradient at the output of `convolve`, that at its kernel: fp32
    (N, C, k, k), channels-last."""
    outputs, channels = gradient.shape[1], x.shape[1]
    left, right = _by_image(gradient, left=True), _by_image(x, left=False)
    at_kernel = torch.empty(outputs, side, side, channels)
    _library().tiles_weight_gradient(
        ctypes.byref(_shape(x, gradient, side, stride, padding)),
        left.data_ptr(),
        right.data_ptr(),
        at_kernel.data_ptr(),
    )
    return at_kernel.permute(0, 3, 1, 2)


def _convolve(
    source: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    to: Tensor,
    shape: _Shape,
    transposed: bool,
) -> None:
    outputs, channels, side, _ = kernel.shape
    right = torch.empty_like(kernel)
    _library().tiles_of_kernel(
        outputs, side * side, channels, transposed, kernel.data_ptr(), right.data_ptr()
    )
    left = _empty_tiles(source)
    _library().tiles_by_channel(*_sizes(source), source.data_ptr(), left.data_ptr())
    bias = torch.zeros(to.shape[1]) if bias is None else bias.detach().float()
    _library().tiles_convolve(
        ctypes.byref(shape),
        transposed,
        left.data_ptr(),
        right.data_ptr(),
        bias.data_ptr(),
        to.data_ptr(),
    )


def _by_image(x: Tensor, left: bool) -> Tensor:
    tiles = _empty_tiles(x)
    _library().tiles_by_image(*_sizes(x), left, x.data_ptr(), tiles.data_ptr())
    return tiles


def _empty_tiles(x: Tensor) -> Tensor:
    """As many values as x has, and those of the images that its last tile lacks."""
    return x.new_empty(-(-len(x) // WIDTH) * WIDTH, x[0].numel())


def _empty_map(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (batch, channels, height, width),
        dtype=torch.bfloat16,
        memory_format=torch.channels_last,
    )


def _sizes(x: Tensor) -> tuple[int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels


def _shape(x: Tensor, y: Tensor, side: int, stride: int, padding: int) -> _Shape:
    batch, channels, height, width = x.shape
    return _Shape(batch, height, width, channels, *y.shape[2:], y.shape[1], side, stride, padding)


def _library() -> ctypes.CDLL:
    library = native()
    assert library is not None
    return library
