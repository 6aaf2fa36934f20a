"""Recipes: how a generator is built and trained, as data. A new recipe is one entry in `RECIPES`.

The dials span the DCGANs that people have published for 32×32 images; each entry names its source.
"""

from __future__ import annotations

import difflib
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


SVHN_TRAIN, CELEBA = 73_257, 202_599  # images in an epoch of the published recipes
KERAS_NORM = Norm(momentum=0.01, epsilon=1e-3)  # Keras counts momentum the other way: 0.99

_CDCGAN = Recipe(
    name="cdcgan",
    source="svhn-synthesis (EESTech AI Marathon 2024), plus an averaged generator",
    conditional=True,
    assumed="fakes are made for the labels of the real batch",
)
_CDCGAN_QUICK = replace(
    _CDCGAN,
    name="cdcgan-quick",
    source="cdcgan with a projection for the label, to learn labels in minutes, for demos",
    generator=GeneratorRecipe(label_size=10),
    discriminator=DiscriminatorRecipe(label="projection"),
    training=TrainingRecipe(images=100_000, batch=64, learning_rate_g=5e-4, learning_rate_d=5e-4),
)
_SHAHRULLO = Recipe(
    name="shahrullo",
    source="shahrullo, GAN/dcgan notebook",
    conditional=False,
    generator=GeneratorRecipe(
        latent_distribution="uniform",
        stem="linear",
        stem_bias=True,
        stem_norm=False,
        stem_activation="none",
        widths=(128, 64, 32),
        bias="never",
    ),
    discriminator=DiscriminatorRecipe(widths=(32, 64, 128), bias="never", head="linear"),
    training=TrainingRecipe(
        images=50 * SVHN_TRAIN,
        initialisation="pytorch",
        discriminator_loss="sum",
        fakes="new",
        ema_half_life=0,
    ),
)
_SSSINGH_SVHN = Recipe(
    name="sssingh-svhn",
    source="sssingh, svhn-and-celebrity-image-generation-dcgan, part 1",
    conditional=False,
    assumed="real images in [-1, 1] as its README says, not as its notebook does; the loss is the "
    "sum of both halves, new fakes for the generator's step, PyTorch's initialisation",
    generator=GeneratorRecipe(
        latent_distribution="uniform",
        stem="linear",
        stem_bias=True,
        widths=(512, 256, 128),
        bias="always",
    ),
    discriminator=DiscriminatorRecipe(
        widths=(128, 256, 512), first_norm=True, bias="always", head="linear"
    ),
    training=replace(_SHAHRULLO.training, images=25 * SVHN_TRAIN),
)
_KERAS = Recipe(
    name="keras-trial-1",
    source="Generate Fake Images on Google Street View House Number Using GAN Model, trial 1",
    conditional=False,
    assumed="new fakes for the generator's step; BatchNorm in training mode in every step; 'same' "
    "padding of 5×5 kernels is mirrored; Adam's epsilon 1e-8; learns from nine tenths of the "
    "images, and measures the discriminator's loss on the rest",
    generator=GeneratorRecipe(
        stem="linear",
        stem_bias=True,
        stem_activation="leaky_relu",
        widths=(512, 256, 128),
        kernel=5,
        activation="leaky_relu",
        bias="always",
        norm=KERAS_NORM,
    ),
    discriminator=DiscriminatorRecipe(kernel=5, bias="always", head="linear", norm=KERAS_NORM),
    training=TrainingRecipe(
        images=8_000 * 256,
        batch=256,
        initialisation="keras",
        betas=(0.6, 0.999),
        discriminator_steps="separate",
        fakes="new",
        ema_half_life=0,
        heldout_every=50,
    ),
)


def _keras_trial(number: int, rate_d: float, rate_g: float) -> Recipe:
    training = replace(
        _KERAS.training, learning_rate_d=rate_d, learning_rate_g=rate_g, betas=(0.5, 0.999)
    )
    source = _KERAS.source.replace("trial 1", f"trial {number}")
    return replace(_KERAS, name=f"keras-trial-{number}", source=source, training=training)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _CDCGAN,
        replace(
            _CDCGAN,
            name="dcgan",
            source="Radford et al. 2015 (arXiv:1511.06434), sized as cdcgan",
            conditional=False,
            assumed="",
        ),
        _CDCGAN_QUICK,
        replace(
            _CDCGAN_QUICK,
            name="dcgan-quick",
            source="dcgan, trained as cdcgan-quick",
            conditional=False,
            assumed="",
        ),
        replace(
            _CDCGAN,
            name="svhn-synthesis",
            source="svhn-synthesis (EESTech AI Marathon 2024)",
            training=TrainingRecipe(images=35 * SVHN_TRAIN, ema_half_life=0),
        ),
        _SHAHRULLO,
        replace(
            _SHAHRULLO,
            name="house-number-recognition",
            source="House-Number-Recognition, README",
            assumed="all that its README leaves open is as in shahrullo: biases, slope 0.2, "
            "latent, losses, learning rates, initialisation, 50 epochs",
            generator=replace(
                _SHAHRULLO.generator,
                stem_norm=True,
                stem_activation="leaky_relu",
                widths=(512, 256, 128),
            ),
            discriminator=replace(
                _SHAHRULLO.discriminator, widths=(128, 256, 512), first_norm=True
            ),
        ),
        _SSSINGH_SVHN,
        Recipe(
            name="sssingh-celeba",
            source="sssingh, svhn-and-celebrity-image-generation-dcgan, part 2",
            conditional=False,
            assumed="latent and losses as in part 1",
            generator=GeneratorRecipe(
                latent_distribution="uniform",
                stem="linear",
                stem_activation="leaky_relu",
                base=2,
                widths=(512, 256, 128, 64),
                activation="leaky_relu",
            ),
            discriminator=DiscriminatorRecipe(
                widths=(32, 128, 256, 512), first_norm=True, bias="never", head="linear"
            ),
            training=replace(_SSSINGH_SVHN.training, images=25 * CELEBA, initialisation="dcgan"),
        ),
        _KERAS,
        _keras_trial(2, rate_d=1e-3, rate_g=1e-4),
        _keras_trial(3, rate_d=1e-3, rate_g=2e-4),
    )
}
CONDITIONAL = "-conditional"  # ends the name of an unconditional recipe's conditional form
UNCONDITIONAL = "-unconditional"  # of a recipe from a file, of which it is asked


def find_recipe(name: str | None, conditional: bool | None) -> Recipe:
    """The named recipe, or the default of its kind.

    `conditional` asks for the conditional form of an unconditional recipe, as does the ending
    `-conditional`: label embedding into the latent, label plane into the discriminator. Raises
    `UsageError` for an unknown name, or when a conditional recipe is asked to be the other.
    """
    if name is None:
        return RECIPES["dcgan" if conditional is False else "cdcgan"]
    plain = name.removesuffix(CONDITIONAL)
    if plain not in RECIPES:
        near = difflib.get_close_matches(plain.lower(), RECIPES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"--recipe {name}: unknown; {hint}choose {', '.join(RECIPES)}")
    recipe = RECIPES[plain]
    if conditional is False and (recipe.conditional or name != plain):
        raise UsageError(f"--recipe {name}: is conditional; leave out --unconditional")
    if recipe.conditional and name != plain:
        raise UsageError(f"--recipe {name}: {plain} is conditional already; call it that")
    if not recipe.conditional and (conditional or name != plain):
        return replace(recipe, name=recipe.name + CONDITIONAL, conditional=True)
    return recipe
