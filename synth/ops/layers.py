"""torch's layers, faster in bf16 on a CPU. `dispatch` chooses the implementation."""

from __future__ import annotations

from torch import Tensor, nn

from synth.ops.dispatch import run


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, with a square kernel, without dilation or groups."""

    takes_slope = True  # `Sequential` may replace the next activation by a slope

    def forward(self, x: Tensor, slope: float | None = None) -> Tensor:
        """(B, C, H, W) → (B, N, h, w). slope: the factor of an activation for negative values, or
        None for no activation. Only for x that `dispatch.supports_fused_activation` accepts."""
        output: Tensor = run("Conv2d", x, self, slope)
        return output


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, with a square kernel, without dilation or groups."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, N, h, w) → (B, C, H, W)."""
        output: Tensor = run("ConvTranspose2d", x, self, output_size)
        return output


class Sequential(nn.Sequential):
    """`nn.Sequential` that fuses BatchNorm, activation and max-pool, and runs max-pool before ReLU
    (equivalent, on a quarter of the values)."""

    def forward(self, x: Tensor) -> Tensor:
        layers, at = [*self, None, None], 0
        while at < len(self):
            x, taken = run("Sequential", x, *layers[at : at + 3])
            at += taken
        return x
