"""Locks between processes, and temporary folders that others can clear.

The system frees a lock when its process ends, however it ends.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TypeVar

from filelock import FileLock, Timeout

from synth.base.errors import SynthError
from synth.base.progress import say

Result = TypeVar("Result")
LOCKS = ".locks"  # the folder of locks, in the folder that they protect
SCRATCH = ".partial-"  # the names of scratch folders begin so
PAUSE = 1.0  # seconds between two looks at tasks that other processes are at
PATIENCE = 2.0  # seconds of waiting before a message


class Busy(SynthError):
    """Another process is at the same work."""


@contextmanager
def exclusive(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Only one process at a time is in a block with this lock file.

    If another process is in one, it raises `Busy`, with `wait` it waits. Raises `SynthError` if
    the file cannot be locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=PATIENCE if wait else 0)
        except Timeout as error:
            if not wait:
                raise Busy(f"{what}: another process is at it") from error
            say(f"waits for another process that is at it: {what}")
            lock.acquire()
    except OSError as error:
        raise SynthError(f"{path}: cannot be locked ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def task(folder: Path, what: str, *key: object, wait: bool = False) -> Iterator[None]:
    """A block that does what `key` describes: `exclusive` for all processes that share `folder`.

    It must begin with a look whether another process did it. So the lock file is removed when the
    task is done: who was waiting for it finds the task done, and so does who makes a new one.
    """
    path = folder / LOCKS / hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    with exclusive(path, what, wait):
        yield
        with suppress(OSError):
            path.unlink()


def do_all(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of all tasks, in their order.

    A task that raises `Busy` comes later. It waits only if other processes are at all that is left.
    So several processes with the same tasks share them.
    """
    done: dict[int, Result] = {}
    told: set[str] = set()
    while len(done) < len(tasks):
        before, busy = len(done), ""
        for number, run in enumerate(tasks):
            if number not in done:
                try:
                    done[number] = run()
                except Busy as error:
                    busy = str(error)
        if len(done) == before:
            if busy not in told:
                say(f"waits: {busy}")
                told.add(busy)
            time.sleep(PAUSE)
    return [done[number] for number in range(len(tasks))]


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, to make something in. It is gone after the block.

    First it clears the leftovers in `parent`. Raises `OSError` if it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(parent)
    while True:
        folder = parent / f"{SCRATCH}{token_hex(4)}"
        folder.mkdir(mode=0o700)
        lock = FileLock(folder / "lock")
        try:
            if _locked(lock):
                yield folder
                return
        finally:
            lock.release()
            with suppress(OSError):
                _remove(folder)


def _locked(lock: FileLock) -> bool:
    """False if another process took the new folder for a leftover."""
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError, FileExistsError):
        return False
    return Path(lock.lock_file).exists()


def _user() -> int:
    """The number of this user, as files have it. 0 on Windows."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _remove(folder: Path) -> None:
    """Removes a scratch folder, its lock last: without one, nobody could clear the rest."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
    shutil.rmtree(folder)


def clear_leftovers(folder: Path, depth: int = 0) -> None:
    """Removes scratch folders whose process has ended, in `folder` and `depth` levels below it.

    Only those of this user: what others put into a folder that all share is not followed.
    """
    for found in _children(folder):
        with suppress(OSError, Timeout):
            if found.is_symlink() or found.stat().st_uid != _user():
                continue
            if not found.name.startswith(SCRATCH):
                if depth:
                    clear_leftovers(found, depth - 1)
            elif (found / "lock").exists():
                with FileLock(found / "lock", timeout=0):
                    _remove(found)
            else:
                found.rmdir()  # it is empty if its process ended before it locked it


def _children(folder: Path) -> list[Path]:
    """Those that can be seen: another process may remove the folder at the same time."""
    with suppress(OSError):
        return list(folder.iterdir())
    return []
