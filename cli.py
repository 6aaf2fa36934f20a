"""The command line. It turns options into calls, and imports torch inside the commands only."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from eval.protocols import PROTOCOLS, TEACHER, names_for_32, protocol_for
from synth import __version__
from synth.base.errors import SynthError, UsageError, shorten
from synth.base.registry import names_of, plugin_at_fault
from synth.base.terminal import fit
from synth.ops.policies import POLICIES

RECIPES = "{recipes}"  # in a help text; see `NamesRecipes`
LOGS = ("tensorboard", "wandb", "mlflow")  # those of synth.trackers

if TYPE_CHECKING:
    import torch

    from eval.aggregate import Table
    from eval.spread import Spread
    from synth.recipes import RecipeBase


def _names(group: str, modules: str = "") -> str:
    return ", ".join(names_of(group, modules or group))


def _complete(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For the completion of an option's value in a shell."""

    def begun(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return begun


def _recipe_names() -> list[str]:
    from synth.published import RECIPES

    return RECIPES.names()


class NamesRecipes(TyperCommand):
    """A command that has the names of all recipes in its help, for `RECIPES`. They are read when
    somebody asks for help, because that takes half a second."""

    def get_help(self, ctx: Any) -> str:
        for parameter in self.params:
            told = getattr(parameter, "help", None) or ""
            if RECIPES in told:
                parameter.help = told.replace(RECIPES, ", ".join(_recipe_names()))  # type: ignore[attr-defined]
        return super().get_help(ctx)


_complete_dataset = _complete(lambda: names_of("synth.datasets", "synth.data"))
Dataset = Annotated[
    str,
    Option(
        help=f"The real data: {_names('synth.datasets', 'synth.data')}. NAME:tenth trains on the "
        "first tenth of each class. NAME:validation scores on the last fifth of the training "
        "split, and trains on the rest.",
        autocompletion=_complete_dataset,
    ),
]
ScoredOn = Annotated[
    str | None,
    Option(
        help="Real data to score on. Default: what the set (or the record) was made from.",
        autocompletion=_complete_dataset,
    ),
]
DataRoot = Annotated[
    Path | None,
    Option(envvar="SYNTH_DATA", help="Folder of the real data. SVHN is downloaded into it."),
]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Random seed.")]
Device = Annotated[str, Option(help="auto, cpu or cuda. auto takes the GPU if there is one.")]
Precision = Annotated[
    str, Option(help="auto, fp32 or bf16. auto times both and takes the faster one.")
]
Deterministic = Annotated[
    bool,
    Option(
        "--deterministic",
        help="Use deterministic GPU algorithms (slower). CPU runs are always deterministic.",
    ),
]
PerClass = Annotated[int, Option(help="Number of images of each class.")]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON.")]
Wide = Annotated[
    bool, Option("--wide", help="Print all columns. The default is a table that fits 80 columns.")
]
Conditional = Annotated[
    bool | None,
    Option("--conditional/--unconditional", help="Train a generator with or without labels."),
]
Overrides = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Change a hyperparameter of the recipe, such as training.batch=64. May be repeated.",
    ),
]
Runs = Annotated[Path, Option(help="Folder with the runs.")]
Datasets = Annotated[Path, Option(help="Folder with the synthetic sets.")]
Results = Annotated[Path, Option(help="Folder with the records, leaderboard and report.")]
ClassifierSeeds = Annotated[
    int | None, Option(help="Number of classifiers. The protocol sets the default.")
]
Protocol = Annotated[
    str,
    Option(
        help=f"How sets are scored: {', '.join(names_for_32())}. Each has forms for "
        "images of 28×28 and 64×64, such as fixed-64-v1, which synth takes where they fit.",
        autocompletion=_complete(PROTOCOLS.names),
    ),
]
Metrics = Annotated[
    str,
    Option(
        help=f"all, default (without inception and those that begin with augment), or names with "
        f"commas: cas, {_names('eval.metrics')}. cas, the accuracy, is always measured. "
        "augmentation and augmentation-tenth each train as many classifiers again."
    ),
]
FeatureSpace = Annotated[
    str, Option(help="classifier, or inception to measure fidelity in both spaces.")
]
Images = Annotated[
    str | None,
    Option(help="Training length in real images shown, such as 300k. Default: the recipe's."),
]
Select = Annotated[
    str | None,
    Option(
        help="cas: score every checkpoint on the last tenth of the training split, and mark the "
        "best. Training leaves that tenth out. Only for conditional recipes."
    ),
]

Jobs = Annotated[
    int | None,
    Option(
        min=1,
        help="Processes that share the work, with one thread each. By default one for each thread, "
        "if there are as many runs to train, and else one process with all threads.",
    ),
]
Ray = Annotated[
    str | None,
    Option(
        help="Address of a Ray cluster that does the work, or auto. Its machines must have synth, "
        "and share this folder or a --storage. Needs synth-cas[ray].",
    ),
]
Storage = Annotated[
    str | None,
    Option(
        help="URL of a folder that all machines of the Ray cluster reach, such as "
        "s3://bucket/folder: for machines that do not share this folder. fsspec writes to it.",
    ),
]

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"auto_envvar_prefix": "SYNTH", "help_option_names": ["-h", "--help"]},
    help="How much of a real data set can a generator replace?\n\n"
    "Run train, generate and evaluate in this order. benchmark runs all three.",
)

DEBUG = False  # set by --debug or SYNTH_DEBUG before any command runs
# They say at once that they run, because loading torch takes seconds.
SLOW = ("train", "generate", "evaluate", "benchmark", "study", "verify", "push")


@app.command(cls=NamesRecipes)
def train(
    context: typer.Context,
    conditional: Conditional = None,
    recipe: Annotated[
        str | None,
        Option(
            help=f"One of {RECIPES}; or a TOML file.",
            autocompletion=_complete(_recipe_names),
        ),
    ] = None,
    overrides: Overrides = None,
    dataset: Dataset = "svhn",
    data_root: DataRoot = None,
    images: Images = None,
    epochs: Annotated[
        int | None, Option(min=1, help="Length of training in passes over the data.")
    ] = None,
    tick: Annotated[
        str | None,
        Option(help="Real images between checkpoints. The default gives 8 to 16 of them."),
    ] = None,
    select: Select = None,
    seed: Seed = 0,
    out: Annotated[Path, Option(help="Make the run folder in here.")] = Path("runs"),
    device: Device = "auto",
    precision: Precision = "auto",
    resume: Annotated[bool, Option(help="Continue the newest unfinished run.")] = False,
    run: Annotated[Path | None, Option(help="Continue this run; needs --resume.")] = None,
    deterministic: Deterministic = False,
    log: Annotated[
        str | None,
        Option(
            help=f"Also send the log to one of: {', '.join(LOGS)}.",
            autocompletion=_complete(lambda: LOGS),
        ),
    ] = None,
    dry_run: Annotated[bool, Option(help="Print the configuration and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a generator: a new folder in runs/."""
    from eval.training import plan_training
    from eval.training import train as train_given
    from synth.base.progress import say
    from synth.data import load_training_images
    from synth.environment import describe_environment
    from synth.ops.parallel import from_first, is_first, joined, starts_first
    from synth.runs import Run, newest_run, open_run
    from synth.trackers import check_tracker, tracker
    from synth.training import Interrupted

    check_choice("--select", select, "cas")
    check_tracker(log)
    torch_device = prepare(device, deterministic)
    if run is not None and not resume:
        raise UsageError("--run: goes with --resume")
    if not starts_first():  # the first process of torchrun finds the run or makes it
        if dry_run:
            return
    elif resume:
        check_resume_options(context)
        training_run = open_run(run) if run else newest_run(out, finished=False)
        real = load_training_images(training_run.config.dataset_key, data_root)
    else:
        length, tick_length = parse_count("--images", images), parse_count("--tick", tick)
        if tick_length is not None and tick_length < 1000:
            raise UsageError(f"--tick {tick}: must be 1k or more")
        if epochs is not None and length is not None:
            raise UsageError("--images and --epochs: give one of them")
        resolved = resolve_recipe(recipe, conditional, overrides)
        say(f"reads {dataset}")
        real = load_training_images(dataset, data_root)
        config = plan_training(
            resolved,
            dataset,
            real,
            length if epochs is None else epochs * len(real),
            seed,
            precision,
            torch_device,
            tick_length,
            select is not None,
        )
        if dry_run:
            return print_json(config.to_json())
        training_run = Run.create(out, config, describe_environment(torch_device))
    with joined(torch_device):
        if is_first():
            from_first(training_run.folder)
        else:
            training_run = open_run(from_first(Path()))
            real = load_training_images(training_run.config.dataset_key, data_root)
        say(f"{training_run.folder}: {training_run.config.total_images:,} images of {real.name}")
        try:
            with tracker(log if is_first() else None, training_run) as note:
                train_given(training_run, real, torch_device, note=note)
        except Interrupted as stopped:
            data_option = f" --data-root {shlex.quote(str(data_root))}" if data_root else ""
            raise Interrupted(f"{stopped}{data_option}") from None
        if not is_first():
            return
    if as_json:
        return print_json({"run": str(training_run.folder), "log": training_run.read_log()})
    print(training_run.folder)


@app.command()
def generate(
    per_class: PerClass = 5000,
    run: Annotated[
        Path | None, Option(help="Run folder. The default is the newest finished run.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        Option(
            help="last, best, or a name such as 0001024k. The default is best for a run that was "
            "trained with --select, and last for any other run."
        ),
    ] = None,
    seed: Seed = 0,
    label_with: Annotated[
        str | None,
        Option(
            help="Label the images of an unconditional run with: classifier or random. By default "
            "they have no labels."
        ),
    ] = None,
    reject: Annotated[
        float,
        Option(
            help="Share of each class's images to leave out: those whose label a classifier of the "
            "real images finds least likely."
        ),
    ] = 0.0,
    latent_scale: Annotated[
        float, Option(help="Standard deviation of the latents. 1 is that of the training.")
    ] = 1.0,
    mix: Annotated[
        int, Option(help="Number of the last checkpoints that make the images in turns.")
    ] = 1,
    augment: Annotated[
        str | None,
        Option(
            help="Change each image at random after the generator: "
            f"{', '.join(POLICIES.names())}. By default as the recipe says.",
            autocompletion=_complete(POLICIES.names),
        ),
    ] = None,
    format: Annotated[
        str,
        Option(
            help=f"File format: {_names('synth.formats')}.",
            autocompletion=_complete(lambda: names_of("synth.formats", "synth.formats")),
        ),
    ] = "npz",
    out: Annotated[Path, Option(help="Make the set in this folder.")] = Path("datasets"),
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    deterministic: Deterministic = False,
    as_json: AsJson = False,
) -> None:
    """Make a synthetic set: a new folder in datasets/, with equally many images of each class."""
    from eval.real_classifier import LABELLER_PROTOCOL, classify_for
    from synth.base.files import read_json
    from synth.base.schema import parse
    from synth.formats import FORMATS
    from synth.generation import Sampling, check_count
    from synth.ops.parallel import is_first, joined
    from synth.runs import newest_run, open_run
    from synth.set_generation import describe_provenance, generate_set, needs_classifier

    check_count(per_class)
    FORMATS.find(format)
    check_choice("--label-with", label_with, "classifier", "random")
    torch_device = prepare(device, deterministic)
    source = open_run(run) if run else newest_run(runs, finished=True)
    given = {"augment": augment, "reject": reject, "latent_scale": latent_scale, "mix": mix}
    sampling = parse(Sampling, given, "generate", UsageError)
    labeller = LABELLER_PROTOCOL if label_with == "classifier" else TEACHER
    protocol = protocol_for(labeller, source.config.recipe.side).name
    provenance = describe_provenance(source, seed, label_with, protocol, checkpoint, sampling)
    with joined(torch_device):
        classify = None
        if needs_classifier(provenance):
            classify = classify_for(source, protocol, data_root, torch_device)
        folder = generate_set(source, provenance, per_class, out, torch_device, classify, format)
        if not is_first():
            return
    if as_json:
        return print_json({"dataset": str(folder), **read_json(folder / "manifest.json")})
    print(folder)


@app.command()
def evaluate(
    folders: Annotated[
        list[Path] | None,
        Argument(
            help="Synthetic sets. The default is the newest in datasets/. A set of your own is an "
            "npz, mat, parquet or tar file, a folder with one, or class folders of pictures."
        ),
    ] = None,
    name: Annotated[
        str | None,
        Option(help="Name of the method of your own sets. Its sets are runs of one row."),
    ] = None,
    seed: Annotated[
        int | None,
        Option(min=0, help="Seed of your generator. Further sets have the seeds after it."),
    ] = None,
    classes: Annotated[
        str | None,
        Option(
            help="The real data's class of each class of your set, with commas. The default is the "
            "one of the same name."
        ),
    ] = None,
    resize: Annotated[
        bool, Option("--resize", help="Resize your images to the size of the real data.")
    ] = False,
    protocol: Protocol = "fixed-v1",
    classifier_seeds: ClassifierSeeds = None,
    metrics: Metrics = "default",
    feature_space: FeatureSpace = "classifier",
    closest_pairs: Annotated[
        Path | None,
        Option(help="Write this PNG file: generated images beside the nearest training images."),
    ] = None,
    dataset: ScoredOn = None,
    data_root: DataRoot = None,
    baselines: Annotated[
        bool,
        Option(
            "--baselines/--no-baselines", help="Also evaluate the baselines that have no record."
        ),
    ] = True,
    # the old name of --baselines
    references: Annotated[bool, Option("--references/--no-references", hidden=True)] = True,
    datasets: Datasets = Path("datasets"),
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
    device: Device = "auto",
    precision: Precision = "auto",
    deterministic: Deterministic = False,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Score synthetic sets on the real test split, and print the leaderboard."""
    from eval.entries import Brought
    from eval.evaluate import evaluate_sets
    from eval.evaluator import Scoring, Workspace
    from eval.metrics import parse_metrics
    from synth.base.schema import dump

    names = parse_metrics(metrics, feature_space)
    if closest_pairs and ("memorisation" not in names or len(folders or [""]) > 1):
        raise UsageError("--closest-pairs: goes with one data set, and with --metrics memorisation")
    workspace = Workspace(data_root, runs, datasets, results)
    torch_device = prepare(device, deterministic)
    scoring = Scoring(protocol, torch_device, precision, classifier_seeds, names)
    given = None if classes is None else tuple(each.strip() for each in classes.split(","))
    told = Brought(check_name("--name", name), seed, given, resize)
    records, tables = evaluate_sets(
        folders or [],
        scoring,
        dataset,
        workspace,
        baselines and references,
        closest_pairs,
        told if told != Brought() else None,
    )
    if as_json:
        return print_json([dump(record) for record in records])
    touched = {(record.protocol["name"], record.real.name) for record in records}
    print_tables([table for table in tables if (table.protocol, table.real) in touched], wide)


@app.command()
def leaderboard(
    results: Results = Path("results"), wide: Wide = False, as_json: AsJson = False
) -> None:
    """Rewrite the leaderboard and the report from the records, and print the tables."""
    from eval.evaluate import publish
    from eval.tables import agreement_lines

    tables = publish(results)
    print_tables(tables, wide, as_json)
    for line in [] if as_json else agreement_lines(tables):
        print(fit(line))


@app.command()
def report(
    results: Results = Path("results"),
    show: Annotated[bool, Option("--open", help="Open the report in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Rewrite the leaderboard and the report from the records, and print the report's path."""
    import webbrowser

    from eval.evaluate import publish

    publish(results)
    path = results / "report.html"
    if as_json:
        print_json({"report": str(path)})
    else:
        print(path)
    if show and not webbrowser.open(path.resolve().as_uri()):
        raise SynthError(f"--open: found no browser; open {path} in one")


@app.command()
def compare(
    a: Annotated[str, Argument(help="Name of an entry in the leaderboard, or id of a record.")],
    b: Annotated[str, Argument(help="The other entry, named in the same way.")],
    protocol: Protocol = "fixed-v1",
    real: Annotated[
        str | None, Option(help="Real data of the scores. Needed if records hold several.")
    ] = None,
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Say whether entry A scores higher than entry B. Reads their records and trains nothing."""
    from eval.compare import compare_entries

    compared = compare_entries(results, a, b, protocol, real)
    if as_json:
        return print_json(compared.to_json())
    print(compared.to_text())


@app.command()
def verify(
    record: Annotated[
        str | None, Argument(help="Path or id of a record; with --all, a folder of results.")
    ] = None,
    everything: Annotated[
        bool, Option("--all", help="Verify all records, and print them in one table.")
    ] = False,
    start: Annotated[
        str | None,
        Option(
            "--from",
            help="record: check the chain of hashes in the record, and compute nothing. Otherwise "
            "the first stage to repeat: evaluate, generate or train. The default is evaluate, and "
            "record with --all.",
        ),
    ] = None,
    dataset: ScoredOn = None,
    data_root: DataRoot = None,
    datasets: Datasets = Path("datasets"),
    runs: Runs = Path("runs"),
    results: Results = Path("results"),
    device: Annotated[
        str, Option(help="auto, cpu or cuda. auto takes what the record says.")
    ] = "auto",
    wide: Annotated[
        bool, Option("--wide", help="With --all: a line for each record, of any length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a record, or repeat its evaluation. The same kind of machine must give exactly the same
    results. The leaderboard shows the depth at which each row was verified."""
    from dataclasses import asdict

    from eval.evaluator import Workspace
    from eval.verified import keep_note
    from eval.verify import find_record_file, require_chain, table_of, verify_all
    from eval.verify import verify as verify_record
    from synth.ops.acceleration import keep_freed_memory

    check_choice("--from", start, "record", "evaluate", "generate", "train")
    keep_freed_memory()
    stage: Any = start or ("record" if everything else "evaluate")
    if everything:
        folder = Path(record) if record else results
        workspace = Workspace(data_root, runs, datasets, folder)
        outcomes = verify_all(stage, workspace, dataset, device)
        if as_json:
            print_json([asdict(outcome) for outcome in outcomes])
        else:
            print(table_of(outcomes, wide))
        failed = [outcome.record for outcome in outcomes if outcome.holds is False]
        if failed:
            raise SynthError(f"{folder}: {len(failed)} of its records do not hold")
        return
    if record is None:
        raise UsageError("RECORD: give the path or the id of a record, or --all")
    workspace = Workspace(data_root, runs, datasets, results)
    path = find_record_file(results, record)
    found = verify_record(path, stage, workspace, dataset, device)
    keep_note(path, found)
    if as_json:
        print_json(found.to_json())
    else:
        print(found.to_text())
    if not found.holds:
        raise SynthError(f"{path}: {found.verdict}")
    require_chain(found, path)


@app.command()
def push(
    folder: Annotated[
        Path,
        Argument(
            help="A synthetic set, a run, or a folder that Generator.save_pretrained wrote. Of a "
            "run the generator is sent."
        ),
    ],
    to: Annotated[
        str,
        Option(help="OWNER/NAME of the repository. It is made if there is none.", metavar="NAME"),
    ],
    private: Annotated[bool, Option("--private", help="Make a private repository.")] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="List the files that would be sent, and stop.")
    ] = False,
    results: Annotated[
        Path, Option(help="Folder with the records of the generator's scores, for its card.")
    ] = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Send a synthetic set or a generator, with its card, to the Hugging Face hub."""
    from tempfile import gettempdir

    from eval.push import to_push
    from synth import hub
    from synth.base.locks import scratch_folder
    from synth.base.progress import say

    hub.check_installed("synth push")
    hub.check_name(to, f"--to {to}: is")
    with scratch_folder(Path(gettempdir())) as scratch:
        kind, sent = to_push(folder, to, results, scratch / "generator")
        files = hub.files_to_push(sent)
        sizes = {path.as_posix(): (sent / path).stat().st_size for path in files}
        message = f"{folder.resolve().name}, by synth {__version__}"
        if not dry_run:
            say(f"sends {len(files):,} files, {sum(sizes.values()):,} bytes")
        address = None if dry_run else hub.push(sent, to, kind, private, message)
    if as_json:
        return print_json({"repository": to, "kind": kind, "address": address, "files": sizes})
    if dry_run:
        print(f"would be sent to the {kind} repository {to}:")
        for name, size in sizes.items():
            print(f"{size:>15,}  {name}")
    else:
        print(address)


@app.command(cls=NamesRecipes)
def benchmark(
    recipes: Annotated[
        str, Option(help=f"Names of recipes, with commas between: {RECIPES}.")
    ] = "cdcgan-v2,dcgan",
    overrides: Overrides = None,
    seeds: Annotated[int, Option(help="Number of training runs of each recipe.")] = 1,
    dataset: Dataset = "svhn",
    data_root: DataRoot = None,
    images: Images = None,
    select: Select = None,
    per_class: PerClass = 5000,
    protocol: Protocol = "fixed-v1",
    classifier_seeds: ClassifierSeeds = None,
    metrics: Metrics = "default",
    feature_space: FeatureSpace = "classifier",
    runs: Runs = Path("runs"),
    datasets: Datasets = Path("datasets"),
    results: Results = Path("results"),
    device: Device = "auto",
    precision: Precision = "auto",
    jobs: Jobs = None,
    ray: Ray = None,
    storage: Storage = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> None:
    """Train, generate and evaluate several recipes and seeds. Skips what exists already."""
    from eval.benchmark import Plan
    from eval.benchmark import benchmark as run_benchmark
    from eval.evaluator import Scoring, Workspace
    from eval.metrics import parse_metrics
    from synth.base.progress import say

    check_choice("--select", select, "cas")
    names = parse_metrics(metrics, feature_space)
    chosen = [resolve_recipe(name.strip(), None, overrides) for name in recipes.split(",")]
    length = parse_count("--images", images)
    torch_device = prepare(device)
    tables = run_benchmark(
        Plan(chosen, dataset, seeds, per_class, length, select is not None),
        Scoring(protocol, torch_device, precision, classifier_seeds, names),
        Workspace(data_root, runs, datasets, results),
        plan_spread(jobs, ray, storage, len(chosen) * seeds, torch_device),
    )
    print_tables(tables, wide, as_json)
    say(f"report: {results / 'report.html'}")


@app.command()
def study(
    file: Annotated[
        Path,
        Argument(help="A TOML file with a base recipe and its variants; see eval/study_file.py."),
    ],
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    datasets: Datasets = Path("datasets"),
    results: Annotated[Path, Option(help="Folder with the results of studies.")] = Path(
        "results/studies"
    ),
    device: Device = "auto",
    jobs: Jobs = None,
    ray: Ray = None,
    storage: Storage = None,
    wide: Annotated[
        bool, Option("--wide", help="Print the whole page. The default is a table in 80 columns.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare variants of a recipe on a part of the training split. Never opens the test split."""
    from dataclasses import asdict

    from eval.evaluator import Workspace
    from eval.study import run_study, runs_of
    from eval.study_file import read_study
    from eval.study_page import to_text
    from synth.base.files import read_json

    workspace, torch_device = Workspace(data_root, runs, datasets, results), prepare(device)
    spread = plan_spread(jobs, ray, storage, len(runs_of(read_study(file))), torch_device)
    found = run_study(file, torch_device, workspace, spread)
    if as_json:
        return print_json([asdict(result) for result in found])
    if wide:
        return print((results / f"{file.stem}.md").read_text(encoding="utf-8"))
    print(to_text(found, read_json(results / f"{file.stem}.json")["baselines"]))


@app.command(cls=NamesRecipes)
def recipes(
    name: Annotated[
        str | None,
        Argument(
            help=f"Show this recipe: one of {RECIPES}; or a TOML file.",
            autocompletion=_complete(_recipe_names),
        ),
    ] = None,
    conditional: Conditional = None,
    overrides: Overrides = None,
    toml: Annotated[
        bool, Option("--toml", help="Print the recipe as a TOML file, which --recipe reads.")
    ] = False,
    wide: Annotated[bool, Option("--wide", help="Also print the source of each recipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the recipes, or show all hyperparameters of one."""
    from synth.published import RECIPES, recipe_to_toml

    if toml and as_json:
        raise UsageError("--toml and --json: give one of them")
    if name is not None:
        recipe = resolve_recipe(name, conditional, overrides)
        if toml:
            return print(recipe_to_toml(recipe), end="")
        return print_json(describe_recipe(recipe, whole=True))
    if conditional is not None or overrides or toml:
        raise UsageError("--set, --conditional, --unconditional, --toml: go with a recipe's name")
    rows = [describe_recipe(recipe, whole=False) for recipe in RECIPES.values()]
    if as_json:
        return print_json(rows)
    head = f"{'recipe':<24} {'kind':<13} {'parameters of G, D':>21} {'GFLOP of G, D':>15}"
    print(f"{head}  source" if wide else head)
    for row in rows:
        kind = "conditional" if row["conditional"] else "unconditional"
        sizes = [row.get(f"{network}_parameters") for network in ("generator", "discriminator")]
        costs = [row.get(f"{network}_gflop") for network in ("generator", "discriminator")]
        size = " ".join("–".rjust(10) if n is None else f"{n:>10,}" for n in sizes)
        cost = " ".join("–".rjust(7) if n is None else f"{n:>7.4f}" for n in costs)
        shown = row["name"]
        if len(shown) > 24 and not wide:  # on a line of its own
            print(fit(shown))
            shown = ""
        line = f"{shown:<24} {kind:<13} {size} {cost}"
        print(f"{line}  {row['source']}" if wide else line)


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """List the real data that --dataset can name."""
    from synth.data import DATASETS

    if as_json:
        return print_json([{"name": k, "description": v.description} for k, v in DATASETS.items()])
    for name, source in DATASETS.items():
        print(fit(f"{name:<15} {source.description}", 16))


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, Option(help="Show the Python traceback of an error.")] = False,
    version: Annotated[
        bool, Option("--version", allow_from_autoenv=False, help="Print the version of synth.")
    ] = False,
) -> None:
    global DEBUG
    DEBUG = debug
    command = context.invoked_subcommand
    if version or command is None:
        print(f"synth {__version__}" if version else context.get_help())
        raise typer.Exit()
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if first and command in SLOW and not {*context.help_option_names} & {*sys.argv}:
        print(f"{command}: starts (synth {__version__})", file=sys.stderr, flush=True)


def prepare(device: str, deterministic: bool = False) -> torch.device:
    """The device to work on. Changes settings of the whole process."""
    from synth.environment import make_deterministic, pick_device
    from synth.ops.acceleration import keep_freed_memory

    keep_freed_memory()
    if deterministic:
        make_deterministic()
    return pick_device(device)


def plan_spread(
    jobs: int | None, ray: str | None, storage: str | None, runs: int, device: torch.device
) -> Spread:
    """Where the work on so many runs is done. With several processes this one has a thread, too, so
    that they find what it has probed."""
    import torch

    from eval.spread import Spread, jobs_that_pay
    from eval.storage import check_storage

    if jobs is not None and ray is not None:
        raise UsageError("--jobs, --ray: give one of them")
    if storage is not None:
        if ray is None:
            raise UsageError("--storage: goes with --ray")
        check_storage(storage)
    spread = Spread(1, ray, storage) if ray else Spread(jobs or jobs_that_pay(runs, device))
    if spread.jobs > 1:
        torch.set_num_threads(1)
    return spread


def resolve_recipe(
    name: str | None, conditional: bool | None, overrides: list[str] | None
) -> RecipeBase:
    """The recipe of a name or a TOML file, with its overrides."""
    from dataclasses import replace

    from synth.published import CONDITIONAL, UNCONDITIONAL, find_recipe, read_recipe
    from synth.recipes import override

    if name is not None and name.endswith(".toml"):
        recipe = read_recipe(Path(name))
        if conditional not in (None, recipe.conditional):
            form = CONDITIONAL if conditional else UNCONDITIONAL
            recipe = replace(recipe, name=recipe.name + form, conditional=bool(conditional))
    else:
        recipe = find_recipe(name, conditional)
    if overrides:  # named, so that nobody takes it for the published recipe
        changed = override(recipe, *overrides)
        name = f"{recipe.name}, {', '.join(overrides)}"
        recipe = replace(changed, name=" ".join(name.split()))
    return recipe


def parse_count(option: str, text: str | None) -> int | None:
    """`300k` → 300,000; `2.5M` → 2,500,000."""
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


def check_resume_options(context: typer.Context) -> None:
    """Refuses options that --resume would ignore, because the run folder holds their values."""
    read = ("resume", "run", "out", "data_root", "device", "deterministic", "log", "as_json")
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in read and source is not None and source.name == "COMMANDLINE":
            names = "/".join([*parameter.opts, *parameter.secondary_opts])
            raise UsageError(f"{names}: cannot be changed by --resume; leave it out")


def check_choice(option: str, value: str | None, *choices: str) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{option} {value}: choose {' or '.join(choices)}")


def check_name(option: str, value: str | None) -> str | None:
    from synth.base.names import check_line

    try:
        if value is not None and not check_line(value).strip():
            raise ValueError("it is empty")
    except ValueError as error:
        raise UsageError(f"{option} {value!r}: give one line of text ({error})") from error
    return value


def describe_recipe(recipe: RecipeBase, whole: bool) -> dict[str, Any]:
    from synth.base.schema import dump
    from synth.families import FAMILIES

    value = dump(recipe)
    shown = value if whole else {key: value[key] for key in ("name", "conditional")}
    figures = FAMILIES.find(recipe.family).measure(recipe)
    return {**shown, **figures, "source": value["source"]}


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_tables(tables: list[Table], wide: bool, as_json: bool = False) -> None:
    from eval.tables import default_first, to_text

    if as_json:
        frames = [t.to_frame().assign(real=t.real, protocol=t.protocol) for t in tables]
        return print_json(
            [row for frame in frames for row in json.loads(frame.to_json(orient="records"))]
        )
    for table in default_first(tables):
        print(fit(table.title), to_text(table, wide), sep="\n\n", end="\n\n")


def main() -> None:
    """The console script. An error becomes one line and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that it cleans up
    try:
        check_texts()
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        code = fail("interrupted", 130)
    except Exception as error:
        if DEBUG:
            raise
        code = fail(*explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def check_texts() -> None:
    """Refuses words that are no UTF-8: they could not be written into any record."""
    for word in (*sys.argv, *(v for k, v in os.environ.items() if k.startswith("SYNTH_"))):
        if word.encode(errors="replace").decode() != word:
            raise UsageError(f"{word!a}: is no UTF-8; rename the file or folder")


def explain(error: Exception) -> tuple[str, int]:
    """The message and the exit code for an error."""
    code, name = getattr(error, "exit_code", None), type(error).__name__
    if hasattr(error, "format_message"):  # click's usage errors
        return error.format_message(), 2
    if isinstance(error, typer.Abort):
        return "interrupted", 130
    if code is not None:
        return str(error), code
    if isinstance(error, MemoryError) or "OutOfMemory" in name or "t allocate memory" in str(error):
        return "not enough memory; ask for fewer images, or a smaller network or batch", 1
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!a}: is no UTF-8; rename the file or folder", 1
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}", 1
    plugin = plugin_at_fault(error)
    culprit = "synth" if plugin is None else f"the plug-in {plugin}"
    return f"{name}: {error} (a fault in {culprit}; --debug shows where)", 1


def fail(message: str, code: int) -> int:
    print(f"error: {shorten(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
