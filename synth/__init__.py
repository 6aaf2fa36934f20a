"""Makes labelled synthetic data sets with (conditional) GANs; never imports `eval`.

    import synth
    generator = synth.load("runs/00000-svhn-cdcgan-v2-cond-seed0")
    images = generator.sample([3, 1, 4], seed=0)  # uint8 (3, 32, 32, 3)

`train`, `load` and `Generator` are for notebooks. `ImageSet`, `Dataset`, `Family` and `RecipeBase`
are what plug-ins are made of. All are imported at their first use, so that `import synth` is fast.
"""

from typing import TYPE_CHECKING

from synth.base.lazy import lazily

if TYPE_CHECKING:
    from synth.base.errors import SynthError
    from synth.data import Dataset, ImageSet
    from synth.families import Family
    from synth.interface import Generator, load, train
    from synth.recipes import RecipeBase

__version__ = "0.1.0"
__all__ = [
    "Dataset",
    "Family",
    "Generator",
    "ImageSet",
    "RecipeBase",
    "SynthError",
    "load",
    "train",
]
_MODULES = {
    "Dataset": "synth.data",
    "Family": "synth.families",
    "Generator": "synth.interface",
    "ImageSet": "synth.data",
    "RecipeBase": "synth.recipes",
    "SynthError": "synth.base.errors",
    "load": "synth.interface",
    "train": "synth.interface",
}
__getattr__, __dir__ = lazily(__name__, _MODULES)
