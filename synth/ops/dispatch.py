"""Chooses an implementation of an operation for its arguments.

`TABLE` lists the candidates of each operation: the preferred one first, torch's own last. All
candidates compute the same, up to rounding. The fast ones are for bf16 on a CPU, where oneDNN is
slow on small maps (benchmarks/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth.ops import kernels, tiles
from synth.ops.native import DEPTH, MOST_CHANNELS, MOST_LINE, call, native
from synth.ops.tiles import Geometry

GRADIENT_CHANNELS = 64  # with fewer input channels, tiles compute weight gradients slower
FOLD_CHANNELS = 4  # with more output channels, `fold` is slower


def run(operation: str, *arguments: Any) -> Any:
    """Calls the first candidate of `operation` in `TABLE` that supports the arguments."""
    return next(take for supports, take in TABLE[operation] if supports(*arguments))(*arguments)


def supports_anything(*_: Any) -> bool:
    return True


def supports_kernels(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and native() is not None


def supports_sums(x: Tensor) -> bool:
    return x.shape[1] <= MOST_CHANNELS and supports_kernels(x)


def supports_tiles(kernel: Tensor) -> bool:
    whole = all(size % DEPTH == 0 for size in kernel.shape[:2])
    return whole and supports_kernels(kernel) and call("tiles_usable") == 1


def supports_strided_tiles(x: Tensor, kernel: Tensor, _: Any, geometry: Geometry) -> bool:
    return geometry.stride > 1 and supports_tiles(kernel)


def supports_gradient_tiles(x: Tensor, gradient: Tensor, kernel: Tensor, _: Geometry) -> bool:
    return kernel.shape[1] >= GRADIENT_CHANNELS and supports_tiles(kernel)


def supports_fold(x: Tensor, kernel: Tensor, _: Any, geometry: Geometry) -> bool:
    if geometry.output_padding is None or kernel.shape[1] > FOLD_CHANNELS:
        return False
    _, channels, _, width = geometry.output_shape(x, kernel)
    return (width + 2 * geometry.padding) * channels <= MOST_LINE and supports_kernels(x)


def supports_autocast(x: Tensor, *_: Any) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def supports_product(x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, *_: Any) -> bool:
    """Whether the layer maps one pixel to a whole map, without a bias, or a whole map to one pixel.
    Then the convolution is one matrix product."""
    if layer.transposed:
        whole = x.shape[2:] == (1, 1) and layer.bias is None
    else:
        whole = x.shape[2:] == layer.kernel_size
    return whole and layer.padding == (0, 0) and supports_autocast(x)


def supports_fused_norm(x: Tensor, norm: nn.Module | None, *_: Any) -> bool:
    return (
        isinstance(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and x.numel() > norm.num_features
        and x.is_contiguous(memory_format=torch.channels_last)
        and (norm.training or not torch.is_grad_enabled())
        and supports_sums(x)
    )


def supports_fused_activation(x: Tensor, layer: Any, after: nn.Module | None, _: Any) -> bool:
    return (
        getattr(layer, "takes_slope", False)
        and _slope(after) is not None
        and layer.out_channels <= MOST_CHANNELS
        and supports_autocast(x)
        and not supports_product(x, layer)
        and native() is not None
    )


def supports_early_pool(x: Tensor, layer: Any, after: nn.Module | None, _: Any) -> bool:
    return isinstance(layer, nn.ReLU) and isinstance(after, nn.MaxPool2d)


def _slope(layer: nn.Module | None) -> float | None:
    """The factor of an activation for negative values. None for other layers."""
    if isinstance(layer, nn.ReLU):
        return 0.0
    return float(layer.negative_slope) if isinstance(layer, nn.LeakyReLU) else None


def _fused_norm(x: Tensor, norm: nn.BatchNorm2d, after: Any, second: Any) -> tuple[Tensor, int]:
    slope = _slope(after)
    if slope is None:
        return kernels.norm_activate(x, norm, 1.0, False), 1
    halves = isinstance(second, nn.MaxPool2d) and (second.kernel_size, second.stride) == (2, 2)
    pool = halves and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
    return kernels.norm_activate(x, norm, slope, pool), 3 if pool else 2


def _product(x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, _: Any) -> Tensor:
    x, weight = x.to(torch.bfloat16), layer.weight.permute(0, 2, 3, 1).flatten(1)
    if layer.transposed:
        y = F.linear(x.flatten(1), weight.T).view(-1, *layer.kernel_size, layer.out_channels)
        return y.permute(0, 3, 1, 2)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, layer.bias)[:, :, None, None]


def _convolution(x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, slope: float | None) -> Tensor:
    output_padding = layer.output_padding[0] if layer.transposed else None
    geometry = Geometry(layer.stride[0], int(layer.padding[0]), output_padding)
    y: Tensor = Convolution.apply(x.bfloat16(), layer.weight, layer.bias, geometry, slope)
    return y


class Convolution(torch.autograd.Function):
    """bf16 x (B, C, H, W), fp32 weight (N, C, k, k) → bf16 (B, N, h, w), all channels-last. The
    transposed convolution: (B, N, h, w) → (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        geometry, slope = options
        x = x.contiguous(memory_format=torch.channels_last)
        kernel = weight.detach().to(x.dtype, memory_format=torch.channels_last)
        y: Tensor = run("convolution", x, kernel, bias, geometry)
        if slope is not None:
            kernels.activate_(y, slope)
        ctx.save_for_backward(x, kernel, None if slope is None else y)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, kernel, y = ctx.saved_tensors
        geometry, slope = ctx.options
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        at_x = at_weight = at_bias = None
        if slope is not None:
            gradient, at_bias = kernels.activation_backward(y, gradient, slope)
        elif for_bias:
            at_bias = run("sum", gradient)
        if for_x:
            at_x = run("convolution", gradient, kernel, None, geometry.of_gradient(x, kernel))
        if for_weight:
            maps = (x, gradient) if geometry.output_padding is None else (gradient, x)
            at_weight = run("weight gradient", *maps, kernel, geometry)
        return at_x, at_weight, at_bias if for_bias else None, None, None


def _torch_convolution(
    x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    stride, padding, output_padding = geometry
    bias = None if bias is None else bias.to(x.dtype)
    if output_padding is None:
        return F.conv2d(x, kernel, bias, stride, padding)
    return F.conv_transpose2d(x, kernel, bias, stride, padding, output_padding)


def _folded_product(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    patches = _pixels(x) @ kernel.permute(0, 2, 3, 1).flatten(1)
    shape = geometry.output_shape(x, kernel)
    return kernels.fold(patches, bias, shape, kernel.shape[2], *geometry[:2])


def _torch_weight_gradient(
    x: Tensor, gradient: Tensor, kernel: Tensor, geometry: Geometry
) -> Tensor:
    numbers = [geometry.stride] * 2, [geometry.padding] * 2, [1, 1], False, [0, 0], 1
    backward, mask = torch.ops.aten.convolution_backward, [False, True, False]
    at_kernel: Tensor = backward(gradient, x, kernel, None, *numbers, mask)[1]
    return at_kernel.float()


def _pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) channels-last → a view (B·H·W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


Candidate = tuple[Callable[..., bool], Callable[..., Any]]
TABLE: dict[str, tuple[Candidate, ...]] = {
    # x, a layer, the two layers after it or None → output, and the number of layers applied
    "Sequential": (
        (supports_fused_norm, _fused_norm),
        (supports_fused_activation, lambda x, layer, after, _: (layer(x, _slope(after)), 2)),
        (supports_early_pool, lambda x, relu, pool, _: (relu(pool(x)), 2)),
        (supports_anything, lambda x, layer, *_: (layer(x), 1)),
    ),
    # x, the layer, the slope of an activation or None → output
    "Conv2d": (
        (supports_product, _product),
        (supports_autocast, _convolution),
        (supports_anything, lambda x, layer, _: nn.Conv2d.forward(layer, x)),
    ),
    # x, the layer, torch's output_size or None → output
    "ConvTranspose2d": (
        (supports_product, _product),
        (supports_autocast, lambda x, layer, _: _convolution(x, layer, None)),
        (supports_anything, lambda x, layer, size: nn.ConvTranspose2d.forward(layer, x, size)),
    ),
    # x, kernel, bias, geometry → output
    "convolution": (
        (supports_strided_tiles, tiles.convolve),
        (supports_fold, _folded_product),
        (supports_anything, _torch_convolution),
    ),
    # x, gradient of the output, kernel, geometry → gradient of the kernel, fp32
    "weight gradient": (
        (supports_gradient_tiles, tiles.weight_gradient),
        (supports_anything, _torch_weight_gradient),
    ),
    # (B, C, H, W) → sums over images and pixels, fp32 (C,)
    "sum": (
        (supports_sums, kernels.sum_pixels),
        (supports_anything, lambda x: _pixels(x).sum(0, dtype=torch.float32)),
    ),
}
