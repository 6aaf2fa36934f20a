"""Several processes with the same tasks share them: nothing is done twice, and nobody gives up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path

import pytest
import torch

from eval import real_classifier, tables
from eval.aggregate import build_tables
from eval.evaluate import publish
from eval.protocols import Protocol
from eval.records import read_records
from eval.tables import to_csv
from synth.base.locks import Busy, do_all, exclusive, task
from synth.data import ImageSet, load_training_images
from synth.runs import all_runs
from tests.conftest import ROOT, Ran

Together = Callable[..., tuple[list[int], str]]
SIZES = ("--images", "64", "--per-class", "5")
SCORE = ("--protocol", "tiny-v1", "--precision", "fp32", "--metrics", "cas")
# A classifier of three steps sees one class, and cannot label an unconditional run's images.
BENCHMARK = ("benchmark", "--recipes", "tiny,tiny-uncond", "--seeds", "3", *SIZES, *SCORE)
STUDY = """
dataset = "svhn"
recipe = "tiny"
images = 64
seeds = 2
per_class = 8
protocol = "tiny-v1"
classifier_seeds = 2
precision = "fp32"

[variants.balanced]
set = ["training.balanced=true"]

[variants.moved]
generate = { augment = "geometry-v1" }
"""


@pytest.fixture
def environment(mats: Path) -> dict[str, str]:
    """Of a process that runs `tests.world` beside the data."""
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CC": "no-compiler",
        "XDG_CACHE_HOME": str(mats.parent / "cache"),
        "SYNTH_DATA": str(mats),
        "SYNTH_TEST_JOURNAL": str(mats.parent / "journal"),
    }


@pytest.fixture
def together(mats: Path, environment: dict[str, str]) -> Together:
    """Runs commands at once. Returns their processes, and what they wrote to stderr."""

    def run(*commands: Sequence[str], pause: float = 0.0) -> tuple[list[int], str]:
        more = {"SYNTH_TEST_COMMANDS": json.dumps(commands), "SYNTH_TEST_PAUSE": str(pause)}
        ran = subprocess.run(
            [sys.executable, "-m", "tests.world"],
            cwd=mats.parent,
            capture_output=True,
            text=True,
            env={**environment, **more},
        )
        assert ran.returncode == 0, ran.stderr
        processes, codes = json.loads(ran.stdout)
        errors = "".join(path.read_text() for path in sorted(mats.parent.glob("*.err")))
        assert codes == [0] * len(commands), errors
        return processes, errors

    return run


def contents(results: Path) -> Counter[object]:
    """How many records there are of each content."""
    records = read_records(results)
    return Counter((r.protocol["name"], r.error, *r.entry.identity) for r in records)


def test_two_benchmarks_share_the_work(together: Together, mats: Path) -> None:
    folder = mats.parent
    processes, _ = together(BENCHMARK, BENCHMARK, pause=0.25)
    lines = [line.split(" ", 1) for line in (folder / "journal").read_text().splitlines()]
    assert len({run for _, run in lines}) == len(lines) == len(all_runs(folder / "runs")) == 6
    assert {int(process) for process, _ in lines} == set(processes)
    counts = contents(folder / "results")
    assert set(counts.values()) == {1}
    kinds = Counter(r.entry.kind for r in read_records(folder / "results"))
    assert kinds == {
        **{"synthetic": 7, "real": 1, "real-same-size": 1},
        **{"real-augmented": 1, "pca-gaussian": 1},
    }
    assert {lock.name for lock in (folder / "runs" / ".locks").iterdir()} <= {"number"}


def test_two_studies_share_the_work(together: Together, mats: Path) -> None:
    folder = mats.parent
    (folder / "means.toml").write_text(STUDY)
    processes, _ = together(*[("study", "means.toml")] * 2, pause=0.25)
    lines = [line.split(" ", 1) for line in (folder / "journal").read_text().splitlines()]
    assert len({run for _, run in lines}) == len(lines) == 4
    assert {int(process) for process, _ in lines} == set(processes)
    counts = contents(folder / "results" / "studies" / "means")
    assert set(counts.values()) == {1}
    assert len(counts) == 8
    assert (folder / "results" / "studies" / "means.md").exists()


@pytest.mark.usefixtures("tiny_names")
def test_two_evaluations_share_the_baselines(
    synth: Callable[..., Ran], together: Together, mats: Path
) -> None:
    """Each scores the set that it was asked for; of a baseline there is one record."""
    folder = mats.parent
    train = ("--recipe", "tiny", "--images", "64", "--precision", "fp32", "--data-root", mats)
    assert synth("train", *train).code == 0
    assert synth("generate", "--per-class", "5").code == 0
    together(("evaluate", *SCORE), ("evaluate", *SCORE))
    kinds = Counter(r.entry.kind for r in read_records(folder / "results"))
    assert kinds.pop("synthetic") == 2
    assert set(kinds.values()) == {1} and len(kinds) == 4


def test_a_killed_process_leaves_its_work_to_the_other(
    together: Together, mats: Path, environment: dict[str, str]
) -> None:
    folder = mats.parent
    words = ["benchmark", "--recipes", "tiny", *SIZES, *SCORE]
    command = [sys.executable, "-m", "tests.world", *words]
    slow = {**environment, "SYNTH_TEST_PAUSE": "1000"}
    null = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, stdout=null, stderr=null, env=slow) as first:
        while not (folder / "journal").exists():
            assert first.poll() is None
            time.sleep(0.1)
        with ThreadPoolExecutor() as pool:
            second = pool.submit(together, words)
            while "another process is at it" not in read_if_there(folder / "0.err"):
                assert not second.done(), second.result()
                time.sleep(0.1)
            # first it did what else there was
            kinds = {record.entry.kind for record in read_records(folder / "results")}
            first.kill()  # before an assertion, or the test would wait for it
            own = {"real", "real-augmented", "real-same-size", "pca-gaussian"}
            assert kinds == own
            second.result()
    (run,) = all_runs(folder / "runs")
    assert run.finished()
    assert set(contents(folder / "results").values()) == {1}


def read_if_there(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# The parts


def test_tasks_of_others_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synth.base.locks.PAUSE", 0.0)
    order: list[int] = []
    others = {1: 2, 2: 5}  # tasks that another process is at, and for how many looks

    def attempt(number: int) -> int:
        if others.get(number, 0):
            others[number] -= 1
            raise Busy(f"task {number}")
        order.append(number)
        return number * 10

    assert do_all([lambda n=n: attempt(n) for n in range(4)]) == [0, 10, 20, 30]  # type: ignore[misc]
    assert order == [0, 3, 1, 2]


def test_a_task_is_done_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom synth.base.locks import task\n"
        "with task(Path(sys.argv[1]), 'work', 1, 'a'):\n    print(flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Busy, match="work: another process"), task(tmp_path, "work", 1, "a"):
            pass
        with task(tmp_path, "work", 2, "a"):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with task(tmp_path, "work", 1, "a"):
            pass
    assert not list((tmp_path / ".locks").iterdir())


def test_a_task_that_fails_can_be_done_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), task(tmp_path, "work", "key"):
            raise ValueError("no")
    with exclusive(tmp_path / "lock", "work"), task(tmp_path, "work", "key"):
        pass


def test_the_same_real_classifier_is_trained_by_one_process(
    mats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that begin at once: one trains, and the other waits and reads its weights."""
    monkeypatch.setattr(real_classifier, "cache_folder", lambda: tmp_path / "cache")
    real = load_training_images("svhn", mats)
    protocol = Protocol("short", "disk", steps=3, batch=64, seeds=1)
    key = real_classifier._key(real, protocol, torch.device("cpu"), "fp32", 0)
    cache = tmp_path / "cache"
    waited: list[str] = []
    monkeypatch.setattr("synth.base.locks.PATIENCE", 0.0)

    @wraps(real_classifier.train_classifier)
    def never(*_: object) -> None:
        raise AssertionError("trained again")

    def trained_meanwhile(message: str) -> None:
        """Another process ends: its weights are there, and its lock is free."""
        waited.append(message)
        other.__exit__(None, None, None)

    weights = train_short(real, protocol, tmp_path)
    other = task(cache, "other", key)
    other.__enter__()
    (cache / "classifiers").mkdir()
    (cache / "classifiers" / f"{key}.safetensors").write_bytes(weights)
    monkeypatch.setattr("synth.base.locks.say", trained_meanwhile)
    monkeypatch.setattr(real_classifier, "train_classifier", never)
    real_classifier.real_classifier(real, protocol, torch.device("cpu"), "fp32")
    assert waited == ["waits for another process that is at it: the real classifier"]


def train_short(real: ImageSet, protocol: Protocol, folder: Path) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_classifier, "cache_folder", lambda: folder / "first")
        real_classifier.real_classifier(real, protocol, torch.device("cpu"), "fp32")
    (path,) = (folder / "first" / "classifiers").glob("*.safetensors")
    return path.read_bytes()


# Publishing


def test_publishing_at_once_leaves_a_leaderboard_with_all_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is slow to write the tables that it has read, while others add records."""
    shutil.copytree(ROOT / "results" / "records", tmp_path / "records")
    kept = [path.read_bytes() for path in sorted((tmp_path / "records").iterdir())]
    for path in (tmp_path / "records").iterdir():
        path.unlink()
    (tmp_path / "records").mkdir(exist_ok=True)
    write = tables.write_text

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.05)
        write(path, text)

    monkeypatch.setattr(tables, "write_text", slowly)

    def add(number: int) -> None:
        value = json.loads(kept[number])
        (tmp_path / "records" / f"{value['id']}.json").write_bytes(kept[number])
        publish(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    expected = to_csv(build_tables(read_records(tmp_path)))
    assert (tmp_path / "leaderboard.csv").read_text() == expected
