"""Reading and writing files. A file or folder appears whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import SynthError

NUMBERED = re.compile(r"^(\d{5})-")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to. It is renamed to `path` when the block ends without an error.

    The temporary name has the suffix of `path`, because some writers choose a format by it.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(path.suffix, f".{path.stem}-", path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise SynthError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `SynthError` if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SynthError(f"{path}: is damaged, not JSON ({error})") from error
    if not isinstance(value, dict):
        raise SynthError(f"{path}: is damaged, it holds no JSON object")
    return value


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Raises `SynthError` if it is missing, damaged or pickled."""
    damage = (OSError, ValueError, EOFError, AttributeError, zlib.error, zipfile.BadZipFile)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except damage as error:
        raise SynthError(f"{path}: cannot be read ({error}); make it again") from error


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_arrays(*arrays: np.ndarray) -> str:
    """sha256 of the bytes of all arrays, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def make_numbered_folder(root: Path, slug: str) -> Path:
    """Makes `root/00003-slug`. The number is one above the highest in `root`."""
    with _writing_in(root):
        folder = _next_folder(root, slug)
        folder.mkdir()
    return folder


def numbered_folders(root: Path) -> list[Path]:
    """The numbered folders in `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and NUMBERED.match(path.name))


def _next_folder(root: Path, slug: str) -> Path:
    number = max((int(path.name[:5]) + 1 for path in numbered_folders(root)), default=0)
    return root / f"{number:05d}-{slug}"


def write_numbered_folder(root: Path, slug: str, fill: Callable[[Path], None]) -> Path:
    """Makes `root/00003-slug` with what `fill(folder)` writes. It appears whole, or not at all."""
    with _writing_in(root):
        hidden = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
        try:
            fill(hidden)
            for path in hidden.rglob("*"):
                if path.is_file():
                    _sync(path)
            hidden.chmod(0o777 & ~_umask())
            return hidden.rename(_next_folder(root, slug))
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Raises `SynthError` if no file can be written in `folder`. Call it before hours of work."""
    with atomic_file(folder / "probe") as temporary:
        temporary.touch()
    (folder / "probe").unlink()


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


@contextmanager
def _writing_in(root: Path) -> Iterator[None]:
    """Makes `root` for the block. Turns an OSError into a `SynthError`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SynthError(
            f"{root}: no folder can be written there ({error.strerror}); choose another with --out"
        ) from error


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unnamed"


def portable(path: Path | str) -> str:
    """The path relative to the current folder, for a record that others read.

    If that would name a folder of this machine or its user, only the last part is kept. This
    happens where the way leads through the root, or through a parent of the home folder.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    here = Path.cwd()
    common = Path(os.path.commonpath([target, here]))
    if common in Path.home().parents or common == Path(common.anchor):
        return target.name if target != here else "."
    return Path(os.path.relpath(target, here)).as_posix()
