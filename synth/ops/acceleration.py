"""Fast training steps, for generators and classifiers."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from synth.ops import parallel

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers from glibc's malloc.h
ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what torch's Adam keeps of each weight
Step = Callable[..., None]  # takes tensors


def keep_freed_memory() -> None:
    """Tells glibc to keep the memory that this process frees, see mallopt(3). Steps then need not
    wait until the system gives memory again. Other C libraries ignore this."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_THRESHOLD, 1 << 30)
        mallopt(TRIM_THRESHOLD, (1 << 31) - 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """torch's autocast to bf16 with fp32 weights. Does nothing for fp32.

    It caches no casts, because weights change within a step.
    """
    return torch.autocast(
        device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False
    )


def adam(network: nn.Module, rate: float | Tensor, betas: tuple[float, float]) -> torch.optim.Adam:
    """Fused Adam for the weights of `network`. A CUDA graph can record it. rate: a tensor if it
    changes from step to step."""
    weights = list(network.parameters())
    capturable = weights[0].device.type == "cuda"
    return torch.optim.Adam(weights, rate, betas=betas, fused=True, capturable=capturable)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, shared: bool = False) -> None:
    """One step of `optimizer`. It computes the gradients of its own weights and no others.

    shared: the loss is that of this process's part of the batch; see `parallel`.
    """
    weights = optimizer.param_groups[0]["params"]
    gradients: Sequence[Tensor] = torch.autograd.grad(loss, weights)
    if shared:
        gradients = parallel.average(gradients)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = laid_out_like(weight, gradient)
    optimizer.step()


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, half_life: int, batch: int) -> None:
    """Exponential moving average of weights, after Karras et al. 2018 (arXiv:1710.10196, §A).

    half_life, batch: in images.
    """
    averages: list[Tensor] = list(average.parameters())
    news: list[Tensor] = list(network.parameters())
    torch._foreach_lerp_(averages, news, 1 - ema_decay(half_life, batch))


def ema_decay(half_life: int, batch: int) -> float:
    """The weight of the old average in one step: 1/2 over `half_life` images, 0 for 0 images."""
    return 0.5 ** (batch / half_life) if half_life else 0.0


def laid_out_like(weight: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory layout of `weight`, since fused Adam reads both as flat memory."""
    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)


def maybe_cuda_graph(
    step: Step, example: Sequence[Tensor], state: Callable[[], dict[str, Tensor]]
) -> Step:
    """Records `step` as a CUDA graph on a GPU. Returns `step` itself on other devices, where
    several processes share the batch, and with deterministic algorithms: some versions of torch
    cannot record all of these, such as `index_put_` that accumulates (pytorch/pytorch#105439).

    example: tensors with the shapes, types and device of the arguments of `step`. state: returns
    all tensors that the step changes, by name. Recording runs some steps and then restores them.
    """
    on_gpu = example[0].device.type == "cuda"
    if not on_gpu or parallel.processes() > 1 or torch.are_deterministic_algorithms_enabled():
        return step
    fixed = [tensor.clone() for tensor in example]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with untouched(state):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(*fixed)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            step(*fixed)

    def replay(*inputs: Tensor) -> None:
        torch._foreach_copy_(fixed, list(inputs))
        graph.replay()

    return replay


@contextlib.contextmanager
def untouched(state: Callable[[], dict[str, Tensor]]) -> Iterator[None]:
    """Puts the tensors of `state` back as they were before this block. Those that are new after it,
    which are Adam's moments, become zero, as they are before Adam's first step."""
    before = {name: tensor.clone() for name, tensor in state().items()}
    yield
    with torch.no_grad():
        for name, tensor in state().items():
            tensor.copy_(before[name]) if name in before else tensor.zero_()


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of `optimizer` by name, such as `g_adam.0.exp_avg`."""
    return {
        f"{name}.{index}.{key}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimizer_tensors(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`. Ignores other names in `tensors`.

    Raises ValueError if a moment is missing or fits no weight: torch's fused Adam would read and
    write outside of it.
    """
    weights = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        if path.startswith(f"{name}."):
            index, key = path.removeprefix(f"{name}.").split(".")
            weight = weights[int(index)]
            scalar = key == "step"
            if value.shape != (() if scalar else weight.shape) or not value.is_floating_point():
                raise ValueError(f"{path} is {value.dtype} of the shape {tuple(value.shape)}")
            moment = value if scalar else laid_out_like(weight, value)
            moments.setdefault(int(index), {})[key] = moment
    if any(each.keys() != ADAM for each in moments.values()):
        raise ValueError(f"moments of {name} are missing")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
