"""Calls tiles.c with tensors: convolutions on the matrix units of a CPU (Intel AMX).

oneDNN runs convolutions with a stride, and weight gradients, at a half to a sixth of this speed
(benchmarks/NOTES.md). Maps (B, C, H, W) and kernels (N, C, k, k) are bf16 and channels-last, with
sums in fp32. N and C are multiples of `DEPTH`. `dispatch` checks the arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from synth.ops.native import DEPTH, call


class Geometry(NamedTuple):
    """The numbers of a convolution. With an `output_padding` it is a transposed one."""

    stride: int
    padding: int
    output_padding: int | None = None

    def output_shape(self, x: Tensor, kernel: Tensor) -> tuple[int, int, int, int]:
        outputs, channels, side, _ = kernel.shape
        if self.output_padding is None:
            height, width = ((n + 2 * self.padding - side) // self.stride + 1 for n in x.shape[2:])
            return len(x), outputs, height, width
        fixed = side - 2 * self.padding + self.output_padding
        height, width = ((n - 1) * self.stride + fixed for n in x.shape[2:])
        return len(x), channels, height, width

    def of_gradient(self, x: Tensor, kernel: Tensor) -> Geometry:
        """The gradient at x is a convolution in the other direction."""
        if self.output_padding is not None:
            return Geometry(self.stride, self.padding)
        left = (x.shape[2] + 2 * self.padding - kernel.shape[2]) % self.stride
        return Geometry(self.stride, self.padding, left)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """torch's conv2d, (B, C, H, W) → (B, N, h, w), or conv_transpose2d, (B, N, h, w) →
    (B, C, H, W)."""
    outputs, channels, side, _ = kernel.shape
    transposed, size = geometry.output_padding is not None, geometry.output_shape(x, kernel)
    y = torch.empty(size, dtype=torch.bfloat16, memory_format=torch.channels_last)
    right, left = torch.empty_like(kernel), _empty_tiles(x)
    call("tiles_of_kernel", outputs, side * side, channels, transposed, kernel, right)
    call("tiles_by_channel", *_sizes(x), x, left)
    bias = torch.zeros(y.shape[1]) if bias is None else bias.float()
    shape = _shape(*((y, x) if transposed else (x, y)), side, geometry)
    call("tiles_convolve", shape, transposed, left, right, bias, y)
    return y


def weight_gradient(x: Tensor, gradient: Tensor, kernel: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the kernel, fp32 (N, C, k, k), from the gradient of conv2d(x, kernel)."""
    outputs, channels, side, _ = kernel.shape
    left, right = _empty_tiles(gradient), _empty_tiles(x)
    call("tiles_by_image", *_sizes(gradient), True, gradient, left)
    call("tiles_by_image", *_sizes(x), False, x, right)
    at_kernel = torch.empty(outputs, side, side, channels)
    shape = _shape(x, gradient, side, geometry)
    call("tiles_weight_gradient", shape, left, right, at_kernel)
    return at_kernel.permute(0, 3, 1, 2)


def _empty_tiles(x: Tensor) -> Tensor:
    """Memory for the values of x. The number of images is rounded up to a multiple of `DEPTH`."""
    return x.new_empty(-(-len(x) // DEPTH) * DEPTH, x[0].numel())


def _sizes(x: Tensor) -> tuple[int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height * width, channels


def _shape(x: Tensor, y: Tensor, side: int, geometry: Geometry) -> Tensor:
    """The struct `Shape` of tiles.c for a convolution from x to y."""
    batch, channels, height, width = x.shape
    sizes = batch, height, width, channels, *y.shape[2:], y.shape[1]
    return torch.tensor([*sizes, side, *geometry[:2]])
