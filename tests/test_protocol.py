"""The classifier and the protocols: ranges, shuffling, figures, what the test split may do."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch.nn import functional as F

from eval.baselines import pca_gaussian, real_same_size
from eval.classifier_training import (
    ClassifierTrainer,
    augmented_batches,
    one_cycle,
    predict,
    shuffled_batches,
    train_classifier,
)
from eval.classifiers import FixedClassifier, ResNet20
from eval.protocols import PROTOCOLS, Protocol
from eval.records import read_records
from eval.scoring import disk_batches, expected_calibration_error, measure, score, stream_batches
from synth.data import ImageSet
from synth.data.house_numbers import render
from synth.gan import GANSampler
from synth.generation import fresh_batch
from synth.networks import build
from synth.ops.policies import POLICIES
from tests.conftest import ROOT, needs_bf16, tiny

CPU = torch.device("cpu")


def test_classifier_is_the_published_one() -> None:
    classifier = FixedClassifier()
    assert sum(p.numel() for p in classifier.parameters()) == 122_890
    kinds = [type(m).__name__ for m in classifier.features]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 3
    widths = [m.out_channels for m in classifier.features if isinstance(m, torch.nn.Conv2d)]
    assert widths == [32, 64, 64]


def test_protocols_are_frozen() -> None:
    """A change of a protocol is a new protocol: these hashes never change."""
    assert {name: p.hash for name, p in PROTOCOLS.items()} == {
        "fixed-v1": "ae27a3aa2fe3",
        "stream-v1": "464f892e2d55",
        "quick-v1": "d0350720bbe3",
        "fixed-resnet-v1": "4432a9729156",
        "augmented-v1": "e88e6a91a14d",
        "fixed-28-v1": "57f98afcf7bd",
        "stream-28-v1": "a88328f661f4",
        "quick-28-v1": "1adb62142980",
        "fixed-resnet-28-v1": "5418edc9a160",
        "augmented-28-v1": "23294d47d92c",
        "fixed-64-v1": "148d7f2e96a7",
        "stream-64-v1": "43f4cd93ea5e",
        "quick-64-v1": "33122349e8eb",
        "fixed-resnet-64-v1": "15847f2407ff",
        "augmented-64-v1": "14862dd52671",
    }
    stream = PROTOCOLS["stream-v1"]
    assert (stream.steps, stream.batch, stream.seeds, stream.data) == (1000, 1000, 3, "stream")


def test_a_one_cycle_schedule_is_that_of_torch() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    steps = 400
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert one_cycle(step, steps, 3e-3) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


def test_training_with_augmentation_sees_other_images_with_the_same_labels(
    drawn: ImageSet,
) -> None:
    protocol = PROTOCOLS["augmented-v1"]
    policy = POLICIES[protocol.policy]
    (plain, changed, again) = (
        disk_batches(protocol, drawn, CPU)(0),
        augmented_batches(disk_batches(protocol, drawn, CPU)(0), policy, 0),
        augmented_batches(disk_batches(protocol, drawn, CPU)(0), policy, 0),
    )
    for _ in range(3):
        (images, labels), (others, same), (repeated, _) = next(plain), next(changed), next(again)
        assert torch.equal(labels, same) and others.dtype == torch.uint8
        assert not torch.equal(images, others) and torch.equal(others, repeated)
    short = replace(protocol, steps=4)
    made = [train_classifier(short, disk_batches(short, drawn, CPU)(0), 10, 0, CPU) for _ in "ab"]
    outputs = [predict(classifier, drawn.images[:8]) for classifier in made]
    assert torch.equal(*outputs)
    constant = replace(short, schedule="constant", learning_rate=1e-3)
    other = train_classifier(constant, disk_batches(short, drawn, CPU)(0), 10, 0, CPU)
    assert not torch.equal(outputs[0], predict(other, drawn.images[:8]))


def test_a_classifier_is_trained_in_the_layout_of_the_fast_kernels() -> None:
    trainer = ClassifierTrainer(PROTOCOLS["quick-v1"], 10, 0, CPU, "fp32")
    weights = [w for w in trainer.classifier.parameters() if w.ndim == 4 and w.shape[1] > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_the_state_of_a_classifier_in_training_is_all_that_a_step_changes(drawn: ImageSet) -> None:
    """A CUDA graph is recorded with it, and restores it."""
    assert drawn.labels is not None
    trainer = ClassifierTrainer(PROTOCOLS["quick-v1"], 10, 0, CPU, "fp32")
    batch = drawn.images[:32], drawn.labels[:32]
    trainer.step(*batch)
    kept = {name: value.clone() for name, value in trainer.state().items()}
    trainer.step(*batch)
    after = {name: value.clone() for name, value in trainer.state().items()}
    for name, value in trainer.state().items():
        value.copy_(kept[name])
    trainer.step(*batch)
    assert all(torch.equal(value, after[name]) for name, value in trainer.state().items())
    changed = {name for name in kept if not torch.equal(kept[name], after[name])}
    assert changed >= {name for name, _ in trainer.classifier.named_parameters()}


def test_the_protocols_of_published_records_are_those_of_today() -> None:
    records = read_records(ROOT / "results")
    assert records
    for record in records:
        assert record.protocol == PROTOCOLS[record.protocol["name"]].to_json()


def test_resnet_is_the_published_one() -> None:
    """He et al. 2016, section 4.2: 6n + 2 layers with n = 3, 0.27 M parameters, widths 16, 32, 64,
    and shortcuts without parameters."""
    network = ResNet20()
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 20
    assert sum(p.numel() for p in network.parameters()) == 269_722
    widths = [m.out_channels for m in layers if isinstance(m, torch.nn.Conv2d)]
    assert widths == [16] * 7 + [32] * 6 + [64] * 6
    for layer in layers:  # the initialisation of He et al. 2015 (arXiv:1502.01852), section 2.2
        if isinstance(layer, torch.nn.Conv2d):
            expected = (2 / (9 * layer.out_channels)) ** 0.5
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.15)


@torch.no_grad()
def test_a_residual_block_adds_first_and_rectifies_then() -> None:
    """Against the paper's equation (1), y = ReLU(F(x) + x), with torch's own operations."""
    blocks = ResNet20().eval().blocks
    x = torch.randn(5, 16, 16, 16)
    halved = F.max_pool2d(x, 2)
    padded = torch.cat([halved, torch.zeros_like(halved)], 1)
    for block, into, shortcut in ((blocks[0], x, x), (blocks[3], halved, padded)):
        first, norm1, _, second, norm2 = block.residual
        for norm in (norm1, norm2):
            norm.running_mean.normal_()
            norm.bias.normal_()
        inner = F.conv2d(into, first.weight, padding=1)
        inner = F.conv2d(norm1(inner).relu(), second.weight, padding=1)
        expected = F.relu(norm2(inner) + shortcut)
        assert (expected == 0).any() and (norm2(inner) < 0).any()
        assert torch.allclose(block(x), expected, atol=1e-5)
        assert block(x).shape == expected.shape


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_the_second_classifier_learns(precision: str) -> None:
    images, labels = render("train", 256)
    batches = shuffled_batches(images, labels, 64, 0, CPU)
    protocol = Protocol("p", "disk", 60, 64, 1, classifier="resnet20")
    network = train_classifier(protocol, batches, 10, 0, CPU, precision)
    assert isinstance(network, ResNet20)
    assert (predict(network, images).argmax(1) == labels).float().mean() > 0.9


def test_ranges_agree_in_training_and_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source notebook trained on [-1, 1] and tested on [0, 1]; here both are [0, 1], and the
    same picture reaches the classifier as the same numbers, from a generator or from a file."""
    seen: list[torch.Tensor] = []
    forward = FixedClassifier.forward

    def look(self: FixedClassifier, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return forward(self, images)

    monkeypatch.setattr(FixedClassifier, "forward", look)
    generator = build(tiny("tiny", True), 10, 0)[0].eval()
    with torch.no_grad():  # a picture that reaches both ends of tanh's range
        generator.layers[-2].weight.mul_(1e6)  # type: ignore[operator, union-attr]

    drawn: list[torch.Tensor] = []

    def draw(count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = fresh_batch(GANSampler(generator), 10, count, random)
        drawn.append(images)
        return images, labels

    protocol = Protocol("p", "stream", 1, 50, 1)
    classifier = train_classifier(protocol, stream_batches(protocol, draw)(0), 10, 0, CPU)
    predict(classifier, drawn[0])
    on_stream, on_scoring = seen
    assert torch.equal(on_stream, on_scoring)
    assert on_stream.min() == 0
    assert on_stream.max() == 1


@settings(max_examples=20)
@given(count=st.integers(1, 70), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_passes_join_without_a_gap(count: int, batch: int, seed: int) -> None:
    labels = torch.arange(count)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    batches = shuffled_batches(images, labels, batch, seed, CPU)
    taken = list(itertools.islice(batches, 3 * count // batch + 1))
    assert all(torch.equal(i[:, 0, 0, 0].long(), y) for i, y in taken)
    shown = torch.cat([y for _, y in taken])
    for start in range(0, len(shown) - count + 1, count):
        assert sorted(shown[start : start + count].tolist()) == list(range(count))


@settings(max_examples=50)
@given(
    logits=npst.arrays(np.float64, (60, 4), elements=st.floats(-5, 5)),
    truth=npst.arrays(np.int64, 56, elements=st.integers(0, 3)),
)
def test_figures_agree_with_scikit_learn(logits: np.ndarray, truth: np.ndarray) -> None:
    truth = np.concatenate([np.arange(4), truth])  # every class is there
    probabilities = torch.from_numpy(logits).softmax(1)
    figures = measure(0, probabilities, torch.from_numpy(truth), 0.0)
    predicted = probabilities.argmax(1).numpy()
    assert figures.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert figures.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert np.sum(figures.confusion) == 60
    assert 0 <= figures.calibration_error <= 1


@pytest.mark.parametrize("classes", [10, 256, 257, 300])
def test_predictions_of_many_classes_do_not_wrap(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(map(str, range(classes)))
    images = torch.zeros(classes, 3, 32, 32, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(classes), names, "many", "test")
    monkeypatch.setattr("eval.scoring.predict", lambda *_: torch.eye(classes))  # all right
    short = Protocol("short", "disk", steps=1, batch=4, seeds=1)
    found = score(short, disk_batches(short, test, CPU), test, CPU, "fp32")
    assert found.seeds[0].accuracy == 1.0
    assert found.correct.all()
    assert found.predictions.tolist() == [list(range(classes))]
    assert found.predictions.dtype == (np.uint8 if classes <= 256 else np.uint16)


def test_calibration_error_in_closed_form() -> None:
    sure = np.tile([0.95, 0.05], (100, 1))
    assert expected_calibration_error(sure, np.zeros(100, int)) == pytest.approx(0.05)
    assert expected_calibration_error(sure, np.ones(100, int)) == pytest.approx(0.95)
    truth = (np.arange(100) < 5).astype(int)
    assert expected_calibration_error(sure, truth) == pytest.approx(0.0)


@pytest.fixture(scope="module")
def learned() -> tuple[ImageSet, ImageSet, Any]:
    """Drawn digits to train and test on, and a protocol long enough to learn something."""
    train, test = (
        ImageSet(*render(split, count), tuple("0123456789"), "drawn", split)
        for split, count in (("train", 2000), ("test", 1000))
    )
    return train, test, Protocol("short", "disk", steps=60, batch=128, seeds=2)


def test_permuted_test_labels_give_chance_and_change_nothing_else(learned: Any) -> None:
    train, test, protocol = learned
    honest = score(protocol, disk_batches(protocol, train, CPU), test, CPU, "fp32")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    permuted = ImageSet(test.images, test.labels[order], test.classes, test.name, "test")
    blind = score(protocol, disk_batches(protocol, train, CPU), permuted, CPU, "fp32")
    assert np.array_equal(honest.predictions, blind.predictions)
    assert min(s.accuracy for s in honest.seeds) > 0.3
    assert max(abs(s.accuracy - 0.1) for s in blind.seeds) < 0.04
    assert honest.predictions.shape == (2, 1000)
    assert honest.correct.mean(1).tolist() == [s.accuracy for s in honest.seeds]
    assert not np.array_equal(honest.predictions[0], honest.predictions[1])


def test_stream_protocol_trains_on_what_is_drawn(learned: Any) -> None:
    train, test, _ = learned
    protocol = Protocol("stream", "stream", steps=60, batch=128, seeds=1)
    asked: list[int] = []

    def draw(count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(count)
        picks = torch.from_numpy(random.integers(len(train), size=count))
        return train.images[picks], train.require_labels()[picks]

    result = score(protocol, stream_batches(protocol, draw), test, CPU, "fp32")
    assert result.seeds[0].accuracy > 0.3
    assert asked == [128] * 60


@settings(max_examples=10)
@given(per_class=st.integers(1, 150))
def test_real_of_the_same_size_is_balanced_and_real(per_class: int) -> None:
    images, labels = render("train", 300)
    real = ImageSet(images, labels, tuple("0123456789"), "drawn", "train")
    part = real_same_size(real, per_class)
    assert part.require_labels().bincount().tolist() == [per_class] * 10
    known = {pixels.numpy().tobytes(): int(y) for pixels, y in zip(images, labels, strict=True)}
    drawn = [pixels.numpy().tobytes() for pixels in part.images]
    assert [known[pixels] for pixels in drawn] == part.require_labels().tolist()
    most = max(int((labels == label).sum()) for label in range(10))
    if per_class >= most:
        assert set(drawn) == set(known)  # no image is left out


def test_pca_gaussian_has_the_classes_moments(learned: Any) -> None:
    train = learned[0]
    made = pca_gaussian(train, 400)
    assert made.require_labels().bincount().tolist() == [400] * 10
    for label in (0, 7):
        ours = made.images[made.require_labels() == label].float()
        real = train.images[train.require_labels() == label].float()
        assert (ours.mean(0) - real.mean(0)).abs().mean() < 10
        assert ours.std() == pytest.approx(float(real.std()), rel=0.1)
