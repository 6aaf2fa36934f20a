"""A benchmark that is spread over processes, or over a Ray cluster, leaves the same records."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from eval.benchmark import Plan, benchmark
from eval.evaluator import Scoring, Workspace
from eval.records import read_records
from eval.spread import Spread, _environment, jobs_that_pay
from synth.base.errors import UsageError
from synth.base.files import read_arrays, read_json, sha256
from synth.environment import command_line
from synth.published import RECIPES
from synth.runs import all_runs
from tests.conftest import ROOT, tiny
from tests.spread_world import ENTRY_POINT

CPU = torch.device("cpu")
SCORING = Scoring("spread-v1", CPU, "fp32")
TICK = 992  # images at the first checkpoint: the whole steps of 16 in 1,000


@pytest.fixture
def shared(mats: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose benchmarks know the tiny protocol in all of their processes."""
    folder = mats.parent
    plugin = folder / "plugins" / "spread_world-0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: spread-world\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(ENTRY_POINT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{plugin.parent}")
    monkeypatch.syspath_prepend(plugin.parent)  # processes that this one spawns get it too
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def spread_over(data: Path, spread: Spread, seeds: int, length: int) -> None:
    """Does a benchmark, and compares its records with those of one process."""
    plan = Plan([tiny("tiny", True)], "svhn", seeds, per_class=5, length=length)
    first, second = (
        Workspace(data, *(Path(f"{name}-{number}") for name in ("runs", "sets", "results")))
        for number in (1, 2)
    )
    torch.set_num_threads(2)  # of this process, so that it is seen who did the work
    benchmark(plan, SCORING, second, spread)
    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):  # as the others: PCA's last bits depend on it
        benchmark(plan, SCORING, first)
    found = []
    for results in (Path("results-1"), Path("results-2")):
        records = read_records(results)
        assert {record.environment["threads"] for record in records} == {1}
        assert {record.environment["command"] for record in records} == {command_line()}
        values = {}
        for record in records:
            path = results / "predictions" / f"{record.id}.npz"
            predictions = {name: array.tolist() for name, array in read_arrays(path).items()}
            entry = record.entry
            key = entry.name, entry.training_seed
            assert key not in values
            values[key] = record.accuracies, entry.sha256, entry.checkpoint, predictions
        found.append(values)
    assert found[0] == found[1]
    assert len(found[0]) == 4 + seeds


def test_two_processes_leave_the_records_of_one(shared: Path, mats: Path) -> None:
    spread_over(mats, Spread(jobs=2), seeds=2, length=64)


@pytest.mark.parametrize("stored", [False, True], ids=["shared folder", "storage"])
def test_a_ray_cluster_that_loses_a_worker_leaves_the_records_of_one_process(
    shared: Path, mats: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    """Two nodes on this machine. The worker that trains is killed after its first checkpoint. With
    a storage each works in a folder of its own, and nothing else is shared."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    journal = shared / "journal"
    monkeypatch.setenv("SYNTH_TEST_JOURNAL", str(journal))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would end tasks of a full machine
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # seconds, on a busy machine
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)

    storage = shared / "storage"

    def kept() -> bool:
        if not stored:
            return any(shared.glob("runs-2/0*/state/*.safetensors"))
        return any(sha256(path) in path.name for path in storage.glob("*/000001-*.zip"))

    def kill() -> None:
        while not kept():
            time.sleep(0.01)
        os.kill(int(journal.read_text().split()[-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        url = storage.as_uri() if stored else None
        spread_over(mats, Spread(ray=cluster.address, storage=url), seeds=1, length=2_016)
    finally:
        cluster.shutdown()
    killer.join()
    (run,) = all_runs(Path("runs-2"))
    resumed = read_json(run.folder / "environment.json")["resumed"]
    assert [start["images"] for start in resumed] == [TICK]
    assert len({*journal.read_text().split()}) == 2  # the lost worker, and another one
    assert not list(storage.rglob("*.zip"))


def test_a_process_for_each_thread_pays_if_each_has_a_run() -> None:
    threads = torch.get_num_threads()
    assert jobs_that_pay(threads, CPU) == threads
    assert jobs_that_pay(threads, torch.device("cuda")) == 1
    torch.set_num_threads(4)
    assert jobs_that_pay(3, CPU) == 1
    torch.set_num_threads(threads)


def test_new_processes_get_the_variables_and_this_one_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNTH_TEST_KEPT", "before")
    monkeypatch.delenv("SYNTH_TEST_NEW", raising=False)
    with _environment({"SYNTH_TEST_KEPT": "within", "SYNTH_TEST_NEW": "within"}):
        assert os.environ["SYNTH_TEST_KEPT"] == os.environ["SYNTH_TEST_NEW"] == "within"
    assert os.environ["SYNTH_TEST_KEPT"] == "before"
    assert "SYNTH_TEST_NEW" not in os.environ


@pytest.mark.parametrize(
    ("protocol", "recipes", "refused"),
    [
        ("stream-v1", ["cdcgan"], False),
        ("stream-v1", ["cdcgan", "dcgan"], True),
        ("fixed-v1", ["cdcgan", "dcgan"], False),
    ],
)
def test_a_stream_takes_no_unconditional_recipe(
    protocol: str, recipes: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def make(*_: object) -> None:
        raise Begun("begun")

    monkeypatch.setattr("eval.benchmark.make_evaluator", make)
    plan = Plan([RECIPES[name] for name in recipes], "svhn", 1, per_class=5)
    with pytest.raises(
        UsageError if refused else Begun, match="dcgan does" if refused else "begun"
    ):
        benchmark(plan, Scoring(protocol, CPU), Workspace())
    with pytest.raises(UsageError, match="--seeds 0: must be 1 or more"):
        benchmark(replace(plan, seeds=0), Scoring(protocol, CPU), Workspace())


def test_no_ray_cluster_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    from eval.spread import on_ray

    with pytest.raises(
        UsageError, match=r"--ray: Ray is not installed; pip install 'synth-cas\[ray\]'"
    ):
        on_ray("auto", [], CPU)
