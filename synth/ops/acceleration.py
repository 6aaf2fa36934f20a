"""What makes a training step fast on the machine at hand, without changing what it computes.

Knows nothing of generators or classifiers: both sides of synth use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from synth.base.errors import UsageError

Precision = Literal["fp32", "bf16"]
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers for them, from malloc.h
PROBE_STEPS = 4  # the first one warms up
Step = Callable[..., None]  # takes tensors, returns nothing


def keep_freed_memory() -> None:
    """Tells glibc to keep the memory that this process frees, rather than hand it back and fault
    it in again at every step (mallopt(3)). The peak stays; other C libraries pass it over."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 where it is safe, with fp32 weights; does nothing for fp32.

    Casts are not cached: weights change within one step, and a cached cast would be stale.
    """
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )


def adam(
    weights: Sequence[nn.Parameter], rate: float, betas: tuple[float, float]
) -> torch.optim.Adam:
    """Fused Adam, recordable in a CUDA graph where the weights are on a GPU."""
    weights = list(weights)
    return torch.optim.Adam(
        weights, rate, betas=betas, fused=True, capturable=weights[0].device.type == "cuda"
    )


def descend(
    optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], loss: Tensor
) -> None:
    """One optimizer step along the gradients of `weights` alone; others' are not computed."""
    for weight, gradient in zip(weights, torch.autograd.grad(loss, list(weights)), strict=True):
        weight.grad = laid_out_like(weight, gradient)
    optimizer.step()


def laid_out_like(weight: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory layout of `weight`: fused Adam reads both as flat memory."""
    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


def fastest(step: Step, example: Sequence[Tensor], state: Callable[[], dict[str, Tensor]]) -> Step:
    """The step itself, or on a GPU the same step recorded once as a CUDA graph.

    example: tensors like those that the step will get. state: every tensor that the step changes,
    by name; recording needs a few steps to warm up, after which they are put back.
    """
    if example[0].device.type != "cuda":
        return step
    before = {name: tensor.clone() for name, tensor in state().items()}
    fixed = [tensor.clone() for tensor in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*fixed)
    with torch.no_grad():
        for (
            name,
            tensor,
        ) in state().items():  # an optimizer's moments are zero before its first step
            tensor.copy_(before[name]) if name in before else tensor.zero_()

    def replay(*inputs: Tensor) -> None:
        torch._foreach_copy_(fixed, list(inputs))
        graph.replay()

    return replay


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's moments by name, e.g. `g_adam.0.exp_avg`."""
    return {
        f"{name}.{index}.{key}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimizer_tensors(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; other names in `tensors` are passed over."""
    weights = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        if path.startswith(f"{name}."):
            index, key = path.removeprefix(f"{name}.").split(".")
            like = weights[int(index)]
            fitting = laid_out_like(like, value) if value.shape == like.shape else value
            moments.setdefault(int(index), {})[key] = fitting
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def choose_precision(
    asked: str, prepare: Callable[[str], Callable[[], None]], device: torch.device
) -> tuple[Precision, str]:
    """`asked`, or for `auto` the faster of fp32 and bf16 here; and the reason in words.

    `prepare(precision)` returns a step to time that takes no arguments.
    """
    for precision in get_args(Precision):
        if asked == precision:
            return precision, "as asked"
    if asked != "auto":
        raise UsageError(f"--precision {asked}: choose auto, fp32 or bf16")
    seconds: dict[Precision, float] = {}
    for precision in get_args(Precision):
        step = prepare(precision)
        seconds[precision] = min([_timed(step, device) for _ in range(PROBE_STEPS)][1:])
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in seconds.items())
    return best, f"a step in a short probe took {times}"


def _timed(step: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
