"""Recipes: how a generator is built and trained, as data. A new recipe is one entry in `RECIPES`.

The dials span the DCGANs that people have published for 32×32 images; each entry names its source.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from synth.errors import UsageError

Activation = Literal["none", "relu", "leaky_relu"]
Bias = Literal["without_norm", "always", "never"]


@dataclass(frozen=True)
class Norm:
    """BatchNorm's dials, by PyTorch's convention: `running = (1 - momentum)·running + …`."""

    momentum: float = 0.1
    epsilon: float = 1e-5


@dataclass(frozen=True)
class GeneratorRecipe:
    """Latent → stem → `base`×`base` map → transposed convolutions that double → 32×32, tanh."""

    latent_size: int = 100
    latent_distribution: Literal["normal", "uniform"] = "normal"  # N(0, 1) or U(-1, 1)
    label_size: int = 5  # width of the label embedding that a conditional generator appends
    stem: Literal["conv", "linear"] = "conv"  # a transposed convolution of the latent, or a matrix
    stem_bias: bool = False
    stem_norm: bool = True
    stem_activation: Activation = "relu"
    base: int = 4
    widths: tuple[int, ...] = (256, 128, 64)  # channels from the base map to the last hidden layer
    kernel: int = 4
    activation: Activation = "relu"
    bias: Bias = "without_norm"  # of the transposed convolutions after the stem
    norm: Norm = Norm()


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """Image (and a label plane) → strided convolutions that halve → head → one logit."""

    widths: tuple[int, ...] = (64, 128, 256)
    kernel: int = 4
    slope: float = 0.2  # of the LeakyReLU
    first_norm: bool = False  # BatchNorm after the first convolution too
    bias: Bias = "without_norm"
    head: Literal["conv", "linear"] = "conv"  # from the last map to the logit
    norm: Norm = Norm()


@dataclass(frozen=True)
class TrainingRecipe:
    """How the two networks are trained; lengths are counted in real images shown."""

    images: int = 1_000_000  # length when the user names none
    batch: int = 128
    initialisation: Literal["dcgan", "pytorch", "keras"] = "dcgan"
    learning_rate_g: float = 2e-4
    learning_rate_d: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    discriminator_loss: Literal["mean", "sum"] = "mean"  # of the real and the fake half
    discriminator_steps: Literal["joint", "separate"] = "joint"  # one for both halves, or one each
    fakes: Literal["shared", "new"] = "shared"  # does the generator's step draw fakes of its own
    ema_half_life: int = 10_000  # of the averaged generator, in images; 0 samples the last one


@dataclass(frozen=True)
class Recipe:
    """One published way to train a generator."""

    name: str
    source: str
    conditional: bool
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
    discriminator: DiscriminatorRecipe = field(default_factory=DiscriminatorRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Recipe:
        """The inverse of `to_json`, after a round through a JSON file."""

        def part(kind: type, values: dict[str, Any]) -> Any:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            if "norm" in values:
                values["norm"] = Norm(**values["norm"])
            return kind(**values)

        return Recipe(
            name=value["name"],
            source=value["source"],
            conditional=value["conditional"],
            generator=part(GeneratorRecipe, value["generator"]),
            discriminator=part(DiscriminatorRecipe, value["discriminator"]),
            training=part(TrainingRecipe, value["training"]),
        )


_CDCGAN = Recipe(
    name="cdcgan",
    source="svhn-synthesis (EESTech AI Marathon 2024), plus an averaged generator",
    conditional=True,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _CDCGAN,
        replace(
            _CDCGAN,
            name="dcgan",
            source="Radford et al. 2015 (arXiv:1511.06434), sized as cdcgan",
            conditional=False,
        ),
    )
}


def find_recipe(name: str | None, conditional: bool | None) -> Recipe:
    """The named recipe, or the default of its kind. Raises `UsageError` when they disagree."""
    if name is None:
        return RECIPES["dcgan" if conditional is False else "cdcgan"]
    if name not in RECIPES:
        raise UsageError(f"--recipe {name}: unknown; choose {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if conditional is not None and conditional != recipe.conditional:
        kind = "conditional" if recipe.conditional else "unconditional"
        raise UsageError(f"--recipe {name}: is {kind}; drop the other option")
    return recipe
