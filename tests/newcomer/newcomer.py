"""One of everything that a newcomer adds to synth: tests install this package beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from sklearn.decomposition import PCA
from torch import Tensor

from eval.baselines import Baseline
from eval.metrics import Column, Metric, Subject
from eval.protocols import Protocol
from synth.base.schema import CLOSED, Count
from synth.data import Dataset, ImageSet, Split
from synth.families import Family
from synth.formats import Chunks, Format, Labels
from synth.recipes import RecipeBase
from synth.runs import RunConfig

CLASSES = ("flat", "upright")


# A data set: stripes that lie or stand


def load(split: Split, root: Path | None) -> ImageSet:
    random = np.random.default_rng([*split.encode()])
    waves = 128 + 100 * np.sin(np.arange(32) * 0.8 + random.uniform(0, 6, (60, 1)))
    labels = np.arange(60) % 2
    pixels = np.where(labels[:, None, None], waves[:, None, :], waves[:, :, None])
    noisy = np.clip(pixels + random.normal(0, 10, (60, 32, 32)), 0, 255).astype(np.uint8)
    images = torch.from_numpy(np.repeat(noisy[:, None], 3, axis=1))
    return ImageSet(images, torch.from_numpy(labels), CLASSES, "stripes", split)


DATASET = Dataset(load, "stripes that lie or stand")


# A format: two npy files


def write(folder: Path, chunks: Chunks, count: int, labels: Labels, classes: Sequence[str]) -> None:
    np.save(folder / "images.npy", np.concatenate(list(chunks)))
    if labels is not None:
        np.save(folder / "labels.npy", labels)


def read(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, Labels]:
    path = folder / "labels.npy"
    return np.load(folder / "images.npy"), np.load(path) if path.exists() else None


FORMAT = Format(write, read, "two files, for numpy's memory maps")


# A family of generators that is no GAN: PCA, and a Gaussian per class


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class PCARecipe(RecipeBase):
    family: ClassVar[str] = "pca"

    components: Count = 8
    images: Count = 60

    @property
    def batch(self) -> int:
        return 20

    @property
    def total_images(self) -> int:
        return self.images


class PCATrainer:
    """Step n learns from the first n batches of the data; the last one has seen them all."""

    def __init__(
        self, config: RunConfig, images: ImageSet, heldout: ImageSet | None, device: torch.device
    ) -> None:
        recipe = config.recipe
        assert isinstance(recipe, PCARecipe)
        self.recipe, self.images, self.classes = recipe, images, len(config.classes)
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    def step(self) -> None:
        self.steps += 1
        seen = min(len(self.images), self.steps * self.recipe.batch)
        pixels = self.images.images[:seen].flatten(1).double().numpy()
        labels = self.images.require_labels()[:seen].numpy()
        pca = PCA(self.recipe.components, svd_solver="full").fit(pixels)
        codes = [pca.transform(pixels[labels == label]) for label in range(self.classes)]
        arrays = {
            "mean": pca.mean_,
            "components": pca.components_,
            "centres": np.stack([code.mean(0) for code in codes]),
            "roots": np.stack([np.linalg.cholesky(np.cov(c.T) + np.eye(len(c.T))) for c in codes]),
        }
        self.tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def log_values(self) -> dict[str, Any]:
        return {"spread": float(self.tensors["roots"].abs().mean())}

    def sampler(self) -> PCASampler:
        return PCASampler(self.tensors)

    def state(self) -> dict[str, Tensor]:
        return self.tensors

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.tensors, self.steps = dict(tensors), step


class PCASampler:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self.classes = len(self._tensors["centres"])

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        centres, roots = self._tensors["centres"][labels], self._tensors["roots"][labels]
        noise = torch.from_numpy(random.standard_normal(centres.shape))
        codes = centres + torch.einsum("bij,bj->bi", roots, noise)
        pixels = codes @ self._tensors["components"] + self._tensors["mean"]
        return pixels.round().clamp(0, 255).to(torch.uint8).view(-1, 3, 32, 32)

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


FAMILY = Family(PCARecipe, PCATrainer, lambda config, tensors, device: PCASampler(tensors))
RECIPE = PCARecipe(name="pca-small", citation="this file", conditional=True)


# A metric, a baseline and a protocol


def brightness(subject: Subject) -> float:
    return float(subject.images.images.double().mean() / 255)


METRIC = Metric(
    name="brightness",
    key="brightness",
    doc="Mean pixel value, in [0, 1].",
    columns=(Column("brightness", "brightness", "{:.3f}", "mean pixel value"),),
    compute=brightness,
    feature_space=None,
)


def grey(real: ImageSet, per_class: int) -> ImageSet:
    labels = torch.arange(len(real.classes)).repeat_interleave(per_class)
    images = torch.full((len(labels), *real.images.shape[1:]), 128, dtype=torch.uint8)
    return ImageSet(images, labels, real.classes, real.name, "train")


BASELINE = Baseline("grey", grey)
PROTOCOL = Protocol("tiny-v1", "disk", steps=3, batch=20, seeds=2)
