"""Recipes: how a generator is built and trained, as data. A new recipe is one entry in `RECIPES`.

The dials span the DCGANs that people have published for 32×32 images; each entry names its source.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from synth.base.errors import UsageError

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
    """Image (and a label) → strided convolutions that halve → head → one logit."""

    # How a conditional one reads the label: an embedding of 32·32 as one more input plane, or one
    # whose product with the last map is added to the logit (Miyato & Koyama 2018, arXiv:1802.05637)
    label: Literal["plane", "projection"] = "plane"
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
    heldout_every: int = 0  # steps between losses on a tenth of the images kept out of training


@dataclass(frozen=True)
class Recipe:
    """One published way to train a generator."""

    name: str
    source: str = field(compare=False)  # prose: two recipes are equal when they do the same
    conditional: bool
    assumed: str = field(default="", compare=False)  # where the source is silent
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
            assumed=value.get("assumed", ""),
            generator=part(GeneratorRecipe, value["generator"]),
            discriminator=part(DiscriminatorRecipe, value["discriminator"]),
            training=part(TrainingRecipe, value["training"]),
        )


def check_recipe(recipe: Recipe) -> None:
    """Raises `UsageError` unless the dials make 32×32 images and steps that learn."""
    generator, discriminator, training = recipe.generator, recipe.discriminator, recipe.training
    side = generator.base << len(generator.widths)
    if side != 32:
        raise UsageError(
            f"{recipe.name}: generator.base {generator.base} doubled by {len(generator.widths)} "
            f"generator.widths makes images of {side}×{side}, not 32×32"
        )
    if not 1 <= len(discriminator.widths) <= 5:
        raise UsageError(f"{recipe.name}: discriminator.widths must be from 1 to 5 numbers")
    if generator.kernel not in (4, 5) or discriminator.kernel not in (4, 5):
        raise UsageError(f"{recipe.name}: kernels of 4 and 5 halve and double; choose one of them")
    counts = {
        "training.images": training.images,
        "training.batch": training.batch,
        "generator.latent_size": generator.latent_size,
        "generator.widths": min(generator.widths),
        "discriminator.widths": min(discriminator.widths),
    }
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"{recipe.name}: {name} is {value}, and must be 1 or more")
    if max(training.betas) >= 1:
        raise UsageError(f"{recipe.name}: training.betas are shares, and must be below 1")
    for part, norm in (("generator", generator.norm), ("discriminator", discriminator.norm)):
        if norm.momentum > 1:
            raise UsageError(f"{recipe.name}: {part}.norm.momentum is a share, and must be up to 1")
        if norm.epsilon == 0:
            raise UsageError(f"{recipe.name}: {part}.norm.epsilon is 0, and must be above")
