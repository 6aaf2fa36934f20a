"""Tasks on machines that share no folder: what they leave goes through a storage of fsspec.

A task works in a folder of its own machine. Each checkpoint puts all that the folder holds into one
object of the storage, `<task>/000007-<sha256>.zip`, and the end puts `<task>/done-<sha256>.zip`. An
object that was not put whole does not fit its hash: the one before it counts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from eval.evaluator import Workspace
from synth.base.errors import SynthError, UsageError
from synth.base.files import (
    atomic_file,
    next_number,
    numbered_folders,
    sha256,
    write_numbered_folder,
)
from synth.base.locks import scratch_folder
from synth.base.progress import say

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Part = partial[Any]  # a task; it takes the workspace that it is done in
OBJECT = re.compile(r"(\d{6,}|done)-([0-9a-f]{64})\.zip")
PAUSES = 5, 30  # seconds, before what a finished task holds is put again
RESULTS = ("predictions", "figures", "records")  # a record comes after what it needs


def check_storage(url: str) -> None:
    """Raises `UsageError` unless files can be put into the storage."""
    if "://" not in url:
        raise UsageError(f"--storage {url}: give a URL, such as s3://bucket/folder")
    try:
        with _reached(url) as (system, root):
            system.makedirs(root, exist_ok=True)
            probe = f"{root}/probe-{token_hex(4)}"  # others may probe it now
            system.pipe_file(probe, b"synth")
            system.rm_file(probe)
    except SynthError as error:
        raise UsageError(error) from error


@contextmanager
def _reached(url: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system, and the folder in it. What it raises becomes a `SynthError`."""
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(url)
        system.invalidate_cache()  # other machines put objects there
        yield system, root.rstrip("/")
    except SynthError:
        raise
    except Exception as error:  # each file system has errors of its own
        told = str(error) or type(error).__name__
        raise SynthError(f"--storage {shown(url)}: {told.replace(url, shown(url))}") from error


def shown(url: str) -> str:
    """A URL in a message: without a login and a query."""
    return re.sub(r"(?<=://)[^/@]*@|[?#].*", "", url)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder to pack and unpack in. Raises `SynthError` if it cannot be written."""
    try:
        with scratch_folder(Path(gettempdir())) as folder:
            yield folder
    except OSError as error:
        raise SynthError(
            f"{gettempdir()}: {error.strerror or error}; choose another folder by TMPDIR"
        ) from error


# The objects of a task


def name_of(part: Part, workspace: Workspace) -> str:
    """The folder of a task in the storage. It is the same for the same command."""
    folders = workspace.runs, workspace.datasets, workspace.results
    task = part.func.__module__, part.func.__name__, part.args, list(map(str, folders))
    return hashlib.sha256(repr(task).encode()).hexdigest()[:16]


def push(url: str, task: str, folder: Path, done: bool = False) -> None:
    """Puts what `folder` holds, without hidden files. Then removes what was put before."""
    with _scratch() as scratch:
        packed = scratch / "packed.zip"
        with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
            for path, name in _files(folder):
                archive.write(path, name)
        with _reached(url) as (system, root):
            earlier = [name for name in _objects(system, f"{root}/{task}") if name[0] != "d"]
            number = 1 + max((int(name.split("-")[0]) for name in earlier), default=0)
            name = f"{'done' if done else f'{number:06d}'}-{sha256(packed)}.zip"
            system.makedirs(f"{root}/{task}", exist_ok=True)
            system.put_file(str(packed), f"{root}/{task}/{name}")
            for other in earlier:
                with suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{task}/{other}")


def pull(url: str, task: str, folder: Path, done: bool = False) -> bool:
    """Writes what was put last into `folder`. done: at the end of the task. False if there is
    nothing whole."""
    with _scratch() as scratch:
        packed = _get_whole(url, task, scratch, done)
        if packed is not None:
            zipfile.ZipFile(packed).extractall(folder)
    return packed is not None


def _get_whole(url: str, task: str, scratch: Path, done: bool) -> Path | None:
    """The last object of a task that is whole, in the scratch folder; or None."""
    with _reached(url) as (system, root):
        for name in reversed(_objects(system, f"{root}/{task}")):
            if done and not name.startswith("done"):
                continue
            with suppress(FileNotFoundError):  # it was replaced just now
                system.get_file(f"{root}/{task}/{name}", str(scratch / name))
                if sha256(scratch / name) == name[-68:-4]:
                    return scratch / name
    return None


def clear(url: str, task: str) -> None:
    with _reached(url) as (system, root), suppress(FileNotFoundError):
        system.rm(f"{root}/{task}", recursive=True)


def _objects(system: AbstractFileSystem, folder: str) -> list[str]:
    """The names of a task's objects, oldest first."""
    try:
        names = [path.rsplit("/", 1)[-1] for path in system.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if OBJECT.fullmatch(name))


def _files(folder: Path) -> list[tuple[Path, str]]:
    """The files below a folder that are not hidden, with their names in it."""
    found = sorted((path, path.relative_to(folder)) for path in folder.rglob("*"))
    shown = (each for each in found if not any(part.startswith(".") for part in each[1].parts))
    return [(path, name.as_posix()) for path, name in shown if path.is_file()]


# A task on its machine


def here_alone(workspace: Workspace) -> Workspace:
    """The workspace with paths that mean the same in the working folder of another machine. Raises
    `UsageError` if a folder is outside the working folder."""
    folders = (workspace.runs, workspace.datasets, workspace.results)
    runs, datasets, results = (Path(os.path.relpath(folder)) for folder in folders)
    for name, folder in (("runs", runs), ("datasets", datasets), ("results", results)):
        if folder.parts[:1] == ("..",):
            raise UsageError(
                f"--storage: --{name} {folder} is outside this folder; choose one in it"
            )
    data, cache = (path and path.absolute() for path in (workspace.data_root, workspace.cache))
    return Workspace(data, runs, datasets, results, cache)


def numbers_after(workspace: Workspace, count: int) -> list[dict[Path, int]]:
    """For each of `count` tasks the number of the folder that it makes in each of the `_roots`."""
    first = {root: next_number(root) for root in _roots(workspace)}
    return [{root: number + task for root, number in first.items()} for task in range(count)]


def _roots(workspace: Workspace) -> tuple[Path, Path, Path]:
    """The folders with numbered folders."""
    return workspace.runs, workspace.datasets, workspace.baselines


@contextmanager
def away(
    url: str, task: str, was: Path, workspace: Workspace, numbers: dict[Path, int]
) -> Iterator[tuple[Path, Workspace]]:
    """A folder to do a task in, with what the storage holds of it, and its workspace there.

    Puts all into the storage after each checkpoint and at the end. was: the working folder of the
    command. This one is as deep, so that paths that leave it are recorded alike.
    """

    def keep() -> None:
        try:
            push(url, task, folder)
        except SynthError as error:  # the next checkpoint tries again
            say(f"not kept: {error}")

    with scratch_folder(Path(gettempdir())) as scratch:
        folder = scratch / "work" / was.relative_to(was.anchor)
        folder.mkdir(parents=True)
        pull(url, task, folder)
        for root, number in numbers.items():
            if number:  # new folders count on from this one
                (folder / root / f"{number - 1:05d}-before").mkdir(parents=True, exist_ok=True)
        try:
            yield folder, replace(workspace, saved=keep)
        except BaseException:
            keep()  # the record of a failure, perhaps
            raise
        push_at_last(url, task, folder)


def push_at_last(url: str, task: str, folder: Path) -> None:
    """Puts all that a finished task holds. Tries again, since hours may be lost otherwise."""
    for pause in PAUSES:
        try:
            return push(url, task, folder, done=True)
        except SynthError as error:
            say(f"tries again in {pause} s: {error}")
            time.sleep(pause)
    push(url, task, folder, done=True)


# What a task left


def fetch(url: str, task: str, workspace: Workspace) -> bool:
    """Merges what a finished task left into the workspace, and clears it from the storage. False if
    there is nothing."""
    with scratch_folder(Path(gettempdir())) as scratch:
        if not pull(url, task, scratch / "pulled", done=True):
            return False
        merge(scratch / "pulled", workspace)
    clear(url, task)
    return True


def merge(pulled: Path, workspace: Workspace) -> None:
    """Copies runs, sets and records from a folder with the same workspace.

    Nothing is overwritten: a run or set whose number is taken gets the next one. What is here
    already is not copied again. Raises `SynthError` if another record has the same name.
    """
    for root in _roots(workspace):
        for folder in numbered_folders(pulled / root):
            _merge_folder(folder, root)
    for kind in RESULTS:
        for path in sorted((pulled / workspace.results / kind).glob("*")):
            place = workspace.results / kind / path.name
            if not place.exists():
                with atomic_file(place) as temporary:
                    shutil.copyfile(path, temporary)
            elif sha256(place) != sha256(path):
                raise SynthError(f"{place}: is there already, and records are not overwritten")


def _merge_folder(folder: Path, root: Path) -> None:
    number, slug = int(folder.name[:5]), folder.name[6:]
    content = _content(folder)
    if any(_content(other) == content for other in root.glob(f"{'[0-9]' * 5}-{slug}")):
        return
    fill = partial(shutil.copytree, folder, dirs_exist_ok=True)
    made = write_numbered_folder(root, slug, fill, number)
    if made.name != folder.name:
        say(f"{made}: its records call it {folder.name}, and that number was taken")


def _content(folder: Path) -> dict[str, str]:
    """Name → sha256 of each file."""
    return {name: sha256(path) for path, name in _files(folder)}
