"""A storage between machines that share no folder: nothing half, nothing lost, nothing twice."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import spread, storage
from eval.baselines import BASELINES
from eval.benchmark import Plan, benchmark, do_one
from eval.evaluator import Scoring, Workspace, make_evaluator
from eval.records import read_records
from eval.spread import Spread
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json
from synth.environment import command_line
from synth.gan import GANTrainer
from synth.runs import all_runs, weights_of_hash
from tests.conftest import Ran, tiny

CPU = torch.device("cpu")
SCORING = Scoring("tiny-v1", CPU, "fp32")
HERE = Workspace()


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield (tmp_path / "storage").as_uri() if request.param == "file" else "memory://key@host/kept"
    MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here this process plays the workers, whose state must not stay with the tests after these."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(spread, "hide_bars", lambda: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield
    torch.set_num_threads(threads)


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if not name.startswith((".", "runs/.l"))}


# Objects


def test_what_was_put_last_comes_back_and_nothing_else_stays(url: str, tmp_path: Path) -> None:
    storage.check_storage(url)
    assert not storage.pull(url, "task", tmp_path / "nothing")
    for text in ("first", "second"):
        (tmp_path / "work" / "runs" / ".locks").mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / "runs" / ".locks" / "lock").touch()
        (tmp_path / "work" / "runs" / "log").write_text(text)
        storage.push(url, "task", tmp_path / "work")
    with storage._reached(url) as (system, root):
        assert len(system.ls(f"{root}/task")) == 1
    assert not storage.pull(url, "task", tmp_path / "pulled", done=True)
    assert storage.pull(url, "task", tmp_path / "pulled")
    assert content(tmp_path / "pulled") == {"runs/log": b"second"}
    assert not storage.pull(url, "another", tmp_path / "nothing")
    storage.clear(url, "task")
    storage.clear(url, "task")
    assert not storage.pull(url, "task", tmp_path / "nothing")


@pytest.mark.parametrize("done", [False, True])
def test_what_was_half_put_is_not_taken(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """A worker is killed while it puts its second state: the first one counts, until another worker
    has put one whole."""
    work = tmp_path / "work"
    work.mkdir()

    def put(text: str) -> None:
        (work / "state").write_text(text)
        storage.push(url, "task", work, done)

    (work / "state").write_text("first")
    storage.push(url, "task", work)
    with storage._reached(url) as (system, _):
        whole = type(system).put_file

    def killed(self: Any, path: str, target: str) -> None:
        data = Path(path).read_bytes()
        self.pipe_file(target, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(system), "put_file", killed)
    with pytest.raises(KeyboardInterrupt):
        put("second")
    monkeypatch.setattr(type(system), "put_file", whole)
    assert storage.pull(url, "task", tmp_path / "pulled")
    assert content(tmp_path / "pulled") == {"state": b"first"}
    assert not storage.pull(url, "task", tmp_path / "pulled", done=True)
    put("third")
    assert storage.pull(url, "task", tmp_path / "pulled", done)
    assert content(tmp_path / "pulled") == {"state": b"third"}


def test_commands_with_other_folders_do_not_take_each_others_work() -> None:
    parts = [partial(do_one, 1, 2, 3, number) for number in range(2)]
    folders = [HERE, *(replace(HERE, **{n: Path("x")}) for n in ("runs", "datasets", "results"))]
    names = {storage.name_of(part, each) for part in parts for each in folders}
    assert len(names) == 8
    assert storage.name_of(partial(do_one, 1, 2, 3, 0), Workspace(Path("data"))) in names


def test_the_end_of_a_task_is_put_again_if_that_fails(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "state").touch()
    with storage._reached(url) as (system, _):
        whole = type(system).put_file
    waited: list[int] = []

    def refused(self: Any, *arguments: Any) -> None:
        monkeypatch.setattr(type(system), "put_file", whole)
        raise NotImplementedError

    monkeypatch.setattr(type(system), "put_file", refused)
    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=waited.append))
    storage.push_at_last(url, "task", tmp_path / "work")
    assert storage.pull(url, "task", tmp_path / "pulled", done=True)
    assert waited == [5]


def test_a_message_names_no_login_and_no_query() -> None:
    assert storage.shown("s3://key:secret@bucket/folder?sig=x#y") == "s3://bucket/folder"
    assert storage.shown("file:///a@b/c") == "file:///a@b/c"
    with pytest.raises(SynthError) as caught, storage._reached("nowhere://me:secret@host/folder"):
        pass
    assert "secret" not in str(caught.value)
    with pytest.raises(SynthError, match="NotImplementedError"), storage._reached("memory://a"):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("folder", r"--storage folder: give a URL, such as s3://bucket/folder"),
        ("nowhere://folder", r"--storage nowhere://folder: Protocol not known: nowhere"),
        ("file:///dev/null/folder", r"--storage file:///dev/null/folder: .*Not a directory"),
    ],
)
def test_a_storage_that_does_not_answer_is_an_error_of_one_line(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        storage.check_storage(url)


def test_a_storage_goes_with_ray(
    synth: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SYNTH_BENCHMARK_JOBS")
    ran = synth("benchmark", "--storage", "memory://kept")
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "error: --storage: goes with --ray")
    ran = synth("benchmark", "--storage", "kept", "--ray", "auto")
    assert (ran.code, ran.err.splitlines()[-1][:22]) == (2, "error: --storage kept:")


def test_a_folder_outside_the_working_folder_is_named() -> None:
    with pytest.raises(UsageError, match=r"--runs \.\./runs is outside this folder"):
        storage.here_alone(Workspace(runs=Path("../runs")))
    alone = storage.here_alone(Workspace(Path("data"), Path.cwd() / "runs"))
    assert (alone.data_root, alone.runs) == (Path.cwd() / "data", Path("runs"))


# Merging

TEXT = st.sampled_from(["a", "b", "c"])
NUMBERED = st.dictionaries(st.tuples(st.integers(0, 3), TEXT), TEXT, max_size=4)
RECORDS = st.dictionaries(TEXT, TEXT, max_size=3)
WORLD = st.tuples(NUMBERED, NUMBERED, NUMBERED, RECORDS)


def write_world(folder: Path, world: tuple[Any, ...]) -> None:
    *numbered, records = world
    for root, folders in zip((HERE.runs, HERE.datasets, HERE.baselines), numbered, strict=True):
        for (number, slug), text in folders.items():
            (folder / root / f"{number:05d}-{slug}").mkdir(parents=True)
            (folder / root / f"{number:05d}-{slug}" / "file").write_text(text)
    for name, text in records.items():
        (folder / HERE.results / "records").mkdir(parents=True, exist_ok=True)
        (folder / HERE.results / "records" / name).write_text(text)


@settings(max_examples=25)  # each syncs files
@given(WORLD, WORLD)
def test_merging_overwrites_nothing_and_loses_nothing(here: Any, pulled: Any) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        place = Path(scratch)
        (place / "here").mkdir()
        write_world(place / "here", here)
        write_world(place / "pulled", pulled)
        patch.chdir(place / "here")
        before, brought = content(Path()), content(place / "pulled")
        clash = any(here[3].get(name, text) != text for name, text in pulled[3].items())
        try:
            storage.merge(place / "pulled", HERE)
            assert not clash
        except SynthError as error:
            assert clash
            assert "records are not overwritten" in str(error)
        after = content(Path())
        assert before.items() <= after.items()
        assert content(place / "pulled") == brought
        for root in (HERE.runs, HERE.datasets, HERE.baselines):
            found = {(path.name[6:], (path / "file").read_text()) for path in root.glob("0*")}
            for folder in (place / "pulled" / root).glob("0*"):
                assert (folder.name[6:], (folder / "file").read_text()) in found
        if not clash:
            assert (
                pulled[3].items()
                <= {
                    path.name: path.read_text() for path in (HERE.results / "records").glob("*")
                }.items()
            )
            storage.merge(place / "pulled", HERE)
            assert content(Path()) == after


# A whole benchmark, with a cluster played by this process


def cluster(losses: list[int], lost: list[str]) -> Callable[..., None]:
    """Plays `on_ray`. A worker is lost at its n-th training step for each n in `losses`."""
    step = GANTrainer.step

    def on_ray(
        address: str, tasks: Sequence[Callable[[], Any]], device: torch.device, done: Any
    ) -> None:
        for task in tasks:
            while True:
                taken = 0

                def counted(self: GANTrainer) -> None:
                    nonlocal taken
                    taken += 1
                    if losses and taken == losses[0]:
                        losses.pop(0)
                        raise MemoryError("lost")
                    step(self)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(GANTrainer, "step", counted)
                    patch.setattr("eval.storage.push", partial(_push, lost))
                    try:
                        done(task())
                        break
                    except MemoryError:
                        continue

    return on_ray


def _push(lost: list[str], *arguments: Any, push: Any = storage.push, **more: Any) -> None:
    """A worker that is lost puts nothing more."""
    if not isinstance(sys.exc_info()[1], MemoryError):
        return push(*arguments, **more)
    lost.append(arguments[1])


@pytest.fixture
def few_baselines(tiny_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that take no time; and no report."""
    monkeypatch.setattr("eval.benchmark.publish", lambda results: [])
    few = {kind: BASELINES[kind] for kind in ("real", "real-same-size")}
    monkeypatch.setattr(BASELINES, "entries", few)


@pytest.mark.usefixtures("few_baselines")
@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_machines_that_share_nothing_leave_the_records_of_one_process(
    url: str, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lost = mats.parent / "work", list[str]()
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["synth", "benchmark", "--data-root", "../small-svhn", "--storage", url]
    monkeypatch.setattr(sys, "argv", words)
    assert command_line() == "synth benchmark --data-root ../small-svhn --storage storage"
    monkeypatch.setattr(spread, "on_ray", cluster([9, 10], lost))
    torch.set_num_threads(1)
    recipe = tiny("tiny", True)
    recipe = replace(recipe, training=replace(recipe.training, batch=128))
    plan = Plan([recipe], "svhn", 2, per_class=5, length=2_048)
    one, many = (
        Workspace(Path("../small-svhn"), *(Path(f"{name}-{n}") for name in ("r", "s", "results")))
        for n in (1, 2)
    )
    benchmark(plan, SCORING, one)
    # Number 0 is taken here
    (many.runs / "00000-mine").mkdir(parents=True)
    benchmark(plan, SCORING, many, Spread(ray="played", storage=url))
    assert len(lost) == 2
    found = []
    for workspace in (one, many):
        records = read_records(workspace.results)
        assert {record.environment["command"] for record in records} == {command_line()}
        for record in records:
            if record.entry.run is not None:
                assert weights_of_hash(Path(record.entry.run), record.entry.checkpoint) is not None
                assert Path(str(record.entry.folder), "manifest.json").is_file()
        values = {
            (r.entry.name, r.entry.training_seed): (
                r.accuracies,
                r.entry.sha256,
                r.entry.checkpoint,
            )
            for r in records
        }
        assert len(values) == len(records) == 4
        found.append(values)
    assert found[0] == found[1]
    resumed = [read_json(run.folder / "environment.json")["resumed"] for run in all_runs(many.runs)]
    assert [[start["images"] for start in each] for each in resumed] == [
        [1024],
        [1024],
    ]  # the first tick
    with storage._reached(url) as (system, root):
        assert not system.find(root)


@pytest.mark.usefixtures("few_baselines")
@pytest.mark.parametrize("url", ["memory"], indirect=True)
def test_what_is_here_or_was_left_is_not_done_elsewhere(
    url: str, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier command left a finished run here, and a finished task in the storage."""
    monkeypatch.chdir(mats.parent)
    plan = Plan([tiny("tiny", True)], "svhn", 1, per_class=5, length=64)
    workspace = storage.here_alone(Workspace(mats))
    real = make_evaluator(SCORING, "svhn", workspace).real
    sent: list[str] = []

    def away(number: int) -> None:
        part = partial(do_one, plan, SCORING, real, number)
        spread._work_away(url, Path.cwd(), ["synth"], part, workspace, {})

    away(0)
    away(1)
    parts = [partial(do_one, plan, SCORING, real, number) for number in range(3)]
    assert storage.fetch(url, storage.name_of(parts[0], HERE), workspace)
    assert not storage.fetch(url, storage.name_of(parts[0], HERE), workspace)
    shutil.rmtree("results")  # the run and its set are left

    def on_ray(address: str, tasks: Any, device: torch.device, done: Any) -> None:
        for task in tasks:
            sent.append(storage.name_of(task.args[3], HERE))
            done(task())

    monkeypatch.setattr(spread, "on_ray", on_ray)
    benchmark(plan, SCORING, workspace, Spread(ray="played", storage=url))
    assert sent == [storage.name_of(part, HERE) for part in parts[2:]]
    assert len(all_runs(workspace.runs)) == 1
    assert len(read_records(workspace.results)) == 3
    others = replace(real, train_fingerprint="0" * 64)
    with pytest.raises(SynthError, match="svhn: a machine of the cluster has other real data"):
        do_one(plan, SCORING, others, 0, workspace)
