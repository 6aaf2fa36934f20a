"""What the options of the command line are called, and how their values are read.

torch is imported inside the functions: `synth --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from synth.recipes import Recipe

Dataset = Annotated[str, typer.Option(help="svhn, house-numbers or folder; see: synth datasets")]
DataRoot = Annotated[
    Path | None,
    typer.Option(envvar="SYNTH_DATA", help="Where the real data is, or is downloaded to."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="auto (times both), fp32 or bf16.")]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Repeatable on a GPU too, where it costs speed; a CPU always is."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Conditional = Annotated[
    bool | None,
    typer.Option("--conditional/--unconditional", help="Is the generator told the label?"),
]
Dials = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one dial, e.g. training.batch=64; may be repeated."),
]
Runs = Annotated[Path, typer.Option(help="Folder of runs.")]
Results = Annotated[Path, typer.Option(help="Folder of records and of what is made from them.")]
ClassifierSeeds = Annotated[
    int | None, typer.Option(help="How many classifiers; the protocol's number by default.")
]
Protocol = Annotated[str, typer.Option(help="fixed-v1, fixed-resnet-v1, stream-v1 or quick-v1.")]
Metrics = Annotated[
    str,
    typer.Option(
        help="all, or names with commas: cas, gan-test, augmentation, fidelity, memorisation, "
        "diversity. The accuracy (cas) is always there; augmentation trains twice as much again."
    ),
]
DEFAULT_METRICS = "cas,gan-test,fidelity,memorisation,diversity"
FeatureSpace = Annotated[
    str, typer.Option(help="classifier; inception measures fidelity in that space too.")
]
Images = Annotated[
    str | None, typer.Option(help="Training length in real images shown, e.g. 300k or 2.5M.")
]
Select = Annotated[
    str | None,
    typer.Option(
        help="cas: keep a tenth of the training split out of training, and mark the checkpoint "
        "whose samples score best on it. For conditional recipes."
    ),
]


def prepare(device: str, deterministic: bool = False) -> torch.device:
    """The device to work on, in a process that a command has to itself."""
    from synth.acceleration import keep_freed_memory
    from synth.environment import make_deterministic, pick_device

    keep_freed_memory()
    if deterministic:
        make_deterministic()
    return pick_device(device)


def resolve_recipe(name: str | None, conditional: bool | None, dials: list[str] | None) -> Recipe:
    """The recipe of a name or a TOML file, with single dials changed."""
    from dataclasses import replace

    from synth.dials import read_recipe, set_dial
    from synth.recipes import CONDITIONAL, UNCONDITIONAL, check_recipe, find_recipe

    if name is not None and name.endswith(".toml"):
        recipe = read_recipe(Path(name))
        if conditional not in (None, recipe.conditional):
            form = CONDITIONAL if conditional else UNCONDITIONAL
            recipe = replace(recipe, name=recipe.name + form, conditional=bool(conditional))
    else:
        recipe = find_recipe(name, conditional)
    for assignment in dials or []:
        recipe = set_dial(recipe, assignment)
    if dials:  # no longer the published one, and so not under its name alone
        recipe = replace(recipe, name=f"{recipe.name}, {', '.join(dials)}")
    check_recipe(recipe)
    return recipe


def parse_count(option: str, text: str | None) -> int | None:
    """`300k` → 300,000; `2.5M` → 2,500,000."""
    from synth.errors import UsageError

    if text is None:
        return None
    factor = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    try:
        count = float(text[:-1] if factor > 1 else text) * factor
        if count < 1 or count != int(count):
            raise ValueError
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text}: give a whole number above 0, such as 300k or 2.5M"
        ) from None
    return int(count)


def check_alone(context: typer.Context, option: str, others: tuple[str, ...]) -> None:
    """Refuses options beside `option` that would be ignored."""
    from synth.errors import UsageError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        allowed = parameter.name in others or option in parameter.opts
        if not allowed and source is not None and source.name == "COMMANDLINE":
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            raise UsageError(f"{names}: cannot be changed by {option}; leave it out")


def check_choice(option: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    from synth.errors import UsageError

    if value not in choices:
        raise UsageError(f"{option} {value}: choose {' or '.join(c for c in choices if c)}")
