"""Metrics on features: agreement with reference implementations, closed forms, independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.classifiers import FixedClassifier
from eval.features import features
from eval.metrics import fidelity
from eval.metrics.fidelity import Statistics, fid, kid, manifolds, squared_radii, statistics
from synth.data import ImageSet, unit_from_uint8


def draw(count: int, width: int = 16, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    """Correlated features with many zeros, as they stand behind a ReLU: float32 (N, D)."""
    mixing = np.random.default_rng(7).normal(size=(width, width)) / width**0.5
    random = np.random.default_rng([seed, 1])
    return np.maximum(random.normal(0.5 + shift, 1, (count, width)) @ mixing, 0).astype(np.float32)


SIZES = [(600, 600, 16), (700, 500, 64), (60, 80, 64)]  # the last has singular covariances


@pytest.mark.parametrize(("real_size", "size", "width"), SIZES)
def test_fid_agrees_with_torch_fidelity(real_size: int, size: int, width: int) -> None:
    reference = pytest.importorskip("torch_fidelity.metric_fid")
    real, synthetic = draw(real_size, width), draw(size, width, 0.2, seed=1)
    theirs = reference.fid_statistics_to_metric(
        *(
            reference.fid_features_to_statistics(torch.from_numpy(x).double())
            for x in (real, synthetic)
        ),
        verbose=False,
    )
    ours = fid(statistics(real), statistics(synthetic))
    assert ours == pytest.approx(theirs[reference.KEY_METRIC_FID], rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_kid_agrees_with_torch_fidelity(shift: float) -> None:
    """Subset by subset, since both draw the same: mean and standard deviation."""
    reference = pytest.importorskip("torch_fidelity.metric_kid")
    real, synthetic = draw(600, 64), draw(500, 64, shift, seed=1)
    theirs = reference.kid_features_to_metric(
        *(torch.from_numpy(x).double() for x in (synthetic, real)[::-1]),
        kid_subsets=20,
        kid_subset_size=200,
        rng_seed=3,
        verbose=False,
    )
    mean, deviation = kid(real, synthetic, subsets=20, subset_size=200, seed=3)
    assert mean == pytest.approx(theirs[reference.KEY_METRIC_KID_MEAN], rel=1e-9)
    assert deviation == pytest.approx(theirs[reference.KEY_METRIC_KID_STD], rel=1e-9)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("real_size", "size", "width"), SIZES)
def test_manifolds_agree_with_torch_fidelity(
    real_size: int, size: int, width: int, neighbours: int
) -> None:
    reference = pytest.importorskip("torch_fidelity.metric_prc")
    real, synthetic = draw(real_size, width), draw(size, width, 0.2, seed=1)
    theirs = reference.prc_features_to_metric(
        torch.from_numpy(synthetic).double(),
        torch.from_numpy(real).double(),
        prc_neighborhood=neighbours,
        verbose=False,
    )
    ours = manifolds(real, synthetic, neighbours)
    assert ours["precision"] == pytest.approx(theirs[reference.KEY_METRIC_PRECISION], rel=1e-6)
    assert ours["recall"] == pytest.approx(theirs[reference.KEY_METRIC_RECALL], rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("real_size", "size", "width"), SIZES)
def test_manifolds_agree_with_prdc(real_size: int, size: int, width: int, neighbours: int) -> None:
    reference = pytest.importorskip("prdc")
    real, synthetic = (
        x.astype(np.float64) for x in (draw(real_size, width), draw(size, width, 0.2, seed=1))
    )
    theirs = reference.compute_prdc(real, synthetic, neighbours)
    ours = manifolds(real, synthetic, neighbours)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert 0 < ours["precision"] <= 1


def test_copies_agree_with_prdc() -> None:
    """Every copy lies on the edge of balls. Small integers keep the reference free of rounding."""
    reference = pytest.importorskip("prdc")
    random = np.random.default_rng(0)
    real = random.integers(0, 8, (300, 6)).astype(np.float64)
    copies = real[random.integers(0, 300, 400)]
    for synthetic in (real, copies):
        theirs = reference.compute_prdc(real, synthetic, 5)
        assert manifolds(real, synthetic) == pytest.approx(theirs, rel=1e-9)


def test_copies_get_the_same_metrics_in_any_order() -> None:
    real = draw(1000, 64) * 10 + 100  # far from the origin: a matrix product rounds
    order = np.random.default_rng(0).permutation(1000)
    ours = manifolds(real, real[order])
    assert ours == manifolds(real[order], real)
    assert ours == pytest.approx(dict.fromkeys(ours, 1))


def test_manifolds_with_known_radii() -> None:
    real, synthetic = draw(150), draw(130, shift=0.2, seed=1)
    for neighbours in (1, 5):
        radii = squared_radii(real, neighbours)
        expected = manifolds(real, synthetic, neighbours)
        assert manifolds(real, synthetic, neighbours, radii) == expected
        assert manifolds(real, synthetic, neighbours, radii * 4) != expected


def test_manifolds_by_hand() -> None:
    """Balls around 0, 1, 3 reach 1, 1, 2; around 0.5, 10, 11 reach 9.5, 1, 1."""
    real = np.array([[0.0], [1.0], [3.0]])
    synthetic = np.array([[0.5], [10.0], [11.0]])
    ours = manifolds(real, synthetic, neighbours=1)
    assert list(ours.values()) == pytest.approx([1 / 3, 1, 2 / 3, 2 / 3])


def test_alike_sets_have_density_one() -> None:
    """In expectation it is k / k = 1 (Naeem et al. 2020); coverage is 1 - (N-1)…(N-k) /
    (N+M-1)…(N+M-k), about 1 - 2⁻⁵ for N = M (there, lemma 2)."""
    random = np.random.default_rng(0)
    ours = manifolds(random.normal(size=(3000, 4)), random.normal(size=(3000, 4)))
    assert ours["density"] == pytest.approx(1, abs=0.03)
    assert ours["coverage"] == pytest.approx(1 - 2**-5, abs=0.012)


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_manifolds_do_not_depend_on_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = draw(150), draw(130, shift=0.2, seed=1)
    whole = manifolds(real, synthetic)
    monkeypatch.setattr(fidelity, "BLOCK", block)
    assert manifolds(torch.from_numpy(real), torch.from_numpy(synthetic)) == whole


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_agree_with_numpy(offset: float) -> None:
    rows = draw(300).astype(np.float64) + offset
    found = statistics(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-11)


@settings(max_examples=30)
@given(
    count=st.integers(2, 60),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_fid_is_a_distance(count: int, width: int, seed: int, scale: float) -> None:
    """Also of sets with fewer images than features."""
    random = np.random.default_rng(seed)
    first, second = (scale * random.normal(size=(count, width)) for _ in range(2))
    step = scale * random.normal(size=width)
    one, two = statistics(first), statistics(second)
    size = np.trace(one.covariance) + np.trace(two.covariance) + step @ step
    assert fid(one, one) == pytest.approx(0, abs=1e-9 * size)
    assert fid(one, two) == pytest.approx(fid(two, one), abs=1e-9 * size)
    assert fid(one, two) > -1e-9 * size
    assert fid(one, statistics(first + step)) == pytest.approx(step @ step, abs=1e-9 * size)


@settings(max_examples=30)
@given(width=st.integers(1, 30), rank=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
def test_fid_of_commuting_gaussians(width: int, rank: int, seed: int) -> None:
    """With common axes it is |μ₁ - μ₂|² + Σ (σ₁ - σ₂)², whatever the axes and the rank."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(width, width)))[0]
    first, second = random.uniform(0.1, 2, (2, width))
    first[rank:] = 0
    means = random.normal(size=(2, width))
    distance = fid(
        Statistics(means[0], axes * first**2 @ axes.T),
        Statistics(means[1], axes * second**2 @ axes.T),
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((first - second) ** 2).sum()
    assert distance == pytest.approx(expected, rel=1e-7)


def test_fid_of_samples_nears_that_of_their_gaussians() -> None:
    random = np.random.default_rng(0)
    first = random.normal(0, 1, (100_000, 4))
    second = random.normal([1, 0, 0, 0], [2, 1, 1, 0.5], (100_000, 4))
    assert fid(statistics(first), statistics(second)) == pytest.approx(1 + 1 + 0.25, rel=0.02)


def test_kid_in_expectation() -> None:
    """MMD² = Σ C(3, j) |difference of the j-th raw moments|²; D = 1, N(0, 1) against N(½, 1.2²)."""
    expected = 3 * 0.5**2 + 3 * (1.44 + 0.25 - 1) ** 2 + (0.5**3 + 3 * 0.5 * 1.44) ** 2
    random = np.random.default_rng(0)

    def estimates(mean: float, deviation: float) -> np.ndarray:
        return np.array(
            [
                kid(random.normal(0, 1, (50, 1)), random.normal(mean, deviation, (50, 1)), 1, 50)[0]
                for _ in range(3000)
            ]
        )

    for values, truth in ((estimates(0.5, 1.2), expected), (estimates(0, 1), 0.0)):
        assert abs(values.mean() - truth) < 4 * values.std() / 3000**0.5
        assert values.std() / 3000**0.5 < 0.02 * expected  # or the line above shows nothing


def test_kid_repeats_by_its_seed() -> None:
    real, synthetic = draw(300), draw(300, shift=0.2, seed=1)
    first, again, other = (kid(real, synthetic, 5, 100, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first[1] > 0
    whole = kid(real, synthetic, 5, 300)
    assert whole[1] == pytest.approx(0, abs=1e-12)
    assert kid(real, synthetic, 5, 1000) == whole  # a subset is no larger than the set


def test_features_are_what_the_last_layer_reads(drawn: ImageSet) -> None:
    torch.manual_seed(0)
    classifier = FixedClassifier().eval().requires_grad_(False)
    ours = features(classifier, drawn.images)
    assert ours.shape == (500, 64)
    assert ours.dtype == torch.float32
    assert ours.min() == 0
    with torch.no_grad():
        images = unit_from_uint8(drawn.images[:40])
        for layer in (*classifier.features, *classifier.head[:-1]):
            images = layer(images)
        logits = classifier(unit_from_uint8(drawn.images[:40]))
    torch.testing.assert_close(ours[:40], images)
    torch.testing.assert_close(classifier.head[-1](ours[:40]), logits)
    parts = [features(classifier, part) for part in drawn.images.split(77)]
    torch.testing.assert_close(torch.cat(parts), ours)
    assert not classifier.head[-1]._forward_pre_hooks


def test_too_few_features_are_refused() -> None:
    rows = draw(5)
    with pytest.raises(ValueError, match="6 rows or more"):
        manifolds(rows, draw(100))
    with pytest.raises(ValueError, match="2 rows or more of each set, not 1"):
        kid(rows[:1], draw(100))
    with pytest.raises(ValueError, match="not 1"):
        fid(statistics(rows[:1]), statistics(rows))
    with pytest.raises(ValueError, match="not 0"):
        statistics(rows[:0])
