"""Data-parallel training: the processes that torchrun started share each batch.

Each process takes its slice of the batch that one process would take. BatchNorm and all sums over
a batch are taken over all processes, and so are gradients, in `acceleration.optimizer_step`. One
process alone computes as if this module did not exist.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from synth.base.progress import CONSOLE

Value = TypeVar("Value")
# Others wait while the first process scores a checkpoint. torchrun ends them if it dies.
PATIENCE = timedelta(days=1)
TORCHRUN = "TORCHELASTIC_RUN_ID"  # an environment variable that torchrun sets


def started() -> int:
    """The number of processes that torchrun started, or 1. They need not have joined yet."""
    return int(os.environ["WORLD_SIZE"]) if TORCHRUN in os.environ else 1


def starts_first() -> bool:
    """False in all processes that torchrun started but the first one."""
    return started() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The processes that torchrun started work together in this block. Others than the first one
    print no messages."""
    if started() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    CONSOLE.quiet = not is_first()
    try:
        yield
    finally:
        distributed.destroy_process_group()


def processes() -> int:
    """The number of processes that work together: 1 outside `joined`."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def is_first() -> bool:
    """True for the one process that writes files."""
    return processes() == 1 or distributed.get_rank() == 0


def from_first(value: Value) -> Value:
    """What the first process gives, in all processes."""
    values = [value]
    if processes() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def total_count(count: int) -> int:
    """The sum of the counts of all processes. Waits for them."""
    if processes() == 1:
        return count
    summed = torch.tensor(count)
    distributed.all_reduce(summed)
    return int(summed)


def own_share(items: Sequence[Value]) -> Sequence[Value]:
    """Those of the items that this process works on."""
    return items[distributed.get_rank() :: processes()] if processes() > 1 else items


def own_part(tensor: Tensor, dimension: int = 0) -> Tensor:
    """This process's slice of a tensor of the whole batch."""
    if processes() == 1:
        return tensor
    return tensor.chunk(processes(), dimension)[distributed.get_rank()]


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes. Gradients flow to the tensors of all of them."""
    if processes() == 1:
        return tensor
    summed: Tensor = _Total.apply(tensor)
    return summed


def average(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The means over all processes, without gradients. Takes one message for all tensors."""
    if processes() == 1:
        return tensors
    flat = _summed(torch.cat([tensor.detach().flatten() for tensor in tensors])) / processes()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def share_statistics(network: nn.Module) -> None:
    """Replaces each BatchNorm of `network` by one that normalises the batch of all processes."""
    for name, module in network.named_children():
        if processes() > 1 and isinstance(module, nn.BatchNorm2d):
            setattr(network, name, SharedBatchNorm2d(module))
        else:
            share_statistics(module)


class SharedBatchNorm2d(_BatchNorm):
    """BatchNorm of all processes' batches, on any device; `nn.SyncBatchNorm` needs a GPU.

    It takes over the weights and statistics of `norm`.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers = norm._parameters, norm._buffers

    def _check_input_dim(self, x: Tensor) -> None:
        """`_BatchNorm` calls it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = total(values.mean((0, 2, 3))) / processes()
        centred = values - mean[:, None, None]
        variance = total(centred.square().mean((0, 2, 3))) / processes()
        scale = self.weight * (variance + self.eps).rsqrt()
        count = processes() * x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    summed = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(summed)
    return summed
