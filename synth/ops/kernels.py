"""BatchNorm, activation and pooling in bf16: the side of kernels.c that torch sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from synth.ops.native import native, usable

PARTS, MOST_CHANNELS, MOST_LINE = 64, 1024, 8192  # as in kernels.c


def activate_(x: Tensor, slope: float) -> None:
    """Multiplies negative values of a dense bf16 tensor by `slope`, in place."""
    kernels = native()
    assert kernels is not None
    kernels.activate_in_place(x.numel(), slope, x.data_ptr())


def activation_backward(y: Tensor, gradient: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """From the gradient at y = activation(x + bias): those at x, and at bias, fp32 (C,).

    y: bf16 (B, C, H, W), channels-last, as `gradient`.
    """
    kernels = native()
    assert kernels is not None
    channels = y.shape[1]
    partial = torch.empty(PARTS, 2, channels, dtype=torch.float64)
    at_x, at_bias = torch.empty_like(y), torch.empty(channels)
    kernels.activation_backward(
        y.numel() // channels,
        channels,
        y.data_ptr(),
        gradient.data_ptr(),
        slope,
        partial.data_ptr(),
        at_bias.data_ptr(),
        at_x.data_ptr(),
    )
    return at_x, at_bias


def sum_pixels(x: Tensor) -> Tensor:
    """bf16 (B, C, H, W), channels-last, C at most `MOST_CHANNELS` → fp32 (C,), without a copy of x
    in fp32."""
    kernels = native()
    assert kernels is not None
    channels = x.shape[1]
    partial, sums = torch.empty(PARTS, 2, channels, dtype=torch.float64), torch.empty(channels)
    kernels.sum_pixels(
        x.numel() // channels, channels, x.data_ptr(), partial.data_ptr(), sums.data_ptr()
    )
    return sums


def fold(
    patches: Tensor, bias: Tensor | None, shape: Sequence[int], side: int, stride: int, padding: int
) -> Tensor:
    """Adds patches up where they lie in a map of this shape (B, C, H, W), and a bias.

    patches: rows (B·h·w, side·side·C), columns in the order (row, column, C), as torch's `unfold`
    cuts them from such a map. (W + 2·padding)·C is at most `MOST_LINE`.
    """
    kernels = native()
    assert kernels is not None
    batch, channels, height, width = shape
    bias = torch.zeros(channels) if bias is None else bias.detach().float()
    x = torch.empty(
        batch, channels, height, width, dtype=patches.dtype, memory_format=torch.channels_last
    )
    kernels.fold(
        batch,
        height,
        width,
        channels,
        side,
        stride,
        padding,
        patches.data_ptr(),
        bias.data_ptr(),
        x.data_ptr(),
    )
    return x


def can_fuse(norm: nn.Module, x: Tensor) -> bool:
    """Can `norm_activate` take this layer on this input?"""
    return (
        isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.num_features <= MOST_CHANNELS
        and x.numel() > norm.num_features
        and x.is_contiguous(memory_format=torch.channels_last)
        and (norm.training or not torch.is_grad_enabled())
        and usable(x)
    )


def norm_activate(x: Tensor, norm: nn.BatchNorm2d, slope: float, pool: bool) -> Tensor:
    """BatchNorm, activation, 2×2 max-pooling. In training mode the running statistics move; in
    evaluation mode they are used, without gradients.

    x: bf16 (B, C, H, W), channels-last; H and W even where it pools. slope: what the activation
    multiplies negative values by: 0 for ReLU, 1 for none. Arithmetic is fp32, sums are fp64.
    Only where `can_fuse`.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None and norm.momentum is not None
    if not norm.training:
        scale = norm.weight * (variance + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        y = _empty_output(x, pool)
        kernels = native()
        assert kernels is not None
        kernels.norm_apply(
            *_sizes(x, y), x.data_ptr(), scale.data_ptr(), shift.data_ptr(), slope, y.data_ptr()
        )
        return y
    output: Tensor
    output, statistics = _NormActivate.apply(x, norm.weight, norm.bias, norm.eps, slope, pool)
    count = x.numel() // x.shape[1]
    with torch.no_grad():
        mean.lerp_(statistics[0], norm.momentum)
        variance.lerp_(statistics[1] * (count / (count - 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
    return output


def _empty_output(x: Tensor, pool: bool) -> Tensor:
    batch, channels, height, width = x.shape
    shape = (batch, channels, height // 2, width // 2) if pool else x.shape
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _sizes(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """How kernels.c counts maps: pixels of y, width of x or 0 where nothing is pooled, channels."""
    channels = x.shape[1]
    return y.numel() // channels, 0 if x.shape == y.shape else x.shape[3], channels


class _NormActivate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, slope: float, pool: bool
    ) -> tuple[Tensor, Tensor]:
        kernels = native()
        assert kernels is not None
        y, channels = _empty_output(x, pool), x.shape[1]
        partial = torch.empty(PARTS, 2, channels, dtype=torch.float64)
        statistics = torch.empty(5, channels)
        kernels.norm_forward(
            *_sizes(x, y),
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            epsilon,
            slope,
            partial.data_ptr(),
            statistics.data_ptr(),
            y.data_ptr(),
        )
        ctx.save_for_backward(x, statistics)
        ctx.slope, ctx.channels = slope, channels
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        kernels = native()
        assert kernels is not None
        (x, statistics), slope, channels = ctx.saved_tensors, ctx.slope, ctx.channels
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        partial = torch.empty(PARTS, 2, channels, dtype=torch.float64)
        at_x, at_weights = torch.empty_like(x), torch.empty(2, channels)
        kernels.norm_backward(
            *_sizes(x, gradient),
            x.data_ptr(),
            gradient.data_ptr(),
            statistics.data_ptr(),
            slope,
            partial.data_ptr(),
            at_weights.data_ptr(),
            at_x.data_ptr(),
        )
        return at_x, at_weights[0], at_weights[1], None, None, None
