"""Writing: whole or not at all, by many processes at once, and after a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent

import pytest

from synth.base.errors import SynthError
from synth.base.files import (
    atomic_file,
    check_writable,
    numbered_folders,
    write_numbered_folder,
    write_text,
)
from synth.base.locks import clear_leftovers, scratch_folder
from tests.conftest import ROOT

WRITERS = 8


def in_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python code in a process of its own. What it needs from synth.base is imported."""
    imports = (
        "import sys, time\nfrom pathlib import Path\nfrom synth.base.files import *\n"
        "from synth.base.locks import *\nroot = Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", imports + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextmanager
def killed(code: str, root: Path, number: int = signal.SIGKILL) -> Iterator[None]:
    """The block runs while the code stands still where it printed. Then it is killed."""
    with in_process(code, root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield
        process.send_signal(number)


WRITING = (
    "with atomic_file(root / 'a' / 'x.txt') as path:\n"
    "    path.write_text('half')\n    print('here', flush=True)\n    time.sleep(60)\n"
)
FILLING = (
    "def fill(folder):\n    write_text(folder / 'x.txt', 'half')\n"
    "    print('here', flush=True)\n    time.sleep(60)\n"
    "write_numbered_folder(root, 'set', fill)\n"
)


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    with killed(WRITING, tmp_path):
        write_text(tmp_path / "a" / "y.txt", "whole")
        assert len(list((tmp_path / "a").glob(".partial-*/x.txt"))) == 1
    write_text(tmp_path / "a" / "y.txt", "whole")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["y.txt"]


def test_a_new_folder_clears_what_was_left_of_others(tmp_path: Path) -> None:
    (tmp_path / "00007-run" / "state").mkdir(parents=True)
    inside = WRITING.replace("'a'", "'00007-run' / 'state'")
    with killed(FILLING, tmp_path), killed(inside, tmp_path):
        write_numbered_folder(tmp_path, "set", lambda folder: None)
        assert len(list(tmp_path.rglob(".partial-*"))) == 2
    made = write_numbered_folder(tmp_path, "set", lambda folder: None)
    assert made.name == "00009-set"
    assert not list(tmp_path.rglob(".partial-*"))


def test_leftovers_without_a_lock(tmp_path: Path) -> None:
    """An empty one is removed: its process ended before it wrote. In another one somebody may be
    at work. A link leads elsewhere."""
    (tmp_path / ".partial-empty").mkdir()
    (tmp_path / ".partial-other").mkdir()
    (tmp_path / ".partial-other" / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lock").touch()
    (tmp_path / ".partial-link").symlink_to(tmp_path / "mine")
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".partial-link",
        ".partial-other",
        "mine",
    ]
    assert (tmp_path / "mine" / "lock").exists()


def test_leftovers_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many users share the system's folder for temporary files."""
    (tmp_path / ".partial-other").mkdir()
    (tmp_path / ".partial-other" / "lock").touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: -1)
        clear_leftovers(tmp_path)
        assert (tmp_path / ".partial-other" / "lock").exists()
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_another_process_clears_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make = Path.mkdir

    def make_and_lose(folder: Path, *arguments: object, **options: object) -> None:
        make(folder, *arguments, **options)  # type: ignore[arg-type]
        made.append(folder)
        if len(made) == 2:  # the first one is the parent
            clear_leftovers(tmp_path)

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with scratch_folder(tmp_path) as folder:
        assert len(made) == 3
        clear_leftovers(tmp_path)
        assert folder.is_dir()


def test_many_processes_take_one_number_each(tmp_path: Path) -> None:
    code = (
        "for _ in range(10):\n"
        "    check_writable(root)\n"
        "    write_numbered_folder(root, 'set', lambda f: write_text(f / 'x.txt', 'whole'))\n"
    )
    processes = [in_process(code, tmp_path) for _ in range(WRITERS)]
    assert [process.wait(120) for process in processes] == [0] * WRITERS
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    folders = numbered_folders(tmp_path)
    assert [int(folder.name[:5]) for folder in folders] == list(range(10 * WRITERS))
    assert {path.read_text() for path in tmp_path.glob("0*/x.txt")} == {"whole"}
    assert not list(tmp_path.rglob(".partial-*"))


def test_many_threads_write_one_file(tmp_path: Path) -> None:
    texts = {str(number) * 1000 for number in range(WRITERS)}
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "x.txt", text), sorted(texts) * 20))
    assert (tmp_path / "x.txt").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "old")
    refused = pytest.raises(SynthError, match=r"x\.txt: cannot be written \(No space left")
    with refused, atomic_file(tmp_path / "x.txt") as path:
        path.write_text("new")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "x.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "file").touch()
    with pytest.raises(SynthError, match="below: cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_a_command_that_is_asked_to_end_cleans_up(tmp_path: Path) -> None:
    """SIGTERM outside training does what Ctrl-C does."""
    command = f"def command(**options):\n{indent(FILLING, '    ')}"
    code = f"import cli\n{command}cli.app = command\ncli.main()\n"
    with in_process(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
