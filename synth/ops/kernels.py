"""Calls kernels.c with tensors: BatchNorm, activation, max-pool and sums of bf16 maps.

Maps are bf16 on the CPU, channels-last. An activation multiplies negative values by `slope`: 0 for
ReLU, 1 for no activation. `dispatch` checks the arguments before it calls these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from synth.ops.native import call


def activate_(x: Tensor, slope: float) -> None:
    """Multiplies the negative values of x, of any shape, by `slope`, in place."""
    call("activate_in_place", x.numel(), slope, x)


def activation_backward(y: Tensor, gradient: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """For y = activation(x + bias): y and its gradient, both (B, C, H, W) → the gradients of x,
    (B, C, H, W), and of the bias, fp32 (C,)."""
    channels = y.shape[1]
    at_x, at_bias = torch.empty_like(y), torch.empty(channels)
    pixels = y.numel() // channels
    call("activation_backward", pixels, channels, y, gradient, slope, at_bias, at_x)
    return at_x, at_bias


def sum_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) → fp32 (C,). Makes no copy of x in fp32."""
    channels = x.shape[1]
    sums = torch.empty(channels)
    call("sum_pixels", x.numel() // channels, channels, x, sums)
    return sums


def fold(
    patches: Tensor, bias: Tensor | None, shape: Sequence[int], side: int, stride: int, padding: int
) -> Tensor:
    """Sums overlapping patches in a map of `shape` (B, C, H, W), and adds a bias (C,). It is the
    inverse direction of `unfold`.

    patches: rows (B·h·w, side·side·C), with columns in the order (row, column, C).
    """
    batch, channels, height, width = shape
    bias = torch.zeros(channels) if bias is None else bias.float()
    x = torch.empty(tuple(shape), dtype=patches.dtype, memory_format=torch.channels_last)
    call("fold", batch, height, width, channels, side, stride, padding, patches, bias, x)
    return x


def norm_activate(x: Tensor, norm: nn.BatchNorm2d, slope: float, pool: bool) -> Tensor:
    """BatchNorm and activation of x (B, C, H, W), and 2×2 max-pool if `pool`. H and W are even.

    Training mode updates the running statistics. Evaluation mode uses them and gives no gradients.
    Arithmetic is fp32, sums are fp64.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None and norm.momentum is not None
    if not norm.training:
        scale = norm.weight * (variance + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        y = _empty_output(x, pool)
        call("norm_apply", *_sizes(x, y), x, scale, shift, slope, y)
        return y
    output: Tensor
    output, statistics = _NormActivate.apply(
        x, norm.weight, norm.bias, float(norm.eps), slope, pool
    )
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        mean.lerp_(statistics[0], norm.momentum)
        variance.lerp_(statistics[1] * (count / (count - 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return output


class _NormActivate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, slope: float, pool: bool
    ) -> tuple[Tensor, Tensor]:
        y, statistics = _empty_output(x, pool), torch.empty(5, x.shape[1])
        call("norm_forward", *_sizes(x, y), x, weight, bias, epsilon, slope, statistics, y)
        ctx.save_for_backward(x, statistics)
        ctx.slope = slope
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        x, statistics = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        at_x, at_weights = torch.empty_like(x), torch.empty(2, x.shape[1])
        sizes = _sizes(x, gradient)
        call("norm_backward", *sizes, x, gradient, statistics, ctx.slope, at_weights, at_x)
        return at_x, *at_weights, None, None, None


def _empty_output(x: Tensor, pool: bool) -> Tensor:
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2) if pool else x.shape
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _sizes(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """The arguments of kernels.c: pixels of y, width of x (0 without pooling), channels."""
    channels = x.shape[1]
    return y.numel() // channels, 0 if x.shape == y.shape else x.shape[3], channels
