"""What the command line says of itself, and while it works; trackers of training logs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.models import CommandInfo

import cli
import synth as library
from eval.metrics import METRICS
from eval.protocols import PROTOCOLS
from eval.study_page import Result, to_text
from eval.verify import Outcome, table_of
from synth.base import progress
from synth.data import DATASETS
from synth.formats import FORMATS
from synth.ops.policies import POLICIES
from synth.published import RECIPES
from synth.trackers import TRACKERS, numbers_of
from tests.conftest import ROOT, TRAIN, Ran

Synth = Callable[..., Ran]


def test_version_and_bare_command(synth: Synth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTH_VERSION", "3")  # somebody's own variable
    assert synth("--version") == Ran(0, f"synth {library.__version__}\n", "")
    bare = synth()
    assert (bare.code, bare.err) == (0, "")
    assert bare.out == synth("--help").out
    assert "Train a generator" in bare.out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("synth tr", {"train"}),
        ("synth train --recipe cdcgan-", {"cdcgan-v2", "cdcgan-v2-quick", "cdcgan-quick"}),
        ("synth evaluate --protocol q", {"quick-v1", "quick-28-v1", "quick-64-v1"}),
        ("synth train --log ", {"tensorboard", "wandb", "mlflow"}),
    ],
)
def test_a_shell_completes(words: str, offered: set[str]) -> None:
    code = "import sys; sys.argv = ['synth']; import cli; cli.main()"
    place = str(words.count(" "))
    asked = {"_SYNTH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {*ran.stdout.split()} == offered


def test_slow_commands_say_at_once_that_they_run() -> None:
    """Before anything heavy is imported, and not where only help is asked for."""
    code = (
        "import sys; sys.argv = ['synth', *sys.argv[1:]]\n"
        "class Never:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name in ('torch', 'numpy', 'pandas'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Never())\n"
        "import cli; cli.main()\n"
    )
    for command in cli.SLOW:
        needed = {"study": ["x.toml"], "push": ["x", "--to", "a/b"]}.get(command, [])
        words = [sys.executable, "-c", code, command, *needed]
        ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 130
        assert ran.stderr == f"{command}: starts (synth {library.__version__})\n"


def test_help_of_a_slow_command_is_nothing_but_help(synth: Synth) -> None:
    ran = synth("train", "--help")
    assert (ran.code, ran.err) == (0, "")
    for word in ("house-numbers", "NAME:tenth", "NAME:validation", "tensorboard, wandb, mlflow"):
        assert word in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        *((command, RECIPES) for command in ("train", "benchmark", "recipes")),
        *((command, DATASETS) for command in ("train", "benchmark")),
        *((command, PROTOCOLS) for command in ("evaluate", "benchmark", "compare")),
        *((command, METRICS) for command in ("evaluate", "benchmark")),
        *(("generate", registry) for registry in (FORMATS, POLICIES)),
        ("train", TRACKERS),
    ],
)
def test_help_lists_the_choices(command: str, registry: Mapping[str, object], synth: Synth) -> None:
    whole = re.sub(r"-\n\s+", "-", synth(command, "--help").out)
    told = re.split(r"[\s,.:;]+", whole)
    names = [name for name in registry if not re.search("-(28|64)-", name)]  # forms, see --protocol
    assert set(names) <= set(told)


def test_help_is_there_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import cli; sys.argv = ['synth', 'train', '--help']; cli.main()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cdcgan-v2" in ran.stdout and "flow" in ran.stdout


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    told, start = "", time.monotonic()
    with progress.progress_bar("benchmark", 4, "stages") as stage:
        stage(1)
        with progress.progress_bar("train x", 50_000, "images", 2_000) as advance:
            for _ in range(5):
                advance(1_000)
                time.sleep(0.01)
            while "7,000 of" not in told and time.monotonic() < start + 60:
                time.sleep(0.01)
                told += capsys.readouterr().err
    parts = told.splitlines()[-1].split("; ")
    assert parts[0] == "benchmark: 1 of 4 stages"
    rate = r"[\d,]+ images/s, \d:\d\d:\d\d left"
    assert re.fullmatch(rf"train x: 7,000 of 50,000 images, {rate}", parts[1]), parts
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # nothing after the block


def test_quick_work_adds_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("train x", 5, "images") as advance:
        advance(5)
    assert capsys.readouterr().err == ""


# 80 columns


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def test_what_commands_print_fits_80_columns(
    synth: Synth, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the records of this repository. A command's own tests see to what needs a training."""
    monkeypatch.setenv("COLUMNS", "80")
    results = ("--results", tmp_path / "results")
    for name in ("records", "predictions"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    for words in (
        ("compare", "cdcgan", "PCA + Gaussian per class", *results),
        ("leaderboard", *results),
        ("verify", "20261125T144740342542", "--from", "record", *results),
        ("verify", "--all", *results),
        ("recipes",),
        ("datasets",),
    ):
        ran = synth(*words)
        assert ran.code == 0, ran.err
        assert fits(ran.out), ran.out
    assert "Radford et al. 2015" in synth("recipes", "--wide").out
    whole = synth("verify", "--all", "--wide", *results).out
    assert re.search(r"^20261125T144740342542\S+ +record +holds, by its chain; not", whole, re.M)


@pytest.mark.parametrize("command", [None, *cli.app.registered_commands])
def test_help_fits_80_columns(
    command: CommandInfo | None, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    called = [] if command is None or command.callback is None else [command.callback.__name__]
    ran = synth(*called, "--help")
    assert ran.code == 0
    assert fits(ran.out), ran.out


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
shares = st.floats(0, 1)


@given(st.lists(st.builds(Outcome, texts, texts, st.none() | st.booleans(), texts), min_size=1))
def test_any_verified_records_fit(outcomes: list[Outcome]) -> None:
    shown = table_of([replace(each, depth=each.depth[:13]) for each in outcomes])
    assert fits(shown)


def test_verified_records_by_hand() -> None:
    outcomes = [
        Outcome("record-a", "train", True, "holds, bit for bit"),
        Outcome("record-bb", "no chain", None, ""),
        Outcome("record-c", "train", True, "holds, within its interval"),
        Outcome("record-d", "does not hold", False, "does not hold: same scores"),
    ]
    total = "4 records: 2 from train, 1 no chain, 1 does not hold"
    assert table_of(outcomes).splitlines() == [
        "holds from     record",
        "train          record-a",
        "               holds, bit for bit",
        "no chain       record-bb",
        "train          record-c",
        "               holds, within its interval",
        "does not hold  record-d",
        "               does not hold: same scores",
        total,
    ]
    assert table_of(outcomes, wide=True).splitlines() == [
        "record     holds from     detail",
        "record-a   train          holds, bit for bit",
        "record-bb  no chain",
        "record-c   train          holds, within its interval",
        "record-d   does not hold  does not hold: same scores",
        total,
    ]


variants = st.builds(
    Result,
    variant=texts,
    accuracy=shares,
    spread=shares,
    difference=shares,
    low=shares,
    high=st.none() | shares,
    covers=st.none(),
    images_per_second=shares,
    training_seconds=shares,
    records=st.just(()),
)


@given(st.lists(variants, min_size=1), st.dictionaries(texts, shares))
def test_any_study_fits(results: list[Result], baselines: dict[str, float]) -> None:
    shown = to_text(results, baselines)
    assert fits(shown)
    assert shown.count("–") >= len(baselines)


# Trackers


@pytest.fixture
def mats_by_default(
    tiny_names: None, synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTH_DATA", str(mats))


def test_tensorboard_gets_the_log(
    mats_by_default: None, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the run and of its resumption, each line once."""
    planned = ("--recipe", "tiny", *TRAIN[:2], "--images", "1k", "--tick", "1k")
    trained = synth("train", *planned, "--precision", "fp32", "--log", "tensorboard", "--json")
    assert trained.code == 0, trained.err
    found = json.loads(trained.out)
    state = Path(found["run"], "state", "latest.safetensors")
    assert read_events(found["run"]) == scalars(found["log"])
    assert len(found["log"]) >= 2

    state.unlink()  # as if it had been killed before its first state: all is done again
    again = ("--resume", "--run", found["run"], "--log", "tensorboard", "--json")
    resumed = json.loads(synth("train", *again).out)
    assert read_events(found["run"]) == scalars(resumed["log"])


def scalars(log: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    keys = numbers_of(log[0])
    return {
        key: [(int(line["images"]), pytest.approx(numbers_of(line)[key])) for line in log]
        for key in keys
    }


def read_events(run: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(f"{run}/tensorboard").Reload()
    return {
        key: [(event.step, event.value) for event in events.Scalars(key)]
        for key in events.Tags()["scalars"]
    }


STUBS = {
    "wandb": """
import json
from contextlib import contextmanager
class Run:
    def log(self, values, step): CALLS.append((step, values))
CALLS, GIVEN, ENDED = [], {}, []
@contextmanager
def init(**given):
    GIVEN.update(given)
    yield Run()
    ENDED.append(True)
""",
    "mlflow": """
from contextlib import contextmanager
CALLS, GIVEN, ENDED = [], {}, []
def set_experiment(name): GIVEN["project"] = name
def log_dict(value, file): GIVEN["config"] = value
def log_metrics(values, step): CALLS.append((step, values))
@contextmanager
def start_run(run_name):
    GIVEN["name"] = run_name
    yield
    ENDED.append(True)
""",
}


@pytest.mark.parametrize("name", STUBS)
def test_other_trackers_get_the_same(
    name: str,
    mats_by_default: None,
    synth: Synth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / f"{name}.py").write_text(STUBS[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    ran = synth("train", "--recipe", "tiny", *TRAIN, "--log", name, "--json")
    assert ran.code == 0, ran.err
    found, stub = json.loads(ran.out), sys.modules.pop(name)
    assert [(line["images"], numbers_of(line)) for line in found["log"]] == stub.CALLS
    assert stub.GIVEN["project"] == "synth"
    assert stub.GIVEN["name"] == Path(found["run"]).name
    assert stub.GIVEN["config"]["recipe"]["name"] == "tiny"
    assert stub.ENDED == [True]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_told_before_training(
    name: str, mats_by_default: None, synth: Synth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synth.trackers.find_spec", lambda package: None)
    ran = synth("train", "--recipe", "tiny", *TRAIN, "--log", name)
    assert ran.code == 1
    error = f"error: --log {name}: needs {name}; install it with: pip install 'synth-cas[{name}]'"
    assert ran.err.splitlines()[-1] == error
    assert not Path("runs").exists()
    assert synth("train", "--log", "paper").code == 2


def test_numbers_of_a_line() -> None:
    line = {"images": 64, "d_loss": 0.5, "heldout_d_losses": [1.0, 2.0], "none": None, "few": []}
    assert numbers_of(line) == {"d_loss": 0.5, "heldout_d_losses": 1.5}
