"""Copiers are flagged, honest generators are not; distances and diversity are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import avg_pool2d

from eval.baselines import real_augmented
from eval.classifier_training import shuffled_batches, train_classifier
from eval.features import features
from eval.metrics import augmented_copies, diversity
from eval.metrics import memorisation as module
from eval.metrics.augmented_copies import nearest_view
from eval.metrics.diversity import within_class_bandwidths, within_class_diversity
from eval.metrics.memorisation import (
    Memorisation,
    closest_pairs,
    memorisation,
    nearest_training,
)
from eval.protocols import Protocol
from synth.data import (
    DIGITS,
    ImageSet,
    load_test_images,
    load_training_images,
    uint8_from_unit,
    unit_from_uint8,
)
from synth.data.house_numbers import render
from synth.ops.augment import augment, draw_numbers
from synth.ops.policies import POLICIES


class World(NamedTuple):
    """Drawn images, 1,000 each, and what is compared: pixels, or a classifier's features."""

    training: ImageSet
    held_out: Tensor
    honest: Tensor  # drawn as the others
    others: list[Tensor]  # honest too, but different: of other typefaces, and a blurry generator's
    views: dict[str, Callable[[Tensor], Tensor]]


@pytest.fixture(scope="module")
def world() -> World:
    images, labels = render("train", 3000)
    training = ImageSet(images[:1000], labels[:1000], DIGITS, "drawn", "train")
    cpu = torch.device("cpu")
    batches = shuffled_batches(training.images, labels[:1000], 100, 0, cpu)
    classifier = train_classifier(Protocol("p", "disk", 40, 100, 1), batches, 10, 0, cpu)
    views = {"pixels": lambda x: x, "features": lambda x: features(classifier, x)}
    blurred = avg_pool2d(images[2000:].float(), 3, 1, 1, count_include_pad=False)
    others = [render("test", 1000)[0], blurred.round().to(torch.uint8)]
    return World(training, images[1000:2000], images[2000:], others, views)


def noisy(images: Tensor) -> Tensor:
    """The images with every grey level moved by -1, 0 or 1."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(-1, 2, images.shape, generator=random)
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


COPIERS: dict[str, Callable[[Tensor], Tensor]] = {"exact": lambda x: x, "noisy": noisy}


@pytest.mark.parametrize("space", ["pixels", "features"])
@pytest.mark.parametrize("copier", COPIERS)
def test_a_copier_is_flagged(world: World, space: str, copier: str) -> None:
    view = world.views[space]
    picks = torch.from_numpy(np.random.default_rng(0).integers(1000, size=1000))
    copies = COPIERS[copier](world.training.images[picks])
    found = memorisation(view(world.training.images), view(world.held_out), view(copies))
    assert found.flagged
    assert found.share > 0.99
    assert found.p_value < 1e-100
    assert found.closer > 0.99
    distances, ratios, nearest = nearest_training(view(world.training.images), view(copies))
    assert (nearest == picks.numpy()).mean() > 0.98
    if copier == "exact":
        assert distances.max() < 1e-4
        assert ratios.max() < 1e-4


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_honest_images_are_not_flagged(world: World, space: str) -> None:
    view = world.views[space]
    training, held_out = view(world.training.images), view(world.held_out)
    honest = memorisation(training, held_out, view(world.honest))
    assert not honest.flagged
    assert honest.expected_share == pytest.approx(1 / 1001)  # below the least of 1,000
    assert honest.share < 0.01
    assert honest.p_value > 1e-3
    assert honest.closer == pytest.approx(0.5, abs=0.05)
    for other in world.others:
        assert not memorisation(training, held_out, view(other)).flagged


@pytest.mark.parametrize("space", ["pixels", "features"])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_a_part_of_copies_is_flagged_with_its_share(world: World, space: str, share: float) -> None:
    view, count = world.views[space], int(1000 * share)
    mixed = torch.cat([noisy(world.training.images[:count]), world.honest[count:]])
    found = memorisation(view(world.training.images), view(world.held_out), view(mixed))
    assert found.flagged
    assert found.share == pytest.approx(share, abs=0.01)
    pairs = closest_pairs(view(world.training.images), view(mixed), count)
    assert pairs.shape == (count, 2)
    assert (pairs[:, 0] == pairs[:, 1]).mean() > 0.95  # image i was copied to place i
    _, ratios, _ = nearest_training(view(world.training.images), view(mixed))
    assert (np.diff(ratios[pairs[:, 0]]) >= 0).all()


def test_chance_flags_as_rarely_as_said() -> None:
    """The p-value of exchangeable images is uniform, but for its steps."""
    random = np.random.default_rng(0)
    values = []
    for _ in range(300):
        training, held_out, synthetic = (
            torch.from_numpy(random.normal(size=(count, 3))) for count in (100, 200, 2000)
        )
        values.append(memorisation(training, held_out, synthetic).p_value)
    assert np.mean(np.array(values) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(values) <= 0.5) == pytest.approx(0.5, abs=0.07)


def augmented(images: Tensor, policy: str, seed: int = 1) -> Tensor:
    numbers = draw_numbers(len(images), torch.Generator().manual_seed(seed))
    return uint8_from_unit(augment(unit_from_uint8(images), POLICIES[policy], numbers))


@pytest.mark.parametrize("policy", ["geometry-v1", "geometry-colour-v1", "digits-v1"])
def test_an_augmented_copier_is_flagged(world: World, policy: str) -> None:
    """In pixels too, but more of its images are found by views of the training images."""
    copies = augmented(world.training.images[:400], policy)
    plain = memorisation(world.training.images, world.held_out, copies)
    views = memorisation(world.training.images, world.held_out, copies, nearest_view)
    assert views.flagged and views.share > 1.5 * plain.share
    assert views.share > 0.2
    tenth = torch.cat([copies[:40], augmented(world.honest[:360], policy, 2)])
    assert memorisation(world.training.images, world.held_out, tenth, nearest_view).flagged
    honest = augmented(world.honest[:400], policy, 3)
    assert not memorisation(world.training.images, world.held_out, honest, nearest_view).flagged


def test_real_digits_that_were_augmented_are_flagged(svhn_part: Path) -> None:
    real = load_training_images("svhn:validation", svhn_part)
    held_out = load_test_images("svhn:validation", svhn_part)
    copies = real_augmented(real, 30).images
    found = memorisation(real.images, held_out.images, copies)
    views = memorisation(real.images, held_out.images, copies, nearest_view)
    assert found.flagged and views.flagged
    assert views.share > 2 * found.share


def test_the_distance_to_the_nearest_view(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no random views: the image itself and its inverse, whatever the blocks."""
    training, queries = world.training.images[:130], 255 - world.honest[:40]
    monkeypatch.setattr(augmented_copies, "VIEWS", 0)
    both = torch.cat([training, 255 - training])
    distances, _, index = nearest_training(both, queries)
    for block in (4096, 60):
        monkeypatch.setattr(augmented_copies, "BLOCK", block)
        found, ratios, nearest = nearest_view(training, queries)
        np.testing.assert_allclose(found, distances, rtol=1e-3)
        np.testing.assert_array_equal(nearest, index % 130)
        assert ((ratios > 0) & (ratios <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_distances_agree_with_scikit_learn(dtype: torch.dtype, world: World) -> None:
    training, queries = world.training.images[:300], world.honest[:50]
    flat = [(x.flatten(1).double() / 255).numpy() for x in (training, queries)]
    search = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(flat[0])
    distances, nearest = search.kneighbors(flat[1])
    if dtype == torch.float32:
        training, queries = (torch.from_numpy(x) for x in flat)
    ours = nearest_training(training, queries)
    np.testing.assert_allclose(ours[0], distances[:, 0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], distances[:, 0] / distances.mean(1), rtol=1e-4)
    np.testing.assert_array_equal(ours[2], nearest[:, 0])


def test_distances_do_not_depend_on_blocks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = world.training.images[:200], world.held_out[:100], world.honest[:90]
    whole = [nearest_training(sets[0], each) for each in sets[1:]]
    share = memorisation(*sets).share
    monkeypatch.setattr(module, "QUERIES", 31)
    monkeypatch.setattr(module, "REFERENCES", 33)  # fewer than 50 in the first block
    for (_, ratios, nearest), queries in zip(whole, sets[1:], strict=True):
        _, again, same = nearest_training(sets[0], queries)
        np.testing.assert_array_equal(same, nearest)
        np.testing.assert_allclose(again, ratios, rtol=1e-5)
    assert memorisation(*sets).share == share


def test_near_copies_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """39 held-out images with ratios of 0.01, 0.02, …, the fourth of which is the threshold."""
    held_out = np.arange(1, 40) / 100
    monkeypatch.setattr(module, "QUANTILE", 0.1)

    def compare(ratios: np.ndarray) -> Memorisation:
        found = {39: held_out, len(ratios): ratios}
        images = (torch.zeros(count, 1) for count in (1, 39, len(ratios)))
        return memorisation(*images, lambda _, each: (found[len(each)], found[len(each)], each))

    some = np.array([0.005, 0.035, 0.04, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0])
    found = compare(some)
    assert (found.share, found.expected_share) == (0.3, 0.1)
    assert found.p_value == pytest.approx(betabinom(10, 4, 36).sf(2))
    pairs = held_out > some[:, None]
    assert found.closer == pytest.approx((pairs + 0.5 * (held_out == some[:, None])).mean())
    assert not found.flagged
    all_copies = compare(np.full(40, 0.001))
    assert (all_copies.share, all_copies.flagged) == (1.0, True)
    assert all_copies.p_value == pytest.approx(betabinom(40, 4, 36).pmf(40))
    monkeypatch.setattr(module, "LEVEL", 1e-4)
    half = compare(np.repeat([0.001, 0.9], 20))  # unlikely too, but five times what is expected
    assert half.p_value < module.LEVEL
    assert not half.flagged


def test_small_and_degenerate_sets() -> None:
    """One training image, features that are all zero: no copy is claimed without a comparison."""
    random = torch.Generator().manual_seed(0)
    held_out, synthetic = (torch.rand(30, 4, generator=random) for _ in range(2))
    for training in (torch.rand(1, 4, generator=random), torch.zeros(60, 4)):
        found = memorisation(training, held_out, synthetic)
        assert 0 <= found.p_value <= 1
        assert not found.flagged
        distances, ratios, _ = nearest_training(training, synthetic)
        assert np.isfinite(ratios).all()
        assert distances.shape == (30,)
    _, ratios, _ = nearest_training(torch.zeros(60, 4), torch.zeros(30, 4))
    assert (ratios == 1).all()


def test_diversity_shows_a_mode_collapse(world: World) -> None:
    """Class 3 has collapsed onto one image, class 5 onto four; the others are as they were."""
    view, labels = world.views["features"], world.training.labels
    assert labels is not None
    bandwidths = within_class_bandwidths(view(world.training.images), labels)
    real = within_class_diversity(view(world.training.images), labels, bandwidths)
    assert real.min() > 6
    collapsed = world.training.images.clone()
    for label, modes in ((3, 1), (5, 4)):
        members = (labels == label).nonzero().flatten()
        collapsed[members] = collapsed[members[torch.arange(len(members)) % modes]]
    found = within_class_diversity(view(collapsed), labels, bandwidths)
    assert found[3] == pytest.approx(1)
    assert 1 < found[5] <= 4.01
    others = [label for label in range(10) if label not in (3, 5)]
    np.testing.assert_allclose(found[others], real[others])


@settings(max_examples=30)
@given(count=st.integers(2, 60), seed=st.integers(0, 2**32 - 1), block=st.integers(1, 80))
def test_diversity_is_the_entropy_of_the_kernel(count: int, seed: int, block: int) -> None:
    """exp of Rényi's entropy of order 2, -ln Σ λ², of the kernel matrix's eigenvalues over n."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, 5)).astype(np.float32)
    labels = torch.zeros(count, dtype=torch.int64)
    squares = ((rows[:, None] - rows) ** 2).sum(-1)
    eigenvalues = np.linalg.eigvalsh(np.exp(-squares / (2 * 1.5**2)) / count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "BLOCK", block)
        found = within_class_diversity(torch.from_numpy(rows), labels, np.array([1.5, 1.0]))
    assert found[0] == pytest.approx(np.exp(-np.log((eigenvalues**2).sum())), rel=1e-5)
    assert 1 <= found[0] <= count
    assert np.isnan(found[1])


def test_bandwidth_is_half_the_median_distance() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [0.0], [10.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    np.testing.assert_allclose(within_class_bandwidths(rows, labels), [1.0, 5.0])
    with pytest.raises(ValueError, match="class 1"):
        within_class_bandwidths(rows[:4], labels[:4])
