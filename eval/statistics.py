"""The uncertainty of scores: intervals and comparisons.

A score varies with the generator run, the classifier seed and the test images. Every result says
which of these three it covers. Accuracies are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy.special import stdtrit

ALPHA = 0.05  # of the 95 % intervals: the rate of wrong verdicts between equals
SMALLEST_P = 1e-12  # smaller p-values are reported as this one: such tails are unknown

Scope = Literal["recipes", "generators", "classifiers"]
# Per generator run a bool array (seeds, N): was test image k classified right with seed s?
Runs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A mean accuracy with its 95 % interval; the ends are not clipped to [0, 1]."""

    mean: float  # over runs of the mean over their seeds
    low: float | None  # None for a single score
    high: float | None
    seeds: tuple[int, ...]  # number of classifier seeds of each run

    @property
    def runs(self) -> int:
        return len(self.seeds)

    @property
    def covers(self) -> str:
        if self.low is None:
            return "no interval: one run, one classifier seed"
        if self.runs == 1:
            return "classifier seeds alone (one generator run), on this test split"
        return "generator runs and classifier seeds, on this test split"


def interval(scores: Sequence[Sequence[float]]) -> Interval:
    """Mean and 95 % interval of accuracies: for each generator run, those of its seeds.

    With two runs or more it is Student's t interval of the run means, with runs - 1 degrees of
    freedom. The model is one-way random effects (Searle, Casella & McCulloch 1992, *Variance
    Components*, ch. 3): score = mean + run + seed within run. Scores of one run are not independent
    evidence about other runs (Bouthillier et al. 2021, arXiv:2103.03098). With one run it is
    Student's t interval of its seeds, and covers those alone. Both are exact for normal scores if
    all runs have the same number of seeds, and good approximations otherwise. The effect of a
    classifier seed that is common to all runs does not show.

    Raises ValueError if there is no run, a run has no score, or a score is not finite.
    """
    if len(scores) == 0 or any(len(run) == 0 for run in scores):
        raise ValueError("an interval needs one run or more, and one score or more in each")
    means = np.array([np.mean(run) for run in scores])
    if not np.isfinite(means).all():
        raise ValueError("an interval needs finite scores")
    mean, seeds = float(means.mean()), tuple(len(run) for run in scores)
    unit = means if len(means) > 1 else np.array(scores[0])
    if len(unit) == 1:
        return Interval(mean, None, None, seeds)
    half = float(_half_width(*_spread([unit])))
    return Interval(mean, mean - half, mean + half, seeds)


Scores = Sequence[Sequence[float]]  # accuracies: for each generator run, those of its seeds


def difference_interval(a: Scores, b: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `a` minus that of `b`, in accuracy.

    b: accuracies by classifier seed of an entry without generator runs, such as *real*. Both levels
    count: the spread of a's runs (see `interval`) and that of b's seeds. Their variances are added
    as in `compare`. None if either has a single score.
    """
    parts = _levels(a, b)
    if parts is None:
        return None
    (one, other), difference = parts, float(parts[0].mean() - parts[1].mean())
    half = float(_half_width(*_spread([one, other])))
    return difference - half, difference + half


def ratio_interval(a: Scores, b: Sequence[float]) -> tuple[float, float] | None:
    """The same for the mean of `a` over that of `b`: the interval of the difference of logarithms
    by the delta method, var(log x) = var(x) / x². None if a mean is 0."""
    parts = _levels(a, b)
    if parts is None or min(part.mean() for part in parts) <= 0:
        return None
    ratio = float(parts[0].mean() / parts[1].mean())
    half = float(_half_width(*_spread([part / part.mean() for part in parts])))
    return ratio * math.exp(-half), ratio * math.exp(half)


def _levels(a: Scores, b: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """What varies in each: a's run means, or the seeds of its only run; b's seeds."""
    one = np.array([np.mean(run) for run in a]) if len(a) > 1 else np.array(a[0])
    return None if min(len(one), len(b)) < 2 else (one, np.array(b))


@dataclass(frozen=True)
class Comparison:
    """Accuracy of A minus that of B, with a 95 % interval for what `scope` names."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided, in [SMALLEST_P, 1]
    verdict: Literal["A", "B", "can't tell"]  # the better one, if 0 is outside the interval
    scope: Scope
    seeds: tuple[tuple[int, ...], tuple[int, ...]]  # numbers of classifiers, by run of A and of B
    images: int

    @property
    def covers(self) -> str:
        return COVERS[self.scope]


COVERS = {
    "recipes": "compares the recipes: covers generator runs, classifier seeds and test images",
    "generators": (
        "compares these data sets, not the recipes behind them (one side has a single run): "
        "covers classifier seeds and test images"
    ),
    "classifiers": (
        "compares these trained classifiers, neither data sets nor recipes (a single run with a "
        "single shared seed): covers test images"
    ),
}


def compare(a: Runs, b: Runs) -> Comparison:
    """Does A beat B? Each holds a bool array (seeds, N) per generator run, N ≥ 2: right or wrong.

    Test images are paired: column k is the same image everywhere. Runs are not paired: run 0 of A
    has nothing in common with run 0 of B. The difference is the mean over images of the mean over
    A's runs (each the mean over its seeds), minus the same of B's. Its variance is the sum of

    - the variance of the mean over images of each image's difference; and
    - with two runs or more on both sides: the variances of the mean of A's run means and of B's,
      which include the variance of the classifiers (see `interval`); or
    - otherwise, with paired seeds (row s is seed s everywhere; only seeds that every run has are
      used): the variance of the mean over seeds of each seed's difference. A single run says
      nothing about other runs, so the `scope` of the result is these generators, not the recipes.
    - With one run and one shared seed only images remain (the paired form of McNemar's test).

    Effects of a run on single images are in both kinds of terms, so the sum is conservative.

    From variances v_i on f_i degrees of freedom the interval is ± sqrt(sum t(f_i)² v_i), with
    Student's t (Banerjee 1960, Sankhyā 22:357-358). For normal scores it covers at least 95 %,
    whatever the true variances, by Jensen's inequality. Welch's interval (Satterthwaite's degrees
    of freedom) is narrower, but covers less than 95 % with few runs (see tests/test_statistics.py).
    The p-value is the level at which one end of the interval is 0.

    A baseline has no generator runs. Against two runs or more, pass each of its seeds as a run of
    one seed. Otherwise pass it as one run, so that seeds are paired.
    Raises ValueError for empty or ill-shaped arrays, or different numbers of images.
    """
    _check(a, b)
    if len(a) > 1 and len(b) > 1:
        units = [np.array([run.mean() for run in side]) for side in (a, b)]
        return _conclude(a, b, "recipes", *_spread(units))
    a, b = _with_shared_seeds(a, b)
    by_seed = np.mean([run.mean(1) for run in a], 0) - np.mean([run.mean(1) for run in b], 0)
    units = [by_seed] if len(by_seed) > 1 else []
    return _conclude(a, b, "generators" if units else "classifiers", *_spread(units))


def compare_with_base(base: Runs, others: Sequence[Runs]) -> list[Comparison]:
    """`compare` of each of the others with the base, if the scores of all scatter alike.

    Two classifiers or runs say little about their spread: on one degree of freedom Student's t is
    12.7. So the variance of runs, or of classifiers, is estimated from all entries together, as in
    an analysis of variance (Searle, Casella & McCulloch 1992, *Variance Components*, ch. 3):

    - with two runs or more everywhere: within entries, on sum (runs - 1) degrees of freedom;
    - otherwise what is left of the scores (entries, seeds) without the means of entries and of
      paired seeds, on (entries - 1) (seeds - 1) degrees of freedom.

    The images count as in `compare`, for each pair apart. An interval is for its own entry: among
    twenty entries equal to the base about one lies beyond its interval.
    """
    entries = [base, *others]
    _check(*entries)
    if all(len(runs) > 1 for runs in entries):
        means = [np.array([run.mean() for run in runs]) for runs in entries]
        freedom = sum(len(each) - 1 for each in means)
        pooled = sum(((each - each.mean()) ** 2).sum() for each in means) / freedom
        sizes = [1 / len(each) for each in means]
        scope: Scope = "recipes"
    else:
        entries = _with_shared_seeds(*entries)
        scores = np.array([np.mean([run.mean(1) for run in runs], 0) for runs in entries])
        seeds = scores.shape[1]
        left = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        freedom = (len(entries) - 1) * (seeds - 1)
        pooled = (left**2).sum() / max(1, freedom)
        sizes = [1 / seeds] * len(entries)
        scope = "generators" if freedom else "classifiers"
    known = 0 if scope == "classifiers" else 1  # a single seed has no spread
    return [
        _conclude(runs, entries[0], scope, known * [pooled * (sizes[0] + size)], known * [freedom])
        for runs, size in zip(entries[1:], sizes[1:], strict=True)
    ]


def _with_shared_seeds(*entries: Runs) -> list[Runs]:
    """All runs with the seeds that each of them has."""
    shared = min(len(run) for runs in entries for run in runs)
    return [[run[:shared] for run in runs] for runs in entries]


def _conclude(
    a: Runs, b: Runs, scope: Scope, variances: ArrayLike, freedom: ArrayLike
) -> Comparison:
    """With the variance of the images beside these variances of the difference."""
    by_image = np.mean([run.mean(0) for run in a], 0) - np.mean([run.mean(0) for run in b], 0)
    by_image = by_image.round(12)  # the order of summation must not make a difference
    of_images, its_freedom = _spread([by_image])
    variances, freedom = np.append(variances, of_images), np.append(freedom, its_freedom)
    difference, half = float(by_image.mean()), float(_half_width(variances, freedom))
    return Comparison(
        difference,
        difference - half,
        difference + half,
        _p_value(difference, variances, freedom),
        "can't tell" if abs(difference) <= half else "A" if difference > 0 else "B",
        scope,
        (tuple(map(len, a)), tuple(map(len, b))),
        len(by_image),
    )


def _spread(units: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The variance of the mean of each source's units, and its degrees of freedom: (sources,)."""
    variances = [unit.var(ddof=1) / len(unit) for unit in units]
    return np.array(variances), np.array([len(unit) - 1 for unit in units])


def _half_width(variances: np.ndarray, freedom: np.ndarray, alpha: float = ALPHA) -> Any:
    """sqrt(sum over i of t(f_i)² v_i); `variances` (sources, …), `freedom` (sources,)."""
    student = stdtrit(freedom, alpha / 2)  # a hundred times faster than stats.t.ppf
    return np.sqrt(np.tensordot(student**2, variances, 1))


def _p_value(difference: float, variances: np.ndarray, freedom: np.ndarray) -> float:
    if difference == 0:
        return 1.0

    def excess(log_p: float) -> float:
        return float(_half_width(variances, freedom, math.exp(log_p))) - abs(difference)

    smallest = math.log(SMALLEST_P)
    if excess(smallest) <= 0:
        return SMALLEST_P
    return math.exp(optimize.brentq(excess, smallest, 0.0))


def _check(*entries: Runs) -> None:
    if any(len(runs) == 0 for runs in entries):
        raise ValueError("a comparison needs one run or more on each side")
    every = [run for runs in entries for run in runs]
    for run in every:
        if run.ndim != 2 or run.dtype != np.bool_ or len(run) == 0:
            found = f"a run of shape {run.shape}, {run.dtype}"
            raise ValueError(f"{found}: must be bool (seeds, images), not empty")
    counts = sorted({run.shape[1] for run in every})
    if len(counts) > 1:
        raise ValueError(f"runs over {' and '.join(map(str, counts))} images: use the same images")
    if counts[0] < 2:
        raise ValueError("a comparison needs two test images or more")
