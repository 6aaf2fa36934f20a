"""How far a score can be trusted: intervals, comparisons and rank correlations.

A score varies for three reasons: another run of the generator, another seed of the classifier,
another draw of test images. Every result says which of them it covers. Accuracies are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats
from scipy.special import stdtrit

ALPHA = 0.05  # intervals are 95 %, and a verdict errs at most this often where nothing differs
SMALLEST_P = 1e-12  # smaller ones are given as this: tails that far out are no longer known

# One bool array (seeds, N) per generator run: did the classifier of seed s get test image k right?
Runs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A mean accuracy with its 95 % interval; the ends are not clipped to [0, 1]."""

    mean: float  # over runs of the mean over their seeds
    low: float | None  # None where a single score says nothing about its spread
    high: float | None
    seeds: tuple[int, ...]  # classifier seeds of each run
    between_runs: float | None  # variance component; None where it can't be estimated
    within_runs: float | None  # variance component: classifier seeds

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
    """Mean and 95 % interval of accuracies in [0, 1]: per generator run, those of its seeds.

    The run is the unit. The model is the one-way random effects' (Searle, Casella & McCulloch 1992,
    *Variance Components*, ch. 3), score = mean + run + seed within run: the variance of a run's
    mean is between + within / seeds, and the sample variance of the run means estimates just that.
    So the interval is Student's t on the run means, with runs - 1 degrees of freedom. Taking all
    scores for independent would instead count the seeds of one run as evidence about other runs
    (Bouthillier et al. 2021, arXiv:2103.03098, on leaving a source of variance fixed).
    With one run it is Student's t over its seeds, and covers those alone. Exact for normal scores
    if runs have equally many seeds, and a good approximation if not.

    The same classifier seeds recur in every run: what a seed does to the classifiers of all runs
    alike does not show in the spread of run means.

    The components are ANOVA's (Searle et al., ch. 3), clipped at 0.
    Raises ValueError if there is no run, a run has no score, or a score is not finite.
    """
    if len(scores) == 0 or any(len(run) == 0 for run in scores):
        raise ValueError("an interval needs one run or more, and one score or more in each")
    values = [np.asarray(run, dtype=float) for run in scores]
    if not all(np.isfinite(run).all() for run in values):
        raise ValueError("an interval needs finite scores")
    means = np.array([run.mean() for run in values])
    mean = float(means.mean())
    unit = means if len(means) > 1 else values[0]
    half = None
    if len(unit) > 1:
        half = float(_half_width(np.array([_variance_of_mean(unit)]), np.array([len(unit) - 1])))
    return Interval(
        mean,
        None if half is None else mean - half,
        None if half is None else mean + half,
        tuple(len(run) for run in values),
        *_variance_components(values),
    )


@dataclass(frozen=True)
class Comparison:
    """Accuracy of A minus that of B, with a 95 % interval for what `scope` names."""

    difference: float
    low: float
    high: float
    p_value: float  # two-sided, in [SMALLEST_P, 1]
    verdict: Literal["A", "B", "can't tell"]  # the better one, if the interval leaves out 0
    scope: Literal["recipes", "generators", "classifiers"]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]  # classifiers compared, by run of A and of B
    images: int

    @property
    def runs(self) -> tuple[int, int]:
        return len(self.seeds[0]), len(self.seeds[1])

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
    """Does A beat B? `a`, `b`: per generator run a bool array (seeds, N), N ≥ 2: right or wrong.

    Paired over test images: column k is the same image everywhere, so that what makes it hard or
    easy leaves the difference. Never paired over runs: run 0 of A and run 0 of B have nothing in
    common. The difference is the mean over images of the mean over A's runs (each the mean over its
    seeds) minus the same of B's. Its variance is estimated by the sum of

    - the variance of the mean, over images, of the image's difference; and
    - with two runs or more on both sides, that of the mean of A's run means and that of B's, which
      contain the classifiers' variance (see `interval`); or
    - else, paired over seeds (row s is seed s everywhere, and seeds that not every run has are left
      out), that of the mean, over seeds, of the seed's difference. A single run tells nothing of
      other runs: the result's `scope` is these generators, not the recipes.
    - With one run and one shared seed, images alone remain (the paired form of McNemar's test).

    What varies by run and image at once is in both kinds of term; the sum errs on the safe side.

    From variances v_i on f_i degrees of freedom the interval is ± sqrt(sum t(f_i)² v_i), Student's
    t each (Banerjee 1960, Sankhyā 22:357-358). For normal scores it covers at least 95 %, whatever
    the true variances: the distribution function of chi² with one degree of freedom is concave, so
    by Jensen's inequality the coverage is no less than a weighted mean of the single terms'
    coverages, which are 95 %. Welch's t with Satterthwaite's degrees of freedom is narrower, but
    errs more often than it says with as few runs as are usual here (see tests/test_statistics.py).
    The p-value is the level at which the interval's end touches 0.

    An entry that no generator made has no runs. Beside two runs or more, hand in each of its seeds
    as a run of one seed; else hand it in as one run, so that seeds are paired.
    Raises ValueError for empty, ill-shaped or unequal arrays.
    """
    _check(a, b)
    scope: Literal["recipes", "generators", "classifiers"]
    if len(a) > 1 and len(b) > 1:
        scope = "recipes"
        units = [np.array([run.mean() for run in side]) for side in (a, b)]
    else:
        shared = min(len(run) for run in (*a, *b))
        a, b = [run[:shared] for run in a], [run[:shared] for run in b]
        scope = "generators" if shared > 1 else "classifiers"
        by_seed = np.mean([run.mean(1) for run in a], 0) - np.mean([run.mean(1) for run in b], 0)
        units = [by_seed] if shared > 1 else []
    by_image = np.mean([run.mean(0) for run in a], 0) - np.mean([run.mean(0) for run in b], 0)
    units.append(by_image.round(12))  # the same thirds summed in another order differ by nothing
    difference = float(units[-1].mean())
    variances = np.array([_variance_of_mean(unit) for unit in units])
    freedom = np.array([len(unit) - 1 for unit in units])
    half = float(_half_width(variances, freedom))
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


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two rankings, from -1 (reversed) to 1 (the same)."""

    spearman: float
    kendall: float
    n: int


def rank_correlation(scores_a: Sequence[float], scores_b: Sequence[float]) -> RankCorrelation:
    """Do two classifiers rank the same n entries alike? Entry i's score under each, any range.

    Spearman's rho, with mean ranks for ties (Spearman 1904), and Kendall's tau-b (Kendall 1945).
    No p-values: that the two rankings are related at all is not in question.
    Raises ValueError for unequal lengths, and for scores that are not finite or are all equal.
    """
    if len(scores_a) != len(scores_b):
        raise ValueError(f"{len(scores_a)} and {len(scores_b)} scores: rank the same entries")
    if not np.isfinite([scores_a, scores_b]).all():
        raise ValueError("a ranking needs finite scores")
    if len(set(scores_a)) < 2 or len(set(scores_b)) < 2:
        raise ValueError("a ranking needs two different scores or more")
    return RankCorrelation(
        float(stats.spearmanr(scores_a, scores_b).statistic),
        float(stats.kendalltau(scores_a, scores_b).statistic),
        len(scores_a),
    )


def _variance_of_mean(units: np.ndarray) -> float:
    return float(units.var(ddof=1) / len(units))


def _half_width(variances: np.ndarray, freedom: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """sqrt(sum over i of t(f_i)² v_i); `variances` (sources, …), `freedom` (sources,)."""
    student = stdtrit(freedom, alpha / 2)  # stats.t.ppf, a hundred times faster
    half: np.ndarray = np.sqrt(np.tensordot(student**2, variances, 1))
    return half


def _p_value(difference: float, variances: np.ndarray, freedom: np.ndarray) -> float:
    if difference == 0:
        return 1.0

    def excess(log_p: float) -> float:
        return float(_half_width(variances, freedom, math.exp(log_p))) - abs(difference)

    smallest = math.log(SMALLEST_P)
    if excess(smallest) <= 0:
        return SMALLEST_P
    return math.exp(optimize.brentq(excess, smallest, 0.0))


def _variance_components(values: list[np.ndarray]) -> tuple[float | None, float | None]:
    """ANOVA estimates (between, within), clipped at 0; None where there is nothing to tell from."""
    sizes = np.array([len(run) for run in values])
    runs, total = len(sizes), int(sizes.sum())
    if total == runs:  # a seed each: the two can't be told apart
        return None, None
    within = float(sum(((run - run.mean()) ** 2).sum() for run in values) / (total - runs))
    if runs == 1:
        return None, within
    means = np.array([run.mean() for run in values])
    mean_square = (sizes * (means - np.average(means, weights=sizes)) ** 2).sum() / (runs - 1)
    seeds = (total - (sizes**2).sum() / total) / (runs - 1)  # the number per run, if all had one
    return max(0.0, float((mean_square - within) / seeds)), within


def _check(a: Runs, b: Runs) -> None:
    if len(a) == 0 or len(b) == 0:
        raise ValueError("a comparison needs one run or more on each side")
    for run in (*a, *b):
        if run.ndim != 2 or run.dtype != np.bool_ or len(run) == 0:
            raise ValueError(
                f"a run of shape {run.shape}, {run.dtype}: must be bool (seeds, images), not empty"
            )
    counts = sorted({run.shape[1] for run in (*a, *b)})
    if len(counts) > 1:
        raise ValueError(f"runs over {' and '.join(map(str, counts))} images: use the same images")
    if counts[0] < 2:
        raise ValueError("a comparison needs two test images or more")
