"""Layers that compute what torch's do, faster, in bf16 on a CPU.

They are torch's layers with the same parameters. On a CPU under bf16 autocast, where oneDNN runs
small maps far below the matrix units' speed, convolutions with a stride and weight gradients go to
`tiles`; convolutions of or to 1×1 maps are plain products, and so are those back to a few channels;
BatchNorm, activation and pooling are taken together, by `kernels`. Everywhere else they are torch's
own. benchmarks/NOTES.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth.ops import kernels, native, tiles

GRADIENT_CHANNELS = 64  # from so many input channels on, tiles pay for the weight gradient
FOLD_CHANNELS = 4  # up to so many, a product whose patches are added up pays


class Conv2d(nn.Conv2d):
    """torch's, square, without dilation or groups."""

    def forward(self, x: Tensor, slope: float | None = None) -> Tensor:
        """slope: of an activation to take together with the convolution, see `activates`."""
        if not _on_matrix_units(x):
            return super().forward(x)
        x = x.to(torch.bfloat16)
        if x.shape[2:] == self.kernel_size and self.padding == (0, 0):  # covers the whole map
            flat = self.weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(x.permute(0, 2, 3, 1).flatten(1), flat, self.bias)[:, :, None, None]
        output: Tensor = _Convolution.apply(
            x, self.weight, self.bias, self.stride[0], int(self.padding[0]), slope
        )
        return output

    def activates(self, x: Tensor) -> bool:
        """Can `forward` take an activation along, on this input?"""
        whole = x.shape[2:] == self.kernel_size and self.padding == (0, 0)
        few = self.out_channels <= kernels.MOST_CHANNELS
        return _on_matrix_units(x) and not whole and few and native.native() is not None


class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's, square, without dilation or groups."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not _on_matrix_units(x):
            return super().forward(x, output_size)
        x = x.to(torch.bfloat16)
        if x.shape[2:] == (1, 1) and self.padding == (0, 0) and self.bias is None:
            side, channels = self.kernel_size[0], self.out_channels
            flat = self.weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(x.flatten(1), flat.T).view(-1, side, side, channels).permute(0, 3, 1, 2)
        output: Tensor = _TransposedConvolution.apply(
            x,
            self.weight,
            self.bias,
            self.stride[0],
            int(self.padding[0]),
            self.output_padding[0],
        )
        return output


def _on_matrix_units(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


class Sequential(nn.Sequential):
    """torch's, with two things taken together where that changes nothing but the time: BatchNorm
    with the activation and the pooling behind it (see `kernels`), and ReLU with the pooling behind
    it, in turned order, for a maximum commutes with ReLU and leaves it a quarter of the work."""

    def forward(self, x: Tensor) -> Tensor:
        layers = [*self, None, None]
        at = 0
        while (layer := layers[at]) is not None:
            after, second = layers[at + 1], layers[at + 2]
            if isinstance(layer, nn.BatchNorm2d) and kernels.can_fuse(layer, x):
                slope = _slope(after)
                pools = slope is not None and _pools(second, x)
                x = kernels.norm_activate(x, layer, 1.0 if slope is None else slope, pools)
                at += 1 if slope is None else 3 if pools else 2
            elif (
                isinstance(layer, Conv2d)
                and (slope := _slope(after)) is not None
                and layer.activates(x)
            ):
                x = layer(x, slope)
                at += 2
            elif isinstance(layer, nn.ReLU) and isinstance(after, nn.MaxPool2d):
                x = layer(after(x))
                at += 2
            else:
                x = layer(x)
                at += 1
        return x


def _slope(layer: nn.Module | None) -> float | None:
    """What an activation multiplies negative values by; None for other layers."""
    if isinstance(layer, nn.ReLU):
        return 0.0
    return layer.negative_slope if isinstance(layer, nn.LeakyReLU) else None


def _pools(layer: nn.Module | None, x: Tensor) -> bool:
    halves = isinstance(layer, nn.MaxPool2d) and (layer.kernel_size, layer.stride) == (2, 2)
    return halves and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0


class _Convolution(torch.autograd.Function):
    """x bf16 (B, C, H, W), weight fp32 (N, C, k, k) → bf16 (B, N, h, w), all channels-last."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        slope: float | None,
    ) -> Tensor:
        x, kernel = _channels_last(x), _as_kernel(weight, x)
        y = _gather(x, kernel, bias, stride, padding)
        if slope is not None:
            kernels.activate_(y, slope)
        ctx.save_for_backward(x, kernel, None if slope is None else y)
        ctx.arguments = stride, padding, slope
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, kernel, y), (stride, padding, slope) = ctx.saved_tensors, ctx.arguments
        gradient = _channels_last(gradients[0])
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        if slope is not None:
            gradient, at_bias = kernels.activation_backward(y, gradient, slope)
        elif for_bias:
            at_bias = _sum_pixels(gradient)
        extra = (x.shape[2] + 2 * padding - kernel.shape[2]) % stride
        return (
            _spread(gradient, kernel, None, stride, padding, extra) if for_x else None,
            _weight_gradient(x, gradient, kernel, stride, padding) if for_weight else None,
            at_bias if for_bias else None,
            None,
            None,
            None,
        )


class _TransposedConvolution(torch.autograd.Function):
    """x bf16 (B, N, h, w), weight fp32 (N, C, k, k) → bf16 (B, C, H, W): the one above, turned."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
        extra: int,
    ) -> Tensor:
        x, kernel = _channels_last(x), _as_kernel(weight, x)
        ctx.save_for_backward(x, kernel)
        ctx.arguments = stride, padding
        return _spread(x, kernel, bias, stride, padding, extra)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x, kernel), (stride, padding) = ctx.saved_tensors, ctx.arguments
        gradient = _channels_last(gradients[0])
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        return (
            _gather(gradient, kernel, None, stride, padding) if for_x else None,
            _weight_gradient(gradient, x, kernel, stride, padding) if for_weight else None,
            _sum_pixels(gradient) if for_bias else None,
            None,
            None,
            None,
        )


def _gather(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Convolution."""
    if stride > 1 and tiles.fit(kernel):
        return tiles.convolve(x, kernel, bias, stride, padding)
    return F.conv2d(x, kernel, _like(bias, x), stride, padding)


def _spread(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int, padding: int, extra: int
) -> Tensor:
    """Transposed convolution."""
    if stride > 1 and tiles.fit(kernel):
        return tiles.convolve_transposed(x, kernel, bias, stride, padding, extra)
    _, channels, side, _ = kernel.shape
    size = (x.shape[2] - 1) * stride - 2 * padding + side + extra
    line = (size + 2 * padding) * channels
    if channels > FOLD_CHANNELS or line > kernels.MOST_LINE or not native.usable(x):
        return F.conv_transpose2d(x, kernel, _like(bias, x), stride, padding, extra)
    patches = _rows(x) @ kernel.permute(0, 2, 3, 1).flatten(1)
    return kernels.fold(patches, bias, (len(x), channels, size, size), side, stride, padding)


def _weight_gradient(
    x: Tensor, gradient: Tensor, kernel: Tensor, stride: int, padding: int
) -> Tensor:
    """d loss / d kernel of conv(x, kernel) with the output's gradient; fp32 (N, C, k, k)."""
    if kernel.shape[1] >= GRADIENT_CHANNELS and tiles.fit(kernel):
        return tiles.weight_gradient(x, gradient, kernel.shape[2], stride, padding)
    product: Tensor = torch.ops.aten.convolution_backward(
        gradient,
        x,
        kernel,
        None,
        (stride, stride),
        (padding, padding),
        (1, 1),
        False,
        (0, 0),
        1,
        (False, True, False),
    )[1]
    return product.float()


def _sum_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) → fp32 (C,)."""
    if native.usable(x) and x.shape[1] <= kernels.MOST_CHANNELS:
        return kernels.sum_pixels(x)
    return _rows(x).sum(0, dtype=torch.float32)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) channels-last → a view (B·H·W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _as_kernel(weight: Tensor, x: Tensor) -> Tensor:
    return weight.detach().to(x.dtype, memory_format=torch.channels_last)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
