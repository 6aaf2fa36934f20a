"""The seam between synth and a family of generators, of which `gan` is one.

The loop, generation, evaluation and the leaderboard know a generator by these protocols alone.
Another family is one module with a `Family`, named in an entry point of the group `synth.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from synth.base.registry import Registry
from synth.data import ImageSet
from synth.recipes import RecipeBase

if TYPE_CHECKING:
    from synth.runs import RunConfig


class Sampler(Protocol):
    """A trained generator, ready to sample."""

    classes: int  # labels that it knows, 0..classes-1; 0 for an unconditional one

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        """Images uint8 (B, 3, 32, 32) on the CPU for labels int64 (B,), which an unconditional one
        ignores. All that is random comes from `random`."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything that `Family.load_sampler` needs, by name."""


class Trainer(Protocol):
    """One training in progress. Step n depends on (seed, n) alone, so that a resumed training
    equals one that was not stopped."""

    def step(self) -> None:
        """Takes the next step, which shows `recipe.batch` real images."""

    def log_values(self) -> dict[str, Any]:
        """What the log says of the steps since the last call: finite numbers, or lists of them."""

    def sampler(self) -> Sampler:
        """The generator as it stands."""

    def state(self) -> dict[str, Tensor]:
        """Every tensor that resuming needs, by name."""

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """The inverse of `state`, after `step` steps. Raises `KeyError`, `ValueError` or
        `RuntimeError` when the tensors do not fit."""


class MakeTrainer(Protocol):
    def __call__(
        self,
        config: RunConfig,
        images: ImageSet,
        heldout: ImageSet | None,
        device: torch.device,
    ) -> Trainer:
        """A trainer before its first step. It never learns from `heldout`."""


@dataclass(frozen=True)
class Family:
    """One kind of generator.

    precisions: those that it can train in; where there are several, `--precision auto` times them.
    measure: figures of a recipe for `synth recipes`, such as `generator_parameters`.
    """

    recipe: type[RecipeBase]
    make_trainer: MakeTrainer
    load_sampler: Callable[[RunConfig, dict[str, Tensor], torch.device], Sampler]
    precisions: tuple[str, ...] = ("fp32",)
    measure: Callable[[Any], dict[str, float]] = lambda recipe: {}


FAMILIES: Registry[Family] = Registry("family", "synth.families", later={"gan": "synth.gan:FAMILY"})
