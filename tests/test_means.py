"""Means to better labels: balanced batches, heads of the discriminator, losses, the teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from synth.batches import _balanced_order, draw_batches
from synth.data import ImageSet
from synth.losses import fake_class_loss, generator_loss, real_class_loss, teacher_loss
from synth.networks import Discriminator, Judged
from synth.recipes import DiscriminatorRecipe, Recipe, TrainingRecipe, stored
from tests.conftest import make_trainer, tiny

CPU = torch.device("cpu")


def recipe(label: str = "plane", **training: object) -> Recipe:
    base = tiny("tiny", True)
    return replace(
        base,
        discriminator=replace(base.discriminator, label=label),  # type: ignore[arg-type]
        training=replace(base.training, **training),  # type: ignore[arg-type]
    )


def unbalanced(drawn: ImageSet) -> ImageSet:
    """Ten classes; class 9 has 2 images, the others have many."""
    labels = torch.arange(len(drawn)) % 9
    labels[[3, 70]] = 9
    return replace(drawn, labels=labels)


def test_balanced_batches_show_every_class_alike_with_its_own_images(drawn: ImageSet) -> None:
    images = unbalanced(drawn)
    batches = draw_batches(recipe(balanced=True), images, 0, CPU)
    seen = [next(batches) for _ in range(200)]
    labels = torch.cat([batch.labels for batch in seen])
    counts = labels.bincount(minlength=10).double()
    expected = len(labels) / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi², 9 degrees, p = 0.001
    rare = images.images[[3, 70]].flatten(1)
    for batch in seen[:20]:
        for image, label in zip(batch.images, batch.labels, strict=True):
            assert (label == 9) == bool((rare == image.flatten()).all(1).any())


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_balanced_batches_show_every_image_of_a_class_alike(seed: int) -> None:
    """Within six standard deviations of the count that is expected."""
    labels = torch.tensor([0, 1, 1, 1, 2] + [3] * 40 + [0])
    members, sizes = labels.argsort(stable=True), labels.bincount()
    shown = _balanced_order(members, sizes, 64, seed, 0).flatten()
    counts = shown.bincount(minlength=len(labels)).double()
    expected = len(shown) / 4 / sizes[labels].double()
    assert ((counts - expected).abs() < 6 * expected.sqrt()).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 150), st.booleans())
def test_batches_depend_on_seed_and_step_alone(step: int, balanced: bool) -> None:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 3, 32, 32), generator=random, dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(40) % 10, tuple("0123456789"), "noise", "train")
    asked = recipe(balanced=balanced, augment_real="geometry-v1")
    from_start = draw_batches(asked, images, 3, CPU)
    for _ in range(step):
        next(from_start)
    resumed = next(draw_batches(asked, images, 3, CPU, step))
    for one, other in zip(next(from_start), resumed, strict=True):
        assert torch.equal(one, other)


def test_a_dual_projection_adds_the_difference_of_two_class_heads() -> None:
    """Han et al. 2021: logit = u + <features, P_y - Q_y>."""
    network = Discriminator(DiscriminatorRecipe(widths=(8, 8, 16), label="dual-projection"), 10)
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 9, 9, 4, 5])
    judged = network.eval().judge(images, labels)
    assert network.class_head is not None and judged.classes is not None
    heads = network.class_head.weight.unflatten(0, (2, 10))
    plain = network.head(network.layers(images)).flatten()
    expected = plain + (judged.features * (heads[0, labels] - heads[1, labels])).sum(1)
    torch.testing.assert_close(judged.logits, expected)
    torch.testing.assert_close(judged.classes, judged.features @ network.class_head.weight.T)


def test_class_losses_are_those_of_the_papers() -> None:
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(8, 20, generator=random) for _ in "ab")
    labels = torch.randint(10, (8,), generator=random)
    on_real, on_fake = (Judged(each[:, 0], each, each) for each in (real, fake))
    torch.testing.assert_close(
        real_class_loss(real, labels, True), cross_entropy(real[:, :10], labels)
    )
    torch.testing.assert_close(
        fake_class_loss(fake, labels, True), cross_entropy(fake[:, 10:], labels)
    )
    torch.testing.assert_close(
        real_class_loss(real, labels, False), cross_entropy(real, labels) / 2
    )
    torch.testing.assert_close(
        fake_class_loss(fake, labels, False), cross_entropy(fake, labels + 10) / 2
    )
    assert real_class_loss(None, labels, True) == fake_class_loss(None, labels, False) == 0
    # The generator of ADC-GAN: log C(y, real | x) - log C(y, fake | x), with a weight of 1
    odds = fake[torch.arange(8), labels] - fake[torch.arange(8), labels + 10]
    plain = generator_loss(on_fake, on_real, labels, 10, recipe("dual-projection"))
    guided = generator_loss(on_fake, on_real, labels, 10, recipe("adc"))
    torch.testing.assert_close(guided - plain, -odds.mean())
    # AC-GAN: the generator also lowers the cross-entropy of P
    weighted = recipe("dual-projection", class_weight=0.7)
    guided = generator_loss(on_fake, on_real, labels, 10, weighted)
    torch.testing.assert_close(guided - plain, 0.7 * cross_entropy(fake[:, :10], labels))


def test_feature_matching_compares_the_means_of_each_class() -> None:
    labels = torch.tensor([0, 0, 1, 3])
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [2.0, 2.0]])
    shifted = Judged(torch.zeros(4), None, features + 2.0)
    asked = recipe(feature_matching=3.0)
    on_real = Judged(torch.zeros(4), None, features)
    found = generator_loss(shifted, on_real, labels, 4, asked)
    without = generator_loss(shifted, on_real, labels, 4, recipe())
    # classes 0, 1 and 3 differ by 2 in every feature, and class 2 has no image
    torch.testing.assert_close(found - without, torch.tensor(3.0 * 4 * 3 / 4))


def test_a_teacher_that_is_sure_says_nothing() -> None:
    labels = torch.tensor([0, 1])
    sure, unsure = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([[0.0, 0.0], [0.0, 9.0]])
    assert teacher_loss(sure, labels) == 0
    expected = cross_entropy(unsure[:1], labels[:1]) / 2
    torch.testing.assert_close(teacher_loss(unsure, labels), expected)


@pytest.mark.parametrize(
    ("label", "training"),
    [
        ("dual-projection", {"augment_both": "geometry-colour-v1", "class_weight": 1.0}),
        ("dual-projection", {"balanced": True, "augment_real": "digits-v1"}),
        ("adc", {"augment_both": "geometry-v1", "mismatch": True}),
        ("adc", {"discriminator_steps": "separate", "fakes": "new"}),
        ("projection", {"feature_matching": 1.0, "discriminator_steps": "separate"}),
    ],
)
def test_each_mean_trains_and_resumes_to_the_same_weights(
    drawn: ImageSet, label: str, training: dict[str, object]
) -> None:
    asked = recipe(label, **training)
    whole = make_trainer(asked, drawn)
    for _ in range(4):
        whole.step()
    first = make_trainer(asked, drawn)
    for _ in range(2):
        first.step()
    resumed = make_trainer(asked, drawn)
    resumed.load_state(first.state(), 2)
    for _ in range(2):
        resumed.step()
    for name, tensor in whole.state().items():
        assert torch.isfinite(tensor).all() and torch.equal(tensor, resumed.state()[name]), name
    made = whole.sampler().tensors()
    assert torch.equal(made["stem.weight"], resumed.sampler().tensors()["stem.weight"])


def test_new_hyperparameters_at_their_defaults_are_not_in_files() -> None:
    """So that weight files of equal runs are equal in all versions."""
    kept = stored(tiny("tiny", True))["training"]
    assert set(kept) == {
        *("images", "batch", "initialisation", "learning_rate_g", "learning_rate_d", "betas"),
        *("discriminator_loss", "discriminator_steps", "fakes", "ema_half_life", "heldout_every"),
    }
    changed = stored(recipe(balanced=True, teacher_start=7))["training"]
    assert set(changed) - set(kept) == {"balanced", "teacher_start"}


def test_a_weight_of_classes_needs_a_classifier_in_the_discriminator() -> None:
    with pytest.raises(ValueError, match="class_weight needs discriminator"):
        recipe("projection", class_weight=1.0)


@pytest.mark.parametrize(
    "training",
    [
        {"balanced": True},
        {"mismatch": True},
        {"teacher_weight": 0.3},
        {"class_weight": 1.0},
        {"augment_real": "nonesuch"},
    ],
)
def test_values_that_cannot_train_are_refused(training: dict[str, object]) -> None:
    base = tiny("tiny-uncond", False)
    changed = replace(TrainingRecipe(), **training)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs labels|no augmentation policy"):
        replace(base, training=changed)
