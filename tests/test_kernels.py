"""kernels.c against torch's operations in double precision."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from synth.ops import dispatch, kernels, layers, native

CPU = torch.device("cpu")
ROUNDING = 2**-8  # of bf16, relative


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native.native() is None:
        pytest.skip("no C compiler, so no kernels")


def random_map(*shape: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def random_norm(channels: int, seed: int) -> nn.BatchNorm2d:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    return norm


def in_double(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    copy = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum).double()
    copy.load_state_dict(norm.state_dict())
    return copy.train(norm.training)


def close(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    assert ours.shape == exact.shape
    scale = exact.abs().max().clamp_min(1e-6)
    assert float((ours.double() - exact).abs().max().detach() / scale.detach()) < tolerance


@settings(max_examples=40)
@given(
    batch=st.integers(1, 9),
    channels=st.sampled_from([1, 3, 16, 33, 64, 130]),
    half=st.integers(1, 5),
    slope=st.sampled_from([0.0, 0.2, 1.0]),
    pool=st.booleans(),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_norm_activation_pooling_and_their_gradients(
    batch: int, channels: int, half: int, slope: float, pool: bool, offset: float, seed: int
) -> None:
    norm = random_norm(channels, seed)
    exact = in_double(norm)
    x = random_map(batch, channels, 2 * half, 2 * half, seed=seed, offset=offset).requires_grad_()
    wide = x.detach().double().requires_grad_()
    assert dispatch.supports_fused_norm(x, norm)
    ours = kernels.norm_activate(x, norm, slope, pool)
    expected = F.leaky_relu(exact(wide), slope)
    expected = F.max_pool2d(expected, 2) if pool else expected
    close(ours, expected, ROUNDING)
    gradient = torch.randn_like(ours)
    ours_by = torch.autograd.grad(ours, [x, norm.weight, norm.bias], gradient)
    exact_by = torch.autograd.grad(expected, [wide, exact.weight, exact.bias], gradient.double())
    if not pool or slope > 0:  # a pixel at 0 within fp32's rounding may be cut by ReLU or not
        close(ours_by[0], exact_by[0], 2 * ROUNDING)
    for value, right in zip(ours_by[1:], exact_by[1:], strict=True):
        close(value, right, 1e-3)
    for name in ("running_mean", "running_var"):
        close(getattr(norm, name), getattr(exact, name), 1e-5)
    assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", [False, True])
def test_evaluation_mode_uses_running_statistics_and_leaves_them(pool: bool) -> None:
    norm = random_norm(48, 1).eval()
    exact, before = in_double(norm), {k: v.clone() for k, v in norm.state_dict().items()}
    x = random_map(4, 48, 8, 8)
    assert not dispatch.supports_fused_norm(x, norm)  # gradients would be lost
    with torch.no_grad():
        ours = kernels.norm_activate(x, norm, 0.0, pool)
        expected = F.relu(exact(x.double()))
    close(ours, F.max_pool2d(expected, 2) if pool else expected, ROUNDING)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    outcomes = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            x = random_map(16, 64, 16, 16).requires_grad_()
            norm = random_norm(64, 0)
            y = kernels.norm_activate(x, norm, 0.2, True)
            outcomes.append([y, *torch.autograd.grad(y.float().square().sum(), [x, norm.weight])])
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


def test_what_is_not_a_number_stays_so() -> None:
    x = random_map(4, 16, 4, 4)
    x[1, 3, 2, 2] = float("nan")
    for pool in (False, True):
        y = kernels.norm_activate(x, random_norm(16, 0), 0.0, pool)
        assert y[:, 3].isnan().all()
        assert y[:, :3].isfinite().all()


@settings(max_examples=40)
@given(
    batch=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 4, 64]),
    size=st.integers(2, 9),
    shape=st.sampled_from([(4, 2, 1), (3, 1, 1), (5, 2, 2), (4, 1, 0), (2, 2, 0)]),
)
def test_fold_adds_as_torch_does(
    batch: int, channels: int, size: int, shape: tuple[int, int, int]
) -> None:
    side, stride, padding = shape
    if size + 2 * padding < side:
        return
    lines = (size + 2 * padding - side) // stride + 1
    patches = torch.randn(batch * lines * lines, side * side * channels).bfloat16()
    bias = torch.randn(channels)
    # torch's columns are (channel, row, column), ours (row, column, channel)
    columns = patches.double().view(batch, -1, side * side, channels).transpose(2, 3).flatten(2)
    summed = F.fold(columns.transpose(1, 2), size, side, padding=padding, stride=stride)
    shape_of_map = batch, channels, size, size
    ours = kernels.fold(patches, bias, shape_of_map, side, stride, padding)
    close(ours, summed + bias.double()[:, None, None], ROUNDING)


@pytest.mark.parametrize("channels", [1, 3, 64, 130])
def test_sums_over_pixels(channels: int) -> None:
    x = random_map(9, channels, 7, 5, offset=3.0)
    close(kernels.sum_pixels(x), x.double().sum((0, 2, 3)), 1e-6)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_convolution_takes_its_activation_along(slope: float) -> None:
    torch.manual_seed(0)
    convolution = layers.Conv2d(4, 64, 4, 2, 1)
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    x = torch.randn(8, 4, 32, 32)
    outcomes = []
    for network in (layers.Sequential(convolution, activation), convolution):
        wide = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = network(wide)
        if network is convolution:
            y = activation(y)
        loss = (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
        outcomes.append([y, *torch.autograd.grad(loss, [wide, *convolution.parameters()])])
    for ours, plain in zip(*outcomes, strict=True):
        close(ours, plain.double(), 2 * ROUNDING)


def test_without_a_compiler_the_layers_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = layers.Sequential(
        layers.Conv2d(3, 64, 4, 2, 1),
        nn.LeakyReLU(0.2),
        layers.Conv2d(64, 128, 4, 2, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.MaxPool2d(2),
        layers.ConvTranspose2d(128, 3, 4, 2, 1),
    )
    x = torch.randn(8, 3, 32, 32)
    weights = list(network.parameters())

    def outcome() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = network(x)
        return [y, *torch.autograd.grad(y.float().square().mean(), weights)]

    fused = outcome()
    for module in (native, dispatch):  # a call of a kernel would now raise
        monkeypatch.setattr(module, "native", lambda: None)
    for ours, plain in zip(fused, outcome(), strict=True):
        ours, plain = ours.detach().double(), plain.detach().double()
        assert float((ours - plain).norm() / plain.norm()) < 0.02


def test_without_a_library_a_kernel_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native", lambda: None)
    with pytest.raises(RuntimeError, match="no compiled library"):
        kernels.sum_pixels(random_map(1, 3, 2, 2))


@pytest.mark.usefixtures("renewed")
def test_a_broken_compiler_means_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("/nonexistent/cc", "false", "/nonexistent/ccache cc"):
        monkeypatch.setenv("CC", compiler)
        assert fresh() is None
    assert "need a C compiler (/nonexistent/ccache cc fails)" in native.describe_kernels(
        CPU, "bf16"
    )


# The library on disk


def fresh() -> ctypes.CDLL | None:
    """The library as a new process finds it."""
    for known in (native.native, native.compiler_version):
        known.cache_clear()
    return native.native()


@pytest.fixture
def renewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests get the usual library again."""
    yield
    monkeypatch.undo()
    fresh()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renewed: None) -> Path:
    """A new cache folder, with the library that was compiled into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fresh() is not None
    return tmp_path / "synth"


def test_the_library_is_kept_for_its_user_alone(cache: Path) -> None:
    (path,) = cache.glob("kernels-*.so")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.stat().st_mtime_ns
    assert fresh() is not None
    assert path.stat().st_mtime_ns == written
    assert "kernels of synth, with" in native.describe_kernels(CPU, "bf16")
    assert "kernels of torch" in native.describe_kernels(CPU, "fp32")


@pytest.mark.parametrize("how", ["damaged", "cut", "writable", "link", "pipe", "other user"])
def test_a_library_that_may_be_another_is_compiled_again(
    how: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = cache.glob("kernels-*.so")
    whole = path.read_bytes()
    if how == "damaged":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif how == "cut":
        path.write_bytes(whole[:1000])
    elif how == "writable":
        path.chmod(0o666)
    elif how == "link":
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises((OSError, ValueError)):
        native._load(path)
    if how != "other user":
        assert fresh() is not None
        (path,) = cache.glob("kernels-*.so")
        assert native._load(path) is not None


def test_a_cache_that_cannot_be_used_costs_time_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in cache.iterdir():
        path.unlink()
    cache.rmdir()
    cache.touch()
    assert fresh() is not None


def test_the_compiler_may_be_several_words(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "env LC_ALL=C cc")
    assert fresh() is not None


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it started."""
    script = tmp_path / "cc"
    script.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/pid\nsleep 1000\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(native, "PATIENCE", 1.0)
    start = time.monotonic()
    assert fresh() is None
    assert time.monotonic() - start < 30
    child = Path("/proc") / (tmp_path / "pid").read_text().strip()
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        time.sleep(0.1)
        assert time.monotonic() - start < 30
