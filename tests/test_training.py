"""The one loop: against a plain loop, through a kill, through Ctrl-C, through bad numbers."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from synth import training
from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.batches import draw_batches, draw_latents, torch_random
from synth.checkpoints import load_tensors
from synth.data import ImageSet
from synth.flow import FlowRecipe
from synth.gan import GANSampler, GANTrainer
from synth.networks import build
from synth.ops.acceleration import Step, ema_decay, optimizer_step, untouched
from synth.ops.native import describe_kernels
from synth.published import RECIPES
from synth.recipes import Recipe, override
from synth.runs import Run, load_generator, open_run
from synth.set_generation import describe_provenance, generate_set
from synth.training import Interrupted, train_run
from tests.conftest import config_of, make_trainer, tiny

CPU = torch.device("cpu")
FLOW = FlowRecipe(name="flow", citation="", conditional=True, widths=(8,), condition_size=8)
State = Callable[[], dict[str, torch.Tensor]]


def make_run(root: Path, images: ImageSet, recipe: Recipe, length: int, **changes: object) -> Run:
    return Run.create(root, config_of(recipe, images, total_images=length, **changes), {})


@pytest.mark.parametrize(
    ("loss", "steps", "fakes", "half_life"),
    [
        ("mean", "joint", "shared", 10_000),
        ("sum", "joint", "new", 0),
        ("mean", "separate", "new", 0),
    ],
    ids=["cdcgan", "shahrullo", "keras"],
)
def test_step_equals_a_plain_loop(
    drawn: ImageSet, loss: str, steps: str, fakes: str, half_life: int
) -> None:
    """Ten steps of cdcgan's networks against a loop written the way people write it; in float64,
    since rounding grows in a GAN with every step. Losses are taken in float32, as in the step:
    Adam turns a rounded gradient near 0 into a whole step of either sign."""
    changed = replace(
        RECIPES["cdcgan"].training,
        batch=16,
        discriminator_loss=loss,  # type: ignore[arg-type]
        discriminator_steps=steps,  # type: ignore[arg-type]
        fakes=fakes,  # type: ignore[arg-type]
        ema_half_life=half_life,
    )
    recipe = replace(RECIPES["cdcgan"], training=changed)
    fast = make_trainer(recipe, drawn, seed=3)
    for network in (fast.generator, fast.discriminator, fast.generator_ema):
        network.double()
    generator, discriminator = (network.double() for network in build(recipe, 10, 3))
    g_adam = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.5, 0.999))
    d_adam = torch.optim.Adam(discriminator.parameters(), 2e-4, betas=(0.5, 0.999))
    average = [p.detach().clone() for p in generator.parameters()]
    for batch in itertools.islice(draw_batches(recipe, drawn, 3, CPU), 10):
        fast.sums.zero_()
        batch = batch._replace(
            latent=batch.latent.double(), second_latent=batch.second_latent.double()
        )
        fast.update(batch)

        real = (batch.images / 127.5 - 1).double()
        fake = generator(batch.latent, batch.labels)
        real_logits = discriminator(real, batch.labels).float()
        on_real = bce(real_logits, torch.ones(16))
        if steps == "separate":
            d_adam.zero_grad()
            on_real.backward()
            d_adam.step()
        fake_logits = discriminator(fake.detach(), batch.labels).float()
        on_fake = bce(fake_logits, torch.zeros(16))
        d_loss = on_real + on_fake if loss == "sum" else (on_real + on_fake) / 2
        d_adam.zero_grad()
        (on_fake if steps == "separate" else d_loss).backward()
        d_adam.step()
        if fakes == "new":
            fake = generator(batch.second_latent, batch.labels)
        g_loss = bce(discriminator(fake, batch.labels).float(), torch.ones(16))
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        for mean, weight in zip(average, generator.parameters(), strict=True):
            keep = 0.5 ** (16 / half_life) if half_life else 0
            mean.mul_(keep).add_(weight.detach(), alpha=1 - keep)

        plain = [d_loss, g_loss, real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()]
        plain += [d_loss**2, g_loss**2]
        expected = torch.stack(plain).detach().float()
        torch.testing.assert_close(fast.sums, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(fast.generator_ema.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_heldout_loss_is_that_of_both_networks_in_evaluation(
    drawn: ImageSet, reduction: str
) -> None:
    """Of images that are all alike no draw matters; written with torch's own cross-entropy."""
    recipe = tiny("tiny", True)
    training = replace(recipe.training, discriminator_loss=reduction)  # type: ignore[arg-type]
    both = make_trainer(replace(recipe, training=training), drawn)
    labels = torch.full((9,), 3)
    alike = replace(drawn, images=drawn.images[:1].repeat(9, 1, 1, 1), labels=labels)
    seen: list[tuple[bool, torch.Tensor]] = []
    both.discriminator.register_forward_hook(lambda d, _, logits: seen.append((d.training, logits)))
    both.generator.register_forward_hook(lambda g, _, images: seen.append((g.training, images)))
    before = {key: value.clone() for key, value in both.state().items()}
    loss = both.loss_on(alike, 50)
    assert [training for training, _ in seen] == [False, False, False]
    assert all(torch.equal(value, before[key]) for key, value in both.state().items())
    assert both.generator.training
    assert both.discriminator.training
    on_real, fakes, on_fake = (value for _, value in seen)
    assert len(on_real) == len(fakes) == recipe.training.batch
    both.discriminator.eval()
    real = (drawn.images[:1] / 127.5 - 1).expand(16, -1, -1, -1)
    torch.testing.assert_close(on_real, both.discriminator(real, torch.full((16,), 3)))
    halves = bce(on_real, torch.ones(16)) + bce(on_fake, torch.zeros(16))
    assert loss == pytest.approx(float(halves) / (2 if reduction == "mean" else 1))
    assert loss != both.loss_on(drawn, 50)


@pytest.mark.parametrize(("kind", "spread"), [("normal", 1.0), ("uniform", 3**-0.5)])
def test_latents_have_their_distribution_in_training_and_in_sampling(
    kind: str, spread: float
) -> None:
    recipe = replace(RECIPES["cdcgan"].generator, latent_distribution=kind)  # type: ignore[arg-type]
    generator, _ = build(replace(RECIPES["cdcgan"], generator=recipe), 10, 0)
    drawn = draw_latents(recipe, (2, 500), torch_random(0, "test", 0)).numpy()
    for latents in (drawn, GANSampler(generator).latents(1000, np.random.default_rng(0))):
        assert latents.mean() == pytest.approx(0, abs=0.01)
        assert latents.std() == pytest.approx(spread, rel=0.01)
        assert (np.abs(latents).max() < 1) == (kind == "uniform")


@given(st.integers(1, 500_000), st.integers(1, 1024))
def test_average_keeps_a_half_after_its_half_life(half_life: int, batch: int) -> None:
    keep = ema_decay(half_life, batch)
    assert keep ** (half_life / batch) == pytest.approx(0.5)
    assert ema_decay(0, batch) == 0


def test_norm_statistics_of_the_averaged_generator_are_its_own(drawn: ImageSet) -> None:
    """Running statistics must be those of the averaged weights' activations: they are measured
    here on fresh latents, and the trained generator's own do not fit."""
    recipe = tiny("tiny", True)
    recipe = replace(recipe, training=replace(recipe.training, ema_half_life=2_000, batch=64))
    both = make_trainer(recipe, drawn)
    for batch in itertools.islice(draw_batches(recipe, drawn, 0, CPU), 60):
        both.update(batch)
    sampler = both.sampler().generator
    naive = deepcopy(both.generator_ema)
    for copied, trained in zip(naive.buffers(), both.generator.buffers(), strict=True):
        copied.copy_(trained)

    def misfit(generator: nn.Module) -> float:
        """Largest distance of a norm's output from mean 0 and variance 1, before gamma, beta."""
        worst: list[float] = []

        def look(module: nn.BatchNorm2d, inputs: tuple[torch.Tensor], output: object) -> None:
            x = inputs[0]
            assert module.running_mean is not None
            assert module.running_var is not None
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            scale = module.running_var.sqrt()
            worst.append(float(((mean - module.running_mean) / scale).abs().max()))
            worst.append(float((variance / module.running_var - 1).abs().max()))

        hooks = [
            m.register_forward_hook(look)
            for m in generator.modules()
            if isinstance(m, nn.BatchNorm2d)
        ]
        latent = torch.randn(4000, 8, generator=torch.Generator().manual_seed(9))
        assert drawn.labels is not None
        labels = drawn.labels[torch.arange(4000) % len(drawn)]
        with torch.no_grad():
            generator.eval()(latent, labels)
        for hook in hooks:
            hook.remove()
        return max(worst)

    assert misfit(sampler) < 0.15
    assert misfit(naive) > 2 * misfit(sampler)


@settings(max_examples=20)
@given(st.integers(16, 90), st.integers(0, 150))
def test_each_pass_shows_each_image_once_from_any_step(count: int, first: int) -> None:
    recipe = tiny("tiny", False)
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
    images = ImageSet(pixels, None, ("0",), "numbered", "train")
    per_pass = count // 16
    batches = itertools.islice(draw_batches(recipe, images, 0, CPU, 0), 200)
    shown = [b.images[:, 0, 0, 0].tolist() for b in batches]
    for start in range(0, 200 - per_pass, per_pass):
        seen = list(itertools.chain(*shown[start : start + per_pass]))
        assert len(set(seen)) == len(seen) == per_pass * 16
    late = next(draw_batches(recipe, images, 0, CPU, first))
    assert late.images[:, 0, 0, 0].tolist() == shown[first]


def test_run_folder_holds_what_the_design_says(tmp_path: Path, drawn: ImageSet) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 2016, images_per_tick=1008)
    train_run(run, drawn, CPU)
    assert run.folder.name == "00000-drawn-tiny-cond-seed0"
    assert run.finished()
    assert [line["images"] for line in run.read_log()] == [1008, 2016]
    for line in run.read_log():
        assert 0 < line["d_real"] < 1
        assert 0 < line["d_fake"] < 1
        assert line["images_per_second"] > 0
    grids = sorted(path.name for path in (run.folder / "samples").iterdir())
    assert grids == ["0000001k.png", "0000002k.png"]
    assert (run.folder / "losses.png").stat().st_size > 1000
    assert open_run(run.folder).config == run.config


def test_a_tick_logs_its_speed_and_the_bar_its_images(
    tmp_path: Path,
    drawn: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a clock that moves a second at each look. The last batch is more than was asked for."""
    seconds = itertools.count()
    monkeypatch.setattr(
        training, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    )
    shown: list[int] = []
    monkeypatch.setattr(training, "progress_bar", lambda *_: nullcontext(shown.append))
    run = make_run(tmp_path, drawn, tiny("tiny", True), 72, images_per_tick=32)
    train_run(run, drawn, CPU)
    assert shown == [16, 16, 16, 16, 8]
    log = run.read_log()
    assert [line["images"] for line in log] == [32, 64, 80]
    assert [line["images_per_second"] for line in log] == [32.0, 32.0, 16.0]
    assert all(line["memory_mib"] > 0 for line in log)
    assert describe_kernels(CPU, "fp32") in capsys.readouterr().err


def test_a_tick_logs_the_means_of_its_own_steps(drawn: ImageSet) -> None:
    trainer = make_trainer(tiny("tiny", True), drawn)
    for steps in (3, 1, 2):
        for _ in range(steps):
            trainer.step()
        sums = trainer.sums.tolist()
        values = trainer.log_values()
        means = {
            name: value / steps for name, value in zip(("d_loss", "g_loss"), sums, strict=False)
        }
        assert values["d_loss"] == means["d_loss"] and values["g_loss"] == means["g_loss"]
        spread = sums[4] / steps - means["d_loss"] ** 2
        assert values["d_loss_std"] == pytest.approx(max(spread, 0) ** 0.5)
        assert not trainer.sums.any()


@pytest.mark.parametrize(
    ("length", "tick"),
    [
        (1, 1_000),
        (16_000, 1_000),
        (31_999, 1_000),
        (32_000, 2_000),
        (100_000, 8_000),
        (10**6, 64_000),
    ],
)
def test_a_run_has_eight_to_sixteen_ticks(drawn: ImageSet, length: int, tick: int) -> None:
    recipe = tiny("tiny", True)
    config = training.plan_run(recipe, "svhn", drawn, length, 0, "fp32", CPU, None, None, None)
    assert config.images_per_tick == tick


def test_every_tick_samples_the_same_latents(tmp_path: Path, drawn: ImageSet) -> None:
    """A generator that learns nothing makes the same grid again."""
    recipe = tiny("tiny", True)
    still = replace(recipe, training=replace(recipe.training, learning_rate_g=0.0))
    run = make_run(tmp_path, drawn, still, 2016, images_per_tick=1008)
    train_run(run, drawn, CPU)
    first, second = (path.read_bytes() for path in (run.folder / "samples").iterdir())
    assert first == second


@pytest.mark.parametrize("kill_at", [5, 15, 25])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, drawn: ImageSet, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run(tmp_path, drawn, tiny("tiny", True), 480)
    train_run(whole, drawn, CPU)
    killed = make_run(tmp_path, drawn, tiny("tiny", True), 480)
    step, calls = GANTrainer.step, itertools.count()

    def dying(self: GANTrainer, *arguments: object) -> None:
        if next(calls) == kill_at:
            raise RuntimeError("killed")
        step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(GANTrainer, "step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        train_run(killed, drawn, CPU)
    with killed.log.open("a") as log:
        log.write('{"images": 9')  # a line cut off by the kill
    monkeypatch.setattr(GANTrainer, "step", step)
    assert not killed.finished()
    train_run(open_run(killed.folder), drawn, CPU)
    for name in ("state/latest.safetensors", "generator.safetensors"):
        ours, theirs = (load_tensors(run.folder / name)[0] for run in (killed, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    losses = [[line["d_loss"] for line in run.read_log()] for run in (killed, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("killed_in", ["save_grid", "append_log", "draw_losses", "save_tensors"])
def test_killed_while_it_writes_the_last_tick(
    tmp_path: Path, drawn: ImageSet, killed_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_run(tmp_path, drawn, tiny("tiny", True), 480)
    train_run(whole, drawn, CPU)
    killed = make_run(tmp_path, drawn, tiny("tiny", True), 480)

    def die(*arguments: object, **options: object) -> None:
        raise RuntimeError("killed")

    real_save = training.save_tensors

    def die_at_the_last_state(path: Path, tensors: object, metadata: dict[str, int]) -> None:
        if metadata.get("step") == 30:
            raise RuntimeError("killed")
        real_save(path, tensors, metadata)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        if killed_in == "append_log":
            patch.setattr(Run, "append_log", die)
        elif killed_in == "save_tensors":
            patch.setattr(training, "save_tensors", die_at_the_last_state)
        else:
            patch.setattr(training, killed_in, die)
        with pytest.raises(RuntimeError, match="killed"):
            train_run(killed, drawn, CPU)
    assert not killed.finished()
    train_run(killed, drawn, CPU)
    assert killed.finished()
    assert killed.weights.read_bytes() != b""
    ours, theirs = (load_tensors(run.weights)[0] for run in (killed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [line["images"] for line in killed.read_log()] == [160, 320, 480]


def test_each_start_and_each_resume_is_in_the_environment(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of starts that left nothing there is no entry: the next one did their work again."""
    run = make_run(tmp_path, drawn, tiny("tiny", True), 640)
    step = GANTrainer.step
    for number, fatal in ((1, 5), (2, 15), (3, 5), (4, 15), (5, 99), (6, 99)):
        calls = itertools.count(1)

        def dying(
            self: GANTrainer, calls: Iterator[int] = calls, fatal: int = fatal
        ) -> None:  # 10 steps are a tick of 160 images
            if next(calls) == fatal:
                raise RuntimeError("killed")
            step(self)

        monkeypatch.setattr(GANTrainer, "step", dying)
        monkeypatch.setattr(training, "describe_environment", lambda _, n=number: {"start": n})
        with suppress(RuntimeError):
            train_run(open_run(run.folder), drawn, CPU)
    assert run.finished()
    found = read_json(run.folder / "environment.json")
    later = [{"images": 160, "start": 4}, {"images": 320, "start": 5}]
    assert found == {"start": 2, "resumed": later}
    described = describe_provenance(run, 0)
    manifest = read_json(generate_set(run, described, 1, tmp_path / "sets", CPU) / "manifest.json")
    assert manifest["training_environment"] == found


def test_two_processes_do_not_train_one_run(tmp_path: Path, drawn: ImageSet) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    with (
        FileLock(run.folder / ".lock"),
        pytest.raises(SynthError, match="another process is at it"),
    ):
        train_run(run, drawn, CPU)


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 16_000, images_per_tick=8_000)
    step, calls = GANTrainer.step, itertools.count(1)

    def interrupting(self: GANTrainer, *arguments: object) -> None:
        step(self, *arguments)  # type: ignore[arg-type]
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(GANTrainer, "step", interrupting)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="synth train --resume --run") as caught:
        train_run(run, drawn, CPU)
    assert caught.value.exit_code == 130
    assert run.images_shown() == 7 * 16
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_numbers_that_blow_up_stop_the_run_and_keep_the_last_checkpoint(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch, network: str, when: str
) -> None:
    """Also when the very last step of a tick spoils the weights, which no loss has seen yet."""
    run = make_run(tmp_path, drawn, tiny("tiny", True), 480)
    step, calls = GANTrainer.step, itertools.count()

    def poisoned(self: GANTrainer, *arguments: object) -> None:
        poison = next(calls) == (14 if when == "before" else 19)
        if poison and when == "before":
            next(getattr(self, network).parameters()).data.fill_(float("nan"))
        step(self, *arguments)  # type: ignore[arg-type]
        if poison and when == "after":
            next(getattr(self, network).parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(GANTrainer, "step", poisoned)
    with pytest.raises(SynthError, match="no longer finite in the tick that ends at 320 images"):
        train_run(run, drawn, CPU)
    assert run.images_shown() == 160
    state, _ = load_tensors(run.state)
    assert all(value.isfinite().all() for value in state.values())


def test_saved_generator_samples_what_was_trained(tmp_path: Path, drawn: ImageSet) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    train_run(run, drawn, CPU)
    labels = torch.arange(5)
    images = [
        load_generator(p)(labels, np.random.default_rng(0)) for p in (run.folder, run.weights)
    ]
    assert images[0].dtype == torch.uint8
    assert images[0].shape == (5, 3, 32, 32)
    assert torch.equal(images[0], images[1])
    other = load_generator(run.folder)(labels, np.random.default_rng(1))
    assert not torch.equal(images[0], other)


@pytest.mark.parametrize(("conditional", "rows"), [(True, 25), (False, 10)])
def test_a_grid_has_a_row_for_each_class_that_the_recipe_knows(
    tmp_path: Path, drawn: ImageSet, conditional: bool, rows: int
) -> None:
    classes = tuple(map(str, range(25)))
    many = replace(drawn, labels=torch.arange(len(drawn)) % 25, classes=classes)
    run = make_run(tmp_path, many, tiny("tiny", conditional), 16)
    train_run(run, many, CPU)
    (path,) = (run.folder / "samples").iterdir()
    with Image.open(path) as grid:
        assert grid.size == (10 * 33 + 1, rows * 33 + 1)


@pytest.mark.parametrize("steps", ["joint", "separate"])
def test_every_step_takes_the_gradients_of_all_processes(
    drawn: ImageSet, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        override(tiny("tiny", True), f"training.discriminator_steps={steps}"), drawn
    )
    taken: list[tuple[str, bool]] = []
    names = {trainer.g_optimizer: "generator", trainer.d_optimizer: "discriminator"}

    def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, shared: bool = False) -> None:
        taken.append((names[optimizer], shared))
        optimizer_step(optimizer, loss, shared)

    monkeypatch.setattr("synth.gan.optimizer_step", step)
    trainer.step()
    own = [("discriminator", True)] * (2 if steps == "separate" else 1)
    assert taken == [*own, ("generator", True)]
    assert all(weight.requires_grad for weight in trainer.discriminator.parameters())
    assert all(weight.requires_grad for weight in trainer.generator.parameters())
    assert not any(weight.requires_grad for weight in trainer.generator_ema.parameters())


def test_ctrl_c_at_the_last_step_finishes_the_run(
    tmp_path: Path, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length, stops in ((32, False), (48, True)):
        looks = itertools.count(1)
        pressed = nullcontext(lambda looks=looks: next(looks) == 2)
        monkeypatch.setattr(training, "_interruptible", lambda pressed=pressed: pressed)
        run = make_run(tmp_path, drawn, tiny("tiny", True), length)
        with pytest.raises(Interrupted) if stops else nullcontext():
            train_run(run, drawn, CPU)
        assert run.finished() is not stops
        assert run.read_log()[-1]["images"] == 32


def test_without_an_average_the_generator_itself_is_sampled(drawn: ImageSet) -> None:
    """With the statistics of its own norms."""
    trainer = make_trainer(override(tiny("tiny", True), "training.ema_half_life=0"), drawn)
    trainer.step()
    own, sampled = trainer.generator.state_dict(), trainer.sampler().tensors()
    assert own.keys() == sampled.keys()
    assert all(torch.equal(own[name], sampled[name]) for name in own)
    averaged = make_trainer(override(tiny("tiny", True), "training.ema_half_life=1"), drawn)
    averaged.step()
    own, sampled = averaged.generator.state_dict(), averaged.sampler().tensors()
    assert not all(torch.equal(own[name], sampled[name]) for name in own)


def test_too_few_images_and_missing_classes_are_refused(tmp_path: Path, drawn: ImageSet) -> None:
    few = ImageSet(drawn.images[:10], None, drawn.classes, "few", "train")
    with pytest.raises(SynthError, match="fewer than the batch"):
        training.training_parts(tiny("tiny", False), few)
    measuring = override(tiny("tiny", False), "training.heldout_every=1")
    with pytest.raises(SynthError, match=r"few: too few images .* training\.heldout_every=0"):
        training.training_parts(measuring, replace(few, images=few.images[:5]))
    assert drawn.labels is not None
    keep = drawn.labels != 4
    lacking = ImageSet(drawn.images[keep], drawn.labels[keep], drawn.classes, "lacking", "train")
    with pytest.raises(SynthError, match="no train image of class 4"):
        training.training_parts(tiny("tiny", True), lacking)
    training.training_parts(tiny("tiny", False), lacking)


@pytest.mark.parametrize("recipe", [tiny("tiny", True), FLOW], ids=["gan", "flow"])
def test_recording_a_step_leaves_no_trace(
    drawn: ImageSet, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the first step is recorded: it runs some times, and all is put back."""
    config = config_of(recipe, drawn)
    plain, recorded = (config.family.make_trainer(config, drawn, None, CPU) for _ in range(2))

    def record(step: Step, example: Sequence[torch.Tensor], state: State) -> Step:
        with untouched(state):
            step(*example)
        return step

    for _ in range(3):
        plain.step()
    monkeypatch.setattr(f"synth.{recipe.family}.maybe_cuda_graph", record)
    for _ in range(3):
        recorded.step()
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, recorded.state()[name]), name
    assert plain.log_values() == recorded.log_values()
