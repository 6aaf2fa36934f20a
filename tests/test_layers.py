"""The fast layers against torch's own: outputs, gradients, and training that stays the same."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from eval.classifier_training import shuffled_batches, train_classifier
from eval.classifiers import FixedClassifier
from eval.protocols import Protocol
from synth.base.errors import UsageError
from synth.batches import draw_batches
from synth.data import ImageSet, unit_from_uint8
from synth.ops import dispatch, layers
from synth.ops.probe import choose_precision
from synth.ops.tiles import Geometry
from synth.published import RECIPES
from synth.recipes import Recipe
from tests.conftest import make_trainer, needs_bf16, tiny

CPU = torch.device("cpu")


def error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).norm() / reference.norm().clamp_min(1e-12))


def compare(ours: object, reference: object, tensors: list[Tensor], bound: float) -> None:
    """Output and all gradients of two functions of the same tensors; the reference in fp64."""
    mine = [t.clone().requires_grad_() for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]
    got, expected = ours(*mine), reference(*exact)  # type: ignore[operator]
    assert got.shape == expected.shape
    assert error(got.detach(), expected.detach()) < bound
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours_by = torch.autograd.grad(got, mine, direction.to(got.dtype))
    exact_by = torch.autograd.grad(expected, exact, direction.to(got.dtype).double())
    for value, right in zip(ours_by, exact_by, strict=True):
        assert error(value, right) < bound


@settings(max_examples=30)
@given(
    channels=st.sampled_from([1, 3, 4, 130]),
    outputs=st.integers(1, 9),
    size=st.integers(4, 9),
    shape=st.sampled_from([(4, 2, 1), (3, 1, 1), (5, 2, 2), (4, 1, 0)]),
    seed=st.integers(0, 9),
)
def test_convolution_and_its_gradients(
    channels: int, outputs: int, size: int, shape: tuple[int, int, int], seed: int
) -> None:
    side, stride, padding = shape
    if (size + 2 * padding - side) < 0:
        return
    torch.manual_seed(seed)
    x = torch.randn(2, channels, size, size)
    weight = torch.randn(outputs, channels, side, side) / (side * channels**0.5)
    compare(
        lambda x, w, b: dispatch.Convolution.apply(x, w, b, Geometry(stride, padding), None),
        lambda x, w, b: F.conv2d(x, w, b, stride, padding),
        [x, weight, torch.randn(outputs)],
        1e-5,
    )


@settings(max_examples=30)
@given(
    channels=st.sampled_from([1, 3, 130]),
    inputs=st.integers(1, 9),
    size=st.integers(2, 6),
    kernel=st.sampled_from([4, 5]),
    seed=st.integers(0, 9),
)
def test_transposed_convolution_and_its_gradients(
    channels: int, inputs: int, size: int, kernel: int, seed: int
) -> None:
    torch.manual_seed(seed)
    padding, extra = (kernel - 1) // 2, kernel % 2
    weight = torch.randn(inputs, channels, kernel, kernel) / (kernel * inputs**0.5)
    compare(
        lambda x, w, b: dispatch.Convolution.apply(x, w, b, Geometry(2, padding, extra), None),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, padding, extra),
        [torch.randn(2, inputs, size, size), weight, torch.randn(channels)],
        1e-5,
    )


@pytest.mark.parametrize(
    ("fast", "size"),
    [
        (layers.Conv2d(4, 64, 4, 2, 1), 32),
        (layers.Conv2d(128, 256, 4, 2, 1, bias=False), 8),
        (layers.Conv2d(64, 96, 5, 2, 2), 16),
        (layers.Conv2d(64, 64, 3, 1, 1), 8),
        (layers.Conv2d(256, 1, 4), 4),
        (layers.ConvTranspose2d(105, 256, 4, bias=False), 1),
        (layers.ConvTranspose2d(256, 128, 4, 2, 1, bias=False), 4),
        (layers.ConvTranspose2d(64, 3, 4, 2, 1), 16),
        (layers.ConvTranspose2d(32, 16, 5, 2, 2, output_padding=1), 8),
        (layers.ConvTranspose2d(96, 64, 5, 2, 2, output_padding=1), 8),
    ],
)
def test_layers_under_autocast_agree_with_torchs(fast: nn.Module, size: int) -> None:
    torch.manual_seed(0)
    kind = nn.Conv2d if isinstance(fast, nn.Conv2d) else nn.ConvTranspose2d
    x = torch.randn(8, fast.in_channels, size, size)  # type: ignore[arg-type]
    names = [name for name, _ in fast.named_parameters()]

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            given = dict(zip(names, parameters, strict=True))
            output: Tensor = torch.func.functional_call(fast, given, (x,))
        assert output.dtype == torch.bfloat16
        return output

    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        output: Tensor = torch.func.functional_call(fast, given, (x,))  # no autocast: torch's own
        return output

    assert isinstance(fast, kind)
    compare(ours, plain, [x, *(p.detach() for p in fast.parameters())], 1e-2)


def test_pooling_before_relu_changes_nothing() -> None:
    """Against the definition, written out: the largest of four rectified values."""
    torch.manual_seed(0)
    classifier = FixedClassifier()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # of both signs
            nn.init.normal_(module.bias)
    images = torch.rand(16, 3, 32, 32)
    x, layers = images, list(classifier.features)
    for conv, norm in zip(layers[::4], layers[1::4], strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + norm.eps).sqrt()
        x = (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    order: list[str] = []
    for layer in classifier.features:
        layer.register_forward_hook(lambda layer, *_: order.append(type(layer).__name__))
    torch.testing.assert_close(classifier.features(images), x, rtol=1e-4, atol=1e-5)
    assert order == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 3


def test_bf16_training_follows_fp32_over_50_steps(drawn: ImageSet) -> None:
    """The losses of the fast path drift from plain fp32 no more than rounding makes them."""
    cdcgan = RECIPES["cdcgan"]
    assert isinstance(cdcgan, Recipe)
    recipe = replace(tiny("tiny", True), training=replace(cdcgan.training, batch=64))
    fast, plain = (make_trainer(recipe, drawn, precision=kind) for kind in ("bf16", "fp32"))
    for batch in itertools.islice(draw_batches(recipe, drawn, 0, CPU), 50):
        fast.update(batch)
        plain.update(batch)
    torch.testing.assert_close(fast.sums / 50, plain.sums / 50, rtol=0.03, atol=0.01)


@needs_bf16
def test_bf16_classifier_learns_what_fp32_learns(drawn: ImageSet) -> None:
    labels = drawn.require_labels()
    accuracies = []
    for precision in ("fp32", "bf16"):
        protocol = Protocol("p", "disk", 60, 64, 1)
        batches = shuffled_batches(drawn.images, labels, protocol.batch, 0, CPU)
        classifier = train_classifier(protocol, batches, 10, 0, CPU, precision)
        predicted = classifier(unit_from_uint8(drawn.images)).argmax(1)
        accuracies.append(float((predicted == labels).float().mean()))
    assert min(accuracies) > 0.6
    assert abs(accuracies[0] - accuracies[1]) < 0.1


@pytest.fixture(autouse=True)
def empty_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No probe is remembered from elsewhere."""
    monkeypatch.setattr("synth.ops.probe.cache_folder", lambda: tmp_path)


def probe(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> tuple[str, str]:
    """`choose_precision` on steps that take so long by a clock of its own; uses all of them up."""
    clock = [0.0]
    monkeypatch.setattr("synth.ops.probe.has_bf16", lambda device: True)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def prepare(precision: str) -> Callable[[], None]:
        def step() -> None:
            clock[0] += seconds[precision].pop(0)

        return step

    chosen = choose_precision("auto", prepare, CPU, "work")
    assert not any(seconds.values())
    return chosen


def test_the_probe_chooses_the_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fp32": [3.0, 0.5, 0.4, 0.6], "bf16": [1.5, 0.3, 0.2, 0.25]}
    expected = "bf16", "a step in a short probe took fp32 400 ms, bf16 200 ms"
    assert probe(monkeypatch, seconds) == expected


@pytest.mark.parametrize("best", [0.3, 0.5])
def test_the_probe_takes_one_step_where_bf16_is_emulated(
    monkeypatch: pytest.MonkeyPatch, best: float
) -> None:
    seconds = {"fp32": [3.0, best, 1.0, 0.6], "bf16": [4.1 * best]}
    chosen, reason = probe(monkeypatch, seconds)
    assert chosen == "fp32"
    assert reason.endswith(f"bf16 {4100 * best:g} ms (its first step, and the only one)")


def test_the_probe_is_patient_while_bf16_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"fp32": [0.2, 0.01, 0.01, 0.01], "bf16": [0.9, 0.005, 0.005, 0.005]}
    assert probe(monkeypatch, seconds)[0] == "bf16"


def test_nothing_is_timed_on_a_processor_that_emulates_bf16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("synth.ops.probe.has_bf16", lambda device: False)
    chosen, reason = choose_precision("auto", lambda name: 1 / 0, CPU, "work")  # type: ignore
    assert (chosen, list(tmp_path.iterdir())) == ("fp32", [])
    assert "emulates bf16" in reason
    for precision, told in (("fp32", "as asked"), ("bf16", f"as asked, but {reason}")):
        assert choose_precision(precision, lambda name: 1 / 0, CPU, "") == (  # type: ignore
            precision,
            told,
        )


def test_the_probe_is_left_out_where_a_precision_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("synth.ops.probe.has_bf16", lambda device: True)
    for precision in ("fp32", "bf16"):
        assert choose_precision(precision, lambda name: 1 / 0, CPU, "") == (  # type: ignore
            precision,
            "as asked",
        )
    with pytest.raises(UsageError, match="choose auto, fp32 or bf16"):
        choose_precision("fp16", lambda name: 1 / 0, CPU, "")  # type: ignore


def test_a_probe_is_remembered_for_the_same_work_on_the_same_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = {"fp32": [3.0, 0.5, 0.4, 0.6], "bf16": [1.5, 0.3, 0.2, 0.25]}
    chosen, reason = probe(monkeypatch, slow)
    (path,) = tmp_path.glob("probes/*.json")
    again = choose_precision("auto", lambda name: 1 / 0, CPU, "work")  # type: ignore
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    assert again == (chosen, f"{reason} (remembered from {today})")
    for name, value in (("ATEN_CPU_CAPABILITY", "avx2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setenv(name, value)
            choose_precision("auto", lambda name: 1 / 0, CPU, "work")  # type: ignore
    with pytest.raises(ZeroDivisionError):
        choose_precision("auto", lambda name: 1 / 0, CPU, "other work")  # type: ignore
    for damaged in ("", "{}", '{"precision": "fp16", "found": "", "date": ""}'):
        path.write_text(damaged)
        fast = {"fp32": [0.1] * 4, "bf16": [0.2] * 4}
        assert probe(monkeypatch, fast)[0] == "fp32"
        assert json.loads(path.read_text())["precision"] == "fp32"


def test_a_cache_that_cannot_be_written_costs_the_time_to_probe_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "probes").write_text("a file")
    for _ in range(2):
        assert probe(monkeypatch, {"fp32": [0.1] * 4, "bf16": [0.2] * 4})[0] == "fp32"
