"""Data-parallel training: two processes, as torchrun starts them, equal one process."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synth.base.errors import UsageError
from synth.base.files import read_json
from synth.checkpoints import load_tensors, save_tensors
from synth.data import DIGITS, ImageSet, load_training_images
from synth.data.house_numbers import render
from synth.flow import FlowRecipe
from synth.gan import GANTrainer
from synth.ops import parallel
from synth.recipes import RecipeBase, override
from synth.runs import Run
from synth.training import check_shares, train_run
from tests.conftest import ROOT, Ran, config_of, tiny
from tests.world import as_torchrun, free_port

LIKE_V2 = (
    "discriminator.label=dual-projection",
    *("training.balanced=true", "training.class_weight=1.0"),
    "training.augment_both=digits-v1",
)
OTHER_LOSSES = (
    *("training.mismatch=true", "training.feature_matching=1.0"),
    *("training.fakes=new", "training.discriminator_steps=separate"),
    "training.augment_real=geometry-v1",
)
# An activation without a kink: where a value is near 0, rounding decides which slope it gets, and
# Adam turns the difference of small gradients into whole steps. One process does the same if the
# images of its batches are in another order.
SMOOTH = ("generator.activation=none", "generator.stem_activation=none", "discriminator.slope=1.0")
CPU = torch.device("cpu")
TWO_GPUS = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
    ],
)
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
FLOW = FlowRecipe(
    name="tiny-flow", citation="", conditional=True, widths=(16,), condition_size=8, batch_size=16
)


def kinds(precise: bool) -> dict[str, tuple[RecipeBase, int]]:
    """Recipes that must train alike in any number of processes, and for how many steps.

    precise: in float64.
    """
    conditional, unconditional = tiny("tiny", True), tiny("tiny-uncond", False)
    if precise:
        return {
            "cdcgan": (conditional, 50),
            "cdcgan-v2": (override(conditional, *LIKE_V2), 50),
            "dcgan": (unconditional, 50),
            "other-losses": (override(conditional, *OTHER_LOSSES), 10),
        }
    policy = "training.augment_both=geometry-v1"  # brightness has a kink, where it is cut off
    smooth = override(conditional, *SMOOTH, *LIKE_V2[:-1], policy)
    return {"smooth": (smooth, 50), "flow": (FLOW, 10)}


def train_all(folder: Path, device: torch.device) -> None:
    """Trains recipes of all kinds, in this process or in those that it works with. On GPUs all is
    in float64, for their products of float32 are rounded more."""
    images, labels = render("train", 200)
    real = ImageSet(images, labels, DIGITS, "drawn", "train")
    for precise in (False, True) if device == CPU else (True,):
        if precise:  # all tensors of the training, with the losses
            torch.set_default_dtype(torch.float64)
            torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
        for name, (recipe, steps) in kinds(precise).items():
            config = config_of(recipe, real)  # type: ignore[arg-type]
            trainer = config.family.make_trainer(config, real, None, device)
            for _ in range(steps):
                trainer.step()
            log = torch.tensor(list(trainer.log_values().values()))
            if parallel.is_first():
                save_tensors(folder / f"{name}.safetensors", {**trainer.state(), "log": log}, {})


@pytest.mark.parametrize("device", ["cpu", TWO_GPUS])
def test_two_processes_train_as_one_does(tmp_path: Path, device: str) -> None:
    subprocess.run([sys.executable, __file__, tmp_path, device], env=ENVIRONMENT, check=True)
    for precise in (False, True) if device == "cpu" else (True,):
        for name in kinds(precise):
            alone, shared = (
                load_tensors(tmp_path / count / f"{name}.safetensors")[0] for count in "12"
            )
            assert alone.keys() == shared.keys()
            for key, expected in alone.items():
                difference = (shared[key] - expected).double().norm()
                error = float(difference / (expected.double().norm() + 1e-9))
                assert error < (1e-9 if precise else 1e-3), f"{name}: {key} is off by {error:.1e}"


def as_processes(mats: Path, commands: list[list[str]]) -> None:
    """Runs the processes that torchrun would start. Writes `0.out`, `0.err`, `1.out` and so on."""
    told = {"SYNTH_DATA": str(mats), "SYNTH_TEST_COMMANDS": json.dumps(commands)}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.world"],
        env={**ENVIRONMENT, **told, "SYNTH_TEST_TORCHRUN": "1"},
        cwd=mats.parent,
        capture_output=True,
        check=True,
    )
    errors = "".join(path.read_text() for path in sorted(mats.parent.glob("*.err")))
    assert json.loads(ran.stdout)[1] == [0] * len(commands), errors


def test_two_processes_resume_a_run_and_the_first_one_writes(
    mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = mats.parent, load_training_images("svhn", mats)
    recipe = override(tiny("tiny", True), *SMOOTH)
    config = config_of(recipe, real, total_images=480)
    whole, shared = (Run.create(folder / name, config, {}) for name in ("alone", "runs"))
    train_run(whole, real, CPU)
    step, calls = GANTrainer.step, itertools.count()

    def dying(self: GANTrainer) -> None:
        if next(calls) == 15:
            raise RuntimeError("killed")
        step(self)

    monkeypatch.setattr(GANTrainer, "step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train_run(shared, real, CPU)
    as_processes(mats, [["train", "--resume", "--device", "cpu"]] * 2)
    assert (folder / "0.out").read_text() == f"runs/{shared.folder.name}\n"
    assert (folder / "1.out").read_text() == (folder / "1.err").read_text() == ""
    assert shared.finished()
    assert [line["images"] for line in shared.read_log()] == [160, 320, 480]
    (resumed,) = read_json(shared.folder / "environment.json")["resumed"]
    assert (resumed["images"], resumed["processes"]) == (160, 2)
    expected, state = (load_tensors(run.state)[0] for run in (whole, shared))
    for key in expected:
        torch.testing.assert_close(state[key], expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("tiny_names")
def test_a_set_is_the_same_from_any_number_of_processes(
    synth: Callable[..., Ran], mats: Path
) -> None:
    """Three processes share ten classes."""
    train = ("--recipe", "tiny", "--images", "64", "--precision", "fp32", "--data-root", mats)
    assert synth("train", *train, "--device", "cpu").code == 0
    words = ["generate", "--per-class", "260", "--augment", "digits-v1", "--device", "cpu"]
    assert synth(*words).code == 0
    as_processes(mats, [words] * 3)
    alone, shared = (
        read_json(path) for path in sorted((mats.parent / "datasets").glob("*/*.json"))
    )
    assert shared.pop("environment")["processes"] == 3
    del alone["environment"]
    for manifest in (alone, shared):
        del manifest["command"], manifest["commit"]  # somebody may commit meanwhile
    assert shared == alone
    assert [path for path in (mats.parent / "datasets").iterdir() if "partial" in path.name] == []


def test_processes_that_cannot_share_a_run_are_told_so() -> None:
    check_shares(FLOW, 4)
    with pytest.raises(UsageError, match="3 processes cannot share batches of 16 images"):
        check_shares(FLOW, 3)


if __name__ == "__main__":
    folder, device, port = Path(sys.argv[1]), torch.device(sys.argv[2]), free_port()
    children = [os.fork()]
    if children[0]:
        children.append(os.fork())
    if 0 in children:
        as_torchrun(len(children) - 1, 2, port)
        with parallel.joined(device):
            train_all(folder / "2", device)
        os._exit(0)
    train_all(folder / "1", device)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))
