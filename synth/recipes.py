"""The schema of a recipe: how a generator is built and trained, as data."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from synth.base.errors import SynthError, UsageError
from synth.base.files import read_text
from synth.base.images import SIDE, SIDES
from synth.base.names import Name
from synth.base.schema import CLOSED, Count, Number, Size, Text, dump, on_disk, parse
from synth.ops.policies import check_policy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Activation = Literal["none", "relu", "leaky_relu"]
Bias = Literal["without_norm", "always", "never"]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class RecipeBase:
    """The recipe of any family."""

    family: ClassVar[str]  # a name in synth.families.FAMILIES
    later: ClassVar[tuple[str, ...]] = ("augment",)  # what older versions lack; see `stored`

    name: Name
    # Comparisons ignore texts: two recipes are equal if they do the same.
    citation: Annotated[str, on_disk("source")] = field(compare=False)
    conditional: bool
    assumed: str = field(default="", compare=False)  # what the source does not say
    # Policy in synth.ops.policies: generated images are changed by it, if no other is asked for
    augment: Text = "none"

    @model_validator(mode="after")
    def check_augment(self) -> RecipeBase:
        check_policy(self.augment)
        return self

    @property
    def batch(self) -> int:
        """Real images that one training step shows."""
        raise NotImplementedError

    @property
    def total_images(self) -> int:
        """Default training length, in real images shown."""
        raise NotImplementedError

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return SIDE

    def fitted(self, side: int, grey: bool) -> RecipeBase:
        """The recipe for real images of this side. The name says what has changed. Raises
        `UsageError` if this recipe has no such form."""
        if side != self.side:
            raise UsageError(
                f"--recipe {self.name}: makes images of {self.side}×{self.side}, and the real ones "
                f"have {side}×{side}; choose a recipe of the family gan, such as cdcgan-v2"
            )
        return self

    @property
    def keeps_heldout(self) -> bool:
        """True if a tenth of the training images is held out to measure losses."""
        return False

    @property
    def needs_teacher(self) -> bool:
        """True if a classifier of real images guides the training."""
        return False


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Norm:
    """BatchNorm as in PyTorch: `running = (1 - momentum)·running + momentum·batch`."""

    momentum: Annotated[float, Field(ge=0, le=1)] = 0.1
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-5


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class GeneratorRecipe:
    """Latent → stem → `base`×`base` map → transposed convolutions that double it → image, tanh."""

    latent_size: Size = 100
    latent_distribution: Literal["normal", "uniform"] = "normal"  # N(0, 1) or U(-1, 1)
    label_size: Size = 5  # width of the label embedding that a conditional generator appends
    stem: Literal["conv", "linear"] = "conv"  # a transposed convolution or a linear layer
    stem_bias: bool = False
    stem_norm: bool = True
    stem_activation: Activation = "relu"
    base: Size = 4
    widths: Annotated[tuple[Size, ...], Field(min_length=1)] = (256, 128, 64)  # channels per map
    kernel: Literal[4, 5] = 4  # these double the side exactly
    activation: Activation = "relu"
    bias: Bias = "without_norm"  # of the transposed convolutions after the stem
    norm: Norm = Norm()
    channels: Literal[1, 3] = 3  # 1: of grey images, whose three channels are equal

    @property
    def side(self) -> int:
        return self.base << len(self.widths)

    @model_validator(mode="after")
    def check_side(self) -> GeneratorRecipe:
        if self.side not in SIDES:
            raise ValueError(
                f"generator.base {self.base} doubled by {len(self.widths)} generator.widths makes "
                f"images of {self.side}×{self.side}, not of one of the sides {SIDES}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class DiscriminatorRecipe:
    """Image and label → strided convolutions that halve the side → head → one logit."""

    # How a conditional one reads the label. `plane`: an embedding is one more input plane.
    # `projection`: the product of an embedding and the last map is added to the logit (Miyato &
    # Koyama 2018, arXiv:1802.05637). `dual-projection`: the product of the last map with P_y - Q_y
    # is added; P learns to classify real images, and Q fakes (P2GAN: Han et al. 2021,
    # arXiv:2108.09016). `adc`: the logit ignores the label; a head of 2K classes tells real and
    # fake images of each class apart (ADC-GAN: Hou et al. 2022, arXiv:2107.10060).
    label: Literal["plane", "projection", "dual-projection", "adc"] = "plane"
    widths: Annotated[tuple[Size, ...], Field(min_length=1, max_length=5)] = (64, 128, 256)
    kernel: Literal[4, 5] = 4  # these halve an even side exactly
    slope: Number = 0.2  # of the LeakyReLU
    first_norm: bool = False  # BatchNorm after the first convolution too
    bias: Bias = "without_norm"
    head: Literal["conv", "linear"] = "conv"  # from the last map to the logit
    norm: Norm = Norm()

    def last_side(self, side: int) -> int:
        """The side of the last map for images of this side; 0 if there are too many layers."""
        for _ in self.widths:  # 4 with padding 1, and 5 with padding 2
            side = side // 2 if self.kernel == 4 else (side + 1) // 2
        return side


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class TrainingRecipe:
    """How the two networks are trained. Lengths are counted in real images shown."""

    images: Count = 1_000_000  # default length
    batch: Count = 128
    initialisation: Literal["dcgan", "pytorch", "keras"] = "dcgan"
    learning_rate_g: Number = 2e-4
    learning_rate_d: Number = 2e-4
    betas: tuple[Share, Share] = (0.5, 0.999)
    discriminator_loss: Literal["mean", "sum"] = "mean"  # of the losses on real and on fake images
    discriminator_steps: Literal["joint", "separate"] = "joint"  # one step for both losses, or two
    fakes: Literal["shared", "new"] = "shared"  # "new": the generator's step draws its own fakes
    ema_half_life: Annotated[int, Field(ge=0)] = 10_000  # in images; 0: no EMA generator
    balanced: bool = False  # every class is equally frequent in the batches
    augment_real: Text = (
        "none"  # policy in synth.ops.policies for the real images: the fakes learn it
    )
    # The same for real images and fakes (DiffAugment: Zhao et al. 2020, arXiv:2006.10738): the
    # fakes do not learn it
    augment_both: Text = "none"
    mismatch: bool = False  # real images with wrong labels are fakes too (Reed et al. 2016,
    # arXiv:1605.05396)
    # Weight of the cross-entropy of the discriminator's own classifier P on fakes, in the loss of
    # the generator (AC-GAN: Odena et al. 2017, arXiv:1610.09585); for `dual-projection`
    class_weight: Number = 0.0
    feature_matching: Number = 0.0  # weight of the distance between the mean last maps of a class
    teacher_weight: Number = 0.0  # of the teacher's cross-entropy on fakes, in the generator's loss
    teacher_start: Annotated[int, Field(ge=0)] = 50_000  # images shown before the teacher guides
    heldout_every: Annotated[int, Field(ge=0)] = 0  # steps between losses on held-out images


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class Recipe(RecipeBase):
    """How a (conditional) DCGAN is built and trained: the recipe of the family `gan`."""

    family: ClassVar[str] = "gan"
    later: ClassVar[tuple[str, ...]] = (
        *("augment", "generator.channels", "training.balanced"),
        *("training.augment_real", "training.augment_both"),
        *("training.mismatch", "training.class_weight", "training.feature_matching"),
        *("training.teacher_weight", "training.teacher_start"),
    )

    generator: GeneratorRecipe = GeneratorRecipe()
    discriminator: DiscriminatorRecipe = DiscriminatorRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @property
    def batch(self) -> int:
        return self.training.batch

    @property
    def total_images(self) -> int:
        return self.training.images

    @property
    def side(self) -> int:
        return self.generator.side

    def fitted(self, side: int, grey: bool) -> Recipe:
        """Larger images get one more doubling, and 28×28 begins with a map of 7×7. A layer that is
        new has twice the channels of its neighbour, as the layers of DCGAN have."""
        generator, discriminator = self.generator, self.discriminator
        head, comma, rest = self.name.partition(",")
        if side not in SIDES:
            raise UsageError(f"--dataset: images have {side}×{side} pixels; give one of {SIDES}")
        if side != self.side:
            bases = (generator.base, 7, 4)
            base, layers = next((b, n) for b in bases for n in range(1, 7) if b << n == side)
            widths = generator.widths[-layers:]
            while len(widths) < layers:
                widths = (2 * widths[0], *widths)
            generator = replace(generator, base=base, widths=widths)
            halvings = len(discriminator.widths) + (side == 64) - (self.side == 64)
            narrow = discriminator.widths[: max(1, halvings)]
            wide = (2 * narrow[-1],) * (halvings > len(narrow))
            discriminator = replace(discriminator, widths=(*narrow, *wide)[:5])
            head += f"-{side}"
        if grey and generator.channels != 1:
            generator, head = replace(generator, channels=1), f"{head}-grey"
        return replace(
            self, name=head + comma + rest, generator=generator, discriminator=discriminator
        )

    @property
    def keeps_heldout(self) -> bool:
        return self.training.heldout_every > 0

    @property
    def needs_teacher(self) -> bool:
        return self.training.teacher_weight > 0

    @model_validator(mode="after")
    def check_labels(self) -> Recipe:
        training = self.training
        names = ("balanced", "mismatch", "class_weight", "feature_matching", "teacher_weight")
        used = [name for name in names if getattr(training, name)]
        if used and not self.conditional:
            raise ValueError(f"training.{used[0]} needs labels; choose a conditional recipe")
        if training.class_weight and self.discriminator.label != "dual-projection":
            raise ValueError("training.class_weight needs discriminator.label=dual-projection")
        check_policy(training.augment_real)
        check_policy(training.augment_both)
        if not self.discriminator.last_side(self.side):
            raise ValueError(f"discriminator.widths are too many to halve {self.side} pixels")
        return self


def stored(recipe: RecipeBase) -> dict[str, Any]:
    """The recipe as in files: without the hyperparameters in `later` that have their defaults, so
    that equal runs of all versions have equal files."""
    value = dump(recipe)
    for key in recipe.later:
        *groups, name = key.split(".")
        inner, stored_in = recipe, value
        for group in groups:
            inner, stored_in = getattr(inner, group), stored_in[group]
        if getattr(inner, name) == getattr(type(inner), name):
            del stored_in[name]
    return value


AnyRecipe = TypeVar("AnyRecipe", bound=RecipeBase)


def override(recipe: AnyRecipe, *assignments: str) -> AnyRecipe:
    """`recipe` with hyperparameters changed, such as `training.batch=64`, all of them at once.

    The value is TOML, but a text needs no quotes and a list no brackets. Raises `UsageError` that
    names the nearest key or the valid values.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: give KEY=VALUE, such as training.batch=64")
        value: Any = _toml_value(text.strip())
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        values = _merged(values, value)
    what = " ".join(f"--set {assignment}" for assignment in assignments)
    return apply_overrides(recipe, values, what) if assignments else recipe


def _toml_value(text: str) -> Any:
    for form in (text, f"[{text}]") if "," in text else (text,):
        with suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(f"value = {form}")["value"]
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises `SynthError` if it cannot be read."""
    try:
        tables: dict[str, Any] = tomllib.loads(read_text(path))
        return tables
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise SynthError(f"{path}: is not TOML ({error})") from error


def apply_overrides(recipe: AnyRecipe, values: dict[str, Any], what: str) -> AnyRecipe:
    """`recipe` with the hyperparameters in `values`, in nested tables.

    Raises `UsageError` that begins with `what`.
    """
    return parse(type(recipe), _merged(dump(recipe), values), what, UsageError, strict=True)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(key), dict)
        merged[key] = _merged(old[key], value) if both else value
    return merged
