"""Fidelity: how near is a set to the real one in a feature space?

FID, KID, precision, recall, density and coverage, computed in float64 from features (N, D) of any
network. They agree with torch-fidelity and prdc on the same features. All depend on the number of
images: FID falls with it (Bińkowski et al. 2018, arXiv:1801.01401), and balls become smaller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from eval.metrics import CLASSIFIER, Column, Metric, RealReference, Subject
from synth.data import ImageSet, first_of_classes

Features = np.ndarray | Tensor  # float (N, D)

BLOCK = 256  # rows of the distance matrix in memory: 100 MB for 50,000 columns
NEIGHBOURS = 5  # the ball of a row reaches to this one
ROUNDING = 1e-13  # relative to the largest squared norm; see `manifolds`


class Statistics(NamedTuple):
    """Mean (D,) and unbiased covariance (D, D) of a set of features."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: Features) -> Statistics:
    """Statistics of features (N, D). Raises ValueError for fewer than two rows."""
    rows = _float64(features).numpy()
    if len(rows) < 2:
        raise ValueError(f"a covariance needs 2 rows or more, not {len(rows)}")
    mean = rows.mean(0)
    return Statistics(mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1))


def fid(real: Statistics, synthetic: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians, in [0, ∞) up to rounding.

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) (Heusel et al. 2017, arXiv:1706.08500, eq. 6). The
    covariances may have any rank.
    """
    shift = real.mean - synthetic.mean
    # tr (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½. A square root of the product
    # itself fails for singular covariances.
    overlap = scipy.linalg.svdvals(_root(real.covariance) @ _root(synthetic.covariance)).sum()
    traces = np.trace(real.covariance), np.trace(synthetic.covariance)
    return float(shift @ shift + traces[0] + traces[1] - 2 * overlap)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues of the size of rounding errors count as 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    values[values < values[-1] * len(values) * np.finfo(float).eps] = 0  # as matrix_rank does
    root: np.ndarray = (vectors * np.sqrt(values)) @ vectors.T
    return root


def kid(
    real: Features, synthetic: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance: unbiased squared MMD under the kernel (x·y / D + 1)³, in (-∞, ∞).

    KID of Bińkowski et al. 2018, arXiv:1801.01401: mean and standard deviation over the subsets.
    Its expectation is 0 for two sets from the same distribution, whatever their sizes. Subsets are
    drawn without replacement from numpy's `RandomState`, as torch-fidelity draws them.

    real: (N, D), synthetic: (M, D). A subset is no larger than the smaller set. Raises ValueError
    if that has fewer than two rows.
    """
    sets = [_float64(real).numpy(), _float64(synthetic).numpy()]
    size = min(subset_size, *map(len, sets))
    if size < 2:
        raise ValueError(f"a kernel distance needs 2 rows or more of each set, not {size}")
    random = np.random.RandomState(seed)
    values = [
        _mmd(*(rows[random.choice(len(rows), size, replace=False)] for rows in sets))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of MMD² of samples (n, D) (Gretton et al. 2012, lemma 6)."""
    kernels = (_kernel(rows, rows) for rows in (x, y))
    within = sum(kernel.sum() - kernel.trace() for kernel in kernels)
    return float(within / (len(x) * (len(x) - 1)) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y / D + 1)³ of all pairs. `polynomial_kernel` of sklearn gives the same, but its power
    takes most of the time of KID."""
    base = x @ y.T / x.shape[1] + 1
    cubes: np.ndarray = base * base * base
    return cubes


def manifolds(
    real: Features, synthetic: Features, neighbours: int = NEIGHBOURS, radii: Tensor | None = None
) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2); density
    and coverage (Naeem et al. 2020, arXiv:2002.09797, section 3). All are shares in [0, 1], except
    density in [0, ∞); see `COLUMNS`.

    The ball of a row reaches to its k-th nearest neighbour in its own set. Balls are open, as in
    the package `prdc` of Naeem et al.; torch-fidelity's are closed. Squared distances count as
    equal if they differ by rounding alone, so the order of rows does not matter.

    real: (N, D), synthetic: (M, D). radii: `squared_radii` of real, where they are known. Raises
    ValueError unless both sets have more than `neighbours` rows. Memory grows with N + M, not
    with their product.
    """
    real, synthetic = _float64(real), _float64(synthetic)
    if min(len(real), len(synthetic)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} rows or more of each set")
    centre = real.mean(0)  # distances stay the same, rounding errors get smaller
    real, synthetic = real - centre, synthetic - centre
    rounding = ROUNDING * float(torch.cat([real, synthetic]).square().sum(1).max())
    real_balls = (squared_radii(real, neighbours) if radii is None else radii) - rounding
    synthetic_balls = squared_radii(synthetic, neighbours) - rounding

    counts = []  # of real balls around each synthetic row
    recalled = covered = np.zeros(len(real), dtype=bool)
    norms, columns = real.square().sum(1), real.T.contiguous()
    for rows, balls in zip(synthetic.split(BLOCK), synthetic_balls.split(BLOCK), strict=True):
        squares = torch.addmm(norms, rows, columns, alpha=-2).add_(rows.square().sum(1)[:, None])
        inside = (squares < real_balls).numpy()  # numpy's any(0) is ten times as fast as torch's
        counts.append(np.count_nonzero(inside, axis=1))
        covered = covered | inside.any(0)
        recalled = recalled | (squares < balls[:, None]).numpy().any(0)
    around = np.concatenate(counts)
    return {
        "precision": float((around > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(around.mean()) / neighbours,
        "coverage": float(covered.mean()),
    }


def squared_radii(rows: Features, neighbours: int = NEIGHBOURS) -> Tensor:
    """Squared distance of each row (N, D) to its k-th nearest other row: float64 (N,).

    Raises ValueError unless there are more rows than neighbours."""
    rows = _float64(rows)
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(rows - rows.mean(0))
    distances, _ = search.kneighbors()
    return torch.from_numpy(distances[:, -1]).square()


def _float64(rows: Features) -> Tensor:
    return torch.as_tensor(rows).double().cpu()


def fidelity(subject: Subject, space: str) -> dict[str, float]:
    """All metrics of this module, by key, in one feature space."""
    real, synthetic = subject.real.features(space)[0], subject.features(space)
    distance, deviation = kid(real, synthetic)
    found = {"fid": fid(statistics(real), statistics(synthetic))}
    radii = subject.real.once(f"squared radii, {space}", lambda: squared_radii(real))
    return found | {"kid": distance, "kid_std": deviation} | manifolds(real, synthetic, radii=radii)


def calibration(real: RealReference, space: str) -> dict[str, float]:
    """FID and KID between real images: the scale for those of synthetic sets.

    halves: one half of the training split against the other (see `halves`). test:
    the training split against the test split, which the classifier was not trained on.
    """
    train, test = real.features(space)
    first = halves(real.train)
    found: dict[str, float] = {}
    for name, a, b in (("halves", train[first], train[~first]), ("test", train, test)):
        found[f"fid_{name}"] = fid(statistics(a), statistics(b))
        found[f"kid_{name}"], found[f"kid_{name}_std"] = kid(a, b)
    return found


# key in a record, title, format, doc
COLUMNS = (
    ("fid", "FID", "{:.2f}", "Fréchet distance of Gaussians of the set and of the real images"),
    ("kid", "KID", "{:.3g}", "kernel distance to the real images, mean over 100 subsets"),
    ("kid_std", "± of KID", "{:.3g}", "its standard deviation over the subsets"),
    ("precision", "precision", "{:.3f}", "share of the set's images in a ball around a real one"),
    ("recall", "recall", "{:.3f}", "share of real images in a ball around an image of the set"),
    ("density", "density", "{:.3f}", "balls of real images around an image of the set, over 5"),
    ("coverage", "coverage", "{:.3f}", "share of real images whose ball holds one of the set"),
)


def metric_in(space: str, columns: Iterable[Column], **more: Any) -> Metric:
    """The metric in one feature space. more: further arguments of `Metric`."""
    return Metric(
        key="fidelity",
        columns=tuple(columns),
        compute=lambda subject: {space: fidelity(subject, space)},
        feature_space=space,
        calibrate=lambda real: {space: calibration(real, space)},
        **more,
    )


def halves(real: ImageSet) -> Tensor:
    """Which images are in the first half of the split: bool (N,).

    Contiguous, since neighbouring digits of SVHN come from one house: at most the house at the
    cut has digits in both. Where the split is sorted by class, the first half of each class.
    """
    labels = real.require_labels()
    if (labels.diff() >= 0).all():
        return first_of_classes(labels, 0.5)
    return torch.arange(len(real)) < len(real) // 2


METRIC = metric_in(
    CLASSIFIER,
    [Column(*column, f"{CLASSIFIER}.{column[0]}") for column in COLUMNS],
    name="fidelity",
    position=10,
    doc="""All compare the set with the real training split, in the features of the fixed
    classifier that was trained on that split. All depend on the number of images. FID: Heusel et
    al. 2017 (arXiv:1706.08500). KID: Bińkowski et al. 2018 (arXiv:1801.01401), with subsets of
    1,000 images. Precision and recall: Kynkäänniemi et al. 2019 (arXiv:1904.06991). Density and
    coverage: Naeem et al. 2020 (arXiv:2002.09797); density is about 1 for two sets from the same
    distribution. A ball reaches to the 5th nearest neighbour in its own set, and all images are
    used. No metric here reads labels. Even the train-copy baseline is at some distance from the
    training split, because it is balanced and SVHN is not. With pseudo-labels, the labeller chooses
    which images fill a class; with random labels, nothing chooses.""",
)
