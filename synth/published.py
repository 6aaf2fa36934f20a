"""The table of named recipes, each with its citation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tomli_w

from synth.base.errors import UsageError
from synth.base.registry import Registry
from synth.base.schema import dump
from synth.recipes import (
    DiscriminatorRecipe,
    GeneratorRecipe,
    Norm,
    Recipe,
    RecipeBase,
    TrainingRecipe,
    apply_overrides,
    read_toml,
)

SVHN_TRAIN, CELEBA = 73_257, 202_599  # images in an epoch of the published recipes
_SVHN_SYNTHESIS = (
    "https://github.com/radimurban/svhn-synthesis (EESTech AI Marathon 2024), "
    "hackathon_evaluation.ipynb"
)
_SSSINGH = "https://github.com/sssingh/svhn-and-celebrity-image-generation-dcgan"
KERAS_NORM = Norm(momentum=0.01, epsilon=1e-3)  # the momentum of Keras is 1 - 0.01

_CDCGAN = Recipe(
    name="cdcgan",
    citation=f"{_SVHN_SYNTHESIS}, plus an averaged generator",
    conditional=True,
    assumed="fakes are made for the labels of the real batch",
)
_CDCGAN_V2 = replace(
    _CDCGAN,
    name="cdcgan-v2",
    citation="cdcgan with a dual projection (P2GAN: Han et al. 2021), its classifier as a guide "
    "(AC-GAN: arXiv:1610.09585), augmentation of both sides (DiffAugment: arXiv:2006.10738) and "
    "balanced batches",
    augment="digits-v1",
    generator=GeneratorRecipe(label_size=10),
    discriminator=DiscriminatorRecipe(label="dual-projection"),
    training=TrainingRecipe(
        batch=64,
        balanced=True,
        augment_both="geometry-colour-v1",
        class_weight=0.5,
        ema_half_life=30_000,
    ),
)
_CDCGAN_QUICK = replace(
    _CDCGAN,
    name="cdcgan-quick",
    citation="cdcgan with a projection for the label, to learn labels in minutes, for demos",
    generator=GeneratorRecipe(label_size=10),
    discriminator=DiscriminatorRecipe(label="projection"),
    training=TrainingRecipe(images=100_000, batch=64, learning_rate_g=5e-4, learning_rate_d=5e-4),
)
_CDCGAN_V2_QUICK = replace(
    _CDCGAN_QUICK,
    name="cdcgan-v2-quick",
    citation="cdcgan-quick with half of its channels for twice as long, its images changed at "
    "random after generation, for demos",
    augment="digits-v1",
    generator=GeneratorRecipe(label_size=10, widths=(128, 64, 32)),
    discriminator=DiscriminatorRecipe(label="projection", widths=(32, 64, 128)),
    training=replace(_CDCGAN_QUICK.training, images=200_000),
)
_SHAHRULLO = Recipe(
    name="shahrullo",
    citation="https://github.com/Shahrullo/GAN, dcgan/DCGAN.ipynb",
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
    citation=f"{_SSSINGH}, svhn_generation_dcgan.ipynb",
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
    citation="Generate Fake Images on Google Street View House Number Using GAN Model, trial 1 "
    "(a report; no public copy was found)",
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
    citation = _KERAS.citation.replace("trial 1", f"trial {number}")
    return replace(_KERAS, name=f"keras-trial-{number}", citation=citation, training=training)


_TABLE = (
    _CDCGAN_V2,
    _CDCGAN,
    replace(
        _CDCGAN,
        name="dcgan",
        citation="Radford et al. 2015 (arXiv:1511.06434), sized as cdcgan",
        conditional=False,
        assumed="",
    ),
    _CDCGAN_V2_QUICK,
    _CDCGAN_QUICK,
    replace(
        _CDCGAN_V2_QUICK,
        name="dcgan-quick",
        citation="dcgan, sized as cdcgan-v2-quick and trained for half as long, for demos",
        conditional=False,
        assumed="",
        augment="none",
        training=_CDCGAN_QUICK.training,
    ),
    replace(
        _CDCGAN,
        name="svhn-synthesis",
        citation=_SVHN_SYNTHESIS,
        training=TrainingRecipe(images=35 * SVHN_TRAIN, ema_half_life=0),
    ),
    _SHAHRULLO,
    replace(
        _SHAHRULLO,
        name="house-number-recognition",
        citation="https://github.com/tooth2/House-Number-Recognition, README",
        assumed="all that its README leaves open is as in shahrullo: biases, slope 0.2, "
        "latent, losses, learning rates, initialisation, 50 epochs",
        generator=replace(
            _SHAHRULLO.generator,
            stem_norm=True,
            stem_activation="leaky_relu",
            widths=(512, 256, 128),
        ),
        discriminator=replace(_SHAHRULLO.discriminator, widths=(128, 256, 512), first_norm=True),
    ),
    _SSSINGH_SVHN,
    Recipe(
        name="sssingh-celeba",
        citation=f"{_SSSINGH}, celebrity_face_generation_dcgan.ipynb",
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
RECIPES: Registry[RecipeBase] = Registry(
    "--recipe",
    "synth.recipes",
    RecipeBase,
    {recipe.name: recipe for recipe in _TABLE},
    later={"flow": "synth.flow:RECIPE"},
)
CONDITIONAL = "-conditional"  # suffix for the conditional form of an unconditional recipe
UNCONDITIONAL = "-unconditional"  # suffix for the unconditional form of a recipe from a file


def find_recipe(name: str | None, conditional: bool | None) -> RecipeBase:
    """The recipe of this name. Without a name, the default one.

    conditional: True, or the suffix `-conditional`, gives the conditional form of an unconditional
    recipe. Its networks read labels as those of `cdcgan` do. Raises `UsageError` for an unknown
    name, or if `conditional` is False for a conditional recipe.
    """
    if name is None:
        return RECIPES["dcgan" if conditional is False else "cdcgan-v2"]
    plain = name.removesuffix(CONDITIONAL)
    recipe = RECIPES.find(plain)
    if conditional is False and (recipe.conditional or name != plain):
        raise UsageError(f"--recipe {name}: is conditional; leave out --unconditional")
    if recipe.conditional and name != plain:
        raise UsageError(f"--recipe {name}: {plain} is conditional already; call it that")
    if not recipe.conditional and (conditional or name != plain):
        return replace(recipe, name=recipe.name + CONDITIONAL, conditional=True)
    return recipe


def recipe_to_toml(recipe: RecipeBase) -> str:
    """The recipe as a file that `read_recipe` reads, with all of its hyperparameters."""
    bases = (name for name, base in RECIPES.items() if type(base) is type(recipe))
    return tomli_w.dumps({"base": next(bases), **dump(recipe)})


def read_recipe(path: Path) -> RecipeBase:
    """A recipe from a TOML file. `base` names the recipe that its values override.

    Without a `name` it has the name of the file.
    """
    value = read_toml(path)
    base = value.pop("base", "cdcgan")
    if not isinstance(base, str):
        raise UsageError(f"--recipe {path}: base is {base!r}; give the name of a recipe")
    try:
        start = find_recipe(base, None)
    except UsageError as error:
        raise UsageError(f"--recipe {path}: base {str(error).removeprefix('--recipe ')}") from None
    named = replace(start, name=path.stem, citation=path.name)
    return apply_overrides(named, value, f"--recipe {path}")
