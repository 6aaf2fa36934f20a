"""The same networks in loops of a user who knows what torch can switch on.

Images lie in one tensor, batches are picked from it by index, and no step waits for a number. The
switches are bf16 autocast, channels-last, fused Adam and `torch.compile` of each network. Nothing
here uses synth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import peers

SAMPLED = 250  # images in a batch, as many as synth makes at once
Loop = Callable[[Tensor, Tensor], Iterator[None]]


class Switches(NamedTuple):
    bf16: bool = False
    channels_last: bool = False
    fused: bool = False
    compiled: bool = False


SWITCHES = {
    "no switches": Switches(),
    "bf16 autocast": Switches(bf16=True),
    "channels-last": Switches(channels_last=True),
    "fused Adam": Switches(fused=True),
    "torch.compile": Switches(compiled=True),
    "all but bf16": Switches(channels_last=True, fused=True, compiled=True),
    "all but torch.compile": Switches(bf16=True, channels_last=True, fused=True),
    "all": Switches(bf16=True, channels_last=True, fused=True, compiled=True),
}


def train(on: Switches, images: Tensor, labels: Tensor) -> Iterator[None]:
    """On the device of the images."""
    device = images.device
    net_g, net_d = peers.Generator().to(device), peers.Discriminator().to(device)
    nets = _built(net_g, on), _built(net_d, on)
    optimizers = tuple(_adam(net, on, 2e-4, 0.5) for net in nets)
    for real, y in _batches(images, labels, peers.BATCH, on, -1.0):
        with _autocast(on, device):
            noise = torch.randn(peers.BATCH, peers.LATENT, device=device)
            peers.gan_step(nets, (optimizers[0], optimizers[1]), real, y, noise)
        yield


def sample(on: Switches, images: Tensor, labels: Tensor) -> Iterator[None]:
    """The images of a generator in evaluation mode, kept as uint8."""
    generator = _built(peers.Generator().eval(), on)
    while True:
        with torch.inference_mode(), _autocast(on):
            y = torch.randint(peers.CLASSES, (SAMPLED,))
            fake = generator(torch.randn(SAMPLED, peers.LATENT), y)
        _ = ((fake.float() + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
        yield


def classify(on: Switches, images: Tensor, labels: Tensor) -> Iterator[None]:
    net = _built(peers.classifier(), on)
    optimizer = _adam(net, on, 1e-3, 0.9)
    for x, y in _batches(images, labels, peers.CLASSIFIER_BATCH, on, 0.0):
        optimizer.zero_grad()
        with _autocast(on):
            loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        yield


def loops(loop: Any, images: int) -> dict[str, tuple[Loop, int]]:
    """Contenders by name: the loop with its switches, and the images in one of its steps."""
    return {f"torch, {name}": (partial(loop, on), images) for name, on in SWITCHES.items()}


def _built(net: nn.Module, on: Switches) -> nn.Module:
    if on.channels_last:
        net.to(memory_format=torch.channels_last)
    if on.compiled:
        net.compile()
    return net


def _adam(net: nn.Module, on: Switches, rate: float, beta: float) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), rate, betas=(beta, 0.999), fused=on.fused)


def _autocast(on: Switches, device: torch.device = peers.CPU) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=on.bf16)


def _batches(
    images: Tensor, labels: Tensor, size: int, on: Switches, low: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pass shows the images in a new order, as floats in [low, 1]."""
    layout = torch.channels_last if on.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    while True:
        order = torch.randperm(len(images), device=images.device)
        for picks in order[: len(images) // size * size].split(size):
            yield images[picks].float() / 255 * (1 - low) + low, labels[picks]
