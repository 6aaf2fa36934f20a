"""Intervals and comparisons against worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from eval.statistics import (
    ALPHA,
    SMALLEST_P,
    Comparison,
    _half_width,
    compare,
    compare_with_base,
    difference_interval,
    interval,
    ratio_interval,
)

REPEATS = 2_000
NOISE = 3 * (ALPHA * (1 - ALPHA) / REPEATS) ** 0.5  # three standard errors of a rate of 5 %


# --- interval ------------------------------------------------------------------------------------


def drawn_scores(
    seeds: tuple[int, ...], between: float, within: float, repeats: int
) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Scores of mean 0.7 per repeat and run, and the accuracy (repeats, runs) of each generator."""
    random = np.random.default_rng(0)
    generators = 0.7 + between * random.standard_normal((repeats, len(seeds)))
    noise = within * random.standard_normal((repeats, len(seeds), max(seeds)))
    scores = generators[..., None] + noise
    return [[run[:count] for run, count in zip(s, seeds, strict=True)] for s in scores], generators


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("seeds", [(3,) * 3, (3,) * 5, (5,) * 2, (1, 3, 3, 5)])
def test_interval_covers_the_recipes_accuracy(seeds: tuple[int, ...], ratio: float) -> None:
    scores, _ = drawn_scores(seeds, ratio * 0.01, 0.01, 4_000)
    results = [interval(runs) for runs in scores]
    covered = np.mean([r.low < 0.7 < r.high for r in results])
    assert 0.93 <= covered <= 0.97
    assert results[0].covers == "generator runs and classifier seeds, on this test split"


def test_interval_of_one_run_covers_its_generator_alone() -> None:
    scores, generators = drawn_scores((3,), 0.02, 0.01, 4_000)
    results = [interval(runs) for runs in scores]
    ends = np.array([[r.low, r.high] for r in results])
    assert (
        0.93 <= np.mean((ends[:, 0] < generators[:, 0]) & (generators[:, 0] < ends[:, 1])) <= 0.97
    )
    assert np.mean((ends[:, 0] < 0.7) & (ends[:, 1] > 0.7)) < 0.8  # which is why it has to say so
    assert "classifier seeds alone" in results[0].covers


def test_interval_by_hand() -> None:
    result = interval([[0.1, 0.3], [0.5, 0.7]])
    assert (result.mean, result.runs, result.seeds) == (pytest.approx(0.4), 2, (2, 2))
    assert result.high == pytest.approx(0.4 + 12.7062 * 0.2, abs=1e-4)  # t(1) sqrt(0.08 / 2)
    assert result.low == pytest.approx(0.4 - 12.7062 * 0.2, abs=1e-4)


def test_interval_of_little() -> None:
    one = interval([[0.7]])
    assert (one.mean, one.low, one.high) == (0.7, None, None)
    assert one.covers == "no interval: one run, one classifier seed"
    same = interval([[0.5, 0.5], [0.5, 0.5]])
    assert same.low == same.high == 0.5
    for wrong in ([], [[]], [[0.7], []], [[float("nan")]]):
        with pytest.raises(ValueError, match="an interval needs"):
            interval(wrong)


# --- gains and ratios ----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("seeds", [(3,) * 3, (3,) * 5, (3,)])
def test_gains_and_ratios_cover_both_levels(seeds: tuple[int, ...], ratio: float) -> None:
    """The truth is 0.7 against 0.8. Student's factors for each level make them conservative."""
    between = ratio * 0.01 if len(seeds) > 1 else 0.0
    scores, _ = drawn_scores(seeds, between, 0.01, 2_000)
    real = 0.8 + 0.01 * np.random.default_rng(1).standard_normal((2_000, 3))
    for make, truth in ((difference_interval, -0.1), (ratio_interval, 0.7 / 0.8)):
        ends = np.array([make(runs, list(seeds)) for runs, seeds in zip(scores, real, strict=True)])
        covered = np.mean((ends[:, 0] < truth) & (truth < ends[:, 1]))
        assert covered >= 0.95 - NOISE
        assert covered <= 0.995


def test_gains_and_ratios_by_hand() -> None:
    runs, real = [[0.1, 0.3], [0.5, 0.7]], [0.7, 0.8, 0.9]
    low, high = difference_interval(runs, real) or (0.0, 0.0)
    half = ((12.7062**2) * 0.08 / 2 + (4.30265**2) * 0.01 / 3) ** 0.5
    assert (low, high) == pytest.approx((-0.4 - half, -0.4 + half), abs=1e-4)
    low, high = ratio_interval(runs, real) or (0.0, 0.0)
    half = ((12.7062**2) * 0.08 / 2 / 0.16 + (4.30265**2) * 0.01 / 3 / 0.64) ** 0.5
    assert (np.log(low), np.log(high)) == pytest.approx(
        (np.log(0.5) - half, np.log(0.5) + half), abs=1e-4
    )
    # A single run counts by its classifier seeds; a single score has no spread
    assert difference_interval([[0.1, 0.3]], real) is not None
    assert difference_interval([[0.1]], real) is difference_interval(runs, [0.7]) is None
    assert ratio_interval([[0.0, 0.0]], real) is None


# --- compare -------------------------------------------------------------------------------------


def world(
    random: np.random.Generator, images: int, repeats: int = REPEATS
) -> Callable[..., np.ndarray]:
    """Recipes that are tried on the same test images, drawn anew for every repeat.

    Image k is classified right with a probability p_k (mostly near 0 or 1, 0.75 on average), which
    an effect e turns into p_k + e 4 p_k (1 - p_k). That is linear: effects of mean 0 leave a
    recipe's expected accuracy exactly as it is, however they are spread; e is 3 times as large as
    what it does to an accuracy.
    """
    easiness = random.beta(0.6, 0.2, (repeats, 1, 1, images))

    def recipe(
        runs: int,
        seeds: int,
        run: float = 0.0,  # standard deviations, of a run's effect,
        seed: float = 0.02,  # of a seed's in a run,
        image: float = 0.0,  # of an image's in a recipe,
        run_image: float = 0.08,  # of an image's in a run
        better: float = 0.0,
    ) -> np.ndarray:
        """Bool (repeats, runs, seeds, images)."""
        effect = (
            better
            + run * random.standard_normal((repeats, runs, 1, 1))
            + seed * random.standard_normal((repeats, runs, seeds, 1))
            + image * random.standard_normal((repeats, 1, 1, images))
            + run_image * random.standard_normal((repeats, runs, 1, images))
        ).clip(-0.25, 0.25)
        chance = easiness + effect * 4 * easiness * (1 - easiness)
        return random.random(chance.shape, dtype=np.float32) < chance

    return recipe


def compared(a: np.ndarray, b: np.ndarray) -> list[Comparison]:
    return [compare(list(x), list(y)) for x, y in zip(a, b, strict=True)]


def told(results: list[Comparison]) -> float:
    return float(np.mean([r.verdict != "can't tell" for r in results]))


OTHER_IMAGES = {"image": 0.25, "seed": 0.0, "run_image": 0.0}
EQUAL = {  # runs and seeds of A and B, and what sets their runs apart
    "3 and 3 runs": ((3, 3), (3, 3), {"run": 0.06}, {"run": 0.06}),
    "2 and 2 runs": ((2, 3), (2, 3), {"run": 0.06}, {"run": 0.06}),
    "5 and 5 runs, a seed each": ((5, 1), (5, 1), {"run": 0.03}, {"run": 0.03}),
    "2 and 6 runs": ((2, 2), (6, 2), {"run": 0.06}, {"run": 0.06}),
    "2 and 6 runs, the two spread more": ((2, 1), (6, 1), {"run": 0.08}, {"run": 0.02}),
    "3 and 3 runs, one side spread more": ((3, 1), (3, 1), {"run": 0.08}, {"run": 0.0}),
    "5 and 5 runs, other images hard": ((5, 5), (5, 5), OTHER_IMAGES, OTHER_IMAGES),
    "2 and 2 runs, all of it": ((2, 2), (2, 2), {"run": 0.03, "image": 0.15}, {"image": 0.15}),
    "3 and 3 runs, unequal seeds": ((3, 3), (3, 1), {"run": 0.03}, {"run": 0.03}),
    "1 and 1 run": ((1, 3), (1, 3), {"seed": 0.06, "image": 0.1}, {"seed": 0.06}),
    "1 and 4 runs": ((1, 3), (4, 3), {"image": 0.1}, {"seed": 0.06}),
    "1 and 1 run, a seed each": ((1, 1), (1, 1), {"seed": 0.0, "image": 0.1}, {"seed": 0.0}),
}


@pytest.mark.parametrize("case", EQUAL)
def test_equals_are_told_apart_at_most_one_time_in_twenty(case: str) -> None:
    shape_a, shape_b, effects_a, effects_b = EQUAL[case]
    recipe = world(np.random.default_rng([1, *case.encode()]), images=300)
    results = compared(recipe(*shape_a, **effects_a), recipe(*shape_b, **effects_b))
    assert told(results) <= ALPHA + NOISE
    assert np.mean([r.p_value < ALPHA for r in results]) == pytest.approx(told(results), abs=1e-9)
    assert abs(np.mean([r.difference for r in results])) < 0.005


def welch(variances: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    total = variances.sum(0)
    degrees = total**2 / np.tensordot(1 / freedom, variances**2, 1)
    return stats.t.isf(ALPHA / 2, degrees) * np.sqrt(total)


def test_banerjees_interval_holds_where_welchs_does_not() -> None:
    random = np.random.default_rng(2)
    repeats = 20_000
    rates: dict[str, list[float]] = {"banerjee": [], "welch": []}
    for runs in ((2, 2), (2, 10), (3, 3), (3, 5)):
        for deviation_b in (1.0, 0.3, 0.1):
            for image in (0.2, 1.0):  # of the test images, as if known
                a = random.standard_normal((runs[0], repeats))
                b = random.standard_normal((runs[1], repeats)) * deviation_b
                difference = a.mean(0) - b.mean(0) + image * random.standard_normal(repeats)
                spreads = [x.var(0, ddof=1) / len(x) for x in (a, b)]
                variances = np.stack([*spreads, np.full(repeats, image**2)])
                freedom = np.array([runs[0] - 1, runs[1] - 1, 10_000])
                for name, half in (("banerjee", _half_width), ("welch", welch)):
                    rates[name].append(np.mean(abs(difference) > half(variances, freedom)))
    assert max(rates["banerjee"]) <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / repeats) ** 0.5
    assert max(rates["welch"]) > 0.1


@pytest.mark.parametrize(("runs", "scope"), [(3, "recipes"), (1, "generators")])
def test_a_clear_difference_is_found(runs: int, scope: str) -> None:
    recipe = world(np.random.default_rng(3), images=1_000, repeats=300)
    effects = {"run": 0.03 if runs > 1 else 0.0}  # an accuracy's standard deviation of 1 %
    results = compared(*(recipe(runs, 3, better=by, **effects) for by in (0.12, -0.12)))
    assert np.mean([r.verdict == "A" for r in results]) > 0.95
    assert {r.scope for r in results} == {scope}
    assert np.mean([r.difference for r in results]) == pytest.approx(0.08, abs=0.01)


def test_pairing_over_images_narrows_the_interval() -> None:
    random = np.random.default_rng(4)
    recipe = world(random, images=1_000, repeats=200)
    a, b = recipe(3, 3, run=0.01), recipe(3, 3, run=0.01)
    paired = np.array([r.high - r.low for r in compared(a, b)])
    apart = np.array([r.high - r.low for r in compared(a, random.permuted(b, axis=0))])
    assert np.mean(paired) < 0.8 * np.mean(apart)


def test_pairing_over_seeds_narrows_the_interval() -> None:
    random = np.random.default_rng(5)
    effect = np.linspace(0.5, 0.9, 4)[:, None]  # what a seed does to both sides
    a, b = (random.random((4, 500)) < effect for _ in range(2))
    paired, apart = compare([a], [b]), compare([a], [b[::-1]])
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_comparison_by_hand() -> None:
    a = [np.array([[1, 1, 1, 1]], bool), np.array([[1, 1, 1, 0]], bool)]
    b = [np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 0, 0]], bool)]
    result = compare(a, b)
    # Differences by image 0, ½, 1, ½: variance of their mean 1/24. Run means 1, ¾ and ½, ¼: 1/64.
    half = (3.18245**2 / 24 + 12.70620**2 * 2 / 64) ** 0.5
    assert (result.low, result.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert (result.difference, result.verdict, result.scope) == (0.5, "can't tell", "recipes")
    t3, t1 = (stats.t.isf(result.p_value / 2, freedom) for freedom in (3, 1))
    assert (t3**2 / 24 + t1**2 / 32) ** 0.5 == pytest.approx(0.5)


def test_single_classifiers_are_compared_by_the_paired_t_test() -> None:
    random = np.random.default_rng(6)
    a, b = random.random((1, 200)) < 0.8, random.random((1, 200)) < 0.7
    result, known = compare([a], [b]), stats.ttest_rel(a[0].astype(float), b[0].astype(float))
    assert result.p_value == pytest.approx(known.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(known.confidence_interval()))
    assert result.scope == "classifiers"


# --- compare_with_base ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (2, 2), (3, 1)])
def test_variants_equal_to_their_base_are_told_apart_one_time_in_twenty(
    shape: tuple[int, int],
) -> None:
    recipe = world(np.random.default_rng([8, *shape]), images=300, repeats=500)
    effects = {"run": 0.06} if shape[0] > 1 else {"seed": 0.06}
    entries = [recipe(*shape, **effects) for _ in range(6)]
    found: list[Comparison] = []
    alone: list[Comparison] = []
    for base, *others in zip(*(map(list, entry) for entry in entries), strict=True):
        found += compare_with_base(list(base), [list(other) for other in others])
        alone += [compare(list(other), list(base)) for other in others]
    assert told(found) <= ALPHA + NOISE
    widths = [np.mean([each.high - each.low for each in kind]) for kind in (found, alone)]
    assert widths[0] < widths[1]
    assert [each.difference for each in found] == [each.difference for each in alone]
    assert {each.scope for each in found} == {each.scope for each in alone}


def test_the_pooled_variance_is_that_of_an_analysis_of_variance() -> None:
    """Against residuals of a least-squares fit, by numpy, of entries and seeds (or entries)."""
    random = np.random.default_rng(9)
    made = [list(random.random((2, 3, 40)) < share) for share in (0.5, 0.7, 0.8, 0.6)]
    scores = np.array([[run.mean(1) for run in runs] for runs in made])  # entry, run, seed
    for entries, cells, per_difference in (
        ([runs[:1] for runs in made], scores[:, 0], 2 / 3),  # (entry, seed)
        (made, scores.mean(2), 2 / 2),  # (entry, run)
    ):
        rows, columns = np.indices(cells.shape).reshape(2, -1)
        design = np.eye(4)[rows]
        if cells.shape[1] == 3:  # seeds are paired
            design = np.hstack([design, np.eye(3)[columns]])
        fitted, _, rank, _ = np.linalg.lstsq(design, cells.ravel(), rcond=None)
        freedom = cells.size - rank
        variance = ((cells.ravel() - design @ fitted) ** 2).sum() / freedom * per_difference
        for result, runs in zip(
            compare_with_base(entries[0], entries[1:]), entries[1:], strict=True
        ):
            by_image = np.concatenate(runs).mean(0) - np.concatenate(entries[0]).mean(0)
            half = (
                stats.t.isf(ALPHA / 2, freedom) ** 2 * variance
                + stats.t.isf(ALPHA / 2, 39) ** 2 * by_image.var(ddof=1) / 40
            ) ** 0.5
            assert (result.low, result.high) == pytest.approx(
                (by_image.mean() - half, by_image.mean() + half)
            )


@given(st.integers(1, 4), st.integers(2, 20), st.randoms(use_true_random=False))
def test_one_variant_of_one_run_is_compared_as_a_pair(
    seeds: int, images: int, random: Random
) -> None:
    a, b = (
        np.array([[random.random() < 0.6 for _ in range(images)] for _ in range(seeds)])
        for _ in range(2)
    )
    (together,), alone = compare_with_base([b], [[a]]), compare([a], [b])
    assert (together.scope, together.difference) == (alone.scope, alone.difference)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


# --- properties of compare -----------------------------------------------------------------------


RUNS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 12))


@given(st.data(), RUNS, RUNS)
@settings(max_examples=200)
def test_exchanging_a_and_b_exchanges_the_verdict(
    data: st.DataObject, shape_a: tuple[int, int, int], shape_b: tuple[int, int, int]
) -> None:
    a = list(data.draw(arrays(bool, shape_a)))
    b = list(data.draw(arrays(bool, (*shape_b[:2], shape_a[2]))))
    there, back = compare(a, b), compare(b, a)
    assert back.verdict == {"A": "B", "B": "A"}.get(there.verdict, there.verdict)
    assert back.difference == -there.difference
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p_value == pytest.approx(there.p_value)
    assert back.scope == there.scope
    assert SMALLEST_P <= there.p_value <= 1
    assert there.low <= there.difference <= there.high


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "scope", "compared_a", "compared_b"),
    [
        ((1, 1), (1, 1), "recipes", (1, 1), (1, 1)),
        ((3, 2, 3), (3, 3), "recipes", (3, 2, 3), (3, 3)),
        ((3,), (3, 3), "generators", (3,), (3, 3)),
        ((3,), (2,), "generators", (2,), (2,)),
        ((3,), (1,), "classifiers", (1,), (1,)),
    ],
)
def test_scope_follows_from_runs_and_shared_seeds(
    seeds_a: tuple[int, ...],
    seeds_b: tuple[int, ...],
    scope: str,
    compared_a: tuple[int, ...],
    compared_b: tuple[int, ...],
) -> None:
    a, b = ([np.ones((count, 5), bool) for count in seeds] for seeds in (seeds_a, seeds_b))
    result = compare(a, b)
    assert (result.scope, result.seeds) == (scope, (compared_a, compared_b))
    assert f"compares the{'' if scope == 'recipes' else 'se'} " in result.covers


def test_comparison_of_little() -> None:
    some = np.random.default_rng(7).random((3, 50)) < 0.7
    same = compare([some], [some, some])
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert same.verdict == "can't tell"
    for repeated in (3, 7):  # thirds add up to something else in another order
        assert compare([some] * 2, [some] * repeated).p_value == 1
        assert compare([some], [some] * repeated).p_value == 1
    perfect = compare([np.ones((2, 50), bool)], [np.zeros((2, 50), bool)])
    assert (perfect.verdict, perfect.p_value) == ("A", SMALLEST_P)
    with pytest.raises(ValueError, match="one run or more on each side"):
        compare([], [some])
    with pytest.raises(ValueError, match=r"\(0, 50\), bool: must be bool .*, not empty"):
        compare([some], [some[:0]])
    with pytest.raises(ValueError, match=r"\(50,\), bool: must be bool \(seeds, images\)"):
        compare([some[0]], [some])
    with pytest.raises(ValueError, match="float64: must be bool"):
        compare([some.astype(float)], [some])
    with pytest.raises(ValueError, match="runs over 40 and 50 images: use the same"):
        compare([some], [some[:, :40]])
    with pytest.raises(ValueError, match="two test images or more"):
        compare([some[:, :1]], [some[:, :1]])
