"""The interface of a family of generators. The built-in family is `gan`.

Training, generation and evaluation use a generator through these protocols alone. A new family is
one module with a `Family`, and an entry point in the group `synth.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from synth.base.registry import Registry
from synth.recipes import RecipeBase

if TYPE_CHECKING:
    from synth.runs import RunConfig


Teacher = Callable[[Tensor], Tensor]  # float (B, 3, 32, 32) in [-1, 1] → logits (B, classes)


class Sampler(Protocol):
    """A trained generator, ready to sample."""

    classes: int  # number of labels; 0 for an unconditional generator

    def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
        """Images uint8 (B, 3, 32, 32) on the CPU for labels int64 (B,). An unconditional generator
        ignores the labels. All random numbers come from `random`."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors that `Family.load_sampler` needs, by name."""


class Trainer(Protocol):
    """One training in progress. Batch n must depend on (seed, n) alone, so that a resumed training
    equals an uninterrupted one."""

    def step(self) -> None:
        """Takes the next step, which shows `recipe.batch` real images."""

    def log_values(self) -> dict[str, Any]:
        """Values to log for the steps since the last call: finite numbers, or lists of them."""

    def sampler(self) -> Sampler:
        """The generator with its present weights."""

    def state(self) -> dict[str, Tensor]:
        """All tensors that resuming needs, by name."""

    def load_state(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """The inverse of `state`, after `step` steps. Raises `KeyError`, `ValueError` or
        `RuntimeError` if the tensors do not fit."""


@dataclass(frozen=True)
class Family:
    """One kind of generator.

    make_trainer(config, images, heldout, device): a trainer before its first step. It must not
    learn from `heldout`. A recipe that needs a teacher is given it as a fifth argument.
    load_sampler(config, tensors, device): a sampler with the tensors of `Sampler.tensors`.
    precisions: those that it can train in. `--precision auto` times them if there are several.
    measure(recipe): numbers for `synth recipes`, such as `generator_parameters`.
    shares_batches: several processes can train one run; see `synth.ops.parallel`.
    """

    recipe: type[RecipeBase]
    make_trainer: Callable[..., Trainer]
    load_sampler: Callable[[RunConfig, dict[str, Tensor], torch.device], Sampler]
    precisions: tuple[str, ...] = ("fp32",)
    measure: Callable[[Any], dict[str, float]] = lambda recipe: {}
    shares_batches: bool = False


FAMILIES: Registry[Family] = Registry(
    "family",
    "synth.families",
    Family,
    later={"gan": "synth.gan:FAMILY", "flow": "synth.flow:FAMILY"},
)
