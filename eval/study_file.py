"""What a study's file says: a base recipe and its variants.

A study is a TOML file:

    dataset = "svhn"          # its training split; the test split is never opened
    recipe = "cdcgan"         # the base
    set = ["training.batch=64"]  # its hyperparameters that are changed
    images = 200_000          # length of each training, in real images shown
    seeds = 2                 # training runs of each variant
    per_class = 3000
    protocol = "fixed-v1"
    classifier_seeds = 3
    generate = { augment = "digits-v1" }   # options of generation, for all variants

    [variants.balanced]
    set = ["training.balanced=true"]

    [variants.flow]
    recipe = "flow"           # instead of the base and its changes

    [variants.shifted]
    generate = { augment = "geometry-v1" }  # instead of those above

    [variants."longer, and more images"]
    images = 800_000
    per_class = 12_000
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from synth.base.errors import UsageError
from synth.base.schema import CLOSED, Count, Text, parse
from synth.generation import DEFAULTS, Sampling
from synth.published import find_recipe
from synth.recipes import RecipeBase, override, read_toml

BASE = "base"


@dataclass(frozen=True, config=CLOSED)
class Variant:
    """What a variant changes."""

    recipe: Text | None = None  # instead of the base and its changes
    set: tuple[str, ...] = ()  # hyperparameters, as for --set
    generate: Sampling | None = None  # by default those of the study; so with the next two
    images: Count | None = None
    per_class: Count | None = None


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Study:
    """The content of a study's file."""

    dataset: Text
    recipe: Text
    set: tuple[str, ...] = ()  # hyperparameters of the base, as for --set
    images: Count
    seeds: Count = 1
    per_class: Count = 3000
    protocol: Text = "fixed-v1"
    classifier_seeds: Count = 3
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    generate: Sampling = DEFAULTS
    variants: Annotated[dict[str, Variant], Field(min_length=1)]

    def sampling(self, variant: str) -> Sampling:
        return self.variants.get(variant, Variant()).generate or self.generate

    def length(self, variant: str) -> int:
        """Of its training, in real images shown."""
        return self.variants.get(variant, Variant()).images or self.images

    def count(self, variant: str) -> int:
        """The number of generated images of each class."""
        return self.variants.get(variant, Variant()).per_class or self.per_class

    def changes(self, name: str) -> list[str]:
        """What a variant changes, as options of the command line."""
        variant = self.variants.get(name, Variant())
        recipe = [f"--recipe {variant.recipe}"] if variant.recipe else []
        length = [f"--images {variant.images}"] if variant.images else []
        given = variant.generate
        generation = (options_of(given) or ["no options of generate"]) if given else []
        count = [f"--per-class {variant.per_class}"] if variant.per_class else []
        return [*recipe, *variant.set, *length, *generation, *count]


def read_study(path: Path) -> Study:
    """Raises `UsageError` that names the file and the wrong value."""
    study = parse(Study, read_toml(path), f"{path}", UsageError)
    if ":" in study.dataset:
        raise UsageError(f"{path}: dataset is {study.dataset}; leave out what follows the colon")
    for name in study.variants:
        if name == BASE or not re.fullmatch(r"[\w ,.+-]+", name):
            raise UsageError(
                f"{path}: a variant is called {name!r}; use letters, digits, spaces and , . + - "
                f"for a name other than {BASE}"
            )
    for name, recipe in recipes_of(study):
        if not recipe.conditional:
            raise UsageError(f"{path}: {name} is unconditional, and a study scores labelled sets")
    return study


def recipes_of(study: Study) -> Iterator[tuple[str, RecipeBase]]:
    """The base and all variants with their recipes."""
    for name, variant in {BASE: Variant(), **study.variants}.items():
        start = find_recipe(variant.recipe or study.recipe, None)
        changes = variant.set if variant.recipe else (*study.set, *variant.set)
        changed = ", ".join([start.name, *changes])
        yield name, replace(override(start, *changes), name=" ".join(changed.split()))


def options_of(sampling: Sampling) -> list[str]:
    """The options of `synth generate` that are not at their defaults."""
    return [
        f"--{name.replace('_', '-')} {value}"
        for name, value in asdict(sampling).items()
        if value != getattr(DEFAULTS, name)
    ]
