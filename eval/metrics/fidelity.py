"""Fidelity: how near does a set lie to the real one in a feature space?

FID, KID, precision, recall, density and coverage, each from features (N, D) of any network. They
agree with torch-fidelity and prdc on the same features; all arithmetic is in float64. A figure
means nothing without its feature space, its real split and the number of images: FID falls with
that number (Bińkowski et al. 2018, arXiv:1801.01401), and the neighbourhoods of
precision, recall and density shrink with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from eval.baselines import halves
from eval.metrics import CLASSIFIER, Column, Metric, RealReference

Features = np.ndarray | Tensor  # float (N, D)

BLOCK = 256  # rows of a distance matrix held at once: 100 MB against 50,000 columns
KID_SUBSET = 1000  # of the smaller set, where that has fewer
ROUNDING = 1e-13  # of the largest squared norm: squared distances closer than that are equal


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and scatter (D, D), the summed outer products of deviations, of `count` rows."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, as numpy.cov and the TTUR code have it: (D, D). Needs two rows or more."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 rows or more, not {self.count}")
        return self.scatter / (self.count - 1)

    def __add__(self, other: Statistics) -> Statistics:
        """Of both sets together (Chan, Golub & LeVeque 1979): no cancellation, so the
        result does not depend on how the rows were cut into chunks."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        cross = np.outer(shift, shift) * (self.count * other.count / count)
        return Statistics(count, mean, self.scatter + other.scatter + cross)


def statistics(chunks: Features | Iterable[Features]) -> Statistics:
    """Count, mean and scatter of features (N, D), or of chunks (n, D) of them, taken in turn.

    Raises ValueError when there is no row.
    """
    if isinstance(chunks, np.ndarray | Tensor):
        chunks = [chunks]
    total: Statistics | None = None
    for chunk in chunks:
        if len(chunk):
            rows = _float64(chunk).cpu().numpy()
            mean = rows.mean(0)
            part = Statistics(len(rows), mean, (rows - mean).T @ (rows - mean))
            total = part if total is None else total + part
    if total is None:
        raise ValueError("no features to take statistics of")
    return total


def fid(real: Statistics, synthetic: Statistics) -> float:
    """Fréchet distance of the two sets' Gaussians, in [0, ∞), up to rounding.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) (Heusel et al. 2017, arXiv:1706.08500, eq. 6), with
    unbiased covariances as in the authors' code.
    """
    return frechet_distance(real.mean, real.covariance, synthetic.mean, synthetic.covariance)


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """Squared Wasserstein-2 distance of two Gaussians (Dowson & Landau 1982).

    means: (D,); covariances: (D, D), symmetric, of any rank.
    """
    shift = mean_1 - mean_2
    # tr (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½. Unlike a square root of the
    # product, which is not symmetric, this needs no guard where a covariance is singular.
    overlap = scipy.linalg.svdvals(_root(covariance_1) @ _root(covariance_2)).sum()
    distance = shift @ shift + np.trace(covariance_1) + np.trace(covariance_2) - 2 * overlap
    return float(distance)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root, with eigenvalues that are rounding alone taken as 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    values[values < values[-1] * len(values) * np.finfo(float).eps] = 0  # as matrix_rank does
    root: np.ndarray = (vectors * np.sqrt(values)) @ vectors.T
    return root


class Kid(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kid(
    real: Features, synthetic: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Kid:
    """Kernel distance: unbiased squared MMD under the kernel (x·y / D + 1)³, in (-∞, ∞).

    KID of Bińkowski et al. 2018, arXiv:1801.01401. Zero in expectation when both
    sets are drawn alike, whatever their sizes. Subsets are drawn without replacement from numpy's
    `RandomState`, whose stream is frozen: the same as torch-fidelity's for one seed.

    real: (N, D), synthetic: (M, D). Raises ValueError when either has fewer than `subset_size`.
    """
    sets = [_float64(real).cpu().numpy(), _float64(synthetic).cpu().numpy()]
    fewest = min(map(len, sets))
    if not 2 <= subset_size <= fewest:
        raise ValueError(f"subset_size {subset_size}: must be in 2..{fewest}, the smaller set")
    random = np.random.RandomState(seed)
    values = [
        _mmd(*(rows[random.choice(len(rows), subset_size, replace=False)] for rows in sets))
        for _ in range(subsets)
    ]
    return Kid(float(np.mean(values)), float(np.std(values)))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of MMD² of samples (n, D) (Gretton et al. 2012, lemma 6)."""
    count, width = x.shape

    def between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / width + 1) ** 3)

    within = [kernel.sum() - kernel.trace() for kernel in (between(x, x), between(y, y))]
    return float(sum(within) / (count * (count - 1)) - 2 * between(x, y).mean())


class Manifolds(NamedTuple):
    """How two sets cover each other; see `manifolds`."""

    precision: float  # share of synthetic rows in a ball around a real one, in [0, 1]
    recall: float  # share of real rows in a ball around a synthetic one, in [0, 1]
    density: float  # real balls that a synthetic row lies in, over k, in [0, ∞): about 1 if alike
    coverage: float  # share of real rows whose ball holds a synthetic one, in [0, 1]


def manifolds(real: Features, synthetic: Features, neighbours: int = 5) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2); density
    and coverage (Naeem et al. 2020, arXiv:2002.09797, section 3).

    The ball of a row reaches to its k-th nearest neighbour in its own set. Balls are open, as in
    the package `prdc` of Naeem et al., which also has k = 5; torch-fidelity's are closed, which
    differs only where distances tie. Ties are recognised up to rounding, so that copies of real
    images get the same figures whatever the order of rows.

    real: (N, D), synthetic: (M, D), both longer than `neighbours`, else ValueError. Memory grows
    with N + M, not with their product.
    """
    real, synthetic = _float64(real).cpu(), _float64(synthetic).cpu()
    if min(len(real), len(synthetic)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} rows or more of each set")
    centre = real.mean(0)  # distances stay, rounding shrinks
    real, synthetic = real - centre, synthetic - centre
    rounding = ROUNDING * float(torch.cat([real, synthetic]).square().sum(1).max())
    real_balls = _squared_radii(real, neighbours) - rounding
    synthetic_balls = _squared_radii(synthetic, neighbours) - rounding

    balls = torch.zeros(len(synthetic))
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = recalled.clone()
    for start in range(0, len(synthetic), BLOCK):
        block = slice(start, start + BLOCK)
        squares = torch.cdist(synthetic[block], real).square_()
        inside = squares < real_balls
        balls[block] = inside.sum(1).float()
        covered |= inside.any(0)
        recalled |= (squares < synthetic_balls[block, None]).any(0)
    return Manifolds(
        precision=float((balls > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls.double().mean()) / neighbours,
        coverage=float(covered.double().mean()),
    )


def _squared_radii(rows: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row: (N,)."""
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(rows.numpy())
    distances, _ = search.kneighbors()
    return torch.from_numpy(distances[:, -1]).square()


def _float64(rows: Features) -> Tensor:
    return torch.as_tensor(rows).double()


def fidelity(real: Tensor, synthetic: Tensor) -> dict[str, float]:
    """All metrics of this module, by key, from features (N, D) and (M, D)."""
    kernel = kid(real, synthetic, subset_size=_subset(real, synthetic))
    return {
        "fid": fid(statistics(real), statistics(synthetic)),
        "kid": kernel.mean,
        "kid_std": kernel.std,
        **manifolds(real, synthetic)._asdict(),
    }


def _subset(real: Tensor, synthetic: Tensor) -> int:
    return min(KID_SUBSET, len(real), len(synthetic))


def calibration(real: RealReference, space: str) -> dict[str, float]:
    """FID and KID between real images, to read those of sets by.

    halves: the training split cut in two, see `eval.baselines.halves`. test: training split and
    test split. The classifier has learned from both halves, and not from the test split.
    """
    train, test = real.features(space)
    first = halves(real.train)
    found: dict[str, float] = {}
    for name, a, b in (("halves", train[first], train[~first]), ("test", train, test)):
        kernel = kid(a, b, subset_size=_subset(a, b))
        found[f"fid_{name}"] = fid(statistics(a), statistics(b))
        found |= {f"kid_{name}": kernel.mean, f"kid_{name}_std": kernel.std}
    return found


# key in a record, title, format, doc
COLUMNS = (
    ("fid", "FID", "{:.2f}", "Fréchet distance of Gaussians of the set and of the real images"),
    ("kid", "KID", "{:.3g}", "kernel distance of both, the mean over 100 subsets"),
    ("kid_std", "± of KID", "{:.3g}", "its standard deviation over the subsets"),
    ("precision", "precision", "{:.3f}", "share of the set's images in a ball around a real one"),
    ("recall", "recall", "{:.3f}", "share of real images in a ball around one of the set's"),
    ("density", "density", "{:.3f}", "balls of real images around an image of the set, over 5"),
    ("coverage", "coverage", "{:.3f}", "share of real images with one of the set's in their ball"),
)


def metric_in(space: str, columns: Iterable[Column], **more: Any) -> Metric:
    """The metric in one feature space. `more`: what else `Metric` takes."""
    return Metric(
        key="fidelity",
        columns=tuple(columns),
        compute=lambda subject: {
            space: fidelity(subject.real.features(space)[0], subject.features(space))
        },
        feature_space=space,
        calibrate=lambda real: {space: calibration(real, space)},
        **more,
    )


METRIC = metric_in(
    CLASSIFIER,
    [Column(*column, f"{CLASSIFIER}.{column[0]}") for column in COLUMNS],
    name="fidelity",
    position=10,
    doc="""All are against the real training split, in the features of the fixed classifier that was
    trained on it, and depend on the number of images. FID: Heusel et al. 2017 (arXiv:1706.08500).
    KID: Bińkowski et al. 2018 (arXiv:1801.01401), with subsets of 1,000 images. Precision and
    recall: Kynkäänniemi et al. 2019 (arXiv:1904.06991). Density, which is about 1 where both are
    alike, and coverage: Naeem et al. 2020 (arXiv:2002.09797). A ball reaches to the 5th nearest
    neighbour in its own set, and all images count. None of them looks at labels. But a set is
    balanced and SVHN is not, so that even the copier lies at some distance from the training split
    that it copies. And pseudo-labels choose which images fill a class, where random labels take
    them as they come.""",
)
