"""The path of a GPU, as `make gpu-check` tests it first. Without a CUDA device it is skipped.

The tests run on the CPU too, where most of them say little, so that they do not rot.

`python -m tests.test_gpu DEVICE FOLDER` is the work of one test. Deterministic algorithms are a
setting of a whole process, which must ask for them before its first product.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.classifier_training import predict, shuffled_batches, train_classifier
from eval.protocols import Protocol
from synth.batches import draw_batches
from synth.checkpoints import load_tensors, save_tensors
from synth.data import DIGITS, ImageSet
from synth.data.house_numbers import render
from synth.environment import make_deterministic
from synth.flow import FlowTrainer
from synth.gan import GANSampler, GANTrainer
from synth.generation import generate
from synth.networks import build
from synth.published import RECIPES
from synth.recipes import override
from tests.conftest import ROOT, config_of, make_trainer, tiny
from tests.test_parallel import FLOW, LIKE_V2, OTHER_LOSSES

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
# Where a processor emulates bf16 a step takes 30 times as long.
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}
TINY = tiny("tiny", True)
PROTOCOL = Protocol("few", "disk", steps=10, batch=64, seeds=1, schedule="one-cycle")
on_each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


@on_each_device
@pytest.mark.parametrize("changes", [(), LIKE_V2, OTHER_LOSSES], ids=["cdcgan", "v2", "others"])
def test_recorded_steps_equal_plain_ones(
    drawn: ImageSet, changes: tuple[str, ...], device: str
) -> None:
    recipe = override(TINY, *changes)
    for precision in PRECISIONS[device]:
        plain, recorded = (
            make_trainer(recipe, drawn, device, precision=precision) for _ in range(2)
        )
        for batch in itertools.islice(draw_batches(recipe, drawn, 0, torch.device(device)), 20):
            plain.update(batch)
            recorded.step()
        assert plain.sums.isfinite().all()
        close = 1e-3 if precision == "fp32" else 2e-2
        torch.testing.assert_close(plain.sums, recorded.sums, rtol=close, atol=close)


@on_each_device
def test_recorded_steps_of_a_flow_equal_plain_ones(drawn: ImageSet, device: str) -> None:
    config = config_of(FLOW, drawn)  # type: ignore[arg-type]
    plain, recorded = (FlowTrainer(config, drawn, None, torch.device(device)) for _ in range(2))
    for batch in itertools.islice(plain._draw(0), 20):
        plain.update(*batch)
        recorded.step()
    torch.testing.assert_close(plain.loss, recorded.loss, rtol=1e-3, atol=1e-3)


@on_each_device
def test_images_are_those_of_the_cpu_within_rounding(device: str) -> None:
    generator = build(RECIPES["cdcgan"], 10, 0)[0].eval().requires_grad_(False)
    here = generate(GANSampler(generator), 2, 60, seed=1).images
    there = generate(GANSampler(generator.to(device)), 2, 60, seed=1).images
    assert np.abs(here.astype(int) - there).max() <= 2


@on_each_device
def test_a_classifier_is_that_of_the_cpu_within_rounding(
    drawn: ImageSet, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Its learning rate changes between the steps of a graph."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, there = (predict(classifier_of(drawn, where), drawn.images) for where in ("cpu", device))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-2)


def classifier_of(images: ImageSet, device: str) -> torch.nn.Module:
    where, labels = torch.device(device), images.require_labels()
    batches = shuffled_batches(images.images, labels, PROTOCOL.batch, 0, where)
    return train_classifier(PROTOCOL, batches, 10, 0, where)


@on_each_device
def test_deterministic_work_is_the_same_bit_for_bit(tmp_path: Path, device: str) -> None:
    command = [sys.executable, "-m", "tests.test_gpu", device, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def work_deterministically(device: str, folder: Path) -> None:
    make_deterministic()
    pixels, labels = render("train", 200)
    images = ImageSet(pixels, labels, DIGITS, "drawn", "train")
    for precision in PRECISIONS[device]:
        for changes in ((), LIKE_V2):
            trainers = [
                make_trainer(override(TINY, *changes), images, device, precision=precision)
                for _ in range(3)
            ]
            check_that_a_run_resumes(*trainers, folder / "state.safetensors")
        check_that_a_larger_set_begins_with_the_smaller(device, precision)
    once, again = (classifier_of(images, device).state_dict() for _ in range(2))
    check_equal(once, again)


def check_that_a_run_resumes(
    whole: GANTrainer, killed: GANTrainer, resumed: GANTrainer, path: Path
) -> None:
    for trainer, steps in ((whole, 20), (killed, 10)):
        for _ in range(steps):
            trainer.step()
    save_tensors(path, killed.state(), {})
    resumed.load_state(load_tensors(path)[0], 10)
    for _ in range(10):
        resumed.step()
    check_equal(whole.state(), resumed.state())


def check_that_a_larger_set_begins_with_the_smaller(device: str, precision: str) -> None:
    generator = build(RECIPES["cdcgan"], 10, 0)[0].eval().requires_grad_(False).to(device)
    few, more = (
        generate(GANSampler(generator, precision), 2, count, seed=1).images for count in (100, 300)
    )
    assert np.array_equal(few, np.concatenate([more[:100], more[300:400]]))


def check_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, such as {different[0]}"


if __name__ == "__main__":
    work_deterministically(sys.argv[1], Path(sys.argv[2]))
